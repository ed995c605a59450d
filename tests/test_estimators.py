"""Evolution strategies against exact smoothed meta-gradients, and how the particles of all estimators live and die."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PRNGKeyArray

import lopt
from lopt.errors import InputError
from lopt.estimators import (
    PES,
    AntitheticES,
    Constant,
    ESSingle,
    FullES,
    LogUniform,
    Merged,
    NoiseReuseES,
    Particles,
    TruncatedES,
    Unrolls,
    Widening,
    meta_loss,
)
from lopt.optimizer import Optimizer
from lopt.optimizers import SGD, Momentum
from lopt.task import Split, Task
from registry import ESTIMATORS, EstimatorRow, estimator_rows

evolution_rows = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name) for row in ESTIMATORS if issubclass(row.kind, AntitheticES)]
)

EIGENVALUES, START = (1.0, 0.02), (1.0, 6.0)
LEARNING_RATE = 1.4  # far-sighted descent wants more of it (second axis), greedy descent less (first axis)
STD = 0.05
HORIZON = 20


class Bowl(Task):
    """One fixed quadratic from one fixed start: nothing depends on the key, so meta-gradients have exact values."""

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Array:
        del problem, key
        return jnp.asarray(START)

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem, key, split
        return 0.5 * jnp.sum(jnp.asarray(EIGENVALUES) * params**2)


# --- The exact values, in numpy: Gauss-Hermite quadrature over the noise, complex-step derivatives. ---


def nodes(dimensions: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tensor-product nodes `[count**dimensions, dimensions]` and weights of a standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    grid = np.array(list(itertools.product(points, repeat=dimensions)))
    return grid, np.array([math.prod(w) for w in itertools.product(weights, repeat=dimensions)])


def descend(log_rates: np.ndarray, log_gaps: np.ndarray | None = None) -> np.ndarray:
    """Losses `[nodes, steps]` of gradient descent on `Bowl`, by plain recurrence, with momentum where `log_gaps` is given."""
    eigenvalues, w = np.array(EIGENVALUES), np.array(START, complex)
    buffer, losses = np.zeros(2, complex), []
    for t in range(log_rates.shape[1]):
        losses.append(0.5 * np.sum(eigenvalues * w**2, axis=-1) * np.ones(len(log_rates)))
        decay = 0.0 if log_gaps is None else 1.0 - np.exp(log_gaps[:, t, None])
        buffer = decay * buffer + eigenvalues * w
        w = w - np.exp(log_rates[:, t, None]) * buffer
    found = np.stack(losses, axis=1)
    assert (found.real <= 1.0).all(), "the meta-loss would squash these losses"
    return found


STEP = 1e-30j  # of the complex-step derivative, exact to rounding


def exact_independent_noise(truncation: int, horizon: int = HORIZON) -> float:
    """The derivative of the mean loss, smoothed by independent noise in every truncation."""
    grid, weights = nodes(horizon // truncation, 7)
    log_rates = np.repeat(math.log(LEARNING_RATE) + STEP + STD * grid, truncation, axis=1)
    return (weights @ descend(log_rates).mean(axis=1)).imag / abs(STEP)


def exact_single_noise(horizon: int = HORIZON) -> float:
    """The derivative of the mean loss, smoothed by one draw of noise for the whole of the horizon."""
    grid, weights = nodes(1, 15)
    log_rates = np.repeat(math.log(LEARNING_RATE) + STEP + STD * grid, horizon, axis=1)
    return (weights @ descend(log_rates).mean(axis=1)).imag / abs(STEP)


# --- Whole lifetimes of the estimator. ---


def lifetimes(
    estimator: Particles, optimizer: Optimizer, *, keys: int, seed: int = 0, staggered: bool = False
) -> list[np.ndarray]:
    """Per key and leaf, the mean of the estimates over one lifetime, `[keys, ...]`; all inner problems begin at the first estimate.

    Or, if `staggered`, over as many estimates in the steady state, where every pair is at another phase.
    """
    estimates, length = divmod(estimator.horizon.longest, estimator.schedule.longest)
    assert estimator.horizon == Constant(estimator.horizon.longest)
    assert length == 0

    def one(key: PRNGKeyArray) -> Optimizer:
        def step(state: Any, key: PRNGKeyArray) -> tuple[Any, Optimizer]:
            gradient, state, _ = estimator.estimate(optimizer, state, key)
            return state, gradient

        state = estimator.init(optimizer, key)
        # The first horizons of newborn particles are shortened.
        state = state if staggered else _aged(state)
        total = estimates * (2 if staggered else 1)
        _, gradients = jax.lax.scan(step, state, jax.random.split(jax.random.fold_in(key, 1), total))
        return jax.tree.map(lambda x: jnp.mean(x[-estimates:], axis=0), gradients)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), keys))
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]


# Jitted once, with the estimator as an argument, so that tests share their programs.
@jax.jit
def begin(estimator: Particles, optimizer: Optimizer, key: PRNGKeyArray) -> Any:
    return estimator.init(optimizer, key)


@jax.jit
def estimate(
    estimator: Particles, optimizer: Optimizer, state: Any, key: PRNGKeyArray
) -> tuple[Optimizer, Any, dict[str, Array]]:
    return estimator.estimate(optimizer, state, key)


def _aged(state: Any) -> Any:
    return state._replace(clock=state.clock._replace(newborn=jnp.zeros_like(state.clock.newborn)))


class Mean(NamedTuple):
    mean: float
    error: float  # standard error

    def sigmas(self, exact: float) -> float:
        return abs(self.mean - exact) / self.error


def mean(values: np.ndarray) -> Mean:
    return Mean(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def assert_unbiased(found: Mean, exact: float) -> None:
    assert 4 * found.error < 0.1 * abs(exact), "the interval is too wide for the test to mean anything"
    assert found.sigmas(exact) < 4, f"{found} against {exact}"


@pytest.mark.parametrize("truncation", [5, 10, 20])
def test_pes_is_unbiased(truncation: int) -> None:
    estimator = PES(Bowl(), pairs=256, truncation=truncation, horizon=HORIZON, std=STD)
    (gradients,) = lifetimes(estimator, SGD(learning_rate=LEARNING_RATE), keys=512)
    assert_unbiased(mean(gradients), exact_independent_noise(truncation))


@pytest.mark.parametrize("truncation", [5, 10, 20])
def test_es_single_is_unbiased(truncation: int) -> None:
    estimator = ESSingle(Bowl(), pairs=256, truncation=truncation, horizon=HORIZON, std=STD)
    (gradients,) = lifetimes(estimator, SGD(learning_rate=LEARNING_RATE), keys=128)
    assert_unbiased(mean(gradients), exact_single_noise())


@pytest.mark.parametrize("kind", [PES, ESSingle])
def test_unbiased_with_staggered_particles(kind: type[AntitheticES]) -> None:
    estimator = kind(Bowl(), pairs=256, truncation=5, horizon=HORIZON, std=STD)
    (gradients,) = lifetimes(estimator, SGD(learning_rate=LEARNING_RATE), keys=512, staggered=True)
    assert_unbiased(mean(gradients), exact_independent_noise(5) if kind is PES else exact_single_noise())


@pytest.mark.parametrize("truncation", [5, 10])
def test_truncated_es_is_biased(truncation: int) -> None:
    estimator = TruncatedES(Bowl(), pairs=256, truncation=truncation, horizon=HORIZON, std=STD)
    (gradients,) = lifetimes(estimator, SGD(learning_rate=LEARNING_RATE), keys=512)
    found, exact = mean(gradients), exact_independent_noise(truncation)
    assert found.sigmas(exact) > 8
    assert abs(found.mean - exact) > 0.5 * abs(exact)
    if truncation == 5:
        assert found.mean > 0 > exact, "greedy and far-sighted disagree even on the direction"


@pytest.mark.parametrize("noise_period", [5, 10, 20])
def test_noise_reuse_es_is_unbiased(noise_period: int) -> None:
    estimator = NoiseReuseES(Bowl(), pairs=256, truncation=5, horizon=HORIZON, std=STD, noise_period=noise_period)
    (gradients,) = lifetimes(estimator, SGD(learning_rate=LEARNING_RATE), keys=512)
    assert_unbiased(mean(gradients), exact_independent_noise(noise_period))


def test_full_es_is_unbiased() -> None:
    estimator = FullES(Bowl(), pairs=256, horizon=HORIZON, std=STD)
    assert estimator.inner_steps == 2 * 256 * HORIZON
    (gradients,) = lifetimes(estimator, SGD(learning_rate=LEARNING_RATE), keys=128)
    assert_unbiased(mean(gradients), exact_single_noise())


def test_members_of_the_family_are_settings_of_noise_reuse() -> None:
    """Noise kept for a truncation is PES, noise kept for the horizon ES-Single, bit for bit."""
    optimizer, found = SGD(learning_rate=LEARNING_RATE), []
    fields = {"pairs": 4, "truncation": 5, "horizon": HORIZON, "std": STD}
    for other, period in ((PES, 5), (ESSingle, HORIZON)):
        for estimator in (other(Bowl(), **fields), NoiseReuseES(Bowl(), **fields, noise_period=period)):
            state, gradients = begin(estimator, optimizer, jax.random.key(0)), []
            for i in range(8):
                gradient, state, _ = estimate(estimator, optimizer, state, jax.random.key(i))
                gradients.append(float(gradient.log_learning_rate))  # pyright: ignore[reportAttributeAccessIssue]
            found.append(gradients)
    assert found[0] == found[1] != found[2] == found[3]


def test_the_sign_of_differences() -> None:
    """Gradients are credits times c over twice the variance, or minus that: no pair weighs more than another."""
    estimator = ESSingle(Bowl(), pairs=1, truncation=5, horizon=HORIZON, std=STD, sign_scale=0.5)
    optimizer = SGD(learning_rate=LEARNING_RATE)
    plain = ESSingle(Bowl(), pairs=1, truncation=5, horizon=HORIZON, std=STD)
    state = begin(estimator, optimizer, jax.random.key(0))
    for i in range(4):
        difference, _, _ = estimate(plain, optimizer, state, jax.random.key(i))
        gradient, state, _ = estimate(estimator, optimizer, state, jax.random.key(i))
        trees = (gradient, state.noise.credit, difference)
        found, credit, direction = (float(jax.tree.leaves(tree)[0].reshape(())) for tree in trees)
        assert abs(found) == pytest.approx(abs(credit) * 0.5 / (2 * STD**2), rel=1e-5)
        assert np.sign(found) == np.sign(direction)


def test_es_single_is_unbiased_for_every_leaf() -> None:
    learning_rate, decay, truncation = 0.6, 0.4, 5
    grid, weights = nodes(2, 11)

    def exact(leaf: int) -> float:
        log_rates = math.log(learning_rate) + STD * grid[:, :1] + (STEP if leaf == 0 else 0)
        log_gaps = math.log(1 - decay) + STD * grid[:, 1:] + (STEP if leaf == 1 else 0)
        losses = descend(np.repeat(log_rates, HORIZON, axis=1), np.repeat(log_gaps, HORIZON, axis=1))
        return (weights @ losses.mean(axis=1)).imag / abs(STEP)

    estimator = ESSingle(Bowl(), pairs=256, truncation=truncation, horizon=HORIZON, std=STD)
    optimizer = Momentum(learning_rate=learning_rate, decay=decay)
    gradients = lifetimes(estimator, optimizer, keys=256)
    assert abs(exact(0) - exact(1)) > 0.5 * abs(exact(0)), "swapped leaves would go unnoticed"
    for leaf in (0, 1):
        assert_unbiased(mean(gradients[leaf]), exact(leaf))


@evolution_rows
def test_small_noise_gives_the_backprop_gradient(row: EstimatorRow) -> None:
    optimizer = Momentum(learning_rate=0.6, decay=0.4)
    task, key = Bowl(), jax.random.key(0)

    def loss(optimizer: Momentum) -> Array:
        _, losses = lopt.unroll(optimizer, task, lopt.start(optimizer, task, key, HORIZON), key, HORIZON)
        return meta_loss(losses)[0]

    backprop = np.asarray(jax.tree.leaves(jax.jit(jax.grad(loss))(optimizer)))
    errors = []
    for std in (0.1, 0.05):
        estimator = row.create(task, pairs=8, truncation=HORIZON, horizon=HORIZON, std=std)
        gradient, state, _ = estimate(estimator, optimizer, begin(estimator, optimizer, key), key)
        noise = np.stack(jax.tree.leaves(state.noise.credit), axis=-1)  # [pairs, leaves]
        # To first order the losses of a pair differ by twice the noise times the gradient.
        expected = np.mean(noise * (noise @ backprop)[:, None], axis=0) / std**2
        assert np.linalg.norm(expected) > 0.1 * np.linalg.norm(backprop)
        errors.append(np.linalg.norm(np.asarray(jax.tree.leaves(gradient)) - expected) / np.linalg.norm(expected))
    assert errors[1] < 0.01
    assert errors[0] > 3 * errors[1], "the error falls as the square of std"


class FirstMove(Optimizer):
    """Moves at the first step, by its only leaf, and never again: early choices matter to the end."""

    move: Array

    def init(self, params: Array, *, key: Any = None, horizon: Any = None) -> Array:
        del params, key, horizon
        return jnp.ones(())

    def update(self, updates: Array, state: Array, params: Array, **extra: Any) -> tuple[Array, Array]:
        del updates, params, extra
        return state * self.move, jnp.zeros(())


class Height(Task):
    """The loss is the parameter, from 0.5."""

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Array:
        del problem, key
        return jnp.asarray(0.5)

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem, key, split
        return params


def test_variance_of_pes_grows_with_truncations_and_that_of_es_single_does_not() -> None:
    r"""`FirstMove` on `Height` is linear in its noise, so variances are exact.

    With $a_\tau$ the derivative of the loss of truncation $\tau$, $\epsilon_s$ the noise in units of $\sigma$ and $M$ truncations, the mean estimate of
    a lifetime is $\epsilon_1 \sum_s b_s \epsilon_s$ with $b_s = \frac1M \sum_{\tau \ge s} a_\tau$ for PES, and $b_1 \epsilon^2$ for ES-Single. Noise that is
    kept for some truncations stands between: $s$ are then those at which it is drawn.
    """
    horizon, optimizer = 16, FirstMove(jnp.asarray(0.1))
    variances: dict[tuple[type, int], float] = {}
    for kind, truncations in [*itertools.product((PES, ESSingle), (2, 16)), (NoiseReuseES, 16)]:
        fields = {"noise_period": 4} if kind is NoiseReuseES else {}
        estimator = kind(Height(), pairs=1, truncation=horizon // truncations, horizon=horizon, std=STD, **fields)
        (samples,) = lifetimes(estimator, optimizer, keys=60_000)
        moved = np.arange(horizon) > 0  # the first loss is taken before the first step
        credit = moved.reshape(truncations, -1).mean(axis=1)[::-1].cumsum()[::-1] / truncations
        redrawn = {PES: credit[1:], ESSingle: credit[:0], NoiseReuseES: credit[4::4]}[kind]
        theory = 2 * credit[0] ** 2 + np.sum(redrawn**2)
        squares = mean((samples - credit[0]) ** 2)
        assert_unbiased(mean(samples), credit[0])
        assert_unbiased(squares, theory)
        variances[kind, truncations] = squares.mean
    assert variances[PES, 16] > 3 * variances[PES, 2]
    assert variances[ESSingle, 16] == pytest.approx(variances[ESSingle, 2], rel=0.05)
    assert variances[PES, 16] > 2 * variances[NoiseReuseES, 16] > 2 * 1.2 * variances[ESSingle, 16]


# --- Horizons and restarts. ---


def horizons(estimator: AntitheticES, *, staggered: bool) -> np.ndarray:
    """The horizon of every pair, in truncations, after one estimate."""
    optimizer, key = FirstMove(jnp.asarray(0.1)), jax.random.key(3)
    state = begin(estimator, optimizer, key)
    _, state, _ = estimate(estimator, optimizer, state if staggered else _aged(state), key)
    found = np.asarray(state.inner.horizon)
    unit = estimator.schedule.longest
    assert (found % unit == 0).all()
    return found // unit


def assert_distributed(values: np.ndarray, probabilities: dict[int, float]) -> None:
    from scipy.stats import chisquare

    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert set(np.unique(values)) == set(probabilities)
    if len(probabilities) == 1:
        return
    counts = [np.sum(values == n) for n in probabilities]
    assert chisquare(counts, len(values) * np.array(list(probabilities.values()))).pvalue > 1e-3


def log_uniform(low: int, high: int) -> dict[int, float]:
    """Every whole number owns the interval up to the next."""
    return {n: math.log((n + 1) / n) / math.log((high + 1) / low) for n in range(low, high + 1)}


@pytest.mark.parametrize(("truncation", "horizon"), [(5, (10, 100)), (3, (10, 31)), (4, (4, 4)), (7, (7, 20))])
def test_horizons_are_log_uniform_multiples_of_the_truncation(truncation: int, horizon: tuple[int, int]) -> None:
    estimator = PES(Height(), pairs=20_000, truncation=truncation, horizon=horizon)
    low, high = -(-horizon[0] // truncation), horizon[1] // truncation
    assert_distributed(horizons(estimator, staggered=False), log_uniform(low, high))


def test_first_horizons_are_staggered() -> None:
    estimator = PES(Height(), pairs=20_000, truncation=2, horizon=(6, 20))
    expected = dict.fromkeys(range(1, 11), 0.0)
    for length, probability in log_uniform(3, 10).items():
        for shortened in range(1, length + 1):
            expected[shortened] += probability / length
    assert_distributed(horizons(estimator, staggered=True), expected)


def noisy_bowls(row: EstimatorRow, **fields: Any) -> Particles:
    """What several tests share, so that each row is compiled once."""
    task = lopt.tasks.Quadratic(dim=2, noise=0.1)
    return row.create(task, **{"pairs": 8, "truncation": 4, "horizon": (8, 24), **fields})


def of_groups(tree: Any) -> np.ndarray:
    """The first number of each group's first array."""
    leaf = np.asarray(jax.tree.leaves(tree)[0])
    return leaf.reshape(len(leaf), -1)[:, 0]


