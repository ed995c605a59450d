"""Backpropagation through the unroll against plain Python, and the merged estimator against its parts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PRNGKeyArray

import lopt
from lopt.estimators import Backprop, LogUniform, Merged, Particles
from lopt.estimators.merged import merge
from lopt.optimizers import SGD, Momentum
from lopt.task import Split, Task
from test_estimators import (
    EIGENVALUES,
    HORIZON,
    LEARNING_RATE,
    START,
    STD,
    STEP,
    Bowl,
    assert_unbiased,
    begin,
    descend,
    estimate,
    exact_single_noise,
    lifetimes,
    mean,
)

RATE, DECAY = 0.6, 0.4


@jax.jit
def plain_gradient(log_rate: Array, log_gap: Array, w: Array, buffer: Array, length: Array) -> tuple[Array, Array]:
    """The gradient of the mean loss of momentum descent on `Bowl`, by a plain Python loop, of which `length` losses count."""

    def loss(log_rate: Array, log_gap: Array) -> Array:
        x, v, total = w, buffer, jnp.zeros(())
        for t in range(HORIZON):
            total = total + jnp.where(t < length, 0.5 * jnp.sum(jnp.asarray(EIGENVALUES) * x**2), 0.0)
            v = (1.0 - jnp.exp(log_gap)) * v + jnp.asarray(EIGENVALUES) * x
            x = x - jnp.exp(log_rate) * v
        return total / length

    return jax.grad(loss, argnums=(0, 1))(log_rate, log_gap)


@pytest.mark.parametrize(
    "fields",
    [
        {"truncation": None, "horizon": 1},
        {"truncation": None, "horizon": 7},  # segments of 3, 3 and 1
        {"truncation": 4, "horizon": HORIZON},  # segments of 2 and 2
        {"truncation": LogUniform(2, 9), "horizon": HORIZON},
    ],
)
def test_backprop_is_the_gradient_of_a_plain_python_unroll(fields: dict[str, Any]) -> None:
    """Of every truncation, from where the particle stands."""
    estimator, optimizer = Backprop(Bowl(), particles=1, **fields), Momentum(learning_rate=RATE, decay=DECAY)
    state = begin(estimator, optimizer, jax.random.key(0))
    lengths = set()
    for i in range(6):
        done = state.inner.step[0] >= state.inner.horizon[0]
        buffer = next(x[0] for x in jax.tree.leaves(state.inner.opt_state) if x.shape == (1, 2))
        w, buffer = (jnp.asarray(START), jnp.zeros(2)) if done else (state.inner.params[0], buffer)
        gradient, state, metrics = estimate(estimator, optimizer, state, jax.random.key(i))
        lengths.add(int(metrics["inner_steps"]))
        expected = plain_gradient(*jax.tree.leaves(optimizer), w, buffer, metrics["inner_steps"])
        np.testing.assert_allclose(jax.tree.leaves(gradient), expected, rtol=2e-5, atol=1e-7)
        assert metrics["finite"] == 1.0
    assert fields["horizon"] == 1 or np.abs(expected).min() > 1e-3, "numbers too small for a relative tolerance"
    assert len(lengths) == 1 or len(lengths) > 3


class Wide(Task):
    """Ten thousand parameters, so that what is kept of them is what is measured."""

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Array:
        del problem, key
        return jnp.ones(10_000)

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem, key, split
        return jnp.mean(jnp.sin(params))


def test_memory_grows_with_the_square_root_of_the_length() -> None:
    optimizer, key = SGD(learning_rate=0.1), jax.random.key(0)

    def kept(length: int) -> int:
        estimator = Backprop(Wide(), particles=1, truncation=None, horizon=length)
        state = begin(estimator, optimizer, key)
        program = jax.jit(lambda e, o, s, k: e.estimate(o, s, k)).lower(estimator, optimizer, state, key).compile()
        return program.memory_analysis().temp_size_in_bytes

    def kept_plainly(length: int) -> int:
        def loss(optimizer: SGD) -> Array:
            inner = lopt.start(optimizer, Wide(), key, length)
            return jnp.mean(lopt.unroll(optimizer, Wide(), inner, key, length)[1])

        return jax.jit(jax.grad(loss)).lower(optimizer).compile().memory_analysis().temp_size_in_bytes

    assert kept_plainly(1024) > 12 * kept_plainly(64), "sixteen times the length"
    assert kept(1024) < 4.5 * kept(64), "the square root of sixteen"


def exact(horizon: int = HORIZON) -> float:
    """The derivative of the mean loss, not smoothed."""
    log_rates = np.full((1, horizon), math.log(LEARNING_RATE) + STEP)
    return descend(log_rates).mean().imag / abs(STEP)


def test_truncated_backprop_is_biased() -> None:
    optimizer = SGD(learning_rate=LEARNING_RATE)
    found = {}
    for truncation in (5, HORIZON):
        estimator = Backprop(Bowl(), particles=1, truncation=truncation, horizon=HORIZON)
        ((found[truncation],),) = lifetimes(estimator, optimizer, keys=1)
    assert found[HORIZON] == pytest.approx(exact(), rel=1e-4)
    assert found[5] > 0 > exact(), "greedy and far-sighted disagree even on the direction"


class Explosive(Task):
    """Gradients far too large for float32 once differentiated, from a loss that is finite."""

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Array:
        del problem, key
        return jnp.asarray([0.3, 0.3])

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem, key, split
        return jnp.mean(jnp.sin(1e8 * params)) + 0.5


def test_gradients_that_are_not_finite_count_as_zero_and_are_reported() -> None:
    optimizer, key = SGD(learning_rate=1.0), jax.random.key(0)
    estimator = Backprop(Explosive(), particles=4, truncation=None, horizon=20)
    gradient, _, metrics = estimate(estimator, optimizer, begin(estimator, optimizer, key), key)
    assert (metrics["finite"], metrics["diverged"]) == (0.0, 0.0)
    assert jax.tree.leaves(gradient) == [0.0]


# --- The merged estimator. ---


def test_the_merge_is_the_inverse_variance_mean() -> None:
    rng = np.random.default_rng(0)
    r, e = rng.normal(1.0, [0.1, 1.0, 3.0], (16, 3)), rng.normal(1.0, [1.0, 1.0, 0.5], (16, 3))
    found = merge(jnp.asarray(r, jnp.float32), jnp.asarray(e, jnp.float32), covariance=False)
    v_r, v_e = r.var(axis=0, ddof=1) / 16, e.var(axis=0, ddof=1) / 16
    expected = (r.mean(axis=0) / v_r + e.mean(axis=0) / v_e) / (1 / v_r + 1 / v_e)
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(found.variance_reparam, v_r, rtol=1e-4)
    np.testing.assert_allclose(found.variance_es, v_e, rtol=1e-4)
    np.testing.assert_allclose(found.share_es, v_r / (v_r + v_e), rtol=1e-4)


def test_the_merge_knows_what_its_parts_have_in_common() -> None:
    """The weights that minimise the sample variance of the merged values, by a search."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(16, 2))
    r, e = (
        1.0 + shared + rng.normal(size=(16, 2)) * [0.5, 2.0],
        1.0 + 2.0 * shared + rng.normal(size=(16, 2)) * [3.0, 0.2],
    )
    found = merge(jnp.asarray(r, jnp.float32), jnp.asarray(e, jnp.float32))
    shares = np.linspace(0.0, 1.0, 2001)
    variances = np.stack([((1 - a) * r + a * e).var(axis=0) for a in shares])
    np.testing.assert_allclose(found.share_es, shares[variances.argmin(axis=0)], atol=1e-3)
    assert 0.0 == found.share_es[0] < found.share_es[1] < 1.0
    expected = (1 - found.share_es) * r.mean(axis=0) + found.share_es * e.mean(axis=0)
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-5)


