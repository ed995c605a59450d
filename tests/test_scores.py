"""Scores of runs against numbers worked out by hand, and what becomes of them when runs are missing, diverge or tie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lopt.errors import InputError
from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.scores.axes import along, extrapolation
from lopt.evaluate.scores.cells import Cell, Spread, cells
from lopt.evaluate.scores.selection import select
from lopt.evaluate.scores.speedup import envelope, speed_up
from lopt.evaluate.scores.statistics import mean_interval
from lopt.evaluate.scores.summary import Scores, Summary, score
from lopt.evaluate.scores.untuned import without_tuning

INF, NAN = math.inf, math.nan
BASELINES = ("adam", "sgd")


def run(
    optimizer: str,
    curve: Sequence[float],
    *,
    task: str = "bowl",
    seed: int = 0,
    horizon: int = 10,
    rate: float | None = None,
    test: Sequence[float] | None = None,
) -> Run:
    """Evaluated at equal distances from 0 to the horizon."""
    train = np.array(curve, np.float32)
    return Run(
        task=task,
        optimizer=optimizer,
        config={} if rate is None else {"learning_rate": rate},
        fingerprint=None,
        horizon=horizon,
        seed=seed,
        steps=np.linspace(0, horizon, len(train)).round().astype(int),
        train_loss=train,
        valid_loss=train,
        test_loss=train if test is None else np.array(test, np.float32),
        metrics={},
    )


def seeds(optimizer: str, *curves: Sequence[float], **fields) -> list[Run]:
    return [run(optimizer, curve, seed=i, **fields) for i, curve in enumerate(curves)]


# Evaluated at steps 0, 5 and 10. Start 8; final means: Adam 2, SGD 4, mine 1.
RUNS = [
    *seeds("adam", (8, 4, 1), (8, 4, 3)),
    *seeds("sgd", (8, 6, 4), (8, 6, 4)),
    *seeds("mine", (8, 2, 1.5), (8, 2, 0.5)),
]


def cell(found: Sequence[Cell], optimizer: str, task: str = "bowl", horizon: int = 10) -> Cell:
    return next(c for c in found if (c.optimizer, c.task, c.horizon) == (optimizer, task, horizon))


def summary(found: Scores, optimizer: str) -> Summary:
    return next(s for s in found.summaries if s.optimizer == optimizer)


# --- Speed-up. ---


def test_envelope_is_the_lowest_of_all_rates_and_never_rises() -> None:
    sweep = [
        *seeds("adam", (8, 4, 5, 1), (8, 6, 5, 3), rate=0.1, horizon=30),  # means 8 5 5 2
        *seeds("adam", (8, 3, 4, 6), (8, 3, 4, 6), rate=0.3, horizon=30),  # lower at first, then it rises
        *seeds("adam", (8, 1, 1, 1), (8, NAN, 1, 1), rate=1.0, horizon=30),  # one seed diverged: out from there on
        *seeds("adam", (8, 0, 0, 0), rate=3.0, horizon=30),  # dropped out after one seed
    ]
    found = envelope(sweep)
    assert_array_equal(found.steps, [0, 10, 20, 30])
    assert_allclose(found.loss, [8, 3, 3, 2])


def test_shorter_trainings_make_the_envelope_finer_where_they_last() -> None:
    long = run("adam", (8, 4, 2), horizon=40)  # at steps 0, 20, 40
    short = run(
        "adam", (8, 7, 3, 3, 3), horizon=20
    )  # at 0, 5, 10, 15, 20; lower from 10 on, and nothing is said after 20
    found = envelope([long, short])
    assert_array_equal(found.steps, [0, 5, 10, 15, 20, 40])
    assert_allclose(found.loss, [8, 7, 3, 3, 3, 2])
    broken = run("adam", (8, NAN, NAN), horizon=20)
    assert_allclose(envelope([long, broken]).loss, [8, 6, 4, 2])


def test_moving_average_is_velodromes_at_its_resolution() -> None:
    # 10,001 evaluations: 0.95 of the average stays at each. From 1 to 0 at once: 0.95^k.
    curve = np.zeros(10_001)
    curve[0] = 1
    found = envelope([run("adam", curve, horizon=100_000)])
    assert_allclose(found.loss[:4], [1, 0.95, 0.95**2, 0.95**3], rtol=1e-6)
    # 11 evaluations: 0.95^1000 of it stays, nothing.
    assert_allclose(envelope([run("adam", curve[:11], horizon=100)]).loss[1], 0.95**1000, atol=1e-12)


def test_speed_up() -> None:
    adam = envelope([run("adam", (8, 4, 4, 2), horizon=30)])  # at steps 0, 10, 20, 30
    # 6 is half way from 8 to 4, step 5; 4 is first reached at 10, not at 20; 3 half way from 4 to 2 at step 25.
    found = speed_up(np.array([6.0, 4.0, 3.0, 2.0]), adam, 10)
    assert_allclose(found.value, [0.5, 1, 2.5, 3])
    assert not found.saturated.any()
    # Below all that Adam reached: at least 30/10. At or above the start, or diverged: 0.
    found = speed_up(np.array([1.9, -5.0, 8.0, 9.0, INF, NAN]), adam, 10)
    assert_allclose(found.value, [3, 3, 0, 0, 0, 0])
    assert_array_equal(found.saturated, [True, True, False, False, False, False])


@given(st.lists(st.floats(-5, 10), min_size=2, max_size=6), st.lists(st.floats(-6, 11), min_size=2, max_size=6))
def test_speed_up_falls_with_the_loss_and_is_bounded(curve: list[float], losses: list[float]) -> None:
    adam = envelope([run("adam", curve, horizon=100)])
    found = speed_up(np.sort(losses), adam, 10)
    assert (np.diff(found.value) <= 1e-9).all()
    assert ((found.value >= 0) & (found.value <= 10)).all()
    assert_allclose(speed_up(np.sort(losses), adam, 5).value, 2 * found.value)


# --- One task. ---


def test_normalised_loss() -> None:
    found = cells(RUNS, baselines=BASELINES)
    # 0 is Adam's mean 2, 1 the start 8: (l - 2) / 6.
    assert_allclose(cell(found, "adam").normalized, [-1 / 6, 1 / 6])
    assert_allclose(cell(found, "sgd").normalized, [1 / 3, 1 / 3])
    assert_allclose(cell(found, "mine").normalized, [-0.5 / 6, -1.5 / 6])
    # With SGD as the only baseline: (l - 4) / 4.
    assert_allclose(cell(cells(RUNS, baselines=["sgd"]), "mine").normalized, [-2.5 / 4, -3.5 / 4])


def test_the_test_loss_has_its_own_scale() -> None:
    runs = [
        *seeds("adam", (8, 2), (8, 2), test=(10, 6)),  # best on the train loss
        *seeds("sgd", (8, 4), (8, 4), test=(10, 5)),  # best on the test loss
        *seeds("mine", (8, 1), test=(10, 7)),
    ]
    found = cell(cells(runs, baselines=BASELINES), "mine")
    assert found.test_loss == [7]
    assert_allclose(found.normalized_test, [(7 - 5) / (10 - 5)])
    assert_allclose(found.normalized, [(1 - 2) / (8 - 2)])


def test_test_losses_are_of_the_setting_with_the_lowest_validation_loss() -> None:
    # A high rate lowers the train loss most, a low one the validation loss: it is the one that generalises.
    high = [r._replace(valid_loss=r.train_loss + 5) for r in seeds("adam", (8, 2), (8, 2), test=(10, 9), rate=0.1)]
    low = [r._replace(valid_loss=r.train_loss - 1) for r in seeds("adam", (8, 4), (8, 4), test=(10, 6), rate=0.01)]
    runs = [*high, *low, *seeds("mine", (8, 1), (8, 1), test=(10, 7))]
    assert select(runs)[:2] == high
    assert select(runs, by="valid")[:2] == low
    found = cells(select(runs), baselines=BASELINES, tested=select(runs, by="valid"))
    adam, mine = cell(found, "adam"), cell(found, "mine")
    assert_array_equal(adam.train_loss, [2, 2])
    assert_array_equal(adam.test_loss, [6, 6])
    assert_allclose(mine.normalized_test, [(7 - 6) / (10 - 6)] * 2)  # against 9 it would have won
    assert_allclose(mine.normalized, [(1 - 2) / (8 - 2)] * 2)
    with pytest.raises(InputError, match="other seeds of adam on bowl"):
        cells(select(runs), baselines=BASELINES, tested=low[:1])


def test_learning_rates_at_the_end_of_their_grid_are_told() -> None:
    finals = {"low": (1, 2, 3), "high": (3, 2, 1), "inside": (2, 1, 3)}
    tried = [
        run("adam", (8, final), task=task, rate=rate)
        for task, row in finals.items()
        for rate, final in zip((0.01, 0.1, 1.0), row, strict=True)
    ]
    tried += [run("sgd", (8, 4), task=task, rate=0.1) for task in finals]  # one setting: no grid
    found = score(select(tried), baselines=BASELINES, tried=tried)
    assert found.edges == {("low", "adam", 10): "lowest", ("high", "adam", 10): "highest"}
    assert found.notes == tuple(
        f"{task}: the best learning rate of adam to step 10 is the {end} of its grid; a better one may lie beyond."
        for task, end in (("low", "lowest"), ("high", "highest"))
    )
    assert score(select(tried), baselines=BASELINES).edges == {}


TIMINGS = [
    Timing("bowl", "adam", 10, 0, 1.0),
    Timing("bowl", "mine", 10, 0, 3.0),
    Timing("bowl", "adam", 10, 1, 2.0),
    Timing("bowl", "mine", 10, 1, 4.0),
    Timing("bowl", "adam", 10, 2, 2.0),
    Timing("bowl", "mine", 10, 2, 5.0),
]


def test_steps_and_seconds_to_target() -> None:
    found = cells(RUNS, TIMINGS, baselines=BASELINES)
    mine, adam, sgd = (cell(found, o) for o in ("mine", "adam", "sgd"))
    assert mine.target == adam.target == 2
    assert (mine.steps_to_target, adam.steps_to_target, sgd.steps_to_target) == (5, 10, INF)
    # Adam's own seeds straddle the target, which is their mean.
    assert_array_equal(adam.steps_to_target_each, [10, INF])
    assert_array_equal(mine.steps_to_target_each, [5, 5])
    # 3, 4, 5 s a step: median 4, quartiles 3.5 and 4.5; times 5 steps.
    assert mine.seconds_per_step == (4, 3.5, 4.5)
    assert mine.seconds_to_target == (20, 17.5, 22.5)
    # In the same turn 3/1, 4/2, 5/2: median 2.5, quartiles 2.25 and 2.75. Not 4/2, the ratio of medians.
    assert mine.cost == (2.5, 2.25, 2.75)
    assert adam.cost == (1, 1, 1)
    assert adam.seconds_to_target == (20, 15, 20)
    assert np.isnan(sgd.seconds_per_step).all(), "it was not timed"


def test_timings_of_another_horizon_stand_in() -> None:
    longer = [r._replace(horizon=20, steps=2 * r.steps) for r in RUNS]
    found = cells([*RUNS, *longer], TIMINGS, baselines=BASELINES)
    assert cell(found, "mine", horizon=20).seconds_per_step == Spread(4, 3.5, 4.5)
    assert cell(found, "mine", horizon=20).cost == Spread(2.5, 2.25, 2.75)


def test_speed_up_of_a_cell_is_read_from_the_longest_sweep() -> None:
    sweep = [run("adam", (8, 4, 2, 1, 1), rate=0.1, horizon=40), run("adam", (8, 5, 3, 2, 0.5), rate=0.2, horizon=40)]
    found = cells(RUNS, baselines=BASELINES, sweep=sweep)
    # The envelope is 8 4 2 1 0.5 at 0, 10, 20, 30, 40; mine ends at 1: 30 / 10. Adam ends at 2: 20 / 10. SGD at 4: 10 / 10.
    assert [cell(found, o).speedup for o in ("mine", "adam", "sgd")] == [3, 2, 1]
    assert not cell(found, "mine").saturated
    # Without it: Adam's own mean curve, 8 4 2 at 0, 5, 10. Mine ends below: at least 1.
    found = cells(RUNS, baselines=BASELINES)
    assert [cell(found, o).speedup for o in ("mine", "adam", "sgd")] == [1, 1, 0.5]
    assert [cell(found, o).saturated for o in ("mine", "adam", "sgd")] == [True, False, False]


def test_diverged_is_not_finite_or_far_above_the_start() -> None:
    # The scale is 6: normalised 2 is the loss 14.
    runs = [*RUNS, *seeds("wild", (8, 9, 14), (8, 9, 14.1), (8, NAN, NAN), (8, 9, INF))]
    found = cell(cells(runs, baselines=BASELINES), "wild")
    assert found.diverged == 3
    assert_array_equal(np.isinf(found.train_loss), [False, False, True, True])
    assert found.speedup == 0
    assert found.steps_to_target == INF


def test_a_target_met_at_the_start_counts_as_one_step() -> None:
    runs = [*seeds("adam", (1, 2, 1.5)), *seeds("sgd", (1, 0.8, 0.5)), *seeds("mine", (1, 3, 3))]
    found = cells(runs, baselines=BASELINES)
    assert cell(found, "mine").steps_to_target == 1


# --- Several tasks. ---


def two_tasks() -> list[Run]:
    """On the second task Adam is best, and mine is slower."""
    second = [
        *seeds("adam", (4, 2, 1), (4, 2, 1), task="valley"),
        *seeds("sgd", (4, 3, 2), (4, 3, 2), task="valley"),
        *seeds("mine", (4, 4, 3), (4, 4, 2), task="valley"),
    ]
    return [*RUNS, *second]


def test_summary() -> None:
    found = score(two_tasks(), baselines=BASELINES)
    mine = summary(found, "mine")
    assert found.tasks == mine.tasks == ("bowl", "valley")
    assert found.baselines == ("adam", "sgd")
    # Normalised: -1.5/6, -0.5/6; (3 - 1) / 3, (2 - 1) / 3. The middle two of four: -0.5/6 and 1/3.
    assert_allclose(mine.normalized.value, (-0.5 / 6 + 1 / 3) / 2)
    assert mine.normalized.low <= mine.normalized.value <= mine.normalized.high
    # Speed-up: at least 1 on the bowl, saturated; mean 2.5 on the valley, between 4 and 2 at steps 0 and 5: 3.75 / 10.
    assert_allclose(mine.speedup.value, (1 + 0.375) / 2)
    assert not mine.speedup_censored, "the median lies below the one saturated task"
    assert mine.saturated == 0.5
    # Same seeds: 1.5 > 1 and 0.5 < 3; 3 > 1 and 2 > 1.
    assert mine.improvement.value == 0.25
    # Won by the mean on the bowl, 1 < 2; lost on the valley. No difference is clear with two seeds:
    # the valley's are 2 and 1, mean 1.5, half width 12.7 x 0.5.
    assert mine.wins is not None
    assert mine.wins[1:] == (2, 0, 0)
    assert mine.wins.fraction.value == 0.5
    # Ranks 1 and 3, Adam 2 and 1, SGD 3 and 2.
    assert [summary(found, o).rank for o in ("adam", "sgd", "mine")] == [1.5, 2.5, 2]
    # Steps to target: bowl 5 mine, 10 Adam, never SGD; valley 10 Adam alone. Mine: (1 + 0) / 2. Adam: r = 2 is (4 - 2) / 3, and 1.
    assert_allclose([summary(found, o).steps_score for o in ("adam", "sgd", "mine")], [(2 / 3 + 1) / 2, 0, 0.5])
    assert_allclose(found.steps_profile[:, [0, -1]], [[0.5, 1], [0, 0], [0.5, 0.5]])
    assert np.isnan(mine.seconds_score), "nothing was timed"
    assert mine.diverged == 0
    assert summary(found, "adam").wins is None
    assert np.isnan(summary(found, "adam").improvement.value)
    assert found.notes == ()


def test_one_setting_for_all_tasks() -> None:
    grid = [
        *seeds("adam", (8, 1), (8, 1), rate=0.1),
        *seeds("adam", (8, 5), (8, 5), rate=0.3),
        *seeds("adam", (8, 4), (8, 4), rate=0.1, task="valley"),
        *seeds("adam", (8, 2), (8, 2), rate=0.3, task="valley"),
        *seeds("sgd", (8, 7), (8, 7), rate=0.1),
        *seeds("sgd", (8, 7), (8, 7), rate=0.3, task="valley"),  # no rate on both
    ]
    mine = [*seeds("mine", (8, 4.5), (8, 4.5)), *seeds("mine", (8, 5), (8, 5), task="valley")]
    scores = score(select([*grid, *mine]), baselines=BASELINES)
    adam, other = without_tuning([*grid, *mine], scores)
    # Regrets of 0.1: 0 and 2 / 6; of 0.3: 4 / 7 and 0. Normalised, of 0.1: 0 and 2 / 6, on the scale of the tuned.
    assert (adam.optimizer, adam.config, adam.summary.optimizer) == ("adam", {"learning_rate": 0.1}, "adam")
    assert_allclose(adam.summary.normalized.value, 1 / 6)
    assert adam.tuned == summary(scores, "adam")
    assert adam.tuned is not None
    assert adam.tuned.normalized.value == 0
    # Tuned Adam starts at 8 and ends at 2 in ten steps: 4 is worth 20 / 3 of them, and 1 on the bowl all ten.
    assert_allclose(adam.summary.speedup.value, (1 + 2 / 3) / 2)
    assert (other.optimizer, other.config, other.tuned) == ("mine", {}, None)
    assert other.summary.normalized == summary(scores, "mine").normalized
    assert_allclose(other.summary.normalized.value, 0.5)


def test_one_setting_counts_what_failed_as_infinite() -> None:
    grid = [r for t in ("a", "b", "c") for o, x in (("adam", 2), ("sgd", 4)) for r in seeds(o, (8, x), (8, x), task=t)]
    lost = Unit("a", "sgd", 10)
    trained = [r for r in grid if (r.task, r.optimizer) != lost[:2]]
    scores = score(select(trained), baselines=BASELINES, failed=[lost])
    adam, sgd = without_tuning(trained, scores, failed=[lost])
    assert adam.tuned is not None
    assert sgd.tuned is not None
    assert (adam.summary.normalized, sgd.summary.normalized) == (adam.tuned.normalized, sgd.tuned.normalized)
    assert (sgd.summary.diverged, sgd.summary.normalized.value) == (1 / 3, INF)


def test_scores_in_seconds() -> None:
    timings = [
        Timing(t, o, 10, 0, s) for t in ("bowl", "valley") for o, s in (("adam", 1.0), ("sgd", 1.0), ("mine", 5.0))
    ]
    found = score(two_tasks(), timings, baselines=BASELINES)
    # Bowl: mine 25 s, Adam 10 s: r = 2.5, (4 - 2.5) / 3 on one of two tasks.
    assert_allclose([summary(found, o).seconds_score for o in ("adam", "sgd", "mine")], [1, 0, 0.25])
    assert_allclose(found.seconds_profile[2, [0, -1]], [0, 0.5])


def test_clear_wins_exclude_zero() -> None:
    # Differences -1, -1.1, -0.9: mean -1, s = 0.1, half 4.30265 x 0.1 / sqrt(3) = 0.248.
    runs = [
        *seeds("adam", (8, 2), (8, 2), (8, 2)),
        *seeds("mine", (8, 1), (8, 0.9), (8, 1.1)),
        *seeds("worse", (8, 3), (8, 3.1), (8, 2.9)),
    ]
    found = score(runs, baselines=BASELINES)
    assert summary(found, "mine").wins[1:] == (1, 1, 0)  # pyright: ignore[reportOptionalSubscript]
    assert summary(found, "worse").wins[1:] == (1, 0, 1)  # pyright: ignore[reportOptionalSubscript]


def test_divergence_is_a_clear_loss_and_no_runs_are_no_score() -> None:
    runs = [
        *seeds("adam", (8, 2), (8, 2.1), (8, 1.9)),
        *seeds("lost", *[(8, math.inf)] * 3),
        *seeds("once", (8, math.inf), (8, 2), (8, 2)),
    ]
    other = [run._replace(optimizer="elsewhere", horizon=99) for run in runs if run.optimizer == "adam"]
    found = score([*runs, *other], baselines=BASELINES)
    assert summary(found, "lost").wins[1:] == (1, 0, 1)  # pyright: ignore[reportOptionalSubscript]
    assert summary(found, "once").wins[1:] == (1, 0, 0)  # pyright: ignore[reportOptionalSubscript]
    assert np.isnan([summary(found, "elsewhere").steps_score, summary(found, "elsewhere").rank]).all()
    assert summary(found, "lost").steps_score == 0.0


def test_ties() -> None:
    runs = [*RUNS, *[r._replace(optimizer="copy") for r in RUNS if r.optimizer == "adam"]]
    found = score(runs, baselines=BASELINES)
    copy = summary(found, "copy")
    assert copy.improvement == (0.5, 0.5, 0.5)
    assert copy.wins is not None
    assert copy.wins.fraction.value == 0.5
    assert copy.rank == summary(found, "adam").rank == 2.5
    assert copy.steps_score == summary(found, "adam").steps_score


def test_the_median_is_censored_where_a_saturated_task_is_at_or_below_it() -> None:
    found = score(RUNS, baselines=BASELINES)
    assert summary(found, "mine").speedup_censored
    assert not summary(found, "sgd").speedup_censored


def test_missing_runs_are_left_out_and_told() -> None:
    runs = [r for r in two_tasks() if (r.optimizer, r.task) != ("sgd", "valley")]
    runs = [r for r in runs if (r.optimizer, r.task, r.seed) != ("mine", "bowl", 1)]
    found = score(runs, baselines=BASELINES)
    assert found.notes == (
        "The summary is of the 1 of 2 tasks that all optimizers ran.",
        "bowl: mine lacks seeds 1.",
        "valley: no runs of sgd to step 10.",
    )
    sgd, mine = summary(found, "sgd"), summary(found, "mine")
    assert (sgd.tasks, mine.tasks, found.common) == (("bowl",), ("bowl", "valley"), ("bowl",))
    # Everything is of the bowl alone.
    assert [sgd.rank, mine.rank] == [3, 1]
    assert mine.steps_score == 1
    assert_allclose(mine.normalized.value, -0.5 / 6)
    assert mine.wins is not None
    assert mine.wins.tasks == 1
    # Paired with Adam on the seed that both have: 1.5 > 1.
    assert mine.improvement.value == 0


def test_to_leave_out_a_hard_task_does_not_help() -> None:
    everything = score(two_tasks(), baselines=BASELINES)
    picked = score([r for r in two_tasks() if (r.optimizer, r.task) != ("mine", "valley")], baselines=BASELINES)
    assert summary(picked, "mine").normalized.value < summary(everything, "mine").normalized.value
    alone = score(RUNS, baselines=BASELINES)
    assert [s.normalized for s in picked.summaries] == [s.normalized for s in alone.summaries], "all on the same task"


def test_what_failed_counts_as_infinite() -> None:
    runs = [r for r in two_tasks() if (r.optimizer, r.task) != ("mine", "valley")]
    timings = [Timing(t, o, 10, 0, 1.0) for t, o in {(r.task, r.optimizer) for r in runs}]
    failed = [
        Unit("valley", "mine", 10),
        Unit("bowl", "mine", 10),
        Unit("valley", "unheard", 10),
        Unit("x", "mine", 10),
    ]
    found = score(runs, timings, baselines=BASELINES, failed=failed)
    mine = summary(found, "mine")
    assert found.common == mine.tasks == ("bowl", "valley")
    assert found.notes == ("valley: mine could not be trained; its losses count as infinite.",)
    assert mine.normalized.value == INF
    assert mine.diverged == 0.5
    # Ranks 1 and 3. To the target: 5 steps on the bowl, the fastest; never on the valley, by steps and by wall-clock, where it was not timed.
    assert (mine.rank, mine.steps_score, mine.seconds_score) == (2, 0.5, 0.5)
    assert_array_equal(found.table["mine"]["bowl"].train_loss, [1.5, 0.5])  # it ran in the end


def test_without_a_task_in_common_there_are_no_ranks() -> None:
    runs = [r for r in two_tasks() if (r.optimizer, r.task) not in {("sgd", "valley"), ("mine", "bowl")}]
    found = score(runs, baselines=BASELINES)
    assert all(np.isnan([s.rank, s.steps_score, s.normalized.value]).all() for s in found.summaries)
    assert np.isnan(found.steps_profile).all()


def test_all_diverged() -> None:
    runs = [*RUNS, *seeds("wild", (8, NAN, NAN), (8, INF, INF))]
    found = score(runs, baselines=BASELINES)
    wild = summary(found, "wild")
    assert wild.diverged == 1
    assert wild.normalized == (INF, INF, INF)
    assert (wild.speedup.value, wild.steps_score, wild.improvement.value, wild.rank) == (0, 0, 0, 4)
    assert found.notes == ("bowl: wild diverged in 2 of 2 seeds.",)


def test_where_no_baseline_learns_nothing_can_be_normalised() -> None:
    flat = [
        *seeds("adam", (8, 8, 8), (8, NAN, NAN), task="flat"),
        *seeds("sgd", (8, 9, 9), (8, 9, 9), task="flat"),
        *seeds("mine", (8, 7, 6), (8, 7, 6), task="flat"),
    ]
    found = score([*RUNS, *flat], baselines=BASELINES)
    assert found.notes == (
        "flat: no baseline made progress, so that losses cannot be normalised.",
        "flat: no finite final loss of adam, so that there is no target.",
        "flat: adam diverged in 1 of 2 seeds.",
    )
    mine = cell(found.cells, "mine", "flat")
    assert np.isnan([*mine.normalized, mine.target, mine.steps_to_target]).all()
    assert summary(found, "mine").normalized == summary(score(RUNS, baselines=BASELINES), "mine").normalized
    assert summary(found, "mine").wins.tasks == 2, "a finite loss beats a diverged one"  # pyright: ignore[reportOptionalMemberAccess]


def test_one_seed_gives_numbers_without_bounds() -> None:
    found = score([r for r in two_tasks() if r.seed == 0], baselines=BASELINES)
    mine = summary(found, "mine")
    for estimate in (mine.normalized, mine.speedup, mine.improvement):
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()
    assert np.isfinite(mine.normalized_new_tasks).all(), "new tasks can be told from two tasks"


def test_no_runs() -> None:
    found = score([], baselines=BASELINES)
    assert (found.tasks, found.optimizers, found.summaries, found.notes) == ((), (), [], ())


def test_without_the_reference() -> None:
    found = score([r for r in RUNS if r.optimizer != "adam"], baselines=BASELINES)
    mine = summary(found, "mine")
    assert np.isnan([mine.speedup.value, mine.improvement.value, mine.steps_score, mine.saturated]).all()
    assert mine.wins is None
    assert_allclose(mine.normalized.value, -3 / 4)


@settings(max_examples=8)
@given(
    st.permutations(range(12)), st.sampled_from([0.25, 0.5, 4.0]), st.integers(-5, 5)
)  # without rounding, which breaks ties
def test_order_scale_and_shift_do_not_matter(order: list[int], scale: float, shift: int) -> None:
    runs = [two_tasks()[i] for i in order]
    runs = [r._replace(train_loss=(scale * r.train_loss + shift).astype(np.float32)) for r in runs]
    known, found = (score(r, baselines=BASELINES, resamples=100) for r in (two_tasks(), runs))
    for optimizer in ("adam", "sgd", "mine"):
        one, other = summary(known, optimizer), summary(found, optimizer)
        for name in ("rank", "diverged", "saturated", "steps_score"):
            assert_allclose(getattr(other, name), getattr(one, name), atol=1e-4)
        for name in ("normalized", "speedup", "improvement"):
            assert_allclose(getattr(other, name).value, getattr(one, name).value, atol=1e-4)


# --- Axes. ---


def test_extrapolation() -> None:
    longer = [
        *seeds("adam", (8, 4, 1), (8, 4, 1), horizon=20),
        *seeds("mine", (8, 2, 4.5), (8, 2, 15.5), horizon=20),
    ]
    found = score([*RUNS, *longer], baselines=BASELINES)
    assert found.horizons == {"bowl": 10}, "more optimizers ran it"
    at = extrapolation(found.cells, "mine", 5)
    assert [x.multiple for x in at] == [2, 4]
    assert_allclose(at[0].normalized.value, (-0.5 / 6 - 1.5 / 6) / 2)
    # The scale is Adam's at 20 steps: (4.5 - 1) / 7 and (15.5 - 1) / 7, of which the second is above 2.
    assert_allclose(at[1].normalized.value, (3.5 / 7 + 14.5 / 7) / 2)
    assert (at[0].diverged, at[1].diverged) == (0, 0.5)
    assert at[1].tasks == ("bowl",)
    assert extrapolation(found.cells, "nobody", 5) == []
    # Asked for, the summaries are of the longer horizon.
    assert summary(score([*RUNS, *longer], baselines=BASELINES, horizons={"bowl": 20}), "mine").diverged == 0.5


def test_along_an_axis() -> None:
    runs = [r for r in two_tasks() if (r.optimizer, r.task) != ("sgd", "valley")]
    found = along(score(runs, baselines=BASELINES), {"width": {32: "bowl", 64: "valley"}})
    assert [c.optimizer for c in found] == ["adam", "sgd", "mine"]
    adam, sgd, mine = found
    assert mine.values == (32, 64)
    assert mine.tasks == ("bowl", "valley")
    assert_allclose(mine.speedup, [1, 0.375])
    assert mine.saturated == (True, False)
    assert_allclose(mine.normalized[1].value, 0.5)
    assert mine.normalized[0] == mean_interval(np.array([-0.5, -1.5]) / 6)
    assert_array_equal(sgd.ranks, [3, NAN])
    assert np.isnan(sgd.normalized[1].value)
    assert (adam.rank, sgd.rank, mine.rank) == (1.5, 3, 1.5)


# --- Bad input. ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score(RUNS, baselines=["lion"]), "baselines are"),
        (lambda: score([*RUNS, RUNS[0]], baselines=BASELINES), "seed 0 of adam on bowl to step 10 twice"),
        (lambda: score([*RUNS, run("adam", (8, 4, 1), seed=2, rate=1.0)], baselines=BASELINES), "several settings"),
        (lambda: score(RUNS, baselines=BASELINES, sweep=[RUNS[-1]]), "sweep has runs of mine"),
        (lambda: envelope([]), "at least one run"),
        (lambda: envelope([run("adam", (1, 2, 3)), run("adam", (1, 2), seed=1)]), "different steps"),
        (lambda: envelope([run("adam", (NAN, 2))]), "no finite train loss"),
        (lambda: speed_up(1.0, envelope([run("adam", (2, 1))]), 0), "horizon is 0"),
        (lambda: along(score(RUNS, baselines=BASELINES), {"width": {1: "hill"}}), "axis width has hill"),
        (lambda: extrapolation([], "mine", 0), "trained_horizon is 0"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