@estimator_rows
def test_particles_restart_exactly_at_their_horizons(row: EstimatorRow) -> None:
    estimator, truncation = noisy_bowls(row), 4
    optimizer = SGD(learning_rate=0.1)
    state = begin(estimator, optimizer, jax.random.key(0))
    restarts, rounds = 0, 30
    for i in range(rounds):
        before = state.inner
        _, state, _ = estimate(estimator, optimizer, state, jax.random.key(i))
        after = state.inner
        done = of_groups(before.step) >= of_groups(before.horizon)
        kept = of_groups(before.problem.optimum) == of_groups(after.problem.optimum)
        np.testing.assert_array_equal(kept, ~done)
        np.testing.assert_array_equal(
            of_groups(after.step), np.where(done, truncation, of_groups(before.step) + truncation)
        )
        np.testing.assert_array_equal(of_groups(after.horizon)[~done], of_groups(before.horizon)[~done])
        assert (after.step <= after.horizon).all(), "a restart is never late"
        if isinstance(estimator, AntitheticES):
            assert len(np.unique(of_groups(state.noise.credit))) == 8, "every pair has its own noise"
        restarts += done.sum()
    if row.whole:
        assert restarts == 8 * rounds
    else:
        assert 8 * rounds * truncation / 24 < restarts < 8 * rounds * truncation / 8 + 8


