"""From runs to scores, second half: all tasks together.

A task on which no baseline made progress, or without the reference, counts in no number that needs it, and `Scores.notes` says so. All numbers of
a summary are of the tasks that all optimizers ran: to leave out a hard task must not help. What was tried and failed counts as run, with infinite
losses. With one seed a task, numbers are given and bounds over seeds are NaN. An interquartile mean is infinite where more than a quarter of the
trainings are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.scores.cells import Cell, cells
from lopt.evaluate.scores.edges import at_the_edge
from lopt.evaluate.scores.resampling import Counts, Estimate, bootstrap, median_cut, trimmed_mean
from lopt.evaluate.scores.speedup import speed_up
from lopt.evaluate.scores.statistics import (
    algoperf_score,
    interquartile_mean_interval,
    paired_difference,
    performance_profile,
    probability_of_improvement_interval,
    ranks,
    wilson,
)

RATIOS = tuple(float(x) for x in np.round(np.linspace(1, 4, 61), 2))
NOT_KNOWN = Estimate(float("nan"), float("nan"), float("nan"))


class Wins(NamedTuple):
    """Tasks on which an optimizer ends lower than the tuned reference, at the mean over the seeds that both have; a tie is half a win."""

    fraction: Estimate  # Wilson's interval: about new tasks of the same kind
    tasks: int
    clear: int  # won, and the paired 95 % interval of the difference excludes zero
    clear_losses: int


class Summary(NamedTuple):
    """One optimizer on the tasks that all ran. Intervals are about new seeds on these tasks, those with `new_tasks` about new tasks as well."""

    optimizer: str
    tasks: tuple[str, ...]  # that it ran, whoever else did
    normalized: Estimate  # interquartile mean of the normalised final train loss over tasks and seeds
    normalized_new_tasks: Estimate
    normalized_test: Estimate
    speedup: Estimate  # median over tasks
    speedup_new_tasks: Estimate
    speedup_censored: bool  # a saturated task lies at or below the median: the median is at least that
    saturated: float  # fraction of tasks
    improvement: Estimate  # probability of a lower final train loss than the tuned reference's from the same seed
    wins: Wins | None  # None for the reference, and where it did not run
    rank: float  # mean over tasks, of the mean over seeds of the final train loss; 1 is best
    steps_score: float  # AlgoPerf's
    seconds_score: float
    diverged: float  # fraction of trainings


class Scores(NamedTuple):
    """A benchmark's scores, in the order of `optimizers` and `tasks`."""

    reference: str
    baselines: tuple[str, ...]
    optimizers: tuple[str, ...]
    tasks: tuple[str, ...]
    horizons: dict[str, int]  # of each task: that of the summaries
    cells: list[Cell]  # at all horizons
    summaries: list[Summary]
    ratios: Float[np.ndarray, " ratios"]
    steps_profile: Float[np.ndarray, "optimizers ratios"]  # NaN where there is no task to tell
    seconds_profile: Float[np.ndarray, "optimizers ratios"]
    notes: tuple[str, ...]  # what is missing or could not be scored, a sentence each
    edges: Mapping[Unit, str] = MappingProxyType({})  # `at_the_edge`: tuned learning rates that end their grid
    failed: frozenset[tuple[str, str]] = frozenset()  # tasks and optimizers tried in vain: infinite losses

    @property
    def common(self) -> tuple[str, ...]:
        """The tasks that all optimizers with any at these horizons ran, of which the summaries are."""
        rows = [row for row in self.table.values() if row]
        return tuple(task for task in self.tasks if all(task in row for row in rows))

    @property
    def ranked(self) -> list[Summary]:
        """Summaries by the interquartile mean of the normalised loss, then by mean rank; unknown ones last."""

        def order(s: Summary) -> tuple[float, float]:
            loss, rank = s.normalized.value, s.rank
            return (math.inf if math.isnan(loss) else loss, math.inf if math.isnan(rank) else rank)

        return sorted(self.summaries, key=order)

    @property
    def table(self) -> dict[str, dict[str, Cell]]:
        """Cells at the horizons of the summaries, by optimizer, then by task."""
        found: dict[str, dict[str, Cell]] = {o: {} for o in self.optimizers}
        for cell in self.cells:
            if cell.horizon == self.horizons[cell.task]:
                found[cell.optimizer][cell.task] = cell
        return found


