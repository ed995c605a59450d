"""Linear regression on inputs with a chosen spread of variances."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.task import Split, Task
from lopt.tasks.surfaces.quadratic import Quadratic, QuadraticProblem


class LinearRegression(Task):
    r"""Regress on fresh Gaussian inputs: stochastic gradients of a quadratic.

    $$f(w; B) = \frac{1}{2 |B|} \sum_{(x, y) \in B} (x^\top w - y)^2, \qquad x \sim N(0, H)$$

    $$y = x^\top w^* + \sigma \epsilon, \quad \epsilon \sim N(0, 1)$$

    with $H$, $w^*$ and $w_0$ as in `Quadratic`: its eigenvalues are $10^u$ with $u \sim U(\text{low}, \text{high})$. Every batch is fresh, so training and
    validation losses have the same mean $\tfrac12 (w - w^*)^\top H (w - w^*) + \sigma^2/2$; that is what `metrics` reports.

    Args:
        dim: number of parameters.
        low: least exponent of the eigenvalues.
        high: greatest exponent of the eigenvalues.
        noise: $\sigma$.
        batch_size: examples a minibatch.

    Source: Maheswaranathan et al. 2020 (the spectrum); the minibatches are this library's.
    """

    quadratic: Quadratic
    noise: float = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(self, *, dim: int = 5, low: float = -3.0, high: float = 0.0, noise: float = 0.0, batch_size: int = 32):
        at_least(0, noise=noise)
        at_least(1, batch_size=batch_size)
        self.quadratic = Quadratic(dim=dim, low=low, high=high)
        self.noise, self.batch_size = noise, batch_size

    def sample(self, key: PRNGKeyArray) -> QuadraticProblem:
        """Draw the covariance of the inputs and the true weights."""
        return self.quadratic.sample(key)

    def init(self, problem: QuadraticProblem, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """$w_0 \\sim N(0, I)$."""
        return self.quadratic.init(problem, key)

    def loss(
        self, problem: QuadraticProblem, params: Float[Array, " dim"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w; B)$ on a fresh minibatch, whatever the split."""
        del split
        inputs_key, noise_key = jax.random.split(key)
        white = jax.random.normal(inputs_key, (self.batch_size, self.quadratic.dim), params.dtype)
        scaled = white * jnp.sqrt(problem.eigenvalues)[None]
        inputs = scaled - 2.0 * jnp.outer(scaled @ problem.axis, problem.axis)
        residual = inputs @ (params - problem.optimum)
        if self.noise:
            residual = residual - self.noise * jax.random.normal(noise_key, residual.shape, residual.dtype)
        return 0.5 * jnp.mean(jnp.square(residual))

    def metrics(
        self, problem: QuadraticProblem, params: Float[Array, " dim"], key: PRNGKeyArray, split: Split
    ) -> dict[str, Float[Array, ""]]:
        """The mean loss over all batches."""
        return {"loss": self.quadratic.loss(problem, params, key, split) + 0.5 * self.noise**2}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """From 1, the expected loss at the start, to 0, that of the true weights."""
        return self.quadratic.normalize(loss - 0.5 * self.noise**2)