def test_noise_is_held_for_a_lifetime_by_es_single_alone() -> None:
    credits = {}
    for kind in (ESSingle, PES, TruncatedES):
        estimator = kind(Height(), pairs=4, truncation=1, horizon=3)
        optimizer = FirstMove(jnp.asarray(0.1))
        state = _aged(begin(estimator, optimizer, jax.random.key(0)))
        held = []
        for i in range(6):
            _, state, _ = estimate(estimator, optimizer, state, jax.random.key(i))
            held.append(np.asarray(state.noise.credit.move))
        credits[kind] = np.stack(held)
    fresh = credits[TruncatedES]
    np.testing.assert_array_equal(credits[ESSingle], np.repeat(fresh[::3], 3, axis=0))
    # The running sum begins anew with the problem. Where summands of about 1e-2 cancel, their float32 rounding remains.
    sums = np.concatenate([fresh[:3].cumsum(0), fresh[3:].cumsum(0)])
    np.testing.assert_allclose(credits[PES], sums, rtol=1e-6, atol=1e-8)
    assert len(np.unique(fresh)) == fresh.size


@pytest.mark.parametrize("name", ["es_single", "merged"])
def test_members_of_a_pair_share_problem_and_minibatches(name: str) -> None:
    task = lopt.tasks.Quadratic(dim=3, noise=1.0)
    # Noise so small that the meta-parameters of both members round to the same numbers.
    row = next(row for row in ESTIMATORS if row.name == name)
    estimator = row.create(task, pairs=8, truncation=5, horizon=(5, 15), std=1e-12)
    optimizer = SGD(learning_rate=0.3)
    state = begin(estimator, optimizer, jax.random.key(0))
    for i in range(6):
        _, state, _ = estimate(estimator, optimizer, state, jax.random.key(i))
        params = np.asarray(state.inner.params)
        assert params.shape == (8, 2, 3)
        np.testing.assert_allclose(params[:, 0], params[:, 1], rtol=1e-4, atol=1e-5)
    assert len(np.unique(params[:, 0], axis=0)) == 8, "pairs differ from one another"


