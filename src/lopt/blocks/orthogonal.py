"""The nearest orthogonal matrix, roughly."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Coefficients = tuple[float, float, float]

JORDAN: Coefficients = (3.4445, -4.7750, 2.0315)  # every iteration's, of five, in Muon (Jordan et al. 2024)

# One after the other: each brings what the ones before it made of the singular values between 0.01 and 1 as near to 1 as any such
# polynomial does. After three, they are between 0.73 and 1.27.
MINIMAX: tuple[Coefficients, ...] = (
    (8.0934, -23.6204, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
)

LONG = 2  # times as many columns as rows, from which the iterations are of Gram matrices


def orthogonalize(
    x: Float[Array, "*shape"], axes: tuple[int, int], coefficients: Sequence[Coefficients] = MINIMAX
) -> Float[Array, "*shape"]:
    r"""Turn the matrices of a tensor towards $U V^\top$ of their $U \Sigma V^\top$, by Newton-Schulz iterations.

    $$X_{k+1} = Q_k X_k, \qquad Q_k = a_k I + b_k A_k + c_k A_k^2, \qquad A_k = X_k X_k^\top, \qquad X_0 = G / \lVert G \rVert_F$$

    which takes each singular value $\sigma$ to $a_k \sigma + b_k \sigma^3 + c_k \sigma^5$. Zero stays zero.

    A matrix at least twice as long as wide is multiplied twice only: for $A_0$, and by the product of all $Q_k$ at the end. In between,
    $A_{k+1} = Q_k A_k Q_k$.

    Args:
        x: the tensor $G$.
        axes: rows and columns of its matrices, no more rows than columns.
        coefficients: $a_k, b_k, c_k$ of each iteration.

    Source: Jordan et al. 2024 (Muon); that each iteration has coefficients of its own, by minimax, is from Amsel et al. 2025 (Polar Express).
    """
    x = jnp.moveaxis(x, axes, (-2, -1))
    if x.shape[-1] >= LONG * x.shape[-2] and len(coefficients) > 1:
        gram = x @ jnp.swapaxes(x, -2, -1)  # its trace is the squared norm, so the norm takes no pass over x of its own
        scale = jax.lax.rsqrt(jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None] + 1e-16)
        x = (scale * _product_of_factors(scale * scale * gram, coefficients)) @ x
    else:
        x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True) + 1e-16)
        for a, b, c in coefficients:
            gram = x @ jnp.swapaxes(x, -2, -1)
            x = a * x + (b * gram + c * gram @ gram) @ x
    return jnp.moveaxis(x, (-2, -1), axes)


def _product_of_factors(
    gram: Float[Array, "*matrices rows rows"], coefficients: Sequence[Coefficients]
) -> Float[Array, "*matrices rows rows"]:
    """The product of all $Q_k$; they commute."""
    one = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    product = None
    for k, (a, b, c) in enumerate(coefficients):
        factor = a * one + b * gram + c * gram @ gram
        product = factor if product is None else factor @ product
        if k + 1 < len(coefficients):
            gram = factor @ gram @ factor
    assert product is not None
    return product
