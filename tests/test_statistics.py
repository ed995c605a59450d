"""Statistics of benchmarks against numbers worked out by hand, what must hold for all scores, and how often intervals contain the truth."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from lopt.errors import InputError
from lopt.evaluate.scores.resampling import bootstrap, median_cut, quartiles, student, trimmed_mean
from lopt.evaluate.scores.statistics import (
    algoperf_score,
    interquartile_mean,
    interquartile_mean_interval,
    paired_difference,
    performance_profile,
    performance_ratios,
    probability_of_improvement,
    probability_of_improvement_interval,
    ranks,
    wilson,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from intervals import KINDS, improvement_coverage, mean_coverage, true_mean  # pyright: ignore[reportMissingImports]

INF = math.inf


def tasks(*scores: tuple[float, ...]) -> list[np.ndarray]:
    return [np.array(x, float) for x in scores]


# --- By hand. ---


def test_interquartile_mean() -> None:
    # Eight scores, two left out at each end: (2 + 3 + 4 + 6) / 4.
    assert interquartile_mean(tasks((1, 9, 3, 4), (100, 2, 0, 6))) == 15 / 4
    # Five: floor(5/4) = 1 at each end: (2 + 3 + 4) / 3. Three: none.
    assert interquartile_mean(tasks((5, 1, 4), (2, 3))) == 3
    assert interquartile_mean(tasks((1, 2, 6))) == 3
    # One of four diverged and is left out: (2 + 3) / 2. Two of four: infinite.
    assert interquartile_mean(tasks((1, INF, 3, 2))) == 2.5
    assert interquartile_mean(tasks((1, INF, INF, 2))) == INF


def test_trimmed_mean_of_counts() -> None:
    values = np.array([10.0, 1.0, 5.0, 3.0])
    counts = np.array([[1.0, 1, 1, 1], [2, 0, 1, 1], [0, 4, 0, 0]])
    # Middle two of 1 3 5 10; of 3 5 10 10; of 1 1 1 1.
    assert_allclose(trimmed_mean(values, counts, quartiles), [4, 7.5, 1])
    # Medians of five values: 1 1 3 5 10, and 3 5 10 10 10; of four, the mean of the middle two: 3 5.
    assert_allclose(trimmed_mean(values, np.array([[1.0, 2, 1, 1], [3, 0, 1, 1]]), median_cut), [3, 10])
    assert_allclose(trimmed_mean(values, np.ones((1, 4)), median_cut), [4])


def test_probability_of_improvement() -> None:
    # Task 1: 1 is below 2 and 3; 2 ties with 2 and is below 3: (2 + 1.5) / 4. Task 2: 5 against 4: 0.
    x, y = tasks((1, 2), (5,)), tasks((2, 3), (4,))
    assert probability_of_improvement(x, y) == (3.5 / 4 + 0) / 2
    assert probability_of_improvement(y, x) == (0.5 / 4 + 1) / 2
    # Paired: 1 < 2 and 2 < 3; then 5 > 4.
    assert probability_of_improvement(x, y, paired=True) == (1 + 0) / 2
    # Different numbers of seeds: 1 is below 2 of 3, tied with one.
    assert_allclose(probability_of_improvement(tasks((1,)), tasks((1, 2, 3))), 2.5 / 3)
    # Two that diverged tie.
    assert probability_of_improvement(tasks((INF, 1)), tasks((INF, INF)), paired=True) == (0.5 + 1) / 2


def test_paired_difference() -> None:
    # d = 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.30265, half = 4.30265 / sqrt(3) = 2.48414.
    found = paired_difference(tasks((2, 4, 6)), tasks((1, 2, 3)))
    assert_allclose(found, (2, 2 - 2.48414, 2 + 2.48414), atol=1e-5)
    # A second task with d = 0, 4: mean 2, s^2/n = 8/2 = 4; the first has 1/3. s = sqrt(13/3) / 2 = 1.04083,
    # nu = (13/3)^2 / ((1/9)/2 + 16/1) = 18.7778 / 16.0556 = 1.16955.
    found = paired_difference(tasks((2, 4, 6), (1, 5)), tasks((1, 2, 3), (1, 1)))
    assert_allclose(found.value, 2)
    assert_allclose(found.high - 2, 1.04083 * student(0.975, np.array([1 / 3, 4.0]), [3, 2]), rtol=1e-5)
    assert np.isnan(paired_difference(tasks((1,)), tasks((2,))).low), "one seed"
    assert paired_difference(tasks((1, INF)), tasks((2, 3))) == (INF, -INF, INF), "one of two diverged"
    assert paired_difference(tasks((INF, INF)), tasks((2, 3))) == (INF, INF, INF), "both diverged"
    assert paired_difference(tasks((2, 3)), tasks((INF, INF))) == (-INF, -INF, -INF)
    assert paired_difference(tasks((1, INF, 3)), tasks((0, INF, 2))).value == pytest.approx(2 / 3), "with the same seed"
    # Eight of ten: 8 - t(0.975; 9) sqrt(8 x 2 / 9) is 4.98; two of three: 2 - 4.303 is not above zero.
    assert paired_difference(tasks((INF,) * 8 + (1, 1)), tasks((1,) * 10)).low == INF
    assert paired_difference(tasks((INF, INF, 1)), tasks((1, 1, 1))).low == -INF
    assert paired_difference(tasks((1, 2)), tasks((2, 3))) == (-1, -1, -1), "the same difference in all seeds"


def test_student_with_satterthwaites_degrees_of_freedom() -> None:
    # One task of three seeds: 2 degrees of freedom, t = 4.30265. Two equal ones: nu = 4 / (1/2 + 1/2) = 4, t = 2.77645.
    assert_allclose(student(0.975, np.array([0.7]), [3]), 4.30265, rtol=1e-5)
    assert_allclose(student(0.975, np.array([0.7, 0.7]), [3, 3]), 2.77645, rtol=1e-5)


def test_wilson() -> None:
    # p = 8/10, z^2 = 3.84146: middle (0.8 + 0.192073) / 1.384146 = 0.716740,
    # half 1.959964 sqrt(0.016 + 0.0096036) / 1.384146 = 1.959964 x 0.160012 / 1.384146 = 0.226577.
    assert_allclose(wilson(8.0, 10), (0.8, 0.490163, 0.943317), atol=2e-6)
    # None of 10: high = (0.192073 + 0.192073) / 1.384146 = 0.277533.
    assert_allclose(wilson(0.0, 10), (0, 0, 0.277533), atol=1e-6)


TIMES = np.array([[10.0, 40.0, INF, INF], [20.0, 20.0, 30.0, INF], [50.0, INF, 90.0, INF]])


def test_ratios_profile_and_algoperf_score() -> None:
    expected = [[1, 2, INF, INF], [2, 1, 1, INF], [5, INF, 3, INF]]
    assert_allclose(performance_ratios(TIMES), expected)
    # Of four tasks: the first is within 1x on one, within 2x on two.
    at = performance_profile(TIMES, np.array([1.0, 2.0, 3.0, 4.0, 6.0]))
    assert_allclose(at, np.array([[1, 2, 2, 2, 2], [2, 3, 3, 3, 3], [0, 0, 1, 1, 2]]) / 4)
    # (4 - r) / 3 on each task: (3 + 2) / 3 / 4; (2 + 3 + 3) / 3 / 4; 5 is beyond 4, (4 - 3) / 3 / 4.
    assert_allclose(algoperf_score(TIMES), [5 / 12, 8 / 12, 1 / 12])


def test_score_is_the_area_under_the_profile() -> None:
    grid = 1 + 3 * (np.arange(3000) + 0.5) / 3000
    assert_allclose(algoperf_score(TIMES), performance_profile(TIMES, grid).mean(axis=1), atol=1e-3)


def test_ranks() -> None:
    scores = np.array([[1.0, 2.0, INF, 3.0], [2.0, 2.0, INF, np.nan], [3.0, 5.0, 0.0, 1.0], [0.0, 2.0, 1.0, 1.0]])
    # Three that tie for places 1 to 3 have rank 2; infinities tie for 3 and 4; who did not run takes no place.
    expected = [[2, 2, 3.5, 3], [3, 2, 3.5, np.nan], [4, 4, 1, 1.5], [1, 2, 2, 1.5]]
    assert_allclose(ranks(scores), expected)


# --- Intervals, where they are known. ---


def test_percentile_interval_of_a_mean_is_that_of_the_binomial() -> None:
    # The mean of n draws from {0, 1} is Binomial(n, 1/2) / n. For n = 20 its 2.5 % and 97.5 % quantiles are 6 and 14.
    values = np.repeat([0.0, 1.0], 10)
    found = bootstrap(lambda c: c[0] @ values / 20, [[20]], rng=0, resamples=20_000, method="percentile")
    assert_allclose(found, (0.5, 0.3, 0.7))


def test_expanded_quantile() -> None:
    # Normal scores, 20 tasks of 3: t(0.975, 40) = 2.02108, times sqrt(3/2) is 2.47530 standard deviations of the resampled mean.
    # The resampled mean's variance is sum_m s_m^2 (n-1)/n / n / M^2: with s_m = 1 its standard deviation is sqrt(2/9/20) = 0.105409.
    values = np.tile([-1.0, 0.0, 1.0], (20, 1))

    def mean(counts: list[np.ndarray]) -> np.ndarray:
        return np.mean([c @ v / 3 for c, v in zip(counts, values, strict=True)], axis=0)

    found = bootstrap(mean, [[3] * 20], rng=0, resamples=100_000)
    assert_allclose(found, (0, -2.4753 * 0.105409, 2.4753 * 0.105409), rtol=0.05)
    # Over tasks: all of them have the mean 0.
    assert_allclose(bootstrap(mean_of_tasks(values), [[3] * 20], rng=0, over="tasks"), (0, 0, 0), atol=1e-12)


def mean_of_tasks(values: np.ndarray):
    def mean(counts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(counts, axis=1) @ values.ravel() / values.size

    return mean


def test_interval_over_tasks_is_that_of_the_task_means() -> None:
    # 16 tasks, each with two equal seeds: means -1 or 1, so s = sqrt(16/15) = 1.0328, t(0.975, 15) = 2.13145,
    # half = 2.13145 x 1.0328 / 4 = 0.550339, up to the steps of 1/8 between resampled means.
    values = np.repeat([-1.0, 1.0], 16).reshape(16, 2)
    found = bootstrap(mean_of_tasks(values), [[2] * 16], rng=0, over="tasks", resamples=20_000)
    assert_allclose(found, (0, -0.550339, 0.550339), atol=0.07)
    # New seeds of the same tasks would change nothing.
    assert_allclose(bootstrap(mean_of_tasks(values), [[2] * 16], rng=0), (0, 0, 0), atol=1e-12)


def test_unanimous_results_have_clopper_and_pearsons_bounds() -> None:
    # All 15 pairs won: 0.025^(1/15) = 0.78198.
    x, y = tasks(*[(0, 0, 0, 0, 0)] * 3), tasks(*[(1, 1, 1, 1, 1)] * 3)
    for paired in (False, True):
        assert_allclose(probability_of_improvement_interval(x, y, rng=0, paired=paired), (1, 0.78198, 1), rtol=1e-5)
        assert_allclose(probability_of_improvement_interval(y, x, rng=0, paired=paired), (0, 0, 1 - 0.78198), rtol=1e-4)
    # Two of three tasks won: 2/3 x 0.025^(1/10) = 2/3 x 0.691503 = 0.461002, 1 - 1/3 x 0.025^(1/5) = 1 - 0.478176/3 = 0.840608.
    found = probability_of_improvement_interval([*x[:2], y[0]], [*y[:2], x[0]], rng=0, paired=True)
    assert_allclose(found, (2 / 3, 0.461002, 0.840608), rtol=1e-5)
    # Three tasks, all won, as a sample of tasks: 0.025^(1/3) = 0.292402.
    found = probability_of_improvement_interval(x, y, rng=0, paired=True, over="tasks")
    assert_allclose(found, (1, 0.292402, 1), rtol=1e-5)
    # Ties are known to be ties.
    assert probability_of_improvement_interval(x, x, rng=0, paired=True) == (0.5, 0.5, 0.5)


def test_what_cannot_be_known_is_nan() -> None:
    found = interquartile_mean_interval(tasks((1,), (2,)), rng=0)
    assert found.value == 1.5
    assert np.isnan(found[1:]).all(), "one seed a task"
    assert not np.isnan(interquartile_mean_interval(tasks((1,), (2, 3)), rng=0).low)
    assert np.isnan(interquartile_mean_interval(tasks((1, 2, 3)), rng=0, over="tasks").low), "one task"


def test_divergence_in_intervals() -> None:
    found = interquartile_mean_interval(tasks((1, 2, 3, INF, INF), (1, 2, 3, 4, 5)), rng=0)
    assert np.isfinite(found.value)
    assert np.isfinite(found.low)
    assert found.high == INF, "a resample may hold more than a quarter of infinities"
    assert interquartile_mean_interval(tasks((INF, INF)), rng=0) == (INF, INF, INF)


# --- For all scores. ---

NUMBERS = st.floats(-100, 100, width=32)
SCORES = st.lists(st.lists(NUMBERS, min_size=1, max_size=4), min_size=1, max_size=4).map(lambda xs: tasks(*xs))
PAIRS = st.lists(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4).map(np.array), min_size=1, max_size=4
).map(lambda xs: ([x[:, 0] for x in xs], [x[:, 1] for x in xs]))


@given(SCORES, st.randoms(use_true_random=False), NUMBERS)
def test_interquartile_mean_ignores_order_and_follows_shifts(scores, random, shift: float) -> None:
    shuffled = [np.array(random.sample(list(x), len(x))) for x in random.sample(scores, len(scores))]
    found = interquartile_mean(scores)
    assert_allclose(interquartile_mean(shuffled), found, atol=1e-9)
    assert_allclose(interquartile_mean([x + shift for x in scores]), found + shift, atol=1e-6)
    pooled = np.concatenate(scores)
    assert pooled.min() - 1e-9 <= found <= pooled.max() + 1e-9
    assert interquartile_mean([x + 1 * (i == 0) for i, x in enumerate(scores)]) >= found - 1e-9, "one task got worse"


@settings(max_examples=40)
@given(PAIRS, st.booleans(), st.randoms(use_true_random=False))
def test_probability_of_improvement_is_one(pairs, paired: bool, random) -> None:
    x, y = pairs
    found = probability_of_improvement(x, y, paired=paired)
    assert -1e-12 <= found <= 1 + 1e-12
    assert_allclose(found + probability_of_improvement(y, x, paired=paired), 1)
    assert_allclose(probability_of_improvement([2 * a for a in x], [2 * b for b in y], paired=paired), found)
    order = random.sample(range(len(x)), len(x))
    seeds = [random.sample(range(len(a)), len(a)) for a in x]
    moved = [[z[i][seeds[i]] for i in order] for z in (x, y)]
    assert_allclose(probability_of_improvement(*moved, paired=paired), found)
    assert probability_of_improvement([a - 1 for a in x], y, paired=paired) >= found - 1e-12, "X got better"
    bounds = probability_of_improvement_interval(x, y, rng=1, paired=paired, resamples=200)
    assert_allclose(bounds.value, found)
    if not np.isnan(bounds.low):
        assert -1e-12 <= bounds.low <= bounds.high <= 1 + 1e-12


@settings(max_examples=30)
@given(SCORES, st.sampled_from(["seeds", "tasks"]))
def test_intervals_follow_shifts_and_scales(scores, over) -> None:
    found = interquartile_mean_interval(scores, rng=3, over=over, resamples=200)
    moved = interquartile_mean_interval([2 * x + 5 for x in scores], rng=3, over=over, resamples=200)
    assert_allclose(moved, [2 * x + 5 for x in found], atol=1e-6)
    if not np.isnan(found.low):
        assert found.low <= found.high
    assert_allclose(interquartile_mean_interval(scores, rng=3, over=over, resamples=200), found, rtol=0)


@given(st.lists(st.lists(st.one_of(st.just(INF), st.floats(0.1, 100)), min_size=3, max_size=3), min_size=1, max_size=5))
def test_profiles_rise_and_scores_are_fractions(rows) -> None:
    times = np.array(rows)
    profile = performance_profile(times, np.linspace(1, 10, 19))
    assert (np.diff(profile, axis=1) >= 0).all()
    score = algoperf_score(times)
    assert ((score >= 0) & (score <= profile[:, 6] + 1e-12)).all(), "the area to 4 is at most the profile's height at 4"
    assert_allclose(algoperf_score(times * np.array([2.0, 3.0, 5.0])), score, atol=1e-9)
    assert_allclose(algoperf_score(times[:, ::-1]), score)
    assert_allclose(ranks(times).sum(axis=0), len(times) * (len(times) + 1) / 2)
    assert_allclose(ranks(np.exp(-1 / times)), ranks(times))


@given(PAIRS)
def test_paired_difference_is_antisymmetric(pairs) -> None:
    x, y = pairs
    one, other = paired_difference(x, y), paired_difference(y, x)
    assert_allclose([-other.value, -other.high, -other.low], one)
    assert np.isnan(one.low) or one.low <= one.value <= one.high


# --- Bad input. ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean([]), "scores has"),
        (lambda: interquartile_mean(tasks((1,), ())), "scores has"),
        (lambda: interquartile_mean(tasks((1, math.nan))), "infinity"),
        (lambda: probability_of_improvement(tasks((1,)), tasks((1,), (2,))), "x has 1 tasks and y 2"),
        (lambda: probability_of_improvement(tasks((1,)), tasks((1, 2)), paired=True), "pairs need the same"),
        (lambda: paired_difference(tasks((1,)), tasks((1, 2))), "pairs need the same"),
        (lambda: interquartile_mean_interval(tasks((1, 2)), rng=0, resamples=3), "at least 100"),
        (lambda: bootstrap(mean_of_tasks(np.ones((1, 2))), [[2]], rng=0, level=1.0), "between 0 and 1"),
        (lambda: bootstrap(mean_of_tasks(np.ones((1, 2))), [[2, 0]], rng=0), "at least one seed"),
        (lambda: wilson(3.0, 2), "successes is 3.0 of 2"),
        (lambda: performance_ratios(np.array([[1.0], [0.0]])), "not positive"),
        (lambda: algoperf_score(np.array([[1.0]]), r_max=1.0), "above 1"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# --- Coverage: how often an interval contains the truth. ---


def test_the_simulated_truth() -> None:
    # Symmetric about 0, and about 1/2; exp(0.7 z) has its interquartile mean above its median, 1, and below its mean, exp(0.245).
    assert_allclose(true_mean(KINDS["alike"], 4), 0, atol=1e-9)
    assert_allclose(true_mean(KINDS["unlike"]._replace(spread=np.ones), 4), 0.5, atol=1e-6)
    assert 0.5 < true_mean(KINDS["skewed"]._replace(mean=np.zeros), 4) < 0.5 * math.exp(0.245)


def test_coverage() -> None:
    """1,000 experiments of 10 tasks and 5 seeds each: 95 % within what chance allows, and the plain percentile interval falls short."""
    found = mean_coverage("unlike", 10, 5, "expanded", 1000)
    assert 0.93 <= found <= 0.97, found
    plain = mean_coverage("unlike", 10, 5, "percentile", 300)
    assert plain < 0.93, plain
    for paired in (False, True):
        found = improvement_coverage(10, 5, 1000, paired=paired)
        assert 0.93 <= found <= 0.97, (paired, found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_coverage_of_20_tasks(kind: str, seeds: int) -> None:
    found = mean_coverage(kind, 20, seeds, "expanded", 1000)
    assert 0.93 <= found <= 0.97, found


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("paired", [False, True])
def test_coverage_of_the_probability_of_improvement_on_20_tasks(seeds: int, paired: bool) -> None:
    found = improvement_coverage(20, seeds, 1000, paired=paired)
    assert 0.93 <= found <= 0.97, found


@pytest.mark.slow
def test_coverage_of_new_tasks() -> None:
    """20 tasks drawn anew in each experiment, five seeds: the interval over tasks holds, the one over seeds is of these tasks alone."""
    rng, held = np.random.default_rng(0), {"tasks": 0, "seeds": 0}
    for _ in range(1000):
        scores = [rng.standard_normal() + 0.5 * rng.standard_normal(5) for _ in range(20)]
        for over in held:
            found = interquartile_mean_interval(scores, rng=rng, over=over, resamples=1000)
            held[over] += found.low <= 0 <= found.high
    assert 930 <= held["tasks"] <= 970, held
    assert held["seeds"] < 700, held