def score(
    runs: Sequence[Run],
    timings: Sequence[Timing] = (),
    *,
    baselines: Iterable[str],
    reference: str = "adam",
    sweep: Sequence[Run] = (),
    tested: Sequence[Run] = (),
    tried: Sequence[Run] = (),
    failed: Iterable[Unit] = (),
    horizons: Mapping[str, int] | None = None,
    rng: int = 0,
    resamples: int = 4000,
    ratios: Sequence[float] = RATIOS,
) -> Scores:
    """All scores of a benchmark; see `Cell` and `Summary` for what they are.

    Args:
        runs: one setting for each task, optimizer and horizon, several seeds.
        timings: of the same optimizers, measured in turns.
        baselines: names of the optimizers of which the best is 0.
        reference: name of the tuned Adam.
        sweep: runs of the reference at all learning rates; see `cells`.
        tested: of `select(..., by="valid")`, for test losses; see `cells`.
        tried: runs of all settings, to tell learning rates that end their grid.
        failed: what was tried in vain. Its losses count as infinite, as AlgoPerf counts it, on tasks that somebody ran, for optimizers that ran anything.
        horizons: of each task, for the summaries; by default that which most optimizers ran, the shortest of several.
        rng: seed of the bootstrap, the same for all intervals.
        resamples: of each interval.
        ratios: at which profiles are given; the AlgoPerf score is exact, and ends at 4.

    Raises:
        InputError: as `cells`.
    """
    lost = _lost(runs, failed)
    found = cells([*runs, *lost], timings, baselines=baselines, reference=reference, sweep=sweep, tested=tested)
    tasks = tuple(dict.fromkeys(cell.task for cell in found))
    optimizers = tuple(dict.fromkeys(cell.optimizer for cell in found))
    chosen = {task: _horizon([c.horizon for c in found if c.task == task]) for task in tasks} | {
        task: horizon for task, horizon in (horizons or {}).items() if task in tasks
    }
    empty = np.full((len(optimizers), len(ratios)), np.nan)
    scores = Scores(
        reference,
        tuple(o for o in optimizers if o in set(baselines)),
        optimizers,
        tasks,
        chosen,
        found,
        [],
        np.asarray(ratios, float),
        empty,
        empty,
        (),
        at_the_edge(runs, tried),
        frozenset((run.task, run.optimizer) for run in lost if run.horizon == chosen[run.task]),
    )
    table, common = scores.table, scores.common
    ranked = _matrix(table, common, lambda cell: float(cell.train_loss.mean()))
    mean_ranks = ranks(ranked).mean(axis=1) if common else np.full(len(optimizers), np.nan)
    steps = _times(_matrix(table, common, lambda cell: cell.steps_to_target))
    seconds = _times(_matrix(table, common, _seconds))
    unknown = np.full(len(optimizers), np.nan)
    steps_scores = algoperf_score(steps) if steps.size else unknown
    seconds_scores = algoperf_score(seconds) if seconds.size else unknown
    shared = {o: {task: row[task] for task in common if task in row} for o, row in table.items()}
    summaries = [
        _summary(o, shared, reference, rng, resamples)._replace(
            tasks=tuple(table[o]),
            rank=float(mean_ranks[i]) if table[o] else math.nan,
            steps_score=float(steps_scores[i]) if table[o] else math.nan,
            seconds_score=float(seconds_scores[i]) if table[o] else math.nan,
        )
        for i, o in enumerate(optimizers)
    ]
    return scores._replace(
        summaries=summaries,
        steps_profile=performance_profile(steps, scores.ratios) if steps.size else empty,
        seconds_profile=performance_profile(seconds, scores.ratios) if seconds.size else empty,
        notes=tuple(_notes(scores)),
    )


