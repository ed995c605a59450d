"""Quadratics with a random spectrum, and bowls in the plane."""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least, positive
from lopt.errors import InputError
from lopt.task import Split, Task


class QuadraticProblem(NamedTuple):
    """One quadratic."""

    eigenvalues: Float[Array, " dim"]
    axis: Float[Array, " dim"]  # unit vector of the reflection that rotates the eigenbasis
    optimum: Float[Array, " dim"]


class Quadratic(Task):
    r"""Noisy quadratics with log-uniform spectrum.

    $$f(w; \mu) = \tfrac12 (w - w^* - \mu)^\top H (w - w^* - \mu), \qquad H = R\,\mathrm{diag}(\lambda)\,R, \quad R = I - 2 a a^\top$$

    with $\log_{10}\lambda_i \sim U(\text{low}, \text{high})$, $a$ uniform on the sphere, $w^*, w_0 \sim N(0, I)$, and $\mu \sim N(0, \text{noise}^2 I)$ drawn
    at every step on the training split; other splits are free of noise. The reflection mixes all coordinates at the cost of two dot products.

    Args:
        dim: number of parameters.
        low: least exponent of the eigenvalues.
        high: greatest exponent of the eigenvalues.
        noise: deviation of $\mu$.
        tilted: draw a linear term $v \sim N(0, I)$ instead of the optimum, which is then $w^* = -H^{-1} v$: far away along flat directions.
            With `dim=5, low=-3` these are the quadratics of Maheswaranathan et al. 2020, but for the basis, which is uniform there.
    """

    dim: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    noise: float = eqx.field(static=True)
    tilted: bool = eqx.field(static=True)

    def __init__(
        self, *, dim: int = 20, low: float = -2.0, high: float = 0.0, noise: float = 0.0, tilted: bool = False
    ):
        at_least(1, dim=dim)
        if low > high:
            raise InputError(f"low is {low} and high {high}; low must not exceed high.")
        at_least(0, noise=noise)
        self.dim, self.low, self.high, self.noise, self.tilted = dim, low, high, noise, tilted

    def sample(self, key: PRNGKeyArray) -> QuadraticProblem:
        """Draw spectrum, basis and optimum."""
        spectrum, axis, optimum = jax.random.split(key, 3)
        exponents = jax.random.uniform(spectrum, (self.dim,), minval=self.low, maxval=self.high)
        eigenvalues = jnp.power(10.0, exponents)
        direction = jax.random.normal(axis, (self.dim,))
        direction = direction / jnp.linalg.norm(direction)
        best = jax.random.normal(optimum, (self.dim,))
        if self.tilted:  # best is -v: isotropic, so in the eigenbasis it is as good as in any other
            best = _reflect(direction, best / eigenvalues)
        return QuadraticProblem(eigenvalues, direction, best)

    def init(self, problem: QuadraticProblem, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """$w_0 \\sim N(0, I)$."""
        del problem
        return jax.random.normal(key, (self.dim,))

    def loss(
        self, problem: QuadraticProblem, params: Float[Array, " dim"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w; \\mu)$; see the class."""
        distance = params - problem.optimum
        if split == "train" and self.noise:
            distance = distance - self.noise * jax.random.normal(key, (self.dim,), params.dtype)
        return 0.5 * jnp.sum(problem.eigenvalues * jnp.square(_reflect(problem.axis, distance)))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        r"""Divided by the expected loss at the start: $n\,E[\lambda]$, or $\tfrac n2 (E[\lambda] + E[\lambda^{-1}])$ where tilted."""
        mean = _mean_power_of_ten(self.low, self.high)
        if self.tilted:
            mean = 0.5 * (mean + _mean_power_of_ten(-self.high, -self.low))
        return loss / (self.dim * mean)


def _mean_power_of_ten(low: float, high: float) -> float:
    """The mean of 10^u for u uniform between `low` and `high`."""
    width = (high - low) * math.log(10.0)
    return 10.0**low if width == 0 else (10.0**high - 10.0**low) / width


def _reflect(axis: Float[Array, " dim"], x: Float[Array, " dim"]) -> Float[Array, " dim"]:
    return x - 2.0 * axis * jnp.dot(axis, x)


class Bowl(Task):
    r"""A bowl in the plane.

    $$f(w) = \tfrac12 \lVert \sqrt H R\, w \rVert^2, \qquad H = \mathrm{diag}(\kappa, 1), \quad w_0 \sim N(0, I)$$

    where $R$ turns by `angle`.

    Args:
        condition: $\kappa$.
        angle: radians.

    Source: Wichrowska et al. 2017, the released problem generator.
    """

    condition: float = eqx.field(static=True)
    angle: float = eqx.field(static=True)

    def __init__(self, *, condition: float = 5.0, angle: float = 0.0):
        positive(condition=condition)
        self.condition, self.angle = condition, angle

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Float[Array, " 2"]:
        """$w_0 \\sim N(0, I)$."""
        del problem
        return jax.random.normal(key, (2,))

    def loss(
        self, problem: tuple[()], params: Float[Array, " 2"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w)$, the same on all splits."""
        del problem, key, split
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = cos * params[0] - sin * params[1], sin * params[0] + cos * params[1]
        return 0.5 * (self.condition * x**2 + y**2)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        r"""Divided by the expected loss at the start, $(\kappa + 1)/2$."""
        return loss / (0.5 * (self.condition + 1.0))
