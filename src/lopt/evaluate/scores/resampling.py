r"""Confidence intervals for few seeds on some tasks, by resampling.

A resample is given by its counts: how often it has each seed. Statistics are functions of counts, so that all resamples are computed at
once and tasks may have different numbers of seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from lopt.checks import at_least
from lopt.errors import InputError

Counts = list[Float[np.ndarray, "resamples _"]]  # one array a task, one column a seed
Over = Literal["seeds", "tasks"]
Method = Literal["expanded", "percentile"]


class Estimate(NamedTuple):
    """A number with its confidence interval; the bounds are NaN where the data cannot tell."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "diverged"
        digits = ".3f" if abs(self.value) < 1e3 else ".1e"
        value = f"{self.value:{digits}}"
        return value if np.isnan(self.half) else f"{value} ± {self.half:{digits}}"


def bootstrap(
    statistic: Callable[..., Float[np.ndarray, " resamples"]],
    sizes: Sequence[Sequence[int]],
    *,
    rng: int | np.random.Generator,
    over: Over = "seeds",
    resamples: int = 4000,
    level: float = 0.95,
    method: Method = "expanded",
    variance: float | None = None,
) -> Estimate:
    r"""Bootstrap confidence interval of a statistic of tasks and seeds.

    `over="seeds"` draws seeds with replacement within each task (strata are tasks): the interval is about new seeds on *these* tasks.
    `over="tasks"` draws whole tasks, with all their seeds: it is about new tasks of the same kind, and new seeds. The second is wider,
    and only means something if the tasks are a fair sample.

    With 3 to 10 seeds the quantiles of the resampled statistic lie too close together: a resampled variance is $(n-1)/n$ of the
    real one, and a normal quantile stands for Student's. `method="expanded"` takes quantiles further out, so that both are made up for:

    $$\alpha' = \Phi\!\left(-\sqrt{\tfrac{\sum_m v_m}{\sum_m v_m (n_m - 1)/n_m}}\; t_{1-\alpha/2,\,\nu}\right), \qquad
      \nu = \frac{(\sum_m v_m)^2}{\sum_m v_m^2 / (n_m - 1)}$$

    where $v_m$ is the share of task $m$ in the variance, by the infinitesimal jackknife from the same resamples,
    $v_m = \frac{n_m}{n_m - 1}\sum_{i \in m} \mathrm{cov}(c_i, \theta^*)^2$ with $c_i$ the count of seed $i$ in a resample, less what
    chance adds. For `over="tasks"`: $n_m \to M$ and $\nu = M - 1$. `method="percentile"` is the plain one, $\alpha' = \alpha/2$.

    Args:
        statistic: from counts (one list of arrays `resamples seeds` for each entry of `sizes`, one array a task) to a number a resample.
        sizes: numbers of seeds of each task; two lists if two optimizers are resampled independently of each other.
        rng: a seed, or a generator to draw from.
        over: what is resampled.
        resamples: how many.
        level: of confidence.
        method: how quantiles are chosen.
        variance: an unbiased estimate of the statistic's variance, where there is one; its root over the standard deviation of the resampled
            statistic, at least 1, then takes the place of the first factor in $\alpha'$.

    Returns:
        The statistic of the data and its bounds, which are among the resampled values. NaN bounds where every task has one seed
        (for `over="tasks"`: where there is one task). Otherwise a task of one seed counts as known exactly.

    Raises:
        InputError: for no tasks, a task without seeds, fewer than 100 resamples, or a level outside (0, 1).

    Source: stratified percentile intervals: Agarwal et al. 2021 (arXiv 2108.13264). Expanded ones: Hesterberg 2015 (arXiv 1411.5279), section
    on the narrowness bias [recalled]. Infinitesimal jackknife: Efron 2014 [recalled]. Degrees of freedom: Satterthwaite 1946. Resampling
    clusters whole: Davison & Hinkley 1997, section 3.8 [recalled]. The combination is ours; `docs/scores.md` has its measured coverage.
    """
    flat = [n for part in sizes for n in part]
    if not flat or min(flat) < 1 or len({len(part) for part in sizes}) > 1:
        raise InputError(f"sizes is {sizes}; every task needs at least one seed, and every list the same tasks.")
    at_least(100, resamples=resamples)
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must lie between 0 and 1.")
    rng = np.random.default_rng(rng)
    value = float(statistic(*([np.ones((1, n)) for n in part] for part in sizes))[0])
    tasks = len(sizes[0])
    if (max(flat) if over == "seeds" else tasks) < 2:
        return Estimate(value, float("nan"), float("nan"))
    if over == "tasks":
        drawn = _counts(rng, tasks, resamples)
        parts = [[np.repeat(drawn[:, [m]], n, axis=1) for m, n in enumerate(part)] for part in sizes]
        units = [drawn]
    else:
        parts = [[_counts(rng, n, resamples) for n in part] for part in sizes]
        units = [counts for part in parts for counts in part]
    found = statistic(*parts)
    tail = (1 - level) / 2
    if method == "expanded":
        tail = _expanded(tail, found, units, variance)
    found = np.sort(found)
    out = int(tail * resamples)  # bounds are resampled values: no arithmetic with infinity
    return Estimate(value, float(found[out]), float(found[-1 - out]))