@estimator_rows
def test_same_key_same_numbers(row: EstimatorRow) -> None:
    estimator, optimizer = noisy_bowls(row), SGD(learning_rate=0.3)

    def run(seed: int) -> list[np.ndarray]:
        key = jax.random.key(seed)
        gradient, state, metrics = estimate(estimator, optimizer, begin(estimator, optimizer, key), key)
        return [np.asarray(x) for x in jax.tree.leaves((gradient, state, metrics))]

    for a, b in zip(run(0), run(0), strict=True):
        np.testing.assert_array_equal(a, b)
    assert run(0)[0] != run(1)[0]


@estimator_rows
def test_inner_steps_counts_all_particles(row: EstimatorRow) -> None:
    members = 2 if row.paired else 1
    assert row.create(Height(), pairs=3, truncation=5, horizon=20).inner_steps == 3 * members * 5
    estimator, optimizer = noisy_bowls(row), SGD(learning_rate=0.3)
    _, _, metrics = estimate(estimator, optimizer, begin(estimator, optimizer, jax.random.key(0)), jax.random.key(0))
    assert metrics["inner_steps"] == estimator.inner_steps == 8 * members * 4


# --- Losses that are not finite, and splits. ---


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (-2.0, -2.0),
        (0.5, 0.5),
        (1.0, 1.0),
        (math.e, 2.0),
        (1e30, 10.0),
        (math.inf, 10.0),
        (-math.inf, 10.0),
        (math.nan, 10.0),
    ],
)
def test_meta_loss_squashes(loss: float, expected: float) -> None:
    found, diverged = meta_loss(jnp.asarray([loss, 0.5]))
    assert found == pytest.approx((expected + 0.5) / 2)
    assert diverged == (0.0 if math.isfinite(loss) else 0.5)


