"""Momentum on the toy, by its two meta-parameters: what several of the claims measure."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopt.optimizers import Momentum


def momentum(log_rate: Float[Array, ""], log_gap: Float[Array, ""]) -> Momentum:
    r"""`Momentum` with the leaves $\log\eta$ and $\log(1 - \beta)$, unrounded."""
    return eqx.tree_at(lambda m: (m.log_learning_rate, m.log_one_minus_decay), Momentum(), (log_rate, log_gap))


def at(learning_rate: float, gap: float) -> Momentum:
    r"""`Momentum` at a learning rate and $1 - \beta$."""
    return momentum(jnp.log(jnp.float32(learning_rate)), jnp.log(jnp.float32(gap)))
