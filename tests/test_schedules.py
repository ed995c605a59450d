"""Schedules of the truncation, meta-objectives, and transformations of one task's meta-gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

import lopt
from lopt.errors import InputError
from lopt.estimators import (
    PES,
    Backprop,
    Constant,
    ESSingle,
    FullES,
    Growing,
    HeavyTailed,
    LogUniform,
    Particles,
    PerTask,
    Schedule,
    Unrolls,
    Widening,
    normalize_by_average_norm,
)
from lopt.estimators.per_task import fingerprint
from lopt.meta_train import MetaState
from lopt.optimizers import SGD
from test_estimators import (
    LEARNING_RATE,
    Bowl,
    FirstMove,
    Height,
    Splits,
    _aged,
    assert_distributed,
    begin,
    estimate,
    log_uniform,
)


def draws(schedule: Schedule, count: int, estimates: int = 0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    found = np.asarray(jax.jit(jax.vmap(lambda k: schedule.draw(k, jnp.asarray(estimates))))(keys))
    assert found.dtype == np.int32
    assert found.max() <= schedule.longest
    return found


def test_constant_is_constant() -> None:
    assert set(draws(Constant(7), 10)) == {7} == {Constant(7).longest, Constant(7).mean}


def test_log_uniform_lengths() -> None:
    found = draws(LogUniform(3, 9), 20_000)
    assert_distributed(found, log_uniform(3, 9))
    assert found.mean() == pytest.approx(LogUniform(3, 9).mean, rel=0.01)


@pytest.mark.parametrize("growth", ["geometric", "linear"])
def test_growing_lengths(growth: Any) -> None:
    schedule = Growing(50, 10_000, over=1_000, growth=growth)
    halfway = {"geometric": math.sqrt(50 * 10_000), "linear": 5_025}[growth]
    for estimates, length in ((0, 50), (500, halfway), (1_000, 10_000), (5_000, 10_000)):
        found = draws(schedule, 5_000, estimates) / length
        assert 0.78 < found.min() < 0.83, "jitter by a fifth"
        assert 1.17 < found.max() < 1.22
        assert found.mean() == pytest.approx(1.0, abs=0.01)


def test_widening_lengths() -> None:
    schedule = Widening(3, 6, 24, over=1_000)
    for estimates, high in ((0, 6), (500, 12), (1_000, 24), (5_000, 24)):
        found = draws(schedule, 20_000, estimates)
        assert_distributed(found, log_uniform(3, high))
        assert found.max() == high == schedule.greatest(jnp.asarray(estimates))
    assert found.mean() == pytest.approx(schedule.mean, rel=0.02)
    assert found.max() == schedule.longest


def test_widening_lengths_with_as_many_steps_in_every_octave() -> None:
    schedule = Widening(8, 16, 512, over=1_000, even="steps")
    assert draws(schedule, 5_000).max() == 16
    found = draws(schedule, 100_000, 1_000)
    assert found.min() == 8
    assert found.mean() == pytest.approx(schedule.mean, rel=0.02)
    octaves = [found[(low <= found) & (found < 2 * low)].sum() / found.sum() for low in (8, 16, 32, 64, 128, 256)]
    whole = [sum(1 / (n + 1) for n in range(low, 2 * low)) for low in (8, 16, 32, 64, 128, 256)]
    np.testing.assert_allclose(octaves, np.array(whole) / (sum(whole) + 1 / 513), rtol=0.08)


def test_heavy_tailed_lengths() -> None:
    found = draws(HeavyTailed(), 20_000)
    assert found.min() == 50
    assert found.mean() == pytest.approx(HeavyTailed().mean, rel=0.02)
    for quantile in (0.5, 0.9, 0.99):
        assert np.quantile(found, quantile) == pytest.approx(50 - 200 * math.log(1 - quantile), rel=0.03)
    assert draws(HeavyTailed(limit=60), 200).max() == 60


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Constant(0), "length is 0"),
        (lambda: LogUniform(0, 5), "low is 0"),
        (lambda: LogUniform(6, 5), "low is 6 and high is 5"),
        (lambda: Growing(first=0), "first is 0"),
        (lambda: Growing(100, 50), "last is 50; it must be at least first, 100"),
        (lambda: Growing(over=0), "over is 0"),
        (lambda: Growing(jitter=1.0), "jitter is 1.0"),
        (lambda: Growing(growth="slow"), "growth is 'slow'; it must be one of geometric, linear"),  # pyright: ignore[reportArgumentType]
        (lambda: Widening(0, 3, 4, over=5), "low is 0"),
        (lambda: Widening(3, 9, 8, over=5), "low, first and last are 3, 9 and 8; they must not descend"),
        (lambda: Widening(3, 4, 5, over=0), "over is 0"),
        (lambda: Widening(3, 4, 5, over=1, even="time"), "even is 'time'; it must be one of problems, steps"),  # pyright: ignore[reportArgumentType]
        (lambda: HeavyTailed(least=0), "least is 0"),
        (lambda: HeavyTailed(scale=0.0), "scale is 0.0"),
        (lambda: HeavyTailed(least=50, limit=40), "limit is 40"),
        (lambda: Unrolls(least=0), "least is 0"),
        (lambda: Unrolls(scale=-1.0), "scale is -1.0"),
    ],
)
def test_bad_schedules_are_named(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build()


# --- Schedules in estimators. ---


def take(estimator: Particles, count: int) -> tuple[list[Any], list[int]]:
    """States and lengths of some estimates."""
    optimizer, states, lengths = FirstMove(jnp.asarray(0.1)), [], []
    state = begin(estimator, optimizer, jax.random.key(0))
    for i in range(count):
        _, state, metrics = estimate(estimator, optimizer, state, jax.random.key(i))
        states.append(jax.tree.map(np.asarray, state))
        lengths.append(round(float(metrics["inner_steps"]) * round(estimator.schedule.mean) / estimator.inner_steps))
    return states, lengths


def test_particles_restart_at_the_first_end_of_a_truncation_beyond_their_horizon() -> None:
    states, lengths = take(PES(Height(), pairs=16, truncation=LogUniform(2, 9), horizon=(10, 30)), 30)
    assert len(set(lengths)) > 5
    for before, after, length in zip(states, states[1:], lengths[1:], strict=False):
        done = before.inner.step >= before.inner.horizon
        np.testing.assert_array_equal(after.inner.step, np.where(done, length, before.inner.step + length))
        assert ((after.inner.horizon >= 10) & (after.inner.horizon <= 30))[done].all()
    assert len({tuple(state.inner.step) for state in states}) == 30, "staggered"


def test_a_horizon_of_so_many_unrolls() -> None:
    estimator = PES(Height(), pairs=64, truncation=HeavyTailed(2, 3.0, limit=20), horizon=Unrolls(1, 2.0))
    states, lengths = take(estimator, 40)
    steps = np.stack([state.inner.step for state in states])
    begun = steps == np.asarray(lengths)[:, None]
    begun[1:] &= ~(steps[1:] == steps[:-1] + np.asarray(lengths)[1:, None])
    promised = np.stack([state.clock.left for state in states]) + 1
    lives = []
    for pair in range(64):
        starts = np.flatnonzero(begun[:, pair])
        np.testing.assert_array_equal(np.diff(starts), promised[starts[:-1], pair])
        lives += list(np.diff(starts))
    assert set(lives) >= {1, 2, 3, 4}
    assert np.mean(lives) == pytest.approx(3.0, abs=0.4), "one and Exp(2)"


def test_whole_problems_may_grow() -> None:
    states, lengths = take(FullES(Height(), pairs=2, horizon=Growing(4, 32, over=6, jitter=0.0)), 8)
    assert lengths == [round(4 * 8 ** min(i / 6, 1.0)) for i in range(8)]
    for state, length in zip(states, lengths, strict=True):
        assert (state.inner.step == length).all()
        assert (state.inner.horizon == length).all(), "what the optimizer is told"


# --- Objectives. ---


class Thrice(Bowl):
    """Normalised losses are three times the loss, so that some are beyond 1."""

    def normalize(self, loss: Array) -> Array:
        return 3.0 * loss


def bowl_losses(steps: int) -> np.ndarray:
    w, losses = np.array([1.0, 6.0]), []
    for _ in range(steps + 1):
        losses.append(0.5 * np.sum(np.array([1.0, 0.02]) * w**2))
        w = w - LEARNING_RATE * np.array([1.0, 0.02]) * w
    return np.array(losses)


def rho(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 1.0, x, 1.0 + np.log(np.maximum(x, 1.0)))


@pytest.mark.parametrize("objective", ["normalised", "mean", "last", "relative", "mean_log", "late_log"])
@pytest.mark.parametrize("truncation", [5, LogUniform(5, 5)])
@pytest.mark.parametrize("kind", [ESSingle, Backprop])
def test_objectives(kind: type[Particles], truncation: Any, objective: Any) -> None:
    """By loops of fixed and of varied length, over two truncations of one problem."""
    losses = bowl_losses(10)
    fields: dict[str, Any] = {"particles": 1} if kind is Backprop else {"pairs": 1, "std": 1e-6}
    estimator = kind(Thrice(), truncation=truncation, horizon=10, objective=objective, **fields)
    state = begin(estimator, SGD(learning_rate=LEARNING_RATE), jax.random.key(0))
    state = _aged(state)  # the first horizon is not shortened
    logs = np.log(losses / (losses[0] + 1e-6) + 1e-6)
    over = np.arange(1, 12) / 10
    for part in (slice(0, 5), slice(5, 10)):
        _, state, metrics = estimate(estimator, SGD(learning_rate=LEARNING_RATE), state, jax.random.key(0))
        expected = {
            "normalised": rho(3.0 * losses[part]).mean(),
            "mean": losses[part].mean(),
            "last": rho(3.0 * losses[part.stop]),
            "relative": rho(losses[part] / (losses[0] + 1e-6)).mean(),
            "mean_log": logs[part].mean(),
            "late_log": (2.0 * over * logs)[part].mean(),
        }[objective]
        assert metrics["meta_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("objective", "worst"),
    [("normalised", 10.0), ("mean", 1e4), ("last", 10.0), ("relative", 10.0), ("mean_log", 10.0), ("late_log", 15.0)],
)
def test_objectives_of_losses_that_are_not_finite(objective: Any, worst: float) -> None:
    estimator = ESSingle(Splits(), pairs=1, truncation=2, horizon=2, objective=objective, split="test")
    optimizer, key = SGD(learning_rate=0.1), jax.random.key(0)
    gradient, _, metrics = estimate(estimator, optimizer, begin(estimator, optimizer, key), key)
    assert metrics["meta_loss"] == pytest.approx(worst)
    assert metrics["diverged"] == 1.0
    assert np.isfinite(gradient.log_learning_rate)  # pyright: ignore[reportAttributeAccessIssue]
    valid = dataclasses.replace(estimator, split="valid")
    _, _, metrics = estimate(valid, optimizer, begin(valid, optimizer, key), key)
    expected = {"relative": 1.0, "mean_log": 0.0, "late_log": 0.0}.get(
        objective, 0.25
    )  # finite, and the same at every step
    assert metrics["meta_loss"] == pytest.approx(expected, abs=1e-4)


# --- The meta-gradient of one task. ---


def test_a_meta_gradient_is_normalised_for_its_task() -> None:
    optimizer, key = lopt.optimizers.Momentum(learning_rate=0.3, decay=0.5), jax.random.key(0)
    plain = ESSingle(lopt.tasks.Quadratic(dim=3), pairs=2, truncation=5, horizon=5)
    each = PerTask(plain, optax.normalize_by_update_norm())
    assert each.inner_steps == plain.inner_steps == 20
    state = each.init(optimizer, key)
    expected, particles, _ = estimate(plain, optimizer, state.estimator, key)
    gradient, state, metrics = jax.jit(lambda e, o, s, k: e.estimate(o, s, k))(each, optimizer, state, key)
    flat, reference = (np.asarray(jax.tree.leaves(tree)) for tree in (gradient, expected))
    assert np.linalg.norm(flat) == pytest.approx(1.0, rel=1e-4)
    np.testing.assert_allclose(flat, reference / np.linalg.norm(reference), rtol=1e-4)
    np.testing.assert_array_equal(state.estimator.inner.step, particles.inner.step)
    assert metrics["inner_steps"] == 20


def test_a_meta_gradient_is_divided_by_its_usual_norm() -> None:
    tx = normalize_by_average_norm(decay=0.9, most=3.0)
    direction = np.array([0.6, 0.8], np.float32)
    state, square = tx.init(jnp.zeros(2)), 0.0
    for i, norm in enumerate((2.0, 1.0, 4.0, 1e6, 0.5, 0.0)):
        before = square / (1.0 - 0.9**i) if i else math.inf
        square = 0.9 * square + 0.1 * min(norm**2, 9.0 * before)
        usual = math.sqrt(square / (1.0 - 0.9 ** (i + 1)))
        found, state = jax.jit(tx.update)(jnp.asarray(norm * direction), state)
        np.testing.assert_allclose(found, min(norm / usual, 3.0) * direction, rtol=1e-4, atol=1e-7)
    assert np.isfinite(jax.jit(tx.update)(jnp.zeros(2), tx.init(jnp.zeros(2)))[0]).all()
    direction, like = jnp.asarray([3.0, 4.0]), jnp.zeros(2)
    for wrong in (jnp.asarray([jnp.nan, 1.0]), jnp.asarray([jnp.inf, 1.0]), jnp.full(2, 1e30)):
        for before in (0, 3):  # first, and later
            state = tx.init(like)
            for _ in range(before):
                _, state = jax.jit(tx.update)(direction, state)
            nothing, after = jax.jit(tx.update)(wrong, state)
            assert nothing.tolist() == [0.0, 0.0]
            found, _ = jax.jit(tx.update)(direction, after)
            np.testing.assert_allclose(found, [0.6, 0.8], rtol=1e-4)
    with jax.enable_x64(True):
        update, state = jax.eval_shape(
            tx.update, jax.ShapeDtypeStruct((2,), jnp.float32), jax.eval_shape(tx.init, like)
        )
    assert (update.dtype, state.square.dtype, state.updates.dtype) == (jnp.float32, jnp.float32, jnp.int32)
    for fields, words in (({"decay": 1.0}, "decay is 1.0"), ({"most": 0.5}, "most is 0.5")):
        with pytest.raises(InputError, match=words):
            normalize_by_average_norm(**fields)


def test_another_transformation_of_a_task_is_another_configuration(tmp_path: Path) -> None:
    plain = ESSingle(lopt.tasks.Quadratic(dim=2), pairs=1, truncation=2, horizon=2)
    optimizer, key = SGD(learning_rate=0.1), jax.random.key(0)

    def run(norm: float) -> MetaState:
        each = PerTask(PerTask(plain, optax.clip_by_global_norm(norm)), optax.normalize_by_update_norm())
        return lopt.meta_train(optimizer, [each], optax.sgd(0.1), steps=1, key=key, run_dir=tmp_path)

    run(1.0)
    assert run(1.0).step == 1  # built anew, but the same
    with pytest.raises(
        InputError, match=r"its digest of the transformations of PerTask is \['\w+', '\w+'\], this one's"
    ):
        run(2.0)


def test_a_fingerprint_sees_arrays_within() -> None:
    def table(values: list[float]) -> optax.GradientTransformation:
        array = jnp.asarray(values)
        return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * array.sum(), updates))

    a, b, c = (fingerprint(table(values), SGD()) for values in ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0]))
    assert a == b != c