def _lost(runs: Sequence[Run], failed: Iterable[Unit]) -> list[Run]:
    """Trainings with infinite losses in place of those that failed, with the seeds that the others have."""
    there = {(run.task, run.optimizer, run.horizon) for run in runs}
    known, lost = {optimizer for _, optimizer, _ in there}, []
    for task, optimizer, horizon in failed:
        if optimizer in known and (task, optimizer, horizon) not in there:
            others = {run.seed: run for run in runs if (run.task, run.horizon) == (task, horizon)}
            for run in others.values():
                never = np.full(len(run.steps), np.inf)
                curves = {"train_loss": never, "valid_loss": never, "test_loss": never}
                lost.append(run._replace(optimizer=optimizer, config={}, fingerprint=None, metrics={}, **curves))
    return lost


def _seconds(cell: Cell) -> float:
    """To the target; what never gets there takes for ever, timed or not."""
    return math.inf if math.isinf(cell.steps_to_target) else cell.seconds_to_target.median


def _horizon(horizons: Sequence[int]) -> int:
    counts = Counter(horizons)
    return min(counts, key=lambda h: (-counts[h], h))


def _matrix(table, tasks, number) -> Float[np.ndarray, "optimizers tasks"]:
    """Infinity for optimizers with no run at these horizons."""
    found = [[number(row[task]) if task in row else math.inf for task in tasks] for row in table.values()]
    return np.array(found).reshape(len(table), len(tasks))


def _times(times: Float[np.ndarray, "optimizers tasks"]) -> Float[np.ndarray, "optimizers known"]:
    """Without the tasks on which one time is not known."""
    return times[:, ~np.isnan(times).any(axis=0)]


def _summary(
    optimizer: str, table: Mapping[str, Mapping[str, Cell]], reference: str, rng: int, resamples: int
) -> Summary:
    own = table[optimizer]
    usable = [cell for cell in own.values() if not np.isnan(cell.normalized).any()]
    usable_test = [cell for cell in own.values() if not np.isnan(cell.normalized_test).any()]
    fast = [cell for cell in own.values() if cell.reference is not None]
    speedups = np.array([cell.speedup for cell in fast])
    saturated = np.array([cell.saturated for cell in fast], bool)
    median = float(np.median(speedups)) if fast else float("nan")
    seeds = sum(len(cell.seeds) for cell in own.values())
    options = {"rng": rng, "resamples": resamples}
    return Summary(
        optimizer=optimizer,
        tasks=tuple(own),
        normalized=_mean([cell.normalized for cell in usable], options),
        normalized_new_tasks=_mean([cell.normalized for cell in usable], options | {"over": "tasks"}),
        normalized_test=_mean([cell.normalized_test for cell in usable_test], options),
        speedup=_median_speedup(fast, options) if fast else NOT_KNOWN,
        speedup_new_tasks=_median_over_tasks(speedups, options) if fast else NOT_KNOWN,
        speedup_censored=bool((saturated & (speedups <= median)).any()),
        saturated=float(saturated.mean()) if fast else float("nan"),
        improvement=_improvement(own, table.get(reference, {}), options),
        wins=None if optimizer == reference else _wins(own, table.get(reference, {})),
        rank=float("nan"),
        steps_score=float("nan"),
        seconds_score=float("nan"),
        diverged=sum(cell.diverged for cell in own.values()) / seeds if seeds else float("nan"),
    )


def _mean(normalized, options) -> Estimate:
    return interquartile_mean_interval(normalized, **options) if normalized else NOT_KNOWN


def _median_over_tasks(speedups: Float[np.ndarray, " tasks"], options) -> Estimate:
    def statistic(counts: Counts) -> Float[np.ndarray, " resamples"]:
        return trimmed_mean(speedups, np.concatenate(counts, axis=1), median_cut)

    return bootstrap(statistic, [[1] * len(speedups)], over="tasks", **options)


