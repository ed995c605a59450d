r"""Linearise a training step: eigenvalues, singular values, non-normality, Lyapunov exponent, sharpness."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from lopt.errors import InputError
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.unroll import Inner, step

DENSE = 200  # numbers of parameters and state up to which the whole Jacobian is formed
TURNING = 0.1  # least share of the imaginary part in an eigenvalue that turns
TOLERANCE = 1e-4  # relative residual of an eigenvalue that is accepted
Product = Callable[[np.ndarray], np.ndarray]


class Spectrum(NamedTuple):
    """The largest eigenvalues of a matrix, by modulus.

    Attributes:
        values: complex; NaN where Arnoldi's iteration did not converge.
        residuals: $\\lVert J v - \\lambda v \\rVert / |\\lambda|$ of each, with $\\lVert v \\rVert = 1$.
        condition: of the matrix of their eigenvectors: 1 for a normal matrix, infinite for a defective one.
    """

    values: Complex[np.ndarray, " count"]
    residuals: Float[np.ndarray, " count"]
    condition: float

    @property
    def radius(self) -> float:
        """The largest modulus; NaN where none was found."""
        moduli = np.abs(self.values)
        return float(np.max(moduli[np.isfinite(moduli)], initial=-1.0)) if np.isfinite(moduli).any() else float("nan")


def split(inner: Inner) -> tuple[Any, Any]:
    """What a step moves continuously (floating-point parameters, state and memory), and the rest of a training."""
    moving = (inner.params, inner.opt_state, inner.memory)
    return eqx.partition(moving, eqx.is_inexact_array)


def tangent_size(inner: Inner) -> int:
    """How many floating-point numbers a step moves."""
    return sum(x.size for x in jax.tree.leaves(split(inner)[0]))


def flat_step(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, flat: Float[Array, " n"]
) -> Float[Array, " n"]:
    r"""The joint step $(w, s) \mapsto (w', s')$ on raveled parameters and state; all that is no floating-point number stays that of `inner`."""
    moving, fixed = split(inner)
    _, unravel = ravel_pytree(moving)
    params, opt_state, memory = eqx.combine(unravel(flat), fixed)
    moved, _ = step(optimizer, task, inner._replace(params=params, opt_state=opt_state, memory=memory), key)
    return ravel_pytree(split(moved)[0])[0]


@jax.jit
def jacobian_product(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, tangent: Float[Array, " n"]
) -> Float[Array, " n"]:
    """$J v$ for the Jacobian of the joint step, by forward mode."""
    flat, _ = ravel_pytree(split(inner)[0])
    return jax.jvp(partial(flat_step, optimizer, task, inner, key), (flat,), (tangent.astype(flat.dtype),))[1]


@jax.jit
def transposed_product(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, cotangent: Float[Array, " n"]
) -> Float[Array, " n"]:
    r"""$J^\top v$, by reverse mode."""
    flat, _ = ravel_pytree(split(inner)[0])
    return jax.vjp(partial(flat_step, optimizer, task, inner, key), flat)[1](cotangent.astype(flat.dtype))[0]


class Linear:
    """The linearised next step of a training, as products with its Jacobian.

    Coordinates in which the step has no derivative, such as a square root of a second moment that is exactly zero, are left out: they neither move nor act.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatch of the step.

    Attributes:
        size: numbers that the step moves.
        left_out: how many of them have no derivative.

    Raises:
        InputError: where more than half of them have none.
    """

    def __init__(self, optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray):
        self._given = (optimizer, task, inner, key)
        self.size = tangent_size(inner)
        probe = np.random.default_rng(0).standard_normal(self.size)
        self._smooth = np.ones(self.size)
        self._smooth = np.isfinite(self._raw(jacobian_product, probe)).astype(np.float64)
        self.left_out = int(self.size - self._smooth.sum())
        if 2 * self.left_out > self.size:
            raise InputError(
                f"The training step has no finite derivative in {self.left_out:,} of {self.size:,} coordinates: "
                "a loss, a gradient or an update is NaN or infinite."
            )

    def _raw(self, product: Callable[..., Array], v: np.ndarray) -> np.ndarray:
        return np.asarray(product(*self._given, jnp.asarray(v, jnp.float32)), np.float64)

    def __call__(self, v: np.ndarray) -> np.ndarray:
        """$J v$."""
        return np.where(self._smooth > 0, self._raw(jacobian_product, v * self._smooth), 0.0)

    def transposed(self, v: np.ndarray) -> np.ndarray:
        r"""$J^\top v$."""
        found = self._raw(transposed_product, v * self._smooth)
        # What is reached through a coordinate that is left out alone is 0 times infinity.
        return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0) * self._smooth

    def matrix(self) -> Float[np.ndarray, "n n"]:
        """All of $J$, for few parameters."""
        return np.stack([self(e) for e in np.eye(self.size)], axis=1)


def eigenvalues(product: Product, size: int, count: int = 4, *, seed: int = 0, most: int = 300) -> Spectrum:
    """The largest eigenvalues of a matrix that is known by its products: all of a small one, Arnoldi's iteration for a large one.

    Args:
        product: `product(v)`.
        size: rows of the matrix.
        count: how many.
        seed: of the start vector.
        most: restarts of the iteration.

    Raises:
        InputError: for a product that is not finite.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

    count = min(count, size)
    if size <= max(DENSE, count + 2):
        matrix = np.stack([product(e) for e in np.eye(size)], axis=1)
        _check(matrix)
        values, vectors = np.linalg.eig(matrix)
    else:
        start = np.random.default_rng(seed).standard_normal(size)
        _check(product(start))
        try:
            operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
            width = min(size - 1, max(2 * count + 1, 30))
            values, vectors = eigs(operator, count, which="LM", v0=start, tol=TOLERANCE, maxiter=most, ncv=width)
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(-np.abs(values))[:count]
    values, vectors = values[order], vectors[:, order]
    applied = [product(v.real.copy()) + 1j * product(v.imag.copy()) for v in vectors.T]
    residuals = np.array(
        [
            np.linalg.norm(a - x * v) / max(abs(x), np.finfo(float).tiny)
            for a, x, v in zip(applied, values, vectors.T, strict=True)
        ]
    )
    missing = count - len(values)
    condition = float(np.linalg.cond(vectors)) if len(values) else float("nan")
    return Spectrum(
        np.concatenate([values, np.full(missing, complex("nan"))]),
        np.concatenate([residuals, np.full(missing, np.nan)]),
        condition,
    )


