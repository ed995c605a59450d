"""How far a training is from the edge of stability: by its linearised steps, and by what happens if they are enlarged."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.analyze.certificate import Certificate
from lopt.analyze.dynamics import growth
from lopt.analyze.eigenvalues import MEMORY, eigenvalues, refuse_too_large
from lopt.analyze.linear import Linear, moving_size, overshoot, sharpness, split, tangent_step
from lopt.analyze.problem import Loss, Multiplied, as_task
from lopt.checks import at_least, positive
from lopt.errors import InputError
from lopt.evaluate.training import as_optimizer
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.unroll import Inner, start, step, unroll

LEAST, MOST = 1e-4, 1e4  # factors of the curvature that are tried
PRECISION = 0.01  # relative, of the critical factor
LOOK, SETTLE = 40, 20  # steps that are taken on from a checkpoint, and those of them in which a perturbation turns


def certify(
    optimizer: Optimizer | optax.GradientTransformation,
    loss: Task | Loss,
    params: Any = None,
    *,
    steps: int,
    key: PRNGKeyArray,
    checkpoints: int = 5,
    tolerance: float = 0.01,
    tell_horizon: bool = True,
    memory: float = MEMORY,
    name: str | None = None,
) -> Certificate:
    r"""Train, linearise the training step at checkpoints, and say how far it is from the edge of stability.

    With $J(c)$ the Jacobian of the joint step of parameters and optimizer state where the Hessian is $c$ times what it is,

    $$\text{margin} = \min\{c : \rho_\text{overshoot}(J(c)) > 1 + \text{tolerance}\}, \qquad
      \lambda_\text{critical} = \text{margin} \cdot \lambda_{\max}(\nabla^2 f)$$

    For gradient descent $\lambda_\text{critical} = 2/\alpha$, for heavy-ball momentum $2(1 + \beta)/\alpha$.

    Args:
        optimizer: of lopt or of optax.
        loss: a task, or `loss(params, key)`.
        params: where the training of a loss starts.
        steps: of the training.
        key: draws everything.
        checkpoints: at how many steps the training is looked at, evenly from after the first to the last.
        tolerance: see `Certificate`. A direction that grows by 1 % a step doubles in 70 steps.
        tell_horizon: whether the optimizer is told the number of steps.
        memory: GiB that the vectors behind the eigenvalues may take: 24 of the length of parameters and state.
        name: of the optimizer in the certificate.

    Raises:
        InputError: for fewer steps than checkpoints, fewer than two checkpoints, a loss or a gradient that is not finite at
            the start, a rule that wants what a certificate does not give, more memory than there may be, or what `as_task` refuses.

    Examples:
        >>> import jax, jax.numpy as jnp, optax
        >>> from lopt.analyze import certify
        >>> bowl = lambda w, key: 2.0 * jnp.sum(w**2)  # sharpness 4
        >>> found = certify(optax.sgd(0.1), bowl, jnp.ones(3), steps=20, key=jax.random.key(0), checkpoints=2)
        >>> found.stable, [round(float(x)) for x in found.critical_sharpness]
        (True, [20, 20])

    Source: edge of stability: Cohen et al. 2021 and 2022; that learned optimizers are judged by the joint dynamics: Harrison et al. 2022.
    """
    at_least(2, checkpoints=checkpoints)
    positive(tolerance=tolerance)
    if steps < checkpoints:
        raise InputError(f"steps is {steps}; a certificate of {checkpoints} checkpoints needs at least as many.")
    rule, task = as_optimizer(optimizer), as_task(loss, params)
    refuse_too_large(moving_size(_outline(rule, task, key, steps, tell_horizon)), memory)
    # The last checkpoint looks so far beyond itself: the rule is told of these steps too.
    inner = _begin(rule, task, key, steps + LOOK, tell_horizon)
    value, gradient = _observe(task, inner, key)
    if not all(bool(jnp.isfinite(x).all()) for x in (value, *jax.tree.leaves(gradient))):
        raise InputError("The loss or its gradient is not finite at the start; there is nothing to certify.")

    at = np.unique(np.linspace(1, steps, checkpoints).astype(int))
    rows: list[dict[str, float]] = []
    for i, (previous, here) in enumerate(zip((0, *at[:-1]), at, strict=True)):
        inner = _advance(rule, task, inner, jax.random.fold_in(key, i), jnp.int32(here - previous))
        rows.append(_look(rule, task, inner, jax.random.fold_in(key, len(at) + i), tolerance))
    arrays = {field: np.asarray([row[field] for row in rows], np.float64) for field in rows[0]}
    return Certificate(name or type(rule).__name__, steps, tolerance, float(value), at, **arrays)


def _look(rule: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, tolerance: float) -> dict[str, float]:
    """One checkpoint."""
    ahead = growth(rule, task, inner, key, steps=LOOK)
    seen = {
        "loss": float(ahead.losses[0]),
        "loss_after": float(ahead.losses[-LOOK // 4 :].mean()),
        "exponent": ahead.exponent(SETTLE),
    }
    value, gradient = _observe(task, inner, key)
    if not all(bool(jnp.isfinite(x).all()) for x in (value, *jax.tree.leaves((gradient, inner.params)))):
        return seen | dict.fromkeys(LINEAR, float("nan"))
    linear = Linear(rule, task, inner, key)
    found = eigenvalues(linear, linear.size, 2)
    over, sharp = overshoot(linear), float(sharpness(task, inner, key)[0])
    factor = critical_factor(rule, task, inner, key, tolerance=tolerance, present=over)
    numbers = (
        sharp, sharp * factor, factor, over, found.radius, noise_amplification(rule, task, inner, key), found.residuals[0]
    )  # fmt: skip
    return seen | dict(zip(LINEAR, map(float, numbers), strict=True))


LINEAR = (
    "sharpness", "critical_sharpness", "margin", "overshoot", "spectral_radius", "noise_amplification", "residual"
)  # fmt: skip


@partial(jax.jit, static_argnums=(3, 4))
def _begin(rule: Optimizer, task: Task, key: PRNGKeyArray, steps: int, tell_horizon: bool) -> Inner:
    return start(rule, task, key, steps, tell_horizon=tell_horizon)


def _outline(rule: Optimizer, task: Task, key: PRNGKeyArray, steps: int, tell_horizon: bool) -> Inner:
    """The shapes of the training, once a step of it has been seen to be possible."""

    def one(key: PRNGKeyArray) -> Inner:
        return step(rule, task, start(rule, task, key, steps, tell_horizon=tell_horizon), key, split=None)[0]

    try:
        return jax.eval_shape(one, key)
    except TypeError as error:
        if "required" not in str(error):
            raise
        raise InputError(
            f"The rule wants more than the gradient, the loss and the horizon, which is all that a certificate gives: {error}."
        ) from error


@jax.jit
def _observe(task: Task, inner: Inner, key: PRNGKeyArray) -> tuple[Float[Array, ""], Any]:
    loss, gradient, _ = task.observe(inner.problem, inner.params, inner.memory, key)
    return loss, gradient


@jax.jit
def _advance(rule: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, length: Int[Array, ""]) -> Inner:
    """So many steps."""

    def one(t: Array, inner: Inner) -> Inner:
        return step(rule, task, inner, jax.random.fold_in(key, t), split=None)[0]

    return jax.lax.fori_loop(0, length, one, inner)


def critical_factor(
    optimizer: Optimizer,
    task: Task,
    inner: Inner,
    key: PRNGKeyArray,
    *,
    tolerance: float = 0.01,
    present: float | None = None,
) -> float:
    """By how much the curvature may grow before the linearised next step overshoots; below 1 where it does so already.

    The factor is bracketed by steps of a factor 4, from the present curvature up or, where that is unstable, down; then Brent's method finds it to 1 %.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatch of the step.
        tolerance: an overshoot up to one plus this is stable.
        present: `overshoot` of the step as it is, where it is known.

    Returns:
        The factor; infinity where no factor up to 10,000 is unstable, 0 where none down to 0.0001 is stable, NaN where Arnoldi's iteration finds no eigenvalue.
    """
    from scipy.optimize import brentq

    def excess(logarithm: float) -> float:
        over = overshoot(Linear(optimizer, task, inner, key, float(np.exp(logarithm))))
        if np.isnan(over):
            raise ArithmeticError
        return over - 1.0 - tolerance

    stride = np.log(4.0)
    try:
        here = excess(0.0) if present is None or np.isnan(present) else present - 1.0 - tolerance
        low = high = 0.0
        if here > 0:
            while here > 0:
                if low < np.log(LEAST):
                    return 0.0
                high, low = low, low - stride
                here = excess(low)
        else:
            while not here > 0:
                if high > np.log(MOST):
                    return float("inf")
                low, high = high, high + stride
                here = excess(high)
        solve: Any = brentq
        return float(np.exp(solve(excess, low, high, xtol=PRECISION / 2)))
    except ArithmeticError:
        return float("nan")


def noise_amplification(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, *, steps: int = 50, repeats: int = 4
) -> float:
    r"""How far gradient noise moves the parameters in the linearised training, beside a random walk of single steps.

    $$\sqrt{\frac{\mathbb{E} \lVert P x_T \rVert^2}{T\, \mathbb{E} \lVert P x_1 \rVert^2}}, \qquad x_0 = 0, \quad x_{t+1} = J x_t + B \xi_t, \quad
    \xi_t \sim \mathcal{N}(0, I)$$

    with $P x$ the part of $x$ in the parameters. Gradient descent on a flat loss gives 1. Momentum gives more, because one gradient acts for many
    steps; curvature gives less, because it pulls back.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is linearised.
        key: draws the noise, and the minibatch of the step.
        steps: $T$.
        repeats: sequences of noise over which is averaged.

    Returns:
        The ratio; NaN where a first step does not depend on the gradient.
    """
    zero = jnp.zeros(sum(x.size for x in jax.tree.leaves(split(inner)[0])))
    first, last = [], []
    for repeat in jax.random.split(jax.random.fold_in(key, 1), repeats):
        x, norm = zero, jnp.zeros(())
        for t, k in enumerate(jax.random.split(repeat, steps)):
            _, _, x, norm = tangent_step(optimizer, task, inner, key, jnp.float32(1.0), x, _normal(inner.params, k))
            if t == 0:
                first.append(float(norm) ** 2)
        last.append(float(norm) ** 2)
    return float(np.sqrt(np.mean(last) / (steps * np.mean(first)))) if np.mean(first) > 0 else float("nan")


@jax.jit
def _normal(like: Any, key: PRNGKeyArray) -> Any:
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


@partial(jax.jit, static_argnames="steps")
def multiplied_losses(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, factors: Float[Array, " factors"], steps: int
) -> Float[Array, "factors steps"]:
    """Losses of trainings that go on from one point, with every update multiplied by a factor.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatches, the same for all.
        factors: of the updates.
        steps: how long.
    """

    def one(factor: Array) -> Array:
        return unroll(Multiplied(optimizer, factor), task, inner, key, steps)[1].astype(jnp.float32)

    return jax.vmap(one)(factors)


def observed_factor(loss: Float[np.ndarray, " factors"], factors: Float[np.ndarray, " factors"], limit: float) -> float:
    """The smallest multiple of its updates at which a training really goes wrong: the check of what `critical_factor` predicts.

    Args:
        loss: of each training, as the largest or the last of `multiplied_losses`.
        factors: the multiples, rising.
        limit: of the loss. Above it, or not finite, it has gone wrong.

    Returns:
        The first factor from which on all have; infinity where the last has not.
    """
    kept = np.flatnonzero(loss <= limit)
    if not len(kept):
        return float(factors[0])
    return float(factors[kept[-1] + 1]) if kept[-1] + 1 < len(factors) else float("inf")


__all__ = [
    "certify",
    "critical_factor",
    "multiplied_losses",
    "noise_amplification",
    "observed_factor",
]
