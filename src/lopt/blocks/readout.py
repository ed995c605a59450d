"""From a network's outputs to a step."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array


def direction_magnitude(direction: Array, magnitude: Array, step_mult: float, exp_mult: float) -> Array:
    r"""$\lambda_1\, d\, \exp(\lambda_2 m)$, the step that is to be subtracted (Metz et al. 2019)."""
    return step_mult * direction * jnp.exp(exp_mult * magnitude)