def test_the_merge_falls_back_to_es_where_the_other_is_not_finite() -> None:
    r = jnp.asarray([[jnp.nan, jnp.inf, 1e30, 1.0], [1.0, 1.0, -1e30, 1.0]])
    e = jnp.asarray([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]])
    found = merge(r, e)
    np.testing.assert_array_equal(found.gradient, [1.5, 2.5, 3.5, 1.0])
    np.testing.assert_array_equal(found.share_es, [1.0, 1.0, 1.0, 0.0])
    assert np.isinf(found.variance_reparam[:3]).all()
    twice = jnp.ones((2, 1))
    assert merge(twice, 3.0 * twice).gradient == 2.0, "two exact values: half of each"


def test_merged_is_unbiased() -> None:
    estimator = Merged(Bowl(), pairs=256, horizon=HORIZON, std=STD)
    (gradients,) = lifetimes(estimator, SGD(learning_rate=LEARNING_RATE), keys=64)
    assert_unbiased(mean(gradients), exact_single_noise())


def test_merged_with_little_noise_is_backprop() -> None:
    optimizer, key = Momentum(learning_rate=RATE, decay=DECAY), jax.random.key(0)
    estimator = Merged(Bowl(), pairs=16, horizon=5, std=1e-3)
    gradient, _, metrics = estimate(estimator, optimizer, begin(estimator, optimizer, key), key)
    expected = plain_gradient(*jax.tree.leaves(optimizer), jnp.asarray(START), jnp.zeros(2), jnp.asarray(5.0))
    np.testing.assert_allclose(jax.tree.leaves(gradient), expected, rtol=1e-3)
    assert metrics["variance_reparam"] < 1e-3 * metrics["variance_es"]
    assert metrics["share_es"] < 1e-3


