"""Optax transformations as optimizers."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, PRNGKeyArray

from lopt.optimizer import Optimizer, Params, State, Updates


class OptaxOptimizer(Optimizer):
    """An optimizer that is an optax transformation of its leaves. It computes and accumulates in float32, or in float64 if parameters are."""

    @abc.abstractmethod
    def transformation(self) -> optax.GradientTransformation:
        """The optax transformation at the current meta-parameters."""

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> State:
        """State of the optax transformation."""
        del key, horizon
        return self.transformation().init(_wide(params))

    def update(self, updates: Updates, state: State, params: Params, **extra: Any) -> tuple[Updates, State]:
        """Update of the optax transformation."""
        tx = optax.with_extra_args_support(self.transformation())
        # Optax raises decays, here arrays, to the power of an integer count.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(_wide(updates), state, _wide(params), **extra)
        return jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params), state


class FromOptax(Optimizer):
    """Any optax transformation as an `Optimizer` without meta-parameters, in the dtype of the parameters, as optax has it.

    Where the transformation, or one inside of it, is schedule-free, `eval_params` is the average that it keeps.

    Args:
        tx: the transformation.
    """

    tx: optax.GradientTransformation = eqx.field(static=True)

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> State:
        """State of the transformation."""
        del key, horizon
        return self.tx.init(params)

    def update(self, updates: Updates, state: State, params: Params, **extra: Any) -> tuple[Updates, State]:
        """Update of the transformation."""
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            return optax.with_extra_args_support(self.tx).update(updates, state, params, **extra)

    def eval_params(self, state: State, params: Params) -> Params:
        """The parameters to evaluate."""
        averages = [x for x in jax.tree.leaves(state, is_leaf=_is_schedule_free) if _is_schedule_free(x)]
        if not averages:
            return params
        with jax.numpy_dtype_promotion("standard"):
            found = optax.contrib.schedule_free_eval_params(averages[0], params)
        return jax.tree.map(lambda x, p: x.astype(p.dtype), found, params)


def _is_schedule_free(state: Any) -> bool:
    return isinstance(state, optax.contrib.ScheduleFreeState)


def _wide(tree: Params) -> Params:
    """Every tensor in float32 or, if it has more digits, as it is."""
    return jax.tree.map(lambda x: x if jnp.finfo(x.dtype).bits > 32 else x.astype(jnp.float32), tree)
