"""The nearest orthogonal matrix, roughly."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopt.errors import InputError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan 2024


def check_iteration(steps: int, coefficients: Sequence[float] = COEFFICIENTS) -> None:
    """Refuse a number of iterations or of coefficients that there cannot be.

    Raises:
        InputError: for a negative number of iterations, or another number of coefficients than three.
    """
    if steps < 0:
        raise InputError(f"orthogonalize_steps is {steps}; it must not be negative.")
    if len(coefficients) != 3:
        raise InputError(f"orthogonalize_coefficients is {tuple(coefficients)}; it must hold three.")


def orthogonalize(
    x: Float[Array, "*shape"], axes: tuple[int, int], steps: int, coefficients: Sequence[float] = COEFFICIENTS
) -> Float[Array, "*shape"]:
    r"""Turn the matrices of a tensor towards $U V^\top$ of their $U \Sigma V^\top$, by Newton-Schulz iterations.

    $$X \leftarrow a X + (b A + c A^2) X, \qquad A = X X^\top, \qquad X_0 = G / \lVert G \rVert_F$$

    After five, singular values that were above a hundredth of the norm are between 0.7 and 1.2. Zero stays zero.

    Args:
        x: the tensor $G$.
        axes: rows and columns of its matrices, no more rows than columns.
        steps: iterations.
        coefficients: $a, b, c$.

    Source: Jordan et al. 2024 (Muon).
    """
    a, b, c = coefficients
    x = jnp.moveaxis(x, axes, (-2, -1))
    x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True) + 1e-16)
    for _ in range(steps):
        gram = x @ jnp.swapaxes(x, -2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return jnp.moveaxis(x, (-2, -1), axes)
