"""Search for algorithms of matrix multiplication."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.task import Split, Task


class Factors(NamedTuple):
    """The factors of an algorithm's products: combinations of the entries of the left and of the right matrix."""

    left: Float[Array, "entries products"]
    right: Float[Array, "entries products"]


class MatMulSearch(Task):
    r"""Multiply $n \times n$ matrices with $k$ multiplications: a polynomial of the sixth degree.

    $$f(A, B) = \min_C \lVert P C - c \rVert^2, \qquad P_{(i,j),:} = A_{i,:} \odot B_{j,:}$$

    over all $n^4$ pairs of one-hot matrices, with rows of $c$ their products. Zero means an exact algorithm: for $n = 2$ there is one from $k = 7$ on,
    for $n = 3$ from $k = 23$; below, only a bound is known. $C$ comes from the QR factorisation of $P$, which keeps more digits than its normal equations.

    Args:
        n: rows of the matrices, at least 2.
        k: number of multiplications, between $n^2$ and $n^3$.

    Source: Wichrowska et al. 2017, the released problem generator.
    """

    n: int = eqx.field(static=True)
    k: int = eqx.field(static=True)

    def __init__(self, *, n: int = 2, k: int = 7):
        at_least(2, n=n)
        if not n**2 <= k <= n**3:
            raise InputError(f"k is {k}; for n = {n} it must be between {n**2} and {n**3}.")
        self.n, self.k = n, k

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Factors:
        """Columns uniform on the sphere."""
        del problem
        both = jax.random.normal(key, (2, self.n**2, self.k))
        both = both / jnp.linalg.norm(both, axis=1, keepdims=True)
        return Factors(both[0], both[1])

    def loss(self, problem: tuple[()], params: Factors, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """$f(A, B)$, the same on all splits."""
        del problem, key, split
        products = (params.left[:, None, :] * params.right[None, :, :]).reshape(self.n**4, self.k)
        basis, _ = jnp.linalg.qr(products.astype(jnp.float32))  # of 32 bits at least
        wanted = jnp.asarray(_products_of_one_hot_matrices(self.n))
        return jnp.sum(jnp.square(wanted - basis @ (basis.T @ wanted)))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the residual that a random subspace of k among n^3 dimensions leaves."""
        return loss / (self.n**3 * (1.0 - self.k / self.n**4))


def _products_of_one_hot_matrices(n: int) -> np.ndarray:
    one_hot = np.eye(n * n, dtype=np.float32).reshape(n * n, n, n)
    return np.einsum("aij,bjk->abik", one_hot, one_hot).reshape(n**4, n * n)
