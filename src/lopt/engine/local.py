"""Meta-gradients in this process, the particles spread over its devices."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.engine.engine import Engine, Gradients
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, EstimatorState, MetaGradient
from lopt.estimators.particles import Particles
from lopt.optimizer import Optimizer


@dataclasses.dataclass(frozen=True)
class Local(Engine):
    """All estimators in this process.

    Particles, or pairs of them, are spread evenly over devices. The number of devices is the largest one that divides the pairs of every
    estimator: 2 pairs on 4 devices use 2 of them. A warning says so where fewer are used than there are.

    Args:
        devices: the most devices to use; all that JAX has if `None`.

    Raises:
        InputError: for fewer than one device, or more than there are.

    Examples:
        >>> import lopt
        >>> estimator = lopt.estimators.PES(lopt.tasks.Quadratic(dim=2), pairs=3)
        >>> lopt.engine.Local(devices=1).describe([estimator])
        {'engine': 'local', 'devices': 1}
    """

    devices: int | None = None

    def __post_init__(self) -> None:
        if self.devices is not None:
            at_least(1, devices=self.devices)

    @property
    def traceable(self) -> bool:
        """True: a whole meta-step is one compiled program."""
        return True

    def begin(
        self, optimizer: Optimizer, estimators: Sequence[Estimator], key: PRNGKeyArray
    ) -> tuple[EstimatorState, ...]:
        """Start the inner problems of all estimators."""
        return tuple(e.init(optimizer, jax.random.fold_in(key, i)) for i, e in enumerate(self.place(estimators)))

    def gradients(
        self,
        optimizer: Optimizer,
        estimators: Sequence[Estimator],
        states: tuple[EstimatorState, ...],
        key: PRNGKeyArray,
    ) -> Gradients:
        """One estimate of every estimator."""
        return gradients(optimizer, self.place(estimators), states, key)

    def gather(self, states: tuple[EstimatorState, ...]) -> tuple[EstimatorState, ...]:
        """The states as they are."""
        return states

    def describe(self, estimators: Sequence[Estimator]) -> dict[str, Any]:
        """The number of devices that are used."""
        return {"engine": "local", "devices": self.used(estimators)}

    def available(self) -> int:
        """How many devices may be used."""
        there = jax.device_count()
        if self.devices is not None and self.devices > there:
            raise InputError(f"devices is {self.devices}; JAX has {there}.")
        return self.devices or there

    def used(self, estimators: Sequence[Estimator]) -> int:
        """How many devices are used: the largest number that is available and divides the groups of all estimators."""
        available = self.available()
        groups = math.gcd(*(found.groups for found in _particles(estimators)))
        if not groups:  # no particles
            return 1
        used = max(n for n in range(1, available + 1) if groups % n == 0)
        if used < available:
            warnings.warn(
                f"{used} of {available} devices are used: the numbers of pairs or particles have no larger common divisor.",
                stacklevel=2,
            )
        return used

    def place(self, estimators: Sequence[Estimator]) -> tuple[Estimator, ...]:
        """The estimators with the number of devices that they use, those within wrappers too."""
        used = self.used(estimators)

        def place(node: Any) -> Any:
            return dataclasses.replace(node, devices=used) if isinstance(node, Particles) else node

        return jax.tree.map(place, tuple(estimators), is_leaf=lambda x: isinstance(x, Particles))


def gradients(
    optimizer: Optimizer, estimators: Sequence[Estimator], states: tuple[EstimatorState, ...], key: PRNGKeyArray
) -> Gradients:
    r"""One estimate of every estimator, and their mean.

    $$\hat g = \frac1n \sum_{i=1}^n \hat g_i(\theta)$$

    Args:
        optimizer: the meta-parameters $\theta$.
        estimators: where meta-gradients come from.
        states: of the estimators.
        key: of this meta-step; the $i$-th estimator gets `fold_in(key, i)`.
    """
    # Behind the barriers an estimate is the program that it is on its own, as an engine with workers compiles it: the same bits.
    found = [
        jax.lax.optimization_barrier(e.estimate(optimizer, s, jax.random.fold_in(key, i)))
        for i, (e, s) in enumerate(zip(estimators, states, strict=True))
    ]
    gradient, metrics = merge([(g, m) for g, _, m in found], [e.inner_steps for e in estimators])
    return jax.lax.optimization_barrier(Gradients(gradient, tuple(state for _, state, _ in found), metrics))


def merge(
    found: Sequence[tuple[MetaGradient, dict[str, Array]]], inner_steps: Sequence[int]
) -> tuple[MetaGradient, dict[str, Float[Array, ""]]]:
    """The mean of meta-gradients with the means of their metrics; the inner steps are a sum.

    Args:
        found: estimates with their metrics.
        inner_steps: of each, where its metrics do not say.
    """
    gradient = jax.tree.map(lambda *xs: sum(xs) / len(xs), *(g for g, _ in found))
    steps = sum(m.get("inner_steps", n) for n, (_, m) in zip(inner_steps, found, strict=True))
    metrics = _mean_of_those_that_have_it([m for _, m in found]) | {"inner_steps": jnp.asarray(steps, jnp.float32)}
    return gradient, metrics


def _mean_of_those_that_have_it(metrics: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Estimators of a mixture may report different things."""
    names = dict.fromkeys(name for found in metrics for name in found)
    having = {name: [found[name] for found in metrics if name in found] for name in names}
    return {name: functools.reduce(jnp.add, values) / len(values) for name, values in having.items()}


def _particles(estimators: Sequence[Estimator]) -> list[Particles]:
    """All estimators on particles, those within wrappers too."""
    nodes = jax.tree.leaves(tuple(estimators), is_leaf=lambda x: isinstance(x, Particles))
    return [node for node in nodes if isinstance(node, Particles)]