def test_meta_loss_keeps_an_order_among_diverging_runs() -> None:
    found = [float(meta_loss(jnp.full(3, x))[0]) for x in (0.9, 1.1, 10.0, 100.0)]
    assert found == sorted(found)
    assert len(set(found)) == 4


class Broken(Task):
    """`value` times the parameter where it is beyond 0.5, the parameter's square elsewhere."""

    value: Array

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Array:
        del problem
        return jax.random.normal(key)

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem, key, split
        broken = params > 0.5
        return jnp.where(broken, self.value, 0.0) * params + jnp.where(broken, 0.0, 1.0) * params**2


@estimator_rows
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_meta_gradient_is_finite_where_losses_are_not(row: EstimatorRow, value: float) -> None:
    estimator = row.create(Broken(jnp.asarray(value)), pairs=16, truncation=4, horizon=8)
    optimizer = Momentum(learning_rate=0.1, decay=0.5)
    state = begin(estimator, optimizer, jax.random.key(0))
    for i in range(6):
        gradient, state, metrics = estimate(estimator, optimizer, state, jax.random.key(i))
        assert all(np.isfinite(g) for g in jax.tree.leaves(gradient))
        assert 0.5 < metrics["meta_loss"] < 9.5, "some particles are lost, and some are not"
        # The gradient of 1e30 throws the parameter to -1e30, whose square is infinite.
        assert 0.0 < metrics["diverged"] < 0.7


