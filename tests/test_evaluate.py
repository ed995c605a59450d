"""Training records, tuned baselines, and the statistics of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jaxtyping import Array, PRNGKeyArray

import lopt
from lopt.errors import InputError
from lopt.evaluate import LEARNING_RATES, Baseline, Estimate, Row, TrainRecord, mean_interval, train, train_batch, tune
from lopt.evaluate.compare import COLUMNS, TUNED, compare, default_key, row_text, steps_to, summarise
from lopt.evaluate.equal import Equal
from lopt.evaluate.timing import Spread
from lopt.evaluate.training import BLOCK
from lopt.optimizers import SGD, Adam, FromOptax, Momentum
from lopt.task import Split, Task

KEY = jax.random.key(5)
TASK = lopt.tasks.Quadratic(dim=3, noise=0.1)


def leaves(record: TrainRecord) -> list[np.ndarray]:
    """All arrays of a record but its times."""
    curves = (record.train_loss, record.valid_loss, record.test_loss, record.metrics, record.minibatch_loss)
    return [np.asarray(x) for x in jax.tree.leaves((curves, record.params))]


# --- Training. ---


def test_shapes_and_starts() -> None:
    record = train(SGD(learning_rate=0.1), TASK, steps=12, key=KEY, seeds=4, evals=3)
    assert record.steps.tolist() == [0, 4, 8, 12]
    assert record.train_loss.shape == record.valid_loss.shape == record.test_loss.shape == (4, 4)
    assert record.minibatch_loss.shape == (4, 12)
    assert record.params.shape == (4, 3)
    assert len(np.unique(record.train_loss[:, 0])) == 4, "every seed has its own problem and start"
    assert (record.train_loss[:, -1] < record.train_loss[:, 0]).all()
    assert (record.seconds_per_step > 0).all()


def test_metrics_other_than_the_loss_are_kept() -> None:
    task = lopt.tasks.digits_mlp(widths=(4,), batch_size=8)
    record = train(SGD(learning_rate=0.1), task, steps=2, key=KEY, seeds=2, evals=1)
    assert set(record.metrics) == {"train_accuracy", "valid_accuracy", "test_accuracy"}
    assert all(curve.shape == (2, 2) for curve in record.metrics.values())


def test_same_key_same_numbers() -> None:
    def run(key: PRNGKeyArray) -> list[np.ndarray]:
        return leaves(train(Adam(learning_rate=0.1), TASK, steps=10, key=key, seeds=2, evals=2))

    for a, b in zip(run(KEY), run(KEY), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (run(KEY)[0] != run(jax.random.key(6))[0]).all()


def test_comparisons_are_paired() -> None:
    """Two optimizers that do not move meet the same problems, starts and minibatches."""
    still = [optax.sgd(0.0), optax.adam(0.0), SGD(learning_rate=1e-30)]
    records = [train(o, TASK, steps=7, key=KEY, seeds=3, evals=2) for o in still]
    for record in records[1:]:
        for a, b in zip(leaves(record), leaves(records[0]), strict=True):
            np.testing.assert_array_equal(a, b)
    losses = records[0].minibatch_loss
    assert all(len(np.unique(row)) == 7 for row in losses), "minibatches differ from step to step"


@pytest.mark.parametrize("evals", [1, 2, 5, 100])
def test_minibatches_do_not_depend_on_evaluations(evals: int) -> None:
    record = train(SGD(learning_rate=0.1), TASK, steps=10, key=KEY, seeds=2, evals=evals)
    once = train(SGD(learning_rate=0.1), TASK, steps=10, key=KEY, seeds=2, evals=10)
    np.testing.assert_allclose(record.minibatch_loss, once.minibatch_loss, rtol=1e-5)
    np.testing.assert_allclose(record.params, once.params, rtol=1e-5)
    assert record.train_loss[:, -1] == pytest.approx(once.train_loss[:, -1], rel=1e-5)


def test_a_longer_training_begins_like_a_shorter_one() -> None:
    short, long = (train(SGD(learning_rate=0.1), TASK, steps=n, key=KEY, evals=1) for n in (5, 9))
    np.testing.assert_allclose(long.minibatch_loss[:, :5], short.minibatch_loss, rtol=1e-5)


def test_stretches_longer_than_one_call_of_the_program_go_on_in_the_next() -> None:
    few, many = (train(SGD(learning_rate=0.1), TASK, steps=2 * BLOCK + 3, key=KEY, seeds=2, evals=n) for n in (1, 10))
    assert few.minibatch_loss.shape == (2, 2 * BLOCK + 3)
    np.testing.assert_allclose(few.minibatch_loss, many.minibatch_loss, rtol=1e-5)
    np.testing.assert_allclose(few.params, many.params, rtol=1e-5)


def test_trainings_to_any_horizon_share_their_programs() -> None:
    traced: list[str] = []

    class Traced(Stumble):
        """Notes when its loss is traced."""

        def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
            traced.append(split)
            return super().loss(problem, params, key, split)

    task = Traced()
    train(SGD(learning_rate=0.1), task, steps=10, key=KEY, seeds=2, evals=4)
    once = len(traced)
    assert once > 0
    for steps, evals in ((7, 3), (40, 4)):
        train(SGD(learning_rate=0.1), task, steps=steps, key=KEY, seeds=2, evals=evals)
    assert len(traced) == once


@pytest.mark.parametrize(
    ("steps", "evals", "expected"),
    [(10, 3, [0, 3, 7, 10]), (7, 7, list(range(8))), (3, 20, [0, 1, 2, 3]), (1, 1, [0, 1]), (5, 4, [0, 1, 2, 4, 5])],
)
def test_evaluations_are_even_and_the_last_step_is_one(steps: int, evals: int, expected: list[int]) -> None:
    seen: list[int] = []
    optimizer = SGD(learning_rate=0.1)
    record = train(optimizer, TASK, steps=steps, key=KEY, evals=evals, on_eval=seen.append)
    assert record.steps.tolist() == expected, "as many as asked for, and as even as whole steps are"
    assert seen == expected[1:]
    assert record.train_loss.shape == (1, len(expected))
    assert record.minibatch_loss.shape == (1, steps)


@pytest.mark.parametrize(
    "make", [lambda: optax.sgd(0.1, momentum=0.5), lambda: optax.chain(optax.clip(1e3), optax.sgd(0.1, momentum=0.5))]
)
def test_optax_transformations_are_accepted(make: Callable[[], optax.GradientTransformation]) -> None:
    theirs = train(make(), TASK, steps=10, key=KEY, seeds=2, evals=2)
    ours = train(Momentum(learning_rate=0.1, decay=0.5), TASK, steps=10, key=KEY, seeds=2, evals=2)
    for a, b in zip(leaves(theirs), leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_equal_transformations_share_their_programs() -> None:
    """Every call of `optax.adam` builds new functions; they are equal where their numbers are."""
    traced: list[str] = []

    class Traced(Stumble):
        """Notes when its loss is traced."""

        def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
            traced.append(split)
            return super().loss(problem, params, key, split)

    task = Traced()

    def traces(tx: optax.GradientTransformation) -> int:
        before = len(traced)
        train(tx, task, steps=3, key=KEY, evals=1)
        return len(traced) - before

    def chain(rate: float) -> optax.GradientTransformation:
        return optax.chain(optax.clip(1.0), optax.adam(optax.cosine_decay_schedule(rate, 10)))

    assert traces(optax.adam(0.1)) > 0
    assert traces(optax.adam(0.1)) == 0
    assert traces(optax.adam(0.2)) > 0, "another rate is another rule"
    assert traces(chain(0.1)) > 0
    assert traces(chain(0.1)) == 0
    assert traces(chain(0.2)) > 0


def test_equal_is_told_by_content() -> None:
    def make(x: Any, default: Any = None) -> Callable[[], Any]:
        def inner(y: Any = default) -> Any:
            return x, y, inner

        return inner

    for a, b in (([1.0], [1.0]), (np.arange(3), np.arange(3)), (jnp.ones(2), jnp.ones(2)), ({"a": (1,)}, {"a": (1,)})):
        assert Equal(make(a)) == Equal(make(b))
        assert hash(Equal(make(a))) == hash(Equal(make(b)))
    for a, b in (
        ([1.0], [2.0]),
        (1, 1.0),
        (np.arange(3), np.arange(3.0)),
        (jnp.ones(2), jnp.zeros(2)),
        (object(), object()),
    ):
        assert Equal(make(a)) != Equal(make(b))
    assert Equal(make(1, 2)) != Equal(make(1, 3)), "defaults count"


def test_schedule_free_is_evaluated_where_it_is_deployed() -> None:
    """As the baseline of that name, and as optax has it in a plain loop."""
    options: dict[str, Any] = {"steps": 8, "key": KEY, "seeds": 2, "evals": 2}
    bare = train(optax.contrib.schedule_free_adamw(0.1, weight_decay=0.0), TASK, **options)
    chained = train(
        optax.chain(optax.clip(1e6), optax.contrib.schedule_free_adamw(0.1, weight_decay=0.0)), TASK, **options
    )
    baseline = train(Baseline("schedule_free_adamw", {"learning_rate": 0.1}), TASK, **options)
    for other in (chained, baseline):
        np.testing.assert_allclose(bare.train_loss, other.train_loss, rtol=1e-5)
    state = optax.contrib.ScheduleFreeState(
        b1=jnp.array(0.5),
        weight_sum=jnp.array(1.0),
        step_count=jnp.array(0),
        max_lr=jnp.array(0.1),
        base_optimizer_state=(),
        z=jnp.array([4.0]),
    )  # pyright: ignore
    found = FromOptax(optax.contrib.schedule_free_adamw(0.1)).eval_params((optax.EmptyState(), state), jnp.array([3.0]))
    np.testing.assert_allclose(found, [2.0])  # y = b1 x + (1 - b1) z


def test_the_horizon_is_the_number_of_steps() -> None:
    class Countdown(lopt.Optimizer):
        """Adds the horizon once."""

        def init(self, params: Array, *, key: Any = None, horizon: Any = None) -> Array:
            del params, key
            return jnp.asarray(horizon, jnp.float32)

        def update(self, updates: Array, state: Array, params: Array, **extra: Any) -> tuple[Array, Array]:
            del params, extra
            return jnp.full_like(updates, state), jnp.zeros(())

    still = train(optax.sgd(0.0), TASK, steps=6, key=KEY, seeds=2, evals=2)
    record = train(Countdown(), TASK, steps=6, key=KEY, seeds=2, evals=2)
    np.testing.assert_allclose(record.params - still.params, 6.0, rtol=1e-6)


class Stumble(Task):
    """A parabola whose loss, and so its gradient, is NaN on one minibatch in two."""

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Array:
        del problem, key
        return jnp.asarray([1.0, -2.0])

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem
        broken = (split == "train") & jax.random.bernoulli(key)
        return jnp.sum(params**2) * jnp.where(broken, jnp.nan, 1.0)

    def metrics(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split) -> dict[str, Array]:
        del problem, key, split
        return {"loss": jnp.sum(params**2)}


@pytest.mark.parametrize("optimizer", [SGD(learning_rate=0.1), Momentum(learning_rate=0.1, decay=0.5)])
def test_steps_with_a_gradient_that_is_not_finite_are_skipped(optimizer: lopt.Optimizer) -> None:
    record = train(optimizer, Stumble(), steps=20, key=KEY, seeds=3, evals=20)
    broken = np.isnan(record.minibatch_loss)
    assert (broken.any(axis=1) & ~broken.all(axis=1)).all()
    loss = record.train_loss
    assert np.isfinite(loss).all()
    # A skipped step moves nothing, momentum included; any other moves.
    np.testing.assert_array_equal(loss[:, 1:] == loss[:, :-1], broken)
    if isinstance(optimizer, SGD):
        taken = (~broken).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(record.params, np.array([[1.0, -2.0]]) * 0.8**taken, rtol=1e-5)


def test_a_batch_of_optimizers_equals_them_one_by_one() -> None:
    rates = [0.03, 0.1, 0.3]
    batch = jax.vmap(lambda rate: Adam(learning_rate=rate))(jnp.asarray(rates))
    together = train_batch(batch, TASK, steps=8, key=KEY, seeds=2, evals=2, batch=3)
    assert together.train_loss.shape == (3, 2, 3)
    for i, rate in enumerate(rates):
        alone = train(Adam(learning_rate=rate), TASK, steps=8, key=KEY, seeds=2, evals=2)
        for a, b in zip(leaves(together), leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)
    assert len(np.unique(together.train_loss[:, 0, -1])) == 3


@pytest.mark.parametrize("field", ["steps", "seeds", "evals"])
@pytest.mark.parametrize("number", [0, -2])
def test_numbers_below_one_are_refused(field: str, number: int) -> None:
    with pytest.raises(InputError, match=f"{field} is {number}; it must be at least 1"):
        train(SGD(), TASK, **{"steps": 2, "key": KEY, field: number})


# --- Tuned Adam. ---


def test_the_grid_has_fifteen_half_decades() -> None:
    assert len(LEARNING_RATES) >= 15
    np.testing.assert_allclose(np.diff(np.log10(LEARNING_RATES)), 0.5, atol=0.03)
    assert LEARNING_RATES[0] <= 1e-6
    assert LEARNING_RATES[-1] >= 1.0


def test_tuning_picks_the_best_rate() -> None:
    found = tune("adam", TASK, steps=20, key=KEY, seeds=3)
    final = {rate: [] for rate in LEARNING_RATES}
    for run in found.runs:
        final[run.config["learning_rate"]].append(run.train_loss[-1])
    best = min(final, key=lambda rate: np.mean(final[rate]))
    assert found.setting == {"learning_rate": best}
    np.testing.assert_array_equal(found.train_loss, final[best])
    again = train(found.optimizer, TASK, steps=20, key=KEY, seeds=3, evals=1)
    np.testing.assert_allclose(again.train_loss[:, -1], found.train_loss, rtol=1e-3)
    for rate in (LEARNING_RATES[0], LEARNING_RATES[-1]):
        other = train(Baseline("adam", {"learning_rate": rate}), TASK, steps=20, key=KEY, seeds=3, evals=1)
        assert other.train_loss[:, -1].mean() > again.train_loss[:, -1].mean()


class Cliff(Task):
    """A parabola that is infinite beyond 1.5 on one side: high learning rates fall off it, some in one seed only."""

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Array:
        del problem
        return jax.random.uniform(key, minval=0.5, maxval=1.0)

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem, key, split
        return jnp.where(params < -0.2, jnp.inf, params**2)


def test_tuning_survives_rates_that_diverge() -> None:
    found = tune("adam", Cliff(), steps=5, key=KEY, seeds=5)
    final = {
        rate: np.array([r.train_loss[-1] for r in found.runs if r.config["learning_rate"] == rate])
        for rate in LEARNING_RATES
    }
    assert not np.isfinite(final[LEARNING_RATES[-1]]).all(), "the highest rate diverges"
    usable = {rate: x.mean() if np.isfinite(x).all() else math.inf for rate, x in final.items()}
    assert usable[found.setting["learning_rate"]] == min(usable.values()) < math.inf


class Nothing(Cliff):
    """Never finite."""

    def loss(self, problem: tuple[()], params: Array, key: PRNGKeyArray, split: Split = "train") -> Array:
        del problem, key, split
        return params * jnp.nan


def test_tuning_says_so_where_every_rate_diverges() -> None:
    with pytest.raises(InputError, match="adam diverged at every setting"):
        tune("adam", Nothing(), steps=2, key=KEY, seeds=2)


# --- Statistics. ---


def test_interval_by_hand() -> None:
    # n = 5, mean 3, s = sqrt(2.5), t(0.975; 4) = 2.776445.
    found = mean_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found.value == 3.0
    assert found.half == pytest.approx(2.776445105 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6)
    # n = 2, t(0.975; 1) = 12.7062.
    assert mean_interval(np.array([0.0, 2.0])).half == pytest.approx(12.7062047, rel=1e-6)
    one = mean_interval(np.array([2.0]))
    assert one.value == 2.0
    assert math.isnan(one.half), "one value has no width"


def test_interval_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    covered = np.mean([found.low <= 0.0 <= found.high for found in map(mean_interval, draws)])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_interval_with_a_diverged_seed(bad: float) -> None:
    assert str(mean_interval(np.array([1.0, bad, 2.0]))) == "diverged"


def about(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def test_interval_as_text() -> None:
    assert str(about(0.12345, 0.0067)) == "0.123 ± 0.007"
    assert str(about(-0.5, 0.25)) == "-0.500 ± 0.250"
    assert str(about(12345.6, 100.0)) == "1.2e+04 ± 1.0e+02"
    assert str(about(0.5, math.nan)) == "0.500", "of a single seed"


def record_of(train_loss: list[list[float]], steps: list[int]) -> TrainRecord:
    curve = np.array(train_loss)
    seeds = len(curve)
    return TrainRecord(
        steps=np.array(steps),
        train_loss=curve,
        valid_loss=curve,
        test_loss=curve,
        metrics={},
        minibatch_loss=np.zeros((seeds, steps[-1])),
        params=np.zeros(seeds),
        seconds=np.full(len(steps) - 1, 0.1),
        compile_seconds=0.0,
    )


def test_steps_to_a_target() -> None:
    record = record_of(
        [
            [4.0, 3.0, 2.0, 1.0],  # in the middle
            [4.0, 1.0, 3.0, 0.5],  # the first time counts
            [4.0, 3.0, 2.5, 2.1],  # never
            [1.0, 5.0, 5.0, 5.0],  # at the start
            [4.0, math.nan, 2.0, math.nan],  # exactly, among NaN
            [math.nan, math.nan, math.nan, math.nan],
            [4.0, math.inf, math.inf, math.inf],
        ],
        [0, 10, 20, 25],
    )
    assert steps_to(2.0, record) == (20.0, 10.0, math.inf, 0.0, 20.0, math.inf, math.inf)


def row_of(**changes: Any) -> Row:
    fields: dict[str, Any] = {
        "optimizer": "mine",
        "train_loss": about(0.5, 0.1),
        "test_loss": about(0.25, 0.05),
        "test_accuracy": about(0.9, 0.01),
        "steps_to_target": (10.0, 20.0, 30.0),
        "milliseconds_per_step": Spread(0.5, 0.4, 0.7),
        "times_adam": Spread(1.5, 1.25, 2.0),
        "milliseconds_to_target": (5.0, 10.0, 15.0),
    }
    return Row(**{**fields, **changes})


def test_a_row_as_text() -> None:
    found = dict(zip(COLUMNS, row_text(row_of()), strict=True))
    assert found["optimizer"] == "mine"
    assert found["train loss"] == "0.500 ± 0.100"
    assert found["test loss"] == "0.250 ± 0.050"
    assert found["test accuracy"] == "0.900 ± 0.010"
    # Mean 20, s = 10, t(0.975; 2) = 4.303.
    assert found["steps to target"] == "20 ± 25"
    assert found["time, × Adam"] == "1.5 (1.2–2.0)"


def test_a_row_without_accuracy() -> None:
    assert row_text(row_of(test_accuracy=None))[COLUMNS.index("test accuracy")] == "–"


def test_a_row_that_diverged() -> None:
    diverged = about(math.nan, math.nan)
    found = row_text(row_of(train_loss=diverged, test_loss=about(math.inf, math.nan)))
    assert found[1:3] == ("diverged", "diverged")


def test_a_row_that_did_not_reach_the_target() -> None:
    some = row_of(steps_to_target=(10.0, math.inf, 30.0), milliseconds_to_target=(5.0, math.inf, 15.0))
    none = row_of(steps_to_target=(math.inf,) * 3, milliseconds_to_target=(math.inf,) * 3)
    at = COLUMNS.index("steps to target")
    assert row_text(some)[at] == "2 of 3 seeds"
    assert row_text(none)[at] == "0 of 3 seeds"
    assert "inf" not in "".join(row_text(some) + row_text(none))
    assert "nan" not in "".join(row_text(some) + row_text(none))


def test_evaluation_keys_are_apart_from_training_keys() -> None:
    found = {tuple(jax.random.key_data(default_key(seed)).tolist()) for seed in range(5)}
    found |= {tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in range(5)}
    assert len(found) == 10


# --- Comparisons. ---


def test_a_comparison() -> None:
    told: list[str] = []
    found = compare(
        {"slow": SGD(learning_rate=1e-6), "exploding": SGD(learning_rate=1e6), "theirs": optax.adam(0.1)},
        TASK,
        name="quadratic",
        steps=10,
        key=KEY,
        seeds=3,
        evals=5,
        on_progress=told.append,
    )
    rows = {row.optimizer: row for row in found.rows}
    assert list(rows) == ["slow", "exploding", "theirs", TUNED]
    assert list(found.records) == list(rows)
    tuned = found.records[TUNED]
    assert found.target == pytest.approx(tuned.train_loss[:, -1].mean())
    assert rows[TUNED].train_loss == mean_interval(tuned.train_loss[:, -1])
    assert rows[TUNED].test_loss == mean_interval(tuned.test_loss[:, -1])
    assert rows[TUNED].test_accuracy is None
    # Adam at its best rate ends where the grid found it to end.
    np.testing.assert_allclose(tuned.train_loss[:, -1], found.adam.train_loss, rtol=1e-3)
    assert all(math.isinf(s) for s in rows["slow"].steps_to_target)
    assert row_text(rows["exploding"])[1] == "diverged" or rows["exploding"].train_loss.value > 1e6
    # Paired: everything starts from the same losses.
    for record in found.records.values():
        np.testing.assert_array_equal(record.train_loss[:, 0], tuned.train_loss[:, 0])
    assert all(name in " ".join(told) for name in ("slow", "exploding", "theirs", "tuning Adam", "timing all in turns"))


def test_times_of_a_row_are_paired_by_turn() -> None:
    record = record_of([[4.0, 2.0], [4.0, 1.0]], [0, 10])
    # Both slow down together: every turn has the same ratio. One turn that stalled moves no median.
    row = summarise("mine", record, 2.0, np.array([0.001, 0.002, 0.3]), np.array([0.0005, 0.001, 0.15]))
    assert row.milliseconds_per_step == pytest.approx((2.0, 1.5, 151.0))
    assert row.times_adam == pytest.approx((2.0, 2.0, 2.0))
    assert row.milliseconds_to_target == pytest.approx((20.0, 20.0))
