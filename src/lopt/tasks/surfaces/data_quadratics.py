"""Quadratics that are sums over data."""

from __future__ import annotations

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import one_of
from lopt.errors import InputError
from lopt.task import Split, Task
from lopt.tasks.data.points import batch_of

Form = Literal["projection", "sum"]


class SymmetricData(NamedTuple):
    """Gaussian data, each with its negative."""

    data: Float[Array, "examples dim"]


class DataQuadratic(Task):
    r"""A quadratic that is seen one minibatch at a time, with its minimum at zero.

    $$f(w; B) = \sum_{d \in B} \lVert w \odot d \rVert^2 \quad (\texttt{projection})$$

    $$f(w; B) = \sum_{d \in B} \big( \lVert w - d \rVert^2 - \lVert d \rVert^2 \big) + 10^{-12} \quad (\texttt{sum})$$

    with $w_0, d \sim N(0, I)$ and $-d$ among the data for every $d$. On all data the `sum` is $|B| \lVert w \rVert^2$; a minibatch lacks the symmetry, so its
    loss can be negative. Validation and test losses are of all data, scaled to a batch.

    Args:
        form: `projection` or `sum`.
        dim: number of parameters.
        examples: number of data, even.
        batch_size: data a minibatch; all of them where it exceeds their number.

    Source: Wichrowska et al. 2017, the released problem generator, off by default.
    """

    form: Form = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    examples: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(self, form: Form = "projection", *, dim: int = 12, examples: int = 100, batch_size: int = 10):
        one_of("form", form, Form)
        if dim < 1 or batch_size < 1:
            raise InputError(f"dim is {dim} and batch_size {batch_size}; they must be at least 1.")
        if examples < 2 or examples % 2:
            raise InputError(f"examples is {examples}; it must be even and at least 2.")
        self.form, self.dim, self.examples, self.batch_size = form, dim, examples, batch_size

    def sample(self, key: PRNGKeyArray) -> SymmetricData:
        """Draw the data."""
        half = jax.random.normal(key, (self.examples // 2, self.dim))
        return SymmetricData(jnp.concatenate([half, -half]))

    def init(self, problem: SymmetricData, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """$w_0 \\sim N(0, I)$."""
        del problem
        return jax.random.normal(key, (self.dim,))

    def loss(
        self, problem: SymmetricData, params: Float[Array, " dim"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w; B)$; see the class."""
        size, data = min(self.batch_size, self.examples), problem.data
        if split == "train":
            (data,) = batch_of((data,), key, size)
        if self.form == "projection":
            return size * jnp.sum(jnp.square(params) * jnp.mean(jnp.square(data), axis=0))
        # Multiplied out: the squares of the data, which cancel, would cost the digits of a small loss.
        mean = jnp.mean(data, axis=0) if split == "train" else jnp.zeros_like(params)
        return size * jnp.sum(params * (params - 2.0 * mean)) + 1e-12

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the expected loss at the start: of one for each parameter and each of the batch."""
        return loss / (min(self.batch_size, self.examples) * self.dim)