@estimator_rows
def test_a_diverging_particle_is_healed_by_its_restart(row: EstimatorRow) -> None:
    estimator = noisy_bowls(row)
    state = begin(estimator, SGD(), jax.random.key(0))
    _, state, lost = estimate(estimator, SGD(learning_rate=1e30), state, jax.random.key(1))
    for i in range(6):  # the longest horizon
        gradient, state, healed = estimate(estimator, SGD(learning_rate=1e-3), state, jax.random.key(2 + i))
        assert np.isfinite(gradient.log_learning_rate)  # pyright: ignore[reportAttributeAccessIssue]
    assert lost["diverged"] > 0.5
    assert healed["diverged"] == 0.0
    assert np.isfinite(np.asarray(state.inner.params)).all()


class Splits(Task):
    """Training pulls the parameter from 0 to 1; the loss is 0.25 on the validation split and NaN on the test split, wherever it is."""

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Array:
        del problem, key
        return jnp.asarray(0.0)

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem, key
        return {
            "train": 0.5 * (params - 1.0) ** 2,
            "valid": jnp.asarray(0.25) + 0.0 * params,
            "test": params * jnp.nan,
        }[split]


def test_the_meta_loss_comes_from_its_split_and_gradients_from_training() -> None:
    optimizer, key = SGD(learning_rate=0.1), jax.random.key(0)
    found, params = {}, {}
    for split in ("train", "valid", "test"):
        estimator = ESSingle(Splits(), pairs=2, truncation=5, horizon=5, split=split)
        _, state, metrics = estimate(estimator, optimizer, begin(estimator, optimizer, key), key)
        found[split], params[split] = float(metrics["meta_loss"]), np.asarray(state.inner.params)
    assert found["valid"] == 0.25
    assert found["test"] == 10.0
    # Steps with the factor 0.9 each; the noise is a hundredth of the log learning rate.
    assert found["train"] == pytest.approx(np.mean(0.5 * 0.81 ** np.arange(5)), rel=1e-3)
    np.testing.assert_array_equal(params["valid"], params["train"])
    np.testing.assert_allclose(params["valid"], 1 - 0.9**5, rtol=0.02)


# --- Data. ---


