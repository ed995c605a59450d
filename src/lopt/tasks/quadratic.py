"""Quadratics with a chosen spectrum."""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

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
    """

    dim: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    noise: float = eqx.field(static=True)

    def __init__(self, *, dim: int = 20, low: float = -2.0, high: float = 0.0, noise: float = 0.0):
        if dim < 1:
            raise InputError(f"dim is {dim}; it must be at least 1.")
        if low > high:
            raise InputError(f"low is {low} and high {high}; low must not exceed high.")
        if noise < 0:
            raise InputError(f"noise is {noise}; it must not be negative.")
        self.dim, self.low, self.high, self.noise = dim, low, high, noise

    def sample(self, key: PRNGKeyArray) -> QuadraticProblem:
        """Draw spectrum, basis and optimum."""
        spectrum, axis, optimum = jax.random.split(key, 3)
        exponents = jax.random.uniform(spectrum, (self.dim,), minval=self.low, maxval=self.high)
        direction = jax.random.normal(axis, (self.dim,))
        return QuadraticProblem(
            jnp.power(10.0, exponents),
            direction / jnp.linalg.norm(direction),
            jax.random.normal(optimum, (self.dim,)),
        )

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
        rotated = distance - 2.0 * problem.axis * jnp.dot(problem.axis, distance)
        return 0.5 * jnp.sum(problem.eigenvalues * jnp.square(rotated))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the expected loss at the start, $n\\,E[\\lambda]$."""
        width = (self.high - self.low) * math.log(10.0)
        mean = 10.0**self.low if width == 0 else (10.0**self.high - 10.0**self.low) / width
        return loss / (self.dim * mean)
