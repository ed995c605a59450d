"""The abstract meta-gradient estimator."""

from __future__ import annotations

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.optimizer import Optimizer

EstimatorState = PyTree[Array]
MetaGradient = PyTree[Array]  # the structure of the optimizer


class Estimator(eqx.Module):
    """A meta-gradient: two pure functions. Holds its task, so a mixture of tasks is a list of estimators."""

    @property
    @abc.abstractmethod
    def inner_steps(self) -> int:
        """Inner steps that one estimate takes, over all particles."""

    @abc.abstractmethod
    def init(self, optimizer: Optimizer, key: PRNGKeyArray) -> EstimatorState:
        """Start the inner problems."""

    @abc.abstractmethod
    def estimate(
        self, optimizer: Optimizer, state: EstimatorState, key: PRNGKeyArray
    ) -> tuple[MetaGradient, EstimatorState, dict[str, Float[Array, ""]]]:
        """One estimate of the gradient of the meta-loss with respect to the optimizer's leaves.

        Returns:
            The meta-gradient, the next state, and metrics: `meta_loss`, and `diverged`, the fraction of losses that were not finite.
        """


def meta_loss(losses: Float[Array, " steps"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""The mean of normalised losses, made finite.

    $$L = \frac1K \sum_t \rho(\ell_t), \qquad \rho(x) = x \text{ for } x \le 1, \quad \min(1 + \log x, 10) \text{ above, and } 10 \text{ for NaN}$$

    The logarithm keeps an order among diverging runs and stops any of them from drowning the rest.

    Returns:
        $L$, and the fraction of losses that were not finite.
    """
    finite = jnp.isfinite(losses)
    safe = jnp.where(finite, losses, 1.0)
    squashed = jnp.where(safe <= 1.0, safe, jnp.minimum(1.0 + jnp.log(jnp.maximum(safe, 1.0)), 10.0))
    return jnp.mean(jnp.where(finite, squashed, 10.0)), jnp.mean((~finite).astype(jnp.float32))
