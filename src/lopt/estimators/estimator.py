"""The abstract meta-gradient estimator."""

from __future__ import annotations

import abc

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.optimizer import Optimizer

EstimatorState = PyTree[Array]
MetaGradient = PyTree[Array]  # the structure of the optimizer


class Estimator(eqx.Module):
    """A meta-gradient: two pure functions. Holds its task, so a mixture of tasks is a list of estimators."""

    @property
    @abc.abstractmethod
    def inner_steps(self) -> int:
        """Inner steps that one estimate takes, over all particles; their mean where the truncation varies."""

    @abc.abstractmethod
    def init(self, optimizer: Optimizer, key: PRNGKeyArray) -> EstimatorState:
        """Start the inner problems."""

    @abc.abstractmethod
    def estimate(
        self, optimizer: Optimizer, state: EstimatorState, key: PRNGKeyArray
    ) -> tuple[MetaGradient, EstimatorState, dict[str, Float[Array, ""]]]:
        """One estimate of the gradient of the meta-loss with respect to the optimizer's leaves.

        Returns:
            The meta-gradient, the next state, and metrics: `meta_loss`, `diverged`, the fraction of losses that were not finite, and, unless it is always
            the same, `inner_steps`, what this estimate took. Others are as each estimator likes.
        """
