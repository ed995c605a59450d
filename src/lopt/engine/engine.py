"""The abstract engine."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float, PRNGKeyArray

from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, EstimatorState, MetaGradient
from lopt.optimizer import Optimizer


class Gradients(NamedTuple):
    """One estimate of every estimator of a mixture, or of some where the engine is not synchronous."""

    gradient: MetaGradient  # the mean of the estimates
    estimators: tuple[EstimatorState, ...]  # the next states
    metrics: dict[str, Float[Array, ""]]  # means, but `inner_steps` is a sum


class Unreachable(InputError):
    """No worker is left, and none came in the time that an engine waits for one."""


class Engine(abc.ABC):
    """Where the estimators of a meta-training live and compute. Hashable: it is a static argument of compiled programs.

    The outer step is not the engine's: it happens where `meta_train` runs.
    """

    @property
    @abc.abstractmethod
    def traceable(self) -> bool:
        """Whether `begin` and `gradients` are pure functions of arrays, so that they and the outer step compile into one program."""

    @property
    def synchronous(self) -> bool:
        """Whether every meta-gradient is at the meta-parameters that it is asked for, with one estimate of every estimator; yes unless an engine says no."""
        return True

    @abc.abstractmethod
    def begin(
        self, optimizer: Optimizer, estimators: Sequence[Estimator], key: PRNGKeyArray
    ) -> tuple[EstimatorState, ...]:
        """Start the inner problems of all estimators.

        Args:
            optimizer: the initial meta-parameters.
            estimators: where meta-gradients come from.
            key: draws the inner problems; the $i$-th estimator gets `fold_in(key, i)`.
        """

    @abc.abstractmethod
    def gradients(
        self,
        optimizer: Optimizer,
        estimators: Sequence[Estimator],
        states: tuple[EstimatorState, ...],
        key: PRNGKeyArray,
    ) -> Gradients:
        """One estimate of every estimator, or of some where the engine is not synchronous.

        Args:
            optimizer: the meta-parameters.
            estimators: those of `begin`.
            states: from `begin`, `gradients` or `gather`.
            key: of this meta-step; the $i$-th estimator gets `fold_in(key, i)`.
        """

    @abc.abstractmethod
    def gather(self, states: tuple[EstimatorState, ...]) -> tuple[EstimatorState, ...]:
        """The states as arrays of this process, for a checkpoint."""

    @abc.abstractmethod
    def describe(self, estimators: Sequence[Estimator]) -> dict[str, Any]:
        """What must agree for a run to be continued bit for bit, as JSON."""