def _median_speedup(fast: Sequence[Cell], options) -> Estimate:
    """Seeds are drawn within tasks, and each task's speed-up is read off anew."""

    def statistic(counts: Counts) -> Float[np.ndarray, " resamples"]:
        means = [_resampled_mean(c, cell.train_loss) for c, cell in zip(counts, fast, strict=True)]
        known = [(mean, cell.reference, cell.horizon) for mean, cell in zip(means, fast, strict=True) if cell.reference]
        return np.median([speed_up(*each).value for each in known], axis=0)

    return bootstrap(statistic, [[len(cell.seeds) for cell in fast]], **options)


def _resampled_mean(counts: Float[np.ndarray, "resamples seeds"], loss: Float[np.ndarray, " seeds"]):
    finite = np.isfinite(loss)
    mean = counts[:, finite] @ loss[finite] / len(loss)
    return np.where((counts[:, ~finite] > 0).any(axis=1), np.inf, mean)


def _shared(own: Mapping[str, Cell], other: Mapping[str, Cell]):
    """Final train losses of two optimizers on the tasks and seeds that both have, in the same order."""
    pairs = []
    for task, cell in own.items():
        both = sorted(set(cell.seeds) & set(other[task].seeds)) if task in other else []
        if both:
            pairs.append([c.train_loss[[c.seeds.index(s) for s in both]] for c in (cell, other[task])])
    return pairs


def _improvement(own: Mapping[str, Cell], other: Mapping[str, Cell], options) -> Estimate:
    pairs = _shared(own, other)
    if not pairs or own is other:
        return NOT_KNOWN
    return probability_of_improvement_interval([x for x, _ in pairs], [y for _, y in pairs], paired=True, **options)


def _wins(own: Mapping[str, Cell], other: Mapping[str, Cell]) -> Wins | None:
    pairs = _shared(own, other)
    if not pairs:
        return None
    won = [_compare(x, y) for x, y in pairs]
    found = [paired_difference([x], [y]) for x, y in pairs]
    return Wins(wilson(sum(won), len(won)), len(won), sum(d.high < 0 for d in found), sum(d.low > 0 for d in found))


def _compare(x: Float[np.ndarray, " seeds"], y: Float[np.ndarray, " seeds"]) -> float:
    """1 if x is lower, by the mean; where both have infinities, by their number, fewer being better."""
    a, b = x.mean(), y.mean()
    if np.isinf(a) and np.isinf(b):
        a, b = np.isinf(x).sum(), np.isinf(y).sum()
    return 1.0 if a < b else 0.5 if a == b else 0.0


def _notes(scores: Scores) -> Iterable[str]:
    table = scores.table
    if len(scores.common) < len(scores.tasks):
        yield f"The summary is of the {len(scores.common)} of {len(scores.tasks)} tasks that all optimizers ran."
    for task in scores.tasks:
        here = {o: row[task] for o, row in table.items() if task in row}
        if all(np.isnan(cell.normalized).any() for cell in here.values()):
            yield f"{task}: no baseline made progress, so that losses cannot be normalised."
        if all(np.isnan(cell.target) for cell in here.values()):
            yield f"{task}: no finite final loss of {scores.reference}, so that there is no target."
        if missing := [o for o in scores.optimizers if o not in here]:
            yield f"{task}: no runs of {', '.join(missing)} to step {scores.horizons[task]}."
        seeds = set().union(*(cell.seeds for cell in here.values()))
        for o, cell in here.items():
            if lacking := sorted(seeds - set(cell.seeds)):
                yield f"{task}: {o} lacks seeds {', '.join(map(str, lacking))}."
            if (task, o) in scores.failed:
                yield f"{task}: {o} could not be trained; its losses count as infinite."
            elif cell.diverged:
                yield f"{task}: {o} diverged in {cell.diverged} of {len(cell.seeds)} seeds."
    for (task, optimizer, horizon), end in scores.edges.items():
        yield f"{task}: the best learning rate of {optimizer} to step {horizon} is the {end} of its grid; a better one may lie beyond."
