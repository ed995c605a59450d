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


def orthogonalize(
    x: Float[Array, "*shape"], axes: tuple[int, int], coefficients: Sequence[Coefficients] = MINIMAX
) -> Float[Array, "*shape"]:
    r"""Turn the matrices of a tensor towards $U V^\top$ of their $U \Sigma V^\top$, by Newton-Schulz iterations.

    $$X_{k+1} = a_k X_k + (b_k A_k + c_k A_k^2) X_k, \qquad A_k = X_k X_k^\top, \qquad X_0 = G / \lVert G \rVert_F$$

    which takes each singular value $\sigma$ to $a_k \sigma + b_k \sigma^3 + c_k \sigma^5$. Zero stays zero.

    Args:
        x: the tensor $G$.
        axes: rows and columns of its matrices, no more rows than columns.
        coefficients: $a_k, b_k, c_k$ of each iteration.

    Source: Jordan et al. 2024 (Muon); that each iteration has coefficients of its own, by minimax, is from Amsel et al. 2025 (Polar Express).
    """
    x = jnp.moveaxis(x, axes, (-2, -1))
    x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True) + 1e-16)
    for a, b, c in coefficients:
        gram = x @ jnp.swapaxes(x, -2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return jnp.moveaxis(x, (-2, -1), axes)
