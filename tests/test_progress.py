"""Features of how a training goes, against plain numpy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.blocks.progress import FRACTIONS, LossHistory, LossMoments, fraction_embedding

RISING = [2.0, 1.5, 1.2, 1.6, 2.5, 9.0, 0.8, 0.7, 1.9, 0.6, 0.6, 0.5, 1.0]
CURVES = {
    "falling": [2.0 * 0.9**t for t in range(13)],
    "rising and falling": RISING,
    "negative": [1.0 - 0.2 * t + 0.3 * math.sin(t) for t in range(13)],
    "constant": [1.0] * 13,
}


def by_hand(losses: list[float], horizon: float) -> list[np.ndarray]:
    """Features after every loss."""
    decays = np.exp(-1 / np.logspace(1, np.log10(horizon), 10))
    means, lowest, found = np.zeros(10), np.full(10, 999_999_999_999.0), []
    for t, loss in enumerate(losses):
        highest = loss if t == 0 else (means / (1 - decays ** (t + 1))).max()
        means = decays * means + (1 - decays) * min(2 * abs(highest), loss)
        averages = means / (1 - decays ** (t + 1))
        lowest = np.minimum(lowest, averages)
        feature = (averages - lowest)[:-1] / np.maximum(1e-8, averages[1:] - lowest[:-1]) - 1
        found.append(np.clip(feature, -1, 1) if t >= 2 else np.zeros(9))
    return found


@pytest.mark.parametrize("curve", ["rising and falling", "negative"])
@pytest.mark.parametrize("horizon", [30.0, 1000.0])
def test_loss_history(curve: str, horizon: float) -> None:
    history, step = LossHistory.start(jnp.asarray(horizon)), jax.jit(LossHistory.record)
    varied = False
    for loss, expected in zip(CURVES[curve], by_hand(CURVES[curve], horizon), strict=True):
        history = step(history, jnp.float32(loss))
        features = np.asarray(history.features)
        np.testing.assert_allclose(features, expected, atol=2e-3)
        varied |= bool((np.abs(features) < 0.99).any() and (np.abs(features) > 0.01).all())
    assert varied or curve != "rising and falling", "the curve says nothing"


@pytest.mark.parametrize("curve", CURVES)
def test_loss_history_stays_within_bounds(curve: str) -> None:
    history = LossHistory.start(jnp.float32(100.0))
    for loss in CURVES[curve]:
        history = history.record(jnp.float32(loss))
        assert bool((jnp.abs(history.features) <= 1.0).all())


def test_loss_history_counts_a_bad_loss_as_the_cap() -> None:
    history = LossHistory.start(jnp.float32(100.0))
    for loss in (1.0, 2.0):
        history = history.record(jnp.float32(loss))
    huge, nan = history.record(jnp.float32(1e30)), history.record(jnp.float32(math.nan))
    assert all(bool((a == b).all()) for a, b in zip(huge, nan, strict=True))
    first = LossHistory.start(jnp.float32(100.0)).record(jnp.float32(math.inf))
    assert bool(jnp.isfinite(first.means).all())


def test_fractions_of_a_training() -> None:
    found = fraction_embedding(jnp.asarray(25, jnp.int32), jnp.float32(100.0))
    np.testing.assert_allclose(found, [math.tanh(10 * (0.25 - f)) for f in FRACTIONS], rtol=1e-5)


def test_loss_moments() -> None:
    moments, mean, variance = LossMoments.start(), 0.0, 0.0
    assert float(moments.corrected_mean(0.9)) == 0.0
    for t, loss in enumerate(RISING):
        moments = jax.jit(LossMoments.record, static_argnums=2)(moments, jnp.float32(loss), 0.9)
        mean = 0.9 * mean + 0.1 * loss
        variance = 0.9 * variance + 0.1 * (mean - loss) ** 2
        correction = 1 / (1 - 0.9 ** (t + 1))
        np.testing.assert_allclose(float(moments.corrected_mean(0.9)), mean * correction, rtol=1e-5)
        for other in (0.3, 1.0, 100.0):
            expected = np.clip((other - mean * correction) / math.sqrt(variance * correction + 1e-8), -5, 5)
            np.testing.assert_allclose(float(moments.standardize(jnp.float32(other), 0.9)), expected, rtol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_moments_leave_out_a_bad_loss(bad: float) -> None:
    moments = LossMoments.start().record(jnp.float32(1.0), 0.9)
    after = moments.record(jnp.float32(bad), 0.9)
    assert all(bool(a == b) for a, b in zip(moments, after, strict=True))
    assert math.isfinite(float(moments.standardize(jnp.float32(bad), 0.9)))
