"""Long winding paths and minima that are hard to reach."""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.task import Split, Task
from lopt.tasks.data.points import batch_of

EPSILON = 1e-6


class DependencyChain(Task):
    r"""Parameters that can only be brought to zero one after the other.

    $$f(w) = w_0^2 + \sum_{i=1}^{n} \frac{w_i^2}{w_{i-1}^2 + 10^{-6}}, \qquad w_0 \sim N(0, I)$$

    Args:
        dim: $n$; there are `dim + 1` parameters.

    Source: Wichrowska et al. 2017, the released problem generator, off by default.
    """

    dim: int = eqx.field(static=True)

    def __init__(self, *, dim: int = 20):
        at_least(1, dim=dim)
        self.dim = dim

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Float[Array, " parameters"]:
        """$w_0 \\sim N(0, I)$."""
        del problem
        return jax.random.normal(key, (self.dim + 1,))

    def loss(
        self, problem: tuple[()], params: Float[Array, " parameters"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w)$, the same on all splits."""
        del problem, key, split
        square = jnp.square(params)
        return square[0] + jnp.sum(square[1:] / (square[:-1] + EPSILON))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        r"""$\log(1 + f)$ over its scale at the start, where $f$ itself has a tail so heavy that its mean says nothing."""
        return jnp.log1p(loss) / math.log(1.0 + 12.0 * self.dim)


class MinMaxWell(Task):
    r"""Only the least and the greatest parameter have a gradient.

    $$f(w) = \max_i w_i^2 + \frac{1}{\min_i w_i^2} - 2 + 10^{-12}, \qquad w_0 \sim N(0, I)$$

    The least value is reached where all $|w_i| = 1$.

    Args:
        dim: number of parameters.

    Source: Wichrowska et al. 2017, the released problem generator, off by default.
    """

    dim: int = eqx.field(static=True)

    def __init__(self, *, dim: int = 12):
        at_least(1, dim=dim)
        self.dim = dim

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Float[Array, " dim"]:
        """$w_0 \\sim N(0, I)$."""
        del problem
        return jax.random.normal(key, (self.dim,))

    def loss(
        self, problem: tuple[()], params: Float[Array, " dim"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w)$, the same on all splits."""
        del problem, key, split
        square = jnp.square(params)
        return jnp.maximum(jnp.max(square) + 1.0 / jnp.min(square) - 2.0, 0.0)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        r"""$\log(1 + f)$ over its scale at the start: the least of $n$ numbers is of order $1/n$ with a heavy tail below."""
        return jnp.log1p(loss) / math.log(1.0 + 4.0 * self.dim**2)


class SnakeProblem(NamedTuple):
    """The data of an outward snake: zeros and ones."""

    data: Float[Array, "examples dim"]


class OutwardSnake(Task):
    r"""A winding path out to infinity, along which the best step length stays the same.

    $$f(w; B) = \sum_{d \in B} \Big[ \frac{d_0}{\lVert w \rVert + 10^{-6}} + \sum_{i \geq 1} d_i^2 (w_i - \pi \cos w_{i-1})^2 \Big], \qquad w_0 \sim N(0, I)$$

    with data $d_i \in \{0, 1\}$. The infimum is zero, reached nowhere. Validation and test losses are of all data, scaled to a batch.

    Args:
        dim: number of parameters.
        examples: number of data.
        batch_size: data a minibatch; all of them where it exceeds their number.

    Source: Wichrowska et al. 2017, the released problem generator, off by default.
    """

    dim: int = eqx.field(static=True)
    examples: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(self, *, dim: int = 12, examples: int = 200, batch_size: int = 10):
        at_least(2, dim=dim)
        if examples < 1 or batch_size < 1:
            raise InputError(f"examples is {examples} and batch_size {batch_size}; they must be at least 1.")
        self.dim, self.examples, self.batch_size = dim, examples, batch_size

    def sample(self, key: PRNGKeyArray) -> SnakeProblem:
        """Draw the data."""
        return SnakeProblem(jax.random.bernoulli(key, 0.5, (self.examples, self.dim)).astype(jnp.float32))

    def init(self, problem: SnakeProblem, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """$w_0 \\sim N(0, I)$."""
        del problem
        return jax.random.normal(key, (self.dim,))

    def loss(
        self, problem: SnakeProblem, params: Float[Array, " dim"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w; B)$; see the class."""
        data = problem.data
        if split == "train":
            (data,) = batch_of((data,), key, self.batch_size)
        weight = jnp.mean(data, axis=0) * min(self.batch_size, self.examples)  # data are their own squares
        radius = jnp.linalg.norm(params)
        off_path = params[1:] - math.pi * jnp.cos(params[:-1])
        return weight[0] / (radius + EPSILON) + jnp.sum(weight[1:] * jnp.square(off_path))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        r"""Divided by about the expected loss at the start, half of the batch times $E(w - \pi \cos w')^2 = 1 + \tfrac{\pi^2}{2} (1 + e^{-2})$ a parameter."""
        mean = 1.0 + 0.5 * math.pi**2 * (1.0 + math.exp(-2.0))
        return loss / (0.5 * min(self.batch_size, self.examples) * mean * (self.dim - 1))
