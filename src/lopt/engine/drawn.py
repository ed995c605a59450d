"""Meta-gradients in this process, of one estimator a meta-step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.engine.engine import Engine, Gradients
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, EstimatorState, MetaGradient
from lopt.optimizer import Optimizer


class Drawn(Engine):
    r"""One estimator a meta-step, drawn by its share; each is a compiled program of its own.

    $$\hat g = \hat g_I(\theta), \quad P(I = i) = p_i$$

    Its mean over the draw is $\sum_i p_i \hat g_i$. It is for tasks whose programs differ. As one program they compile for as long as all together,
    and every meta-step computes them all. Here what is compiled is kept for other meta-trainings of the same programs.

    Args:
        shares: $p_i$ up to a factor, one for each estimator.

    Raises:
        InputError: for shares that are not positive and finite, and in `begin` for another number of them than of estimators.

    Examples:
        >>> import jax, lopt, optax
        >>> mixture = [lopt.estimators.PES(lopt.tasks.Quadratic(dim=d), pairs=2, truncation=5, horizon=20) for d in (2, 3)]
        >>> engine = lopt.engine.Drawn([3, 1])
        >>> state = lopt.meta_train(lopt.optimizers.SGD(), mixture, optax.adam(1e-2), steps=3, key=jax.random.key(0), engine=engine)
        >>> int(state.step)
        3
    """

    def __init__(self, shares: Sequence[int | float]):
        given = np.asarray(shares, np.float64)
        if not given.size or not np.isfinite(given).all() or (given <= 0.0).any():
            raise InputError(f"shares is {given.tolist()}; give a positive number for each estimator.")
        self.shares = tuple((given / given.sum()).tolist())

    @property
    def traceable(self) -> bool:
        """False: each estimator is a program of its own, and which one runs is drawn at each meta-step."""
        return False

    @property
    def synchronous(self) -> bool:
        """False: a meta-step has an estimate of one estimator only."""
        return False

    def begin(
        self, optimizer: Optimizer, estimators: Sequence[Estimator], key: PRNGKeyArray
    ) -> tuple[EstimatorState, ...]:
        """Start the inner problems of all estimators."""
        if len(estimators) != len(self.shares):
            raise InputError(f"shares has {len(self.shares)} numbers; there are {len(estimators)} estimators.")
        return tuple(_begin(e, optimizer, jax.random.fold_in(key, i)) for i, e in enumerate(estimators))

    def gradients(
        self,
        optimizer: Optimizer,
        estimators: Sequence[Estimator],
        states: tuple[EstimatorState, ...],
        key: PRNGKeyArray,
    ) -> Gradients:
        """An estimate of one estimator; the states of the others stay as they are."""
        which = int(_draw(jax.random.fold_in(key, len(states)), jnp.asarray(self.shares)))
        own = jax.random.fold_in(key, which)
        gradient, state, metrics = _estimate(estimators[which], optimizer, states[which], own)
        return Gradients(gradient, (*states[:which], state, *states[which + 1 :]), metrics)

    def gather(self, states: tuple[EstimatorState, ...]) -> tuple[EstimatorState, ...]:
        """The states as they are."""
        return states

    def describe(self, estimators: Sequence[Estimator]) -> dict[str, Any]:
        """The shares."""
        return {"engine": "drawn", "shares": list(self.shares)}


@jax.jit
def _begin(estimator: Estimator, optimizer: Optimizer, key: PRNGKeyArray) -> EstimatorState:
    return estimator.init(optimizer, key)


@jax.jit
def _draw(key: PRNGKeyArray, shares: Float[Array, " estimators"]) -> Int[Array, ""]:
    return jax.random.choice(key, shares.shape[0], p=shares)


@jax.jit
def _estimate(
    estimator: Estimator, optimizer: Optimizer, state: EstimatorState, key: PRNGKeyArray
) -> tuple[MetaGradient, EstimatorState, dict[str, Float[Array, ""]]]:
    gradient, state, metrics = estimator.estimate(optimizer, state, key)
    return gradient, state, {"inner_steps": jnp.asarray(estimator.inner_steps, jnp.float32)} | metrics
