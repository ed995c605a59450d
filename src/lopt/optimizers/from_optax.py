"""Optax transformations as optimizers."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
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


class FromOptax(OptaxOptimizer):
    """Any optax transformation as an `Optimizer` without meta-parameters.

    Args:
        tx: the transformation.
    """

    tx: optax.GradientTransformation = eqx.field(static=True)

    def transformation(self) -> optax.GradientTransformation:
        """The transformation itself."""
        return self.tx


def _wide(tree: Params) -> Params:
    """Every tensor in float32 or, if it has more digits, as it is."""
    return jax.tree.map(lambda x: x if jnp.finfo(x.dtype).bits > 32 else x.astype(jnp.float32), tree)
