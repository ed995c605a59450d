"""What a per-parameter network sees, each feature defined once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TIME_SCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)  # steps


def time_embedding(count: Int[Array, ""]) -> Float[Array, 11]:
    r"""$\tanh(t/\tau - 1)$ for eleven $\tau$ from 1 to 100,000 steps (Metz et al. 2019)."""
    return jnp.tanh(count.astype(jnp.float32) / jnp.asarray(TIME_SCALES, jnp.float32) - 1.0)


def root(x: Array) -> Array:
    """The square root, with a finite slope at zero."""
    return jnp.sqrt(x + 1e-30)


def rms_scale(mean_square: Array) -> Array:
    r"""$1/\sqrt{10^{-5} + \overline{x^2}}$: what normalises a feature over its tensor."""
    return jax.lax.rsqrt(mean_square + 1e-5)
