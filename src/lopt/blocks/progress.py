r"""How a training goes, as features: the fraction that is behind it, and how its losses develop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from lopt.errors import InputError

FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
AVERAGES = 10  # moving averages of a `LossHistory`


def require_loss(name: str, value: ArrayLike | None, extra: Mapping[str, Any]) -> Float[Array, ""]:
    """The loss as float32, or one sentence about the optimizer called `name` that lacks it and the keywords that it was given instead."""
    if value is None:
        given = f"; {', '.join(f'{k}=' for k in extra)} was given instead" if extra else ""
        raise InputError(f"{name} needs the training loss: call update(grads, state, params, value=loss){given}.")
    return jnp.asarray(value).astype(jnp.float32)


def require_horizon(name: str, horizon: ArrayLike | None) -> Float[Array, ""]:
    """The horizon as float32, or one sentence about the optimizer called `name` that lacks it. What is traced is not looked at."""
    if horizon is None:
        raise InputError(
            f"{name} needs the length of the training in steps: call init(params, horizon=steps) or to_optax(horizon=steps)."
        )
    if not isinstance(horizon, Tracer):
        number = np.asarray(horizon)
        if number.ndim or number.dtype.kind not in "iuf" or not number >= 1:  # nor NaN
            raise InputError(f"horizon is {horizon!r}; it must be a number of steps, at least 1.")
    return jnp.array(horizon, jnp.float32)


def fraction_embedding(count: Int[Array, ""], horizon: Float[Array, ""]) -> Float[Array, 9]:
    r"""$\tanh(10(t/T - \tau))$ for nine fractions $\tau$ of the training, 0.03 to 1.1 (VeLO)."""
    return jnp.tanh(10.0 * (count.astype(jnp.float32) / horizon - jnp.asarray(FRACTIONS, jnp.float32)))


class LossHistory(NamedTuple):
    r"""Moving averages of the training loss at ten half-lives, log-spaced from 10 steps to the horizon, as features (VeLO).

    $$x_i = \mathrm{clip}\Big(\frac{\ell_i - \min \ell_i}{\ell_{i+1} - \min \ell_i} - 1, -1, 1\Big)$$

    for bias-corrected averages $\ell_i$ from fast to slow and their minima so far; 0 for the first two losses. Losses are capped at twice
    the largest average; one that is not finite counts as the cap.
    """

    means: Float[Array, 10]
    lowest: Float[Array, 10]
    features: Float[Array, 9]
    recorded: Int[Array, ""]
    longest: Float[Array, ""]  # half-life, steps

    @classmethod
    def start(cls, longest: Float[Array, ""]) -> LossHistory:
        """Before the first loss."""
        return cls(
            jnp.zeros(AVERAGES, jnp.float32),
            jnp.full(AVERAGES, 999_999_999_999.0, jnp.float32),
            jnp.zeros(AVERAGES - 1, jnp.float32),
            jnp.zeros((), jnp.int32),
            jnp.array(longest),
        )

    def record(self, loss: Float[Array, ""]) -> LossHistory:
        """The history with one more loss."""
        rates = 1.0 / jnp.logspace(1.0, jnp.log10(self.longest), AVERAGES)
        # 1 - exp(-x) without cancellation: differences of averages that hardly differ are what the features show.
        recorded = self.recorded + 1
        corrections = -1.0 / jnp.expm1(-rates * recorded.astype(jnp.float32))
        # The old means with the correction of the new ones, as in the reference.
        highest = jnp.abs(jnp.max(self.means * corrections))
        cap = jnp.where(self.recorded == 0, jnp.where(jnp.isfinite(loss), loss, 0.0), 2.0 * highest)
        loss = jnp.where(jnp.isfinite(loss), jnp.minimum(cap, loss), cap)
        means = self.means - jnp.expm1(-rates) * (loss - self.means)
        averages = means * corrections
        lowest = jnp.minimum(self.lowest, averages)
        # Not averages - lowest, which rounding may keep from zero at a new minimum, and the division would blow up.
        above = jnp.maximum(averages - self.lowest, 0.0)[:-1]
        found = above / jnp.maximum(1e-8, averages[1:] - lowest[:-1]) - 1.0
        features = jnp.where(recorded <= 2, jnp.zeros_like(found), jnp.clip(found, -1.0, 1.0))
        return LossHistory(means, lowest, features, recorded, self.longest)


class LossMoments(NamedTuple):
    """Moving mean and variance of a loss (Metz et al. 2020)."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    recorded: Int[Array, ""]

    @classmethod
    def start(cls) -> LossMoments:
        """Before the first loss."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def record(self, loss: Float[Array, ""], decay: float) -> LossMoments:
        """The moments with one more loss; one that is not finite is left out."""
        mean = decay * self.mean + (1.0 - decay) * loss
        variance = decay * self.variance + (1.0 - decay) * jnp.square(mean - loss)
        new = LossMoments(mean, variance, self.recorded + 1)
        usable = jnp.isfinite(mean) & jnp.isfinite(variance)
        return jax.tree.map(lambda n, o: jnp.where(usable, n, o), new, self)

    def _correction(self, decay: float) -> Float[Array, ""]:
        # A maximum, where the reference adds: compilers may drop what is added, and 0 times infinity is left.
        return 1.0 / jnp.maximum(1.0 - decay ** self.recorded.astype(jnp.float32), 1e-8)

    def corrected_mean(self, decay: float) -> Float[Array, ""]:
        """The mean, bias corrected; 0 before the first loss."""
        return self.mean * self._correction(decay)

    def standardize(self, loss: Float[Array, ""], decay: float) -> Float[Array, ""]:
        r"""$\mathrm{clip}((\ell - \mu)/\sigma, -5, 5)$; 0 for a loss that is not finite."""
        correction = self._correction(decay)
        found = (loss - self.mean * correction) * jax.lax.rsqrt(self.variance * correction + 1e-8)
        return jnp.where(jnp.isnan(found), 0.0, jnp.clip(found, -5.0, 5.0))
