"""One training step as a linear map: its products, eigenvalues and overshoot; the sharpness of the loss."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.analyze.eigenvalues import MEMORY, Spectrum, eigenvalues, refuse_too_large, symmetric_eigenvalues
from lopt.analyze.problem import Bent
from lopt.errors import InputError
from lopt.optimizer import Optimizer, Params
from lopt.task import Task
from lopt.unroll import Inner, step

TURNING = 0.1  # least share of the imaginary part in an eigenvalue that turns


class Moved(NamedTuple):
    """A training and a perturbation of it, one step later."""

    inner: Inner
    loss: Float[Array, ""]  # before the step
    tangent: Float[Array, " n"]
    params_norm: Float[Array, ""]  # of the part of the perturbation that is in the parameters


def split(inner: Inner) -> tuple[Any, Any]:
    """What a step moves continuously (floating-point parameters, state and memory), and the rest of a training."""
    moving = (inner.params, inner.opt_state, inner.memory)
    return eqx.partition(moving, eqx.is_inexact_array)


def flat_step(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, flat: Float[Array, " n"]
) -> tuple[Float[Array, " n"], tuple[Inner, Float[Array, ""]]]:
    r"""The joint step $(w, s) \mapsto (w', s')$ on raveled parameters and state, the parameters first; all that is no floating-point number stays
    that of `inner`.

    Returns:
        The raveled parameters and state after the step; and the training after it, with the loss before it.
    """
    moving, fixed = split(inner)
    _, unravel = ravel_pytree(moving)
    params, opt_state, memory = eqx.combine(unravel(flat), fixed)
    moved, loss = step(
        optimizer, task, inner._replace(params=params, opt_state=opt_state, memory=memory), key, split=None
    )
    return ravel_pytree(split(moved)[0])[0], (moved, loss)


# It compiles far longer than it computes, so the machine code is not optimised.
@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def tangent_step(
    optimizer: Optimizer,
    task: Task,
    inner: Inner,
    key: PRNGKeyArray,
    factor: Float[Array, ""],
    tangent: Float[Array, " n"],
    push: Params,
) -> Moved:
    r"""A step of a training and of a perturbation of it: $x' = J(c)\, x + B\, \xi$, by forward mode.

    $J(c)$ is the Jacobian of the joint step were the Hessian $c$ times what it is, $B$ the derivative with respect to the gradient. Everything here
    that differentiates
    an optimizer calls this, so that it is compiled once.

    Coordinates in which the step has no derivative, such as a root of a second moment that is exactly zero, are left out: they neither move nor act.
    Where more than half have none, all
    of $x'$ is NaN.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatch.
        factor: $c$.
        tangent: $x$.
        push: $\xi$, a tree like the parameters.
    """
    flat, _ = ravel_pytree(split(inner)[0])

    def stepped(flat: Array, push: Params) -> tuple[Array, tuple[Inner, Array]]:
        return flat_step(optimizer, Bent(task, factor, push), inner, key, flat)

    nothing = jax.tree.map(jnp.zeros_like, push)
    _, x, (moved, loss) = jax.jvp(stepped, (flat, nothing), (tangent.astype(flat.dtype), push), has_aux=True)
    smooth = jnp.isfinite(x)
    x = jnp.where(2 * jnp.sum(smooth) >= x.size, jnp.where(smooth, x, 0.0), jnp.nan)
    return Moved(moved, loss, x, jnp.linalg.norm(x[: params_size(inner)]))


def params_size(inner: Inner) -> int:
    """How many parameters a training has."""
    return sum(x.size for x in jax.tree.leaves(inner.params))


def moving_size(inner: Inner) -> int:
    """How many floating-point numbers a step moves: parameters, state and memory of the task, arrays or their shapes."""
    leaves = jax.tree.leaves((inner.params, inner.opt_state, inner.memory))
    return sum(x.size for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact))


class Linear:
    r"""The linearised next step of a training, as products with its Jacobian.

    State and memory are in units of the root mean square of their leaf, where that is not zero, and parameters in their own: $D^{-1} J D$ in place
    of $J$. The eigenvalues
    are the same, and so is the block of the parameters. In raw units the second moments of a trained network, some $10^{-8}$, give $J$ so large a
    norm that float32 loses its eigenvalues.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatch of the step.
        factor: by which the Hessian is multiplied.

    Attributes:
        size: floating-point numbers that the step moves: parameters, state and memory of the task.

    Raises:
        InputError: by a product, where more than half of them have no finite derivative.
    """

    def __init__(self, optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, factor: float = 1.0):
        nothing = jax.tree.map(jnp.zeros_like, inner.params)
        self._step = partial(tangent_step, optimizer, task, inner, key, jnp.float32(factor))
        self._nothing = nothing
        units = [np.ones(params_size(inner)), *map(_unit, jax.tree.leaves(split(inner)[0][1:]))]
        self._units = np.concatenate(units)
        self.size = len(self._units)

    def __call__(self, v: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """$D^{-1} J D v$."""
        x = jnp.asarray(self._units * v, jnp.float32)
        found = np.asarray(self._step(x, self._nothing).tangent, np.float64) / self._units
        if np.isnan(found).any():
            raise InputError(
                f"The training step has no finite derivative in most of its {self.size:,} coordinates: "
                "a loss, a gradient or an update is NaN or infinite."
            )
        return found

    def matrix(self) -> Float[np.ndarray, "n n"]:
        """All of $D^{-1} J D$, for few parameters."""
        return np.stack([self(e) for e in np.eye(self.size)], axis=1)


def _unit(leaf: Array) -> Float[np.ndarray, " size"]:
    values = np.asarray(leaf, np.float64).ravel()
    size = float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
    return np.full(values.size, size if np.isfinite(size) and size > 0 else 1.0)


def spectrum(
    optimizer: Optimizer,
    task: Task,
    inner: Inner,
    key: PRNGKeyArray,
    *,
    count: int = 4,
    tolerance: float = 1e-4,
    memory: float = MEMORY,
) -> Spectrum:
    """The largest eigenvalues of the Jacobian of the next step of a training.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatch of the step.
        count: how many eigenvalues.
        tolerance: relative residual that is accepted.
        memory: GiB that the vectors of the iteration may take.

    Raises:
        InputError: where they take more.

    Examples:
        >>> import jax, lopt
        >>> from lopt.analyze import spectrum
        >>> sgd, task = lopt.optimizers.SGD(learning_rate=0.1), lopt.tasks.Quadratic(dim=2)
        >>> inner = lopt.start(sgd, task, jax.random.key(0), horizon=10)
        >>> len(spectrum(sgd, task, inner, jax.random.key(1)).values)
        2
    """
    refuse_too_large(moving_size(inner), memory)
    linear = Linear(optimizer, task, inner, key)
    return eigenvalues(linear, linear.size, count, tolerance=tolerance)


def overshoot(linear: Linear, *, count: int = 4, tolerance: float = 1e-3) -> float:
    r"""The largest modulus of the eigenvalues that are not near the positive real axis: those of directions in which steps overshoot.

    A real eigenvalue above 1 belongs to a direction in which trainings part without overshooting: along negative curvature, or because a step shrinks with the
    size of its own past gradients. Curvature that is too large for the step shows as an eigenvalue below $-1$ or as a complex pair outside the unit
    circle. They are
    looked for among the largest eigenvalues of $J - I$: those of $J$ that are the farthest from 1.

    Args:
        linear: the linearised step.
        count: of eigenvalues of $J - I$.
        tolerance: relative residual that is accepted.

    Returns:
        The modulus; 0 where none of them turns, NaN where the iteration found none at all.
    """
    found = eigenvalues(lambda v: linear(v) - v, linear.size, count, tolerance=tolerance, restarts=20)
    values = found.values[np.isfinite(found.values)] + 1.0
    if not len(values):
        return float("nan")
    turning = (values.real < 0) | (np.abs(values.imag) > TURNING * np.abs(values))
    return float(np.abs(values[turning]).max(initial=0.0))


@jax.jit
def _hessian_product(task: Task, inner: Inner, key: PRNGKeyArray, tangent: Float[Array, " n"]) -> Float[Array, " n"]:
    flat, unravel = ravel_pytree(inner.params)

    def gradient(flat: Array) -> Array:
        return ravel_pytree(task.observe(inner.problem, unravel(flat), inner.memory, key)[1])[0]

    return jax.jvp(gradient, (flat,), (tangent.astype(flat.dtype),))[1]


def sharpness(
    task: Task, inner: Inner, key: PRNGKeyArray, *, count: int = 1, memory: float = MEMORY
) -> Float[np.ndarray, " count"]:
    r"""The largest eigenvalues of the Hessian $\nabla^2 f$ of the training loss where a training is, by Lanczos' iteration.

    Args:
        task: gives $f$.
        inner: where.
        key: draws the minibatch, the one of `spectrum` at the same key.
        count: how many.
        memory: GiB that the vectors of the iteration may take.

    Raises:
        InputError: where they take more.
    """
    refuse_too_large(params_size(inner), memory)

    def product(v: np.ndarray) -> np.ndarray:
        return np.asarray(_hessian_product(task, inner, key, jnp.asarray(v, jnp.float32)), np.float64)

    return symmetric_eigenvalues(product, params_size(inner), count)


def amplification(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, *, steps: int = 1
) -> Float[np.ndarray, " steps"]:
    r"""$\lVert P J^k P^\top \rVert_2$ for $k = 1, \dots,$ steps: the most that a perturbation of the parameters can have grown in the parameters
    after $k$ linearised steps.

    It is the measure of non-normality: a joint step whose powers first grow and then fall to zero enlarges perturbations although its spectral
    radius is below 1.
    All of $J$ is formed, for the state has units of its own and only the block of the parameters means something.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatch.
        steps: the largest $k$.

    Raises:
        InputError: for more than 2,000 parameters and numbers of state.
    """
    linear, count = Linear(optimizer, task, inner, key), params_size(inner)
    if linear.size > 2_000:
        raise InputError(f"The step moves {linear.size:,} numbers; amplification forms their Jacobian, up to 2,000.")
    matrix, columns, found = linear.matrix(), np.eye(linear.size)[:, :count], []
    for _ in range(steps):
        columns = matrix @ columns
        found.append(np.linalg.norm(columns[:count], 2))
    return np.asarray(found, np.float64)


__all__ = [
    "Linear",
    "Moved",
    "amplification",
    "flat_step",
    "overshoot",
    "params_size",
    "sharpness",
    "spectrum",
    "split",
    "tangent_step",
]
