"""Persistent evolution strategies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from lopt.estimators.particles import AntitheticES, Noise


class PES(AntitheticES):
    r"""Persistent evolution strategies: fresh noise every truncation, credit for all of it since the problem began.

    $$\epsilon_\tau \sim N(0, \sigma^2 I), \qquad \xi_\tau = \xi_{\tau-1} + \epsilon_\tau, \qquad \xi = 0 \text{ at a restart}$$

    Unbiased for the meta-loss smoothed by independent noise in every truncation; its variance grows with the number of truncations.

    Source: Vicol, Metz, Sohl-Dickstein 2021, *Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent Evolution Strategies*.
    """

    def assign(self, fresh: Noise, held: Noise, restarted: Bool[Array, ""]) -> tuple[Noise, Noise]:
        """Perturb with fresh noise, credit its running sum."""
        return fresh, jax.tree.map(lambda f, h: f + jnp.where(restarted, jnp.zeros_like(h), h), fresh, held)