def spectrum(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, *, count: int = 6, seed: int = 0
) -> Spectrum:
    """The largest eigenvalues of the Jacobian of the next step of a training.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training is.
        key: draws the minibatch of the step.
        count: how many eigenvalues.
        seed: of Arnoldi's start vector.

    Examples:
        >>> import jax, lopt
        >>> from lopt.analyze import spectrum
        >>> sgd, task = lopt.optimizers.SGD(learning_rate=0.1), lopt.tasks.Quadratic(dim=2)
        >>> inner = lopt.start(sgd, task, jax.random.key(0), horizon=10)
        >>> len(spectrum(sgd, task, inner, jax.random.key(1)).values)
        2
    """
    linear = Linear(optimizer, task, inner, key)
    return eigenvalues(linear, linear.size, count, seed=seed)


def overshoot(linear: Linear, found: Spectrum, *, count: int = 4, seed: int = 0) -> float:
    r"""The largest modulus of the eigenvalues that are not near the positive real axis: those of directions in which steps overshoot.

    A real eigenvalue above 1 belongs to a direction in which trainings part without overshooting: along negative curvature, or because a step shrinks with the
    size of its own past gradients. Curvature that is too large for the step shows as an eigenvalue below $-1$ or as a complex pair outside the unit circle. They are looked for
    among the largest eigenvalues of $J$ and among those of $J - I$, which are the farthest from 1.

    Args:
        linear: the linearised step.
        found: its largest eigenvalues.
        count: of eigenvalues of $J - I$.
        seed: of Arnoldi's start vector.
    """
    far = eigenvalues(lambda v: linear(v) - v, linear.size, count, seed=seed).values + 1.0
    values = np.concatenate([found.values, far])
    values = values[np.isfinite(values)]
    turning = (values.real < 0) | (np.abs(values.imag) > TURNING * np.abs(values))
    return float(np.abs(values[turning]).max(initial=0.0))


def largest_singular_value(optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray) -> float:
    r"""$\lVert J \rVert_2$ of the Jacobian of the next step: the most that one step can enlarge a perturbation.

    Where it is above the spectral radius, $J$ is not normal.
    """
    linear = Linear(optimizer, task, inner, key)
    found = symmetric_eigenvalues(lambda v: linear.transposed(linear(v)), linear.size, 1)
    return float(np.sqrt(np.maximum(found[0], 0.0)))