def _counts(rng: np.random.Generator, n: int, resamples: int) -> Float[np.ndarray, "resamples n"]:
    """`rng.multinomial` would say the same at ten times the cost."""
    cells = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


def _expanded(tail: float, found: Float[np.ndarray, " resamples"], units: Counts, variance: float | None) -> float:
    """The quantile to take instead of `tail`; see `bootstrap`."""
    finite = np.isfinite(found)
    if not finite.any():
        return tail
    centred = np.where(finite, found, found[finite].max())
    centred = centred - centred.mean()
    chance = centred.var() / len(
        found
    )  # the variance of a covariance between things that have nothing to do with each other
    sizes = np.array([counts.shape[1] for counts in units])
    covariances = [counts.T @ centred / len(found) for counts in units]
    resampled = np.array([np.maximum(0.0, (c**2).sum() - (len(c) - 1) * chance) for c in covariances])
    several = (sizes > 1) & (resampled > 0)
    if not several.any():
        return tail
    sizes, resampled = sizes[several], resampled[several]
    shares = resampled * sizes / (sizes - 1)
    narrow = (
        np.sqrt(shares.sum() / resampled.sum()) if variance is None else max(1.0, np.sqrt(variance / centred.var()))
    )
    from scipy.special import ndtr

    return float(ndtr(-narrow * student(1 - tail, shares, sizes)))


def student(quantile: float, shares: Float[np.ndarray, " tasks"], sizes: Sequence[int] | np.ndarray) -> float:
    r"""Quantile of Student's t with Satterthwaite's degrees of freedom, $\nu = (\sum_m v_m)^2 / \sum_m v_m^2/(n_m - 1)$.

    Args:
        quantile: which, between 0 and 1.
        shares: the variances $v_m$ of the summands, not all zero.
        sizes: the number of seeds that each was estimated from, above 1.

    Source: Satterthwaite 1946.
    """
    from scipy.special import stdtrit

    freedom = shares.sum() ** 2 / (shares**2 / (np.asarray(sizes) - 1)).sum()
    return float(stdtrit(freedom, quantile))


def quartiles(total: Float[np.ndarray, " resamples"]) -> Float[np.ndarray, " resamples"]:
    """How many scores the interquartile mean leaves out at each end."""
    return total // 4


def median_cut(total: Float[np.ndarray, " resamples"]) -> Float[np.ndarray, " resamples"]:
    """How many scores the median leaves out at each end."""
    return (total - 1) // 2


def trimmed_mean(
    values: Float[np.ndarray, " n"],
    counts: Float[np.ndarray, "resamples n"],
    cut: Callable[[Float[np.ndarray, " resamples"]], Float[np.ndarray, " resamples"]],
) -> Float[np.ndarray, " resamples"]:
    """Mean of `values` that occur `counts` times, without the `cut` lowest and the `cut` highest.

    Args:
        values: the same for all resamples; those that are not finite count as infinity.
        counts: whole numbers.
        cut: from the number of values to how many to leave out at each end: `quartiles` or `median_cut`.
    """
    order = np.argsort(values)
    upto = np.cumsum(counts[:, order], axis=1)
    total = upto[:, -1]
    out = cut(total)[:, None]
    inside = np.clip(upto, out, total[:, None] - out)
    weights = np.diff(inside, axis=1, prepend=out)
    finite = np.isfinite(values[order])
    mean = weights[:, finite] @ values[order][finite] / weights.sum(axis=1)
    return np.where((weights[:, ~finite] > 0).any(axis=1), np.inf, mean)