def shapes(jaxpr: Any) -> set[tuple[int, ...]]:
    """Of all results of a jaxpr and of those within it, loops and branches."""
    found = set()
    for eqn in jaxpr.eqns:
        found |= {v.aval.shape for v in eqn.outvars}
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            found |= shapes(inner) if hasattr(inner, "eqns") else set()
    return found


@pytest.mark.parametrize("lengths", [8, LogUniform(4, 9)], ids=["fixed", "varied"])
@estimator_rows
def test_data_are_not_copied(row: EstimatorRow, lengths: Any) -> None:
    """All particles and all steps read those that there are. Reverse mode would keep a copy for each step of a branch that reads them."""
    task = lopt.tasks.create("digits_mlp", widths=(4,))
    data = {x.shape for x in jax.tree.leaves(task) if x.size > 50_000}
    assert data, "the task has no data"
    over = {"horizon": lengths} if row.kind is FullES else {"truncation": lengths, "horizon": 24}
    estimator, optimizer = row.kind(task, **over), SGD(learning_rate=0.1)
    state = jax.eval_shape(lambda: estimator.init(optimizer, jax.random.key(0)))
    found = shapes(jax.make_jaxpr(estimator.estimate)(optimizer, state, jax.random.key(0)).jaxpr)
    assert (64, 64) in {shape[-2:] for shape in found}, "a minibatch, in the loop"
    copies = {shape for shape in found for one in data if len(shape) > len(one) and shape[-len(one) :] == one}
    assert not copies


# --- Devices. ---

