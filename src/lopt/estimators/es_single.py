"""ES-Single, also known as noise-reuse evolution strategies (NRES)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from lopt.estimators.particles import AntitheticES, Noise


class ESSingle(AntitheticES):
    r"""ES-Single (NRES): one draw of noise for the whole of an inner problem.

    $$\xi_\tau = \epsilon_\tau = \epsilon_{\tau-1}, \qquad \epsilon \sim N(0, \sigma^2 I) \text{ drawn anew at a restart}$$

    Unbiased for the meta-loss smoothed by $N(0, \sigma^2 I)$, with a variance that does not grow with the number of truncations.

    Source: Vicol 2023, *Low-Variance Gradient Estimation in Unrolled Computation Graphs with ES-Single*;
    Li et al. 2023, *Noise-Reuse in Online Evolution Strategies*.
    """

    def assign(self, fresh: Noise, held: Noise, restarted: Bool[Array, ""]) -> tuple[Noise, Noise]:
        """Perturb with the noise of this problem and credit it."""
        noise = jax.tree.map(lambda f, h: jnp.where(restarted, f, h), fresh, held)
        return noise, noise
