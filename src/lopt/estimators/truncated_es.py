"""Truncated evolution strategies."""

from __future__ import annotations

from jaxtyping import Array, Bool

from lopt.estimators.particles import AntitheticES, Noise


class TruncatedES(AntitheticES):
    r"""Truncated evolution strategies: fresh noise every truncation, credit for that truncation alone.

    $$\xi_\tau = \epsilon_\tau \sim N(0, \sigma^2 I)$$

    Biased: it cannot see what a meta-parameter does beyond the truncation, and prefers greedy optimizers. Kept as the control for the
    unbiased ones; with `truncation` equal to `horizon` it is full ES, and unbiased.

    Source: Metz et al. 2019, *Understanding and correcting pathologies in the training of learned optimizers*.
    """

    def assign(self, fresh: Noise, held: Noise, restarted: Bool[Array, ""]) -> tuple[Noise, Noise]:
        """Perturb with fresh noise and credit it."""
        del held, restarted
        return fresh, fresh