class Ripples(Task):
    """A parabola's logarithm with ripples: chaotic under momentum, however smooth each step (Metz 2021, in a blog of his)."""

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Array:
        del problem, key
        return jnp.asarray(-4.0)

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem, key, split
        return jnp.log(params**2 + 1.0 + jnp.sin(3.0 * params)) + 1.5


@jax.jit
def parts(estimator: Particles, optimizer: Momentum, length: Array, keys: Array) -> tuple[Array, Array, Array]:
    """Both parts of the merged estimate and itself, for many keys, `[keys, leaves]` each."""

    def one(key: PRNGKeyArray) -> tuple[Array, Array, Array]:
        begin_key, key = jax.random.split(key)
        state = estimator.begin(optimizer, jax.random.split(begin_key, estimator.groups))
        (both, metrics), _ = estimator.advance(optimizer, state, jax.random.split(key, estimator.groups), length)
        merged, _ = estimator.combine(both, metrics)
        flat = [jnp.stack(jax.tree.leaves(tree), axis=-1) for tree in (*both, merged)]
        return flat[0].mean(axis=0), flat[1].mean(axis=0), flat[2]

    return jax.vmap(one)(keys)


def test_the_variance_of_merged_follows_the_lower_of_its_parts() -> None:
    """Over unroll lengths at which backpropagation is first the better one by far, then the worse."""
    optimizer = Momentum(learning_rate=0.5, decay=0.8)
    estimator = Merged(Ripples(), pairs=32, horizon=LogUniform(1, 64), std=0.1, objective="mean")
    ratios = []
    for length, leaf in itertools.product((3, 4, 5, 6, 7, 8, 12, 16, 32), (0, 1)):
        keys = jax.random.split(jax.random.key(length), 400)
        found = parts(estimator, optimizer, jnp.asarray(length), keys)
        variances = [np.asarray(x, np.float64)[:, leaf].var(ddof=1) for x in found]
        reparam, es, merged = variances
        assert merged <= 1.1 * min(reparam, es), (length, leaf, variances)
        ratios.append(reparam / es)
    assert min(ratios) < 0.1
    assert max(ratios) > 10.0, "they cross"
