"""How often 95 % bootstrap intervals contain the truth, on simulated experiments whose truth is known.

Scores are normal or log-normal; tasks differ in mean, in spread, or in neither. The paired probability of improvement is of two optimizers
whose scores share half of their variance with the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from common import RESULTS, header, machine, show, write
from lopt.evaluate.scores.resampling import Estimate, Method, bootstrap, quartiles, trimmed_mean
from lopt.evaluate.scores.statistics import probability_of_improvement_interval

RESAMPLES = 2000


class Kind(NamedTuple):
    """How the scores of an experiment are distributed: one mean and one standard deviation a task."""

    mean: Callable[[int], Float[np.ndarray, " tasks"]]
    spread: Callable[[int], Float[np.ndarray, " tasks"]]
    skewed: bool = False


KINDS = {
    "alike": Kind(np.zeros, np.ones),
    "unlike": Kind(partial(np.linspace, 0, 1), lambda m: 0.3 * np.exp(np.sin(2.3 * np.arange(m)))),
    "skewed": Kind(partial(np.linspace, 0, 1), lambda m: np.full(m, 0.5), skewed=True),
}


def scores(kind: Kind, tasks: int, normal: Float[np.ndarray, "tasks seeds"]) -> Float[np.ndarray, "tasks seeds"]:
    """Standard normal numbers as scores."""
    shape = np.exp(0.7 * normal) if kind.skewed else normal
    return kind.mean(tasks)[:, None] + kind.spread(tasks)[:, None] * shape


def true_mean(kind: Kind, tasks: int) -> float:
    """The interquartile mean of infinitely many seeds."""
    grid = ndtri((np.arange(20_000) + 0.5) / 20_000)
    pooled = np.sort(scores(kind, tasks, np.broadcast_to(grid, (tasks, len(grid)))).ravel())
    return float(pooled[len(pooled) // 4 : -(len(pooled) // 4)].mean())


def mean_covers(kind: Kind, tasks: int, seeds: int, method: str, rng: np.random.Generator, truth: float) -> bool:
    """Whether one experiment's interval of the interquartile mean contains the truth."""
    values = scores(kind, tasks, rng.standard_normal((tasks, seeds))).ravel()

    def statistic(counts: list[Float[np.ndarray, "resamples _"]]) -> Float[np.ndarray, " resamples"]:
        return trimmed_mean(values, np.concatenate(counts, axis=1), quartiles)

    found = interval(statistic, [[seeds] * tasks], method, rng)
    return found.low <= truth <= found.high


def interval(
    statistic: Callable[..., Float[np.ndarray, " resamples"]],
    sizes: list[list[int]],
    method: str,
    rng: np.random.Generator,
) -> Estimate:
    """The library's intervals, and BCa for comparison (Efron 1987; acceleration by the infinitesimal jackknife)."""
    if method != "bca":
        chosen: Method = "expanded" if method == "expanded" else "percentile"
        return bootstrap(statistic, sizes, rng=rng, resamples=RESAMPLES, method=chosen)
    seen: list[tuple[Any, Any]] = []

    def recorded(*parts: Any) -> Float[np.ndarray, " resamples"]:
        seen.append((np.concatenate([c for part in parts for c in part], axis=1), statistic(*parts)))
        return seen[-1][1]

    value = bootstrap(recorded, sizes, rng=rng, resamples=RESAMPLES).value
    counts, found = seen[-1]
    influence = counts.T @ (found - found.mean())
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    bias = ndtri(np.clip((found < value).mean() + (found == value).mean() / 2, 1e-3, 1 - 1e-3))
    shifted = bias + ndtri(np.array([0.025, 0.975]))
    low, high = np.quantile(found, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return Estimate(value, float(low), float(high))


def improvement_covers(tasks: int, seeds: int, paired: bool, rng: np.random.Generator) -> bool:
    """Whether one experiment's interval of the probability of improvement contains the truth."""
    shift = np.linspace(-0.5, 1.5, tasks)  # in standard deviations of a score
    common = rng.standard_normal((tasks, seeds))
    x, y = ((common + rng.standard_normal((tasks, seeds))) / np.sqrt(2) for _ in range(2))
    if not paired:
        y = rng.standard_normal((tasks, seeds))
    truth = float(ndtr(shift / (1.0 if paired else np.sqrt(2))).mean())
    found = probability_of_improvement_interval(
        list(x), list(y + shift[:, None]), rng=rng, paired=paired, resamples=RESAMPLES
    )
    return found.low <= truth <= found.high


def mean_coverage(kind: str, tasks: int, seeds: int, method: str, experiments: int) -> float:
    """Fraction of experiments whose interval of the interquartile mean contains the truth."""
    truth, rng = true_mean(KINDS[kind], tasks), np.random.default_rng(0)
    return float(np.mean([mean_covers(KINDS[kind], tasks, seeds, method, rng, truth) for _ in range(experiments)]))


def improvement_coverage(tasks: int, seeds: int, experiments: int, *, paired: bool) -> float:
    """Fraction of experiments whose interval of the probability of improvement contains the truth."""
    rng = np.random.default_rng(0)
    return float(np.mean([improvement_covers(tasks, seeds, paired, rng) for _ in range(experiments)]))


def main(
    tasks: tuple[int, ...] = (5, 20),
    seeds: tuple[int, ...] = (3, 5, 10),
    experiments: int = 2000,
    out: Path = RESULTS / "intervals.json",
) -> None:
    """Measure coverage.

    Args:
        tasks: numbers of tasks.
        seeds: numbers of seeds a task.
        experiments: simulated for each row.
        out: the JSON file to write.
    """
    facts, results = machine(), []
    header("statistic", "scores", "tasks", "seeds", "method", "coverage, %")

    def add(coverage: float, **row: Any) -> None:
        results.append({**row, "coverage": coverage, "experiments": experiments})
        show(*row.values(), f"{100 * coverage:.1f}")
        write(out, facts, results)

    for m in tasks:
        for n in seeds:
            for kind in KINDS:
                for method in ("percentile", "bca", "expanded"):
                    coverage = mean_coverage(kind, m, n, method, experiments)
                    add(coverage, statistic="interquartile mean", scores=kind, tasks=m, seeds=n, method=method)
            for paired in (False, True):
                name = "probability of improvement" + (", paired" if paired else "")
                coverage = improvement_coverage(m, n, experiments, paired=paired)
                add(coverage, statistic=name, scores="normal", tasks=m, seeds=n, method="expanded")


if __name__ == "__main__":
    tyro.cli(main)