DEVICES = """
import json, jax, lopt, optax
from lopt import estimators as e
from lopt.engine import Local
task = lopt.tasks.Quadratic(dim=3, noise=0.1)
optimizer = lopt.optimizers.Momentum(learning_rate=0.3, decay=0.5)
found, engine = {"devices": jax.device_count()}, Local()
cases = [(kind, e.ESTIMATORS[kind], 4, 5, (5, 20)) for kind in KINDS]
cases += [("pes of two", e.PES, 2, 5, (5, 20)), ("pes of three", e.PES, 3, 5, (5, 20)), ("merged of varied length", e.Merged, 4, e.LogUniform(4, 9), (5, 20))]
for name, kind, count, truncation, horizon in cases:
    fields = {"particles": count} if kind is e.Backprop else {"pairs": count, "std": 0.1}
    if kind is not e.FullES:
        fields["truncation"] = truncation
    estimator = kind(task, horizon=horizon, **fields)
    estimators = [e.PerTask(estimator, optax.identity())]
    states = jax.jit(engine.begin)(optimizer, estimators, jax.random.key(0))
    gradients = jax.jit(engine.gradients)
    for i in range(3):
        gradient, states, metrics = gradients(optimizer, estimators, states, jax.random.key(i))
    state = states[0].estimator
    numbers = [*map(float, jax.tree.leaves(gradient)), *(float(metrics[k]) for k in ("meta_loss", "inner_steps"))]
    found[name] = {"numbers": numbers, "devices": len(state.inner.params.sharding.device_set)}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_many_devices_give_the_numbers_of_one() -> None:
    """On as many devices as divide the groups; those within `PerTask` too."""
    kinds = ["pes", "noise_reuse_es", "full_es", "backprop", "merged"]

    def run(devices: int) -> dict[str, Any]:
        env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        code = DEVICES.replace("KINDS", repr(kinds))
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        warned = re.findall(r"UserWarning: (\d of \d devices) are used", done.stderr)
        return json.loads(done.stdout) | {"warned": sorted(set(warned))}

    one, four = run(1), run(4)
    assert (one.pop("devices"), four.pop("devices")) == (1, 4)
    assert (one.pop("warned"), four.pop("warned")) == ([], ["2 of 4 devices", "3 of 4 devices"])
    assert set(one) == {*kinds, "pes of two", "pes of three", "merged of varied length"}
    for name in one:
        assert four[name]["devices"] == {"pes of two": 2, "pes of three": 3}.get(name, 4)
        np.testing.assert_allclose(four[name]["numbers"], one[name]["numbers"], rtol=1e-4, err_msg=name)
        assert np.abs(one[name]["numbers"]).min() > 1e-5, "numbers too small for a relative tolerance"


# --- Bad input. ---


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"pairs": 0}, ["pairs", "0"]),
    ({"pairs": -3}, ["pairs", "-3"]),
    ({"truncation": 0}, ["truncation", "0"]),
    ({"truncation": 2.5}, ["truncation", "2.5", "whole number"]),
    ({"horizon": "long"}, ["horizon", "long"]),
    ({"horizon": (5, 10, 20)}, ["horizon", "(5, 10, 20)", "two"]),
    ({"horizon": 0}, ["horizon", "0", "at least 1"]),
    ({"truncation": 60, "horizon": (100, 119)}, ["(100, 119)", "multiple", "60"]),
    ({"truncation": 60, "horizon": 100}, ["100", "multiple", "60"]),
    ({"devices": 3}, ["devices", "3", "divide"]),
    ({"truncation": 30, "horizon": 29}, ["horizon", "29", "truncation", "30"]),
    ({"truncation": 30, "horizon": (7, 60)}, ["horizon", "7", "30"]),
    ({"horizon": (60, 40)}, ["horizon", "60", "40"]),
    ({"std": 0.0}, ["std", "0.0"]),
    ({"std": -0.1}, ["std", "-0.1"]),
    ({"std": math.nan}, ["std", "nan"]),
    ({"split": "validation"}, ["split", "validation", "train, valid, test"]),
    ({"objective": "best"}, ["objective", "best", "normalised, mean, last, relative, mean_log, late_log"]),
    ({"final_batches": 0}, ["final_batches", "0"]),
    ({"sign_scale": 0.0}, ["sign_scale", "0.0"]),
    ({"particles": 0}, ["particles", "0"]),
    ({"truncation": None, "horizon": Unrolls()}, ["truncation", "horizon", "Unrolls"]),
]


def has_such_fields(kind: type[Particles], fields: dict[str, Any]) -> bool:
    if kind is FullES and fields.get("truncation") is not None:
        return False
    return set(fields) <= {f.name for f in dataclasses.fields(kind)}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        pytest.param(kind, fields, words, id=f"{kind.__name__}-{fields}")
        for kind in (PES, FullES, lopt.estimators.Backprop, Merged)
        for fields, words in BAD
        if has_such_fields(kind, fields)
    ],
)
def test_bad_arguments_are_named(kind: type[Particles], fields: dict[str, Any], words: Sequence[str]) -> None:
    with pytest.raises(InputError) as caught:
        kind(Height(), **fields)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: FullES(Height(), truncation=20, horizon=20), ["truncation", "20", "full ES"]),
        (lambda: NoiseReuseES(Height(), noise_period=0), ["noise_period", "0"]),
        (lambda: Merged(Height(), pairs=1), ["pairs", "1", "variance"]),
    ],
)
def test_bad_arguments_of_one_estimator_are_named(build: Callable[[], Particles], words: Sequence[str]) -> None:
    with pytest.raises(InputError) as caught:
        build()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_truncations_and_horizons_are_schedules() -> None:
    """However their numbers are written."""
    for number in (100, np.int64(100), np.array(100), jnp.asarray(100)):
        estimator = ESSingle(Height(), horizon=number, truncation=number)
        assert estimator.horizon == estimator.truncation == estimator.schedule == Constant(100)
        assert estimator == ESSingle(Height(), horizon=(100, 100), truncation=Constant(100))
    for pair in ((100, 400), [100, 400], (np.int32(100), np.int64(400))):
        assert ESSingle(Height(), horizon=pair).horizon == LogUniform(100, 400)
    assert FullES(Height(), horizon=[5, 9]).schedule == LogUniform(5, 9)


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [((100, 240), {120, 180, 240}), ((60, 119), {60}), (Widening(100, 130, 200, over=1), {120, 180}), (120, {120})],
)
def test_no_horizon_is_below_the_least_or_above_the_greatest(horizon: Any, expected: set[int]) -> None:
    """Horizons are multiples of the truncation; the shortened first ones are left out."""
    estimator, optimizer = PES(Height(), pairs=512, truncation=60, horizon=horizon), FirstMove(jnp.asarray(0.1))
    state = _aged(begin(estimator, optimizer, jax.random.key(0)))
    seen: set[int] = set()
    for i in range(3):
        _, state, _ = estimate(estimator, optimizer, state, jax.random.key(i))
        seen |= set(np.unique(state.inner.horizon).tolist())
    assert seen == expected


@pytest.mark.parametrize("name", ["velo", "celo", "general-1"])
def test_particles_begin_outside_jit(name: str) -> None:
    """For optimizers that look at the horizon they are told."""
    optimizer = lopt.load(name) if name == "general-1" else lopt.create(name, lstm_hidden=4)
    estimator = ESSingle(lopt.tasks.Quadratic(dim=2), pairs=2, truncation=5, horizon=20)
    state, traced = estimator.init(optimizer, jax.random.key(0)), begin(estimator, optimizer, jax.random.key(0))
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(traced), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert state.clock.newborn.all()
    assert (state.inner.step >= state.inner.horizon).all(), "replaced at the first estimate"
