"""How far a training is from the edge of stability: a certificate for one's own problem."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lopt.analyze.dynamics import (
    Linear,
    eigenvalues,
    flat_step,
    largest_singular_value,
    lyapunov_exponent,
    overshoot,
    sharpness,
    split,
)
from lopt.analyze.problem import Bent, Loss, Multiplied, as_optimizer, as_task
from lopt.errors import InputError
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.unroll import Inner, start, unroll

LEAST, MOST = 1e-4, 1e4  # factors of the curvature that are tried
PRECISION = 0.02  # relative, of the critical factor
REPEATS = 8  # noise is averaged over as many sequences


class Noise(NamedTuple):
    """How gradient noise reaches the parameters."""

    steps: int
    amplification: float


@dataclasses.dataclass(frozen=True)
class Certificate:
    r"""How stable a training was, at its checkpoints, and what that says.

    At each checkpoint the joint step of parameters and optimizer state is linearised. `sharpness` is
    the largest eigenvalue of the Hessian of the loss. `critical_sharpness` is the largest one at which the linearised step would not overshoot, were the
    Hessian multiplied by one factor. Their ratio is the `margin`.

    Attributes:
        optimizer: the rule.
        horizon: steps of the training.
        tolerance: an `overshoot` up to $1 + \mathrm{tolerance}$ counts as stable.
        steps: of the checkpoints.
        loss: before each of these steps.
        sharpness: $\lambda_{\max}(\nabla^2 f)$.
        critical_sharpness: infinite where the step is stable at any curvature up to 10,000 times the present one.
        margin: the second over the first; below 1 the step is unstable.
        overshoot: the largest modulus of the eigenvalues of the step that are not near the positive real axis; see `dynamics.overshoot`.
        spectral_radius: the largest modulus of all of them.
        largest_singular_value: of the same Jacobian: how much one step can enlarge a perturbation.
        exponent: the Lyapunov exponent of the training from there on, per step.
        noise_amplification: how far noise moves the parameters, over how far it moves them in one step, per square root of the steps: 1 for a random walk.
        residual: of the eigenvalue behind the spectral radius; large where Arnoldi's iteration did not converge.
    """

    optimizer: str
    horizon: int
    tolerance: float
    steps: Int[np.ndarray, " checkpoints"]
    loss: Float[np.ndarray, " checkpoints"]
    sharpness: Float[np.ndarray, " checkpoints"]
    critical_sharpness: Float[np.ndarray, " checkpoints"]
    margin: Float[np.ndarray, " checkpoints"]
    overshoot: Float[np.ndarray, " checkpoints"]
    spectral_radius: Float[np.ndarray, " checkpoints"]
    largest_singular_value: Float[np.ndarray, " checkpoints"]
    exponent: Float[np.ndarray, " checkpoints"]
    noise_amplification: Float[np.ndarray, " checkpoints"]
    residual: Float[np.ndarray, " checkpoints"]

    @property
    def unstable_at(self) -> Bool[np.ndarray, " checkpoints"]:
        """Where the linearised step is unstable, or the loss is not finite."""
        return ~(self.overshoot <= 1.0 + self.tolerance) | ~np.isfinite(self.loss)

    @property
    def unstable_from(self) -> int | None:
        """The step of the first checkpoint from which on all are unstable, the last included; `None` where the last is stable."""
        unstable = self.unstable_at
        if not unstable[-1]:
            return None
        stable = np.flatnonzero(~unstable)
        return int(self.steps[stable[-1] + 1 if len(stable) else 0])

    @property
    def stable(self) -> bool:
        """Whether the training ends stable."""
        return self.unstable_from is None

    @property
    def least_margin(self) -> float:
        """The smallest margin of all checkpoints that have one; NaN where none has."""
        known = self.margin[~np.isnan(self.margin)]
        return float(known.min()) if len(known) else float("nan")

    def __str__(self) -> str:
        if not self.stable:
            return f"{self.optimizer}: unstable from step {self.unstable_from} of {self.horizon}."
        passing = int(self.unstable_at.sum())
        past = f"; it was unstable at {passing} of {len(self.steps)} checkpoints and recovered" if passing else ""
        return f"{self.optimizer}: stable to step {self.horizon}, smallest margin {self.least_margin:.3g}{past}."

    def to_json(self) -> str:
        """All of it as JSON; what is not finite is null."""
        found: dict[str, Any] = {"verdict": str(self), "stable": self.stable, "unstable_from": self.unstable_from}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = [x if np.isfinite(x) else None for x in value.tolist()]
            found[field.name] = value
        return json.dumps(found, indent=2) + "\n"

    def plot(self) -> Any:
        """Sharpness against critical sharpness, spectral radius and exponent, as a matplotlib figure."""
        from matplotlib.figure import Figure

        fig = Figure(figsize=(11, 3.4), layout="constrained")
        axes = fig.subplots(1, 3)
        axes[0].plot(self.steps, self.sharpness, "o-", color="#0072b2", label="sharpness")
        axes[0].plot(self.steps, self.critical_sharpness, "s--", color="#d55e00", label="critical sharpness")
        axes[0].set(title="curvature of the loss", yscale="log", xlabel="step")
        axes[0].legend(frameon=False)
        axes[1].plot(self.steps, self.overshoot, "o-", color="#0072b2", label="overshoot")
        axes[1].plot(self.steps, self.spectral_radius, "^:", color="#cc79a7", label="spectral radius")
        axes[1].plot(self.steps, self.largest_singular_value, "s--", color="#009e73", label="largest singular value")
        axes[1].axhline(1.0 + self.tolerance, color="0.5", lw=0.8, ls=":")
        axes[1].set(title="Jacobian of the step", yscale="log", xlabel="step")
        axes[1].legend(frameon=False)
        axes[2].plot(self.steps, self.exponent, "o-", color="#0072b2")
        axes[2].axhline(0.0, color="0.5", lw=0.8, ls=":")
        axes[2].set(title="Lyapunov exponent, per step", xlabel="step")
        for a in axes:
            a.spines[["top", "right"]].set_visible(False)
        return fig


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
    name: str | None = None,
) -> Certificate:
    r"""Train, linearise the training step at checkpoints, and say how far it is from the edge of stability.

    With $J(c)$ the Jacobian of the joint step of parameters and optimizer state where the Hessian is $c$ times what it is,

    $$\text{margin} = \max\{c : \rho_\text{overshoot}(J(c')) \leq 1 + \text{tolerance for all } c' \leq c\}, \qquad
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
        name: of the optimizer in the certificate.

    Raises:
        InputError: for fewer steps than checkpoints, fewer than two checkpoints, a loss or a gradient that is not finite at
            the start, or what `as_task` refuses.

    Source: edge of stability: Cohen et al. 2021 and 2022; that learned optimizers are judged by the joint dynamics: Harrison et al. 2022.
    """
    if checkpoints < 2:
        raise InputError(f"checkpoints is {checkpoints}; it must be at least 2.")
    if steps < checkpoints:
        raise InputError(f"steps is {steps}; a certificate of {checkpoints} checkpoints needs at least as many.")
    if not tolerance > 0:
        raise InputError(f"tolerance is {tolerance}; it must be positive.")
    rule, task = as_optimizer(optimizer), as_task(loss, params)
    inner = jax.jit(start, static_argnums=3, static_argnames="tell_horizon")(
        rule, task, key, steps, tell_horizon=tell_horizon
    )
    value, gradient, _ = jax.jit(lambda t, i, k: t.observe(i.problem, i.params, i.memory, k))(task, inner, key)
    if not all(bool(jnp.isfinite(x).all()) for x in (value, *jax.tree.leaves(gradient))):
        raise InputError("The loss or its gradient is not finite at the start; there is nothing to certify.")

    at = np.unique(np.linspace(1, steps, checkpoints).astype(int))
    found: dict[str, list[float]] = {field: [] for field in FIGURES}
    advance = jax.jit(_advance)
    done = 0
    for i, step in enumerate(at):
        inner, value = advance(rule, task, inner, jax.random.fold_in(key, i), jnp.int32(step - done))
        done = int(step)
        look = jax.random.fold_in(key, len(at) + i)
        for field, number in _look(rule, task, inner, look, tolerance, float(value)).items():
            found[field].append(number)
    arrays = {field: np.asarray(numbers, np.float64) for field, numbers in found.items()}
    label = name or type(rule).__name__
    return Certificate(label, steps, tolerance, at, margin=arrays["critical_sharpness"] / arrays["sharpness"], **arrays)


FIGURES = (
    "loss", "sharpness", "critical_sharpness", "overshoot", "spectral_radius", "largest_singular_value", "exponent", "noise_amplification", "residual",
)  # fmt: skip


def _look(
    rule: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, tolerance: float, loss: float
) -> dict[str, float]:
    """One checkpoint."""
    if not np.isfinite(loss) or not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(inner.params)):
        return dict.fromkeys(FIGURES, float("nan")) | {"overshoot": float("inf"), "loss": loss}
    linear = Linear(rule, task, inner, key)
    found = eigenvalues(linear, linear.size, 6)
    sharp = float(sharpness(task, inner, key)[0])
    return {
        "loss": loss,
        "sharpness": sharp,
        "critical_sharpness": sharp * critical_factor(rule, task, inner, key, tolerance=tolerance),
        "overshoot": overshoot(linear, found),
        "spectral_radius": found.radius,
        "largest_singular_value": largest_singular_value(rule, task, inner, key),
        "exponent": lyapunov_exponent(rule, task, inner, key, steps=40, settle=20),
        "noise_amplification": noise_amplification(rule, task, inner, key).amplification,
        "residual": float(np.nanmax(found.residuals[:1], initial=0.0)),
    }


def _advance(
    rule: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, length: Int[Array, ""]
) -> tuple[Inner, Float[Array, ""]]:
    """So many steps, and the last loss."""

    def one(t: Array, carry: tuple[Inner, Array]) -> tuple[Inner, Array]:
        inner, (loss,) = unroll(rule, task, carry[0], jax.random.fold_in(key, t), 1)
        return inner, loss.astype(jnp.float32)

    return jax.lax.fori_loop(0, length, one, (inner, jnp.zeros((), jnp.float32)))


def critical_factor(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, *, tolerance: float = 0.01
) -> float:
    """By how much the curvature may grow before the linearised next step is unstable; below 1 where it is unstable already.

    The factor is searched upwards from the present curvature on a grid, or downwards where that is unstable, and then by bisection to 2 %.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatch of the step.
        tolerance: an overshoot up to one plus this is stable.

    Returns:
        The factor; infinity where no factor up to 10,000 is unstable, 0 where none down to 0.0001 is stable.
    """

    def unstable(factor: float) -> bool:
        bent = Bent(task, inner.params, jnp.float32(factor))
        linear = Linear(optimizer, bent, inner, key)
        return not overshoot(linear, eigenvalues(linear, linear.size, 4)) <= 1.0 + tolerance

    low, high, stride = 1.0, 1.0, 2.0
    if unstable(1.0):
        while unstable(low):
            high, low = low, low / stride
            if low < LEAST:
                return 0.0
    else:
        while not unstable(high):
            low, high = high, high * stride
            if high > MOST:
                return float("inf")
    while high / low > 1.0 + PRECISION:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if unstable(middle) else (middle, high)
    return float(np.sqrt(low * high))


@partial(jax.jit, static_argnames="steps")
def _noise_response(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, step_key: PRNGKeyArray, steps: int
) -> Float[Array, " steps"]:
    """Mean square over parameters of where the linearised step carries unit gradient noise, after each of so many steps."""
    flat, _ = ravel_pytree(split(inner)[0])
    zero = jax.tree.map(jnp.zeros_like, inner.params)
    one = jnp.float32(1.0)

    def pushed(flat: Array, push: Any) -> Array:
        return flat_step(optimizer, Bent(task, inner.params, one, push), inner, step_key, flat)

    count = sum(x.size for x in jax.tree.leaves(inner.params))

    def walk(x: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        keys = jax.random.split(key, len(jax.tree.leaves(zero)))
        leaves = [jax.random.normal(k, z.shape, z.dtype) for k, z in zip(keys, jax.tree.leaves(zero), strict=True)]
        moved = jax.jvp(pushed, (flat, zero), (x, jax.tree.unflatten(jax.tree.structure(zero), leaves)))[1]
        return moved, jnp.mean(jnp.square(moved[:count]))

    return jax.lax.scan(walk, jnp.zeros_like(flat), jax.random.split(key, steps))[1]


def noise_amplification(optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, *, steps: int = 50) -> Noise:
    r"""How far gradient noise moves the parameters in the linearised training, beside a random walk of single steps.

    $$\sqrt{\frac{\mathbb{E} \lVert x_T \rVert^2}{T\, \mathbb{E} \lVert x_1 \rVert^2}}, \qquad x_{t+1} = J x_t + B \xi_t, \quad \xi_t \sim \mathcal{N}(0, I)$$

    Gradient descent on a flat loss gives 1. Momentum gives more, because one gradient acts for many steps; curvature gives less, because it pulls back.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is linearised.
        key: draws the noise, and the minibatch of the step.
        steps: $T$.
    """
    keys = jax.random.split(jax.random.fold_in(key, 1), REPEATS)
    squares = np.mean([np.asarray(_noise_response(optimizer, task, inner, k, key, steps)) for k in keys], axis=0)
    return Noise(steps, float(np.sqrt(squares[-1] / (steps * squares[0]))) if squares[0] > 0 else float("nan"))


@partial(jax.jit, static_argnames="steps")
def _multiplied_losses(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, factors: Float[Array, " factors"], steps: int
) -> tuple[Float[Array, ""], Float[Array, " factors steps"]]:
    def one(factor: Array) -> Array:
        return unroll(Multiplied(optimizer, factor), task, inner, key, steps)[1]

    before = task.observe(inner.problem, inner.params, inner.memory, key)[0]
    return before, jax.lax.map(one, factors)


def observed_factor(
    optimizer: Optimizer,
    task: Task,
    inner: Inner,
    key: PRNGKeyArray,
    *,
    steps: int = 200,
    factors: Float[np.ndarray, " factors"] | None = None,
    growth: float = 2.0,
) -> float:
    """The smallest multiple of its updates at which a training really diverges: the check of what `critical_factor` predicts.

    From where the training is it goes on with every multiple. It has diverged where the mean loss of its last tenth is not finite, or is more than
    `growth` times what the loss is now.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatches.
        steps: how long it goes on.
        factors: rising multiples to try; 49 from 1/16 to 256 by default, a quarter of an octave apart.
        growth: of the loss.

    Returns:
        The first factor from which on all diverge; infinity where the last does not.
    """
    tried = np.geomspace(2.0**-4, 2.0**8, 49) if factors is None else np.asarray(factors)
    before, losses = _multiplied_losses(optimizer, task, inner, key, jnp.asarray(tried, jnp.float32), steps)
    late = np.asarray(losses[:, -max(1, steps // 10) :], np.float64).mean(axis=1)
    kept = np.flatnonzero(np.isfinite(late) & (late <= growth * float(before)))
    if not len(kept):
        return float(tried[0])
    return float(tried[kept[-1] + 1]) if kept[-1] + 1 < len(tried) else float("inf")


def write_certificate(certificate: Certificate, folder: Path) -> list[Path]:
    """`certificate.json` and `certificate.png` in a folder, by write-then-rename."""
    import io

    from lopt.checkpoint import write_bytes, write_text

    folder.mkdir(parents=True, exist_ok=True)
    text, image = folder / "certificate.json", folder / "certificate.png"
    write_text(text, certificate.to_json())
    out = io.BytesIO()
    certificate.plot().savefig(out, format="png", dpi=130)
    write_bytes(image, out.getvalue())
    return [text, image]


__all__ = [
    "Certificate",
    "Noise",
    "certify",
    "critical_factor",
    "noise_amplification",
    "observed_factor",
    "write_certificate",
]
