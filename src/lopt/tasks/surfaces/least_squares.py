"""Random linear systems, by the sum of squares and by p-norms of the residual."""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.task import Split, Task

EPSILON = 1e-6  # keeps the slope of a power finite at a residual of zero


class LinearSystem(NamedTuple):
    """The matrix and right-hand side of a system of equations."""

    matrix: Float[Array, "dim dim"]
    target: Float[Array, " dim"]


class LeastSquares(Task):
    r"""A square system of linear equations in the sense of least squares.

    $$f(w) = \tfrac12 \lVert W w - y \rVert^2, \qquad W_{ij}, y_i, w_{0,i} \sim N(0, 1)$$

    The condition number of $H = W^\top W$ is of order `dim`$^2$ and heavy-tailed; the least loss is zero.

    Args:
        dim: number of parameters and of equations.

    Source: Wichrowska et al. 2017, the released problem generator, where the parameter is a matrix of one column.
    """

    dim: int = eqx.field(static=True)

    def __init__(self, *, dim: int = 20):
        _check(dim)
        self.dim = dim

    def sample(self, key: PRNGKeyArray) -> LinearSystem:
        """Draw the system."""
        return _draw(key, self.dim)

    def init(self, problem: LinearSystem, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """$w_0 \\sim N(0, I)$."""
        del problem
        return jax.random.normal(key, (self.dim,))

    def loss(
        self, problem: LinearSystem, params: Float[Array, " dim"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w)$, the same on all splits."""
        del key, split
        return 0.5 * jnp.sum(jnp.square(problem.matrix @ params - problem.target))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the expected loss at the start, n(n + 1)/2."""
        return loss / (0.5 * self.dim * (self.dim + 1.0))


class PNorm(Task):
    r"""A square system of linear equations in the sense of a p-norm.

    $$f(w) = \Big( \sum_i \big(\lvert (W w - y)_i \rvert + 10^{-6}\big)^p \Big)^{1/p}, \qquad W_{ij}, y_i, w_{0,i} \sim N(0, 1)$$

    Its slope does not vanish towards the minimum, and with $p = 1$ it jumps at every crease.

    Args:
        dim: number of parameters and of equations.
        power: $p$, at least 1; below it gradients early in training are not finite.

    Source: Wichrowska et al. 2017, the released problem generator.
    """

    dim: int = eqx.field(static=True)
    power: float = eqx.field(static=True)

    def __init__(self, *, dim: int = 25, power: float = 2.0):
        _check(dim)
        at_least(1, power=power)
        self.dim, self.power = dim, power

    def sample(self, key: PRNGKeyArray) -> LinearSystem:
        """Draw the system."""
        return _draw(key, self.dim)

    def init(self, problem: LinearSystem, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """$w_0 \\sim N(0, I)$."""
        del problem
        return jax.random.normal(key, (self.dim,))

    def loss(
        self, problem: LinearSystem, params: Float[Array, " dim"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w)$, the same on all splits."""
        del key, split
        residual = jnp.abs(problem.matrix @ params - problem.target) + EPSILON
        return jnp.power(jnp.sum(jnp.power(residual, self.power)), 1.0 / self.power)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        r"""From 1 at the start to 0 at the solution, where every residual is zero.

        The start is $(n\,E\lvert r \rvert^p)^{1/p}$ with $r \sim N(0, n + 1)$: a little above the mean.
        """
        p = self.power
        moment = (2.0 * (self.dim + 1.0)) ** (p / 2.0) * math.gamma((p + 1.0) / 2.0) / math.sqrt(math.pi)
        least = self.dim ** (1.0 / p) * EPSILON
        return (loss - least) / ((self.dim * moment) ** (1.0 / p) - least)


def _check(dim: int) -> None:
    at_least(1, dim=dim)


def _draw(key: PRNGKeyArray, dim: int) -> LinearSystem:
    numbers = jax.random.normal(key, (dim + 1, dim))  # one draw: two take twice as long to compile
    return LinearSystem(numbers[:dim], numbers[dim])