def symmetric_eigenvalues(product: Product, size: int, count: int = 1, *, seed: int = 0) -> Float[np.ndarray, " count"]:
    """The algebraically largest eigenvalues of a symmetric matrix, the largest first, by Lanczos' iteration; NaN where it did not converge."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    count = min(count, size)
    if size <= max(DENSE, count + 1):
        matrix = np.stack([product(e) for e in np.eye(size)], axis=1)
        _check(matrix)
        return np.linalg.eigvalsh(0.5 * (matrix + matrix.T))[::-1][:count]
    start = np.random.default_rng(seed).standard_normal(size)
    _check(product(start))
    try:
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        found = eigsh(operator, count, which="LA", v0=start, tol=TOLERANCE, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        found = error.eigenvalues
    found = np.sort(found)[::-1]
    return np.concatenate([found, np.full(count - len(found), np.nan)])


@partial(jax.jit, static_argnames="batches")
def _hessian_product(
    task: Task, inner: Inner, key: PRNGKeyArray, tangent: Float[Array, " n"], batches: int
) -> Float[Array, " n"]:
    flat, unravel = ravel_pytree(inner.params)

    def gradient(flat: Array, key: PRNGKeyArray) -> Array:
        return ravel_pytree(task.observe(inner.problem, unravel(flat), inner.memory, key)[1])[0]

    def one(key: PRNGKeyArray) -> Array:
        return jax.jvp(partial(gradient, key=key), (flat,), (tangent.astype(flat.dtype),))[1]

    return jnp.mean(jax.lax.map(one, jax.random.split(key, batches)), axis=0) if batches > 1 else one(key)


def sharpness(
    task: Task, inner: Inner, key: PRNGKeyArray, *, count: int = 1, batches: int = 1
) -> Float[np.ndarray, " count"]:
    r"""The largest eigenvalues of the Hessian $\nabla^2 f$ of the training loss where a training is, by Lanczos' iteration.

    Args:
        task: gives $f$.
        inner: where.
        key: draws minibatches. With one batch it is the minibatch of `spectrum` at the same key.
        count: how many.
        batches: minibatches over which the Hessian is averaged.
    """
    size = sum(x.size for x in jax.tree.leaves(inner.params))

    def product(v: np.ndarray) -> np.ndarray:
        return np.asarray(_hessian_product(task, inner, key, jnp.asarray(v, jnp.float32), batches), np.float64)

    return symmetric_eigenvalues(product, size, count)


@partial(jax.jit, static_argnames="steps")
def _tangent_growth(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, tangent: Array, steps: int
) -> Float[Array, " steps"]:
    def one(carry: tuple[Inner, Array], key: PRNGKeyArray) -> tuple[tuple[Inner, Array], Array]:
        inner, tangent = carry
        flat, _ = ravel_pytree(split(inner)[0])
        moved = jax.jvp(partial(flat_step, optimizer, task, inner, key), (flat,), (tangent,))[1]
        norm = jnp.maximum(jnp.linalg.norm(moved), 1e-30)
        return (step(optimizer, task, inner, key)[0], moved / norm), jnp.log(norm)

    return jax.lax.scan(one, (inner, tangent), jax.random.split(key, steps))[1]


def lyapunov_exponent(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, *, steps: int = 100, settle: int = 10
) -> float:
    r"""The largest Lyapunov exponent of a training from where it is, per step.

    $$\lambda = \frac{1}{T} \sum_{t} \log \lVert J_t v_t \rVert, \qquad v_{t+1} = J_t v_t / \lVert J_t v_t \rVert$$

    Above 0 two trainings that differ by a little part exponentially; below 0 they meet.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training begins.
        key: draws the minibatches and $v_0$.
        steps: $T$.
        settle: first steps that are left out, in which $v$ turns to the direction that grows most.

    Raises:
        InputError: for no step after those that are left out.
    """
    if not 0 <= settle < steps:
        raise InputError(f"settle is {settle} and steps is {steps}; settle must be at least 0 and below steps.")
    v = jax.random.normal(jax.random.fold_in(key, steps), (tangent_size(inner),))
    growth = np.asarray(_tangent_growth(optimizer, task, inner, key, v / jnp.linalg.norm(v), steps), np.float64)
    return float(growth[settle:].mean())


def _check(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise InputError(
            "The training step has no finite Jacobian here: a loss, a gradient or an update is NaN or infinite."
        )


__all__ = [
    "Linear",
    "Spectrum",
    "eigenvalues",
    "flat_step",
    "jacobian_product",
    "largest_singular_value",
    "lyapunov_exponent",
    "overshoot",
    "sharpness",
    "spectrum",
    "symmetric_eigenvalues",
    "tangent_size",
    "transposed_product",
]
