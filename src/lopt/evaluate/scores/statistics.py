r"""Statistics of benchmarks: few seeds, some tasks, losses on different scales.

Scores come as one array a task, of one number a seed; tasks may have different numbers of seeds. Lower is better. Infinity is a score
(a training that diverged), NaN is not. Every interval says to what it generalises: see `bootstrap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from lopt.errors import InputError
from lopt.evaluate.scores.resampling import Counts, Estimate, Over, bootstrap, quartiles, student, trimmed_mean

Scores = Sequence[Float[np.ndarray, " _"]]  # one array a task
R_MAX = 4.0  # of the AlgoPerf score (Dahl et al. 2023)


def interquartile_mean(scores: Scores) -> float:
    r"""Mean of the middle half of all scores, tasks and seeds pooled.

    With the $N$ scores in order and $k = \lfloor N/4 \rfloor$: $\frac{1}{N - 2k} \sum_{i=k+1}^{N-k} x_{(i)}$.

    Args:
        scores: of each task, one a seed.

    Raises:
        InputError: for no scores, or one that is NaN.

    Source: Agarwal et al. 2021 (arXiv 2108.13264).
    """
    values = np.concatenate(_checked(scores, "scores"))
    return float(trimmed_mean(values, np.ones((1, len(values))), quartiles)[0])


def interquartile_mean_interval(
    scores: Scores, *, rng: int | np.random.Generator, over: Over = "seeds", resamples: int = 4000
) -> Estimate:
    """`interquartile_mean` with its 95 % interval; arguments as for `bootstrap`."""
    checked = _checked(scores, "scores")
    statistic = partial(_pooled, np.concatenate(checked))
    return bootstrap(statistic, [[len(x) for x in checked]], rng=rng, over=over, resamples=resamples)


def _pooled(values: Float[np.ndarray, " n"], counts: Counts) -> Float[np.ndarray, " resamples"]:
    return trimmed_mean(values, np.concatenate(counts, axis=1), quartiles)


def probability_of_improvement(x: Scores, y: Scores, *, paired: bool = False) -> float:
    r"""How likely a training of X ends lower than one of Y, averaged over tasks; 0.5 for a tie.

    $$\frac1M \sum_m \frac{1}{n_m k_m} \sum_{i,j} \left( [x_{mi} < y_{mj}] + \tfrac12 [x_{mi} = y_{mj}] \right)$$

    Args:
        x: scores of X, one array a task.
        y: scores of Y on the same tasks.
        paired: compare seed $i$ with seed $i$ only, $\frac{1}{n_m}\sum_i [x_{mi} < y_{mi}] + \dots$: how likely X is lower on the *same*
            problem, start and minibatches. The arrays of a task are then in the same order of seeds.

    Raises:
        InputError: for no tasks, different tasks, NaN, or different numbers of seeds if paired.

    Source: Agarwal et al. 2021 (there higher is better); the paired form is ours.
    """
    statistic, sizes = _improvement(x, y, paired)
    return float(statistic(*([np.ones((1, n)) for n in part] for part in sizes))[0])


def probability_of_improvement_interval(
    x: Scores,
    y: Scores,
    *,
    rng: int | np.random.Generator,
    paired: bool = False,
    over: Over = "seeds",
    resamples: int = 4000,
) -> Estimate:
    r"""`probability_of_improvement` with its 95 % interval.

    Where X is below Y on all seeds of some tasks and above on all seeds of the others, resampling seeds changes nothing, though a few seeds
    prove little. Then the bounds are those of Clopper and Pearson for the tasks won and the tasks lost, at least $\frac{w}{M}\,0.025^{1/w'}$
    and at most $1 - \frac{l}{M}\,0.025^{1/l'}$, with $w$ tasks won in $w'$ independent pairs of seeds, and $l$ lost in $l'$. Tasks of
    ties alone count as half won in both bounds.

    All pairs of seeds, unlike pairs of the same seed, are not independent: resampling both sides overstates how they vary together. The variance
    that `bootstrap` is told is the unbiased one, with $k_{ij}$ the summands above and a dot for a mean,

    $$\frac{1}{M^2}\sum_m \left(\frac{s^2(k_{i\cdot})}{n_m} + \frac{s^2(k_{\cdot j})}{k_m}
      - \frac{s^2(k_{ij} - k_{i\cdot} - k_{\cdot j} + k_{\cdot\cdot})}{n_m k_m}\right)$$

    Args:
        x: scores of X, one array a task.
        y: scores of Y on the same tasks.
        rng: a seed, or a generator to draw from.
        paired: as for `probability_of_improvement`; pairs are then resampled as pairs.
        over: as for `bootstrap`.
        resamples: as for `bootstrap`.

    Raises:
        InputError: as `probability_of_improvement` and `bootstrap`.

    Source: the first two terms are those of DeLong et al. 1988 [recalled]; the third follows from Hoeffding's decomposition.
    """
    statistic, sizes = _improvement(x, y, paired)
    variance = _variance(x, y) if over == "seeds" and not paired else None
    found = bootstrap(statistic, sizes, rng=rng, over=over, resamples=resamples, variance=variance)
    if found.low != found.high:
        return found
    each = np.array([probability_of_improvement([a], [b], paired=paired) for a, b in zip(x, y, strict=True)])
    pairs = np.min(sizes, axis=0) if over == "seeds" else np.ones(len(each), int)
    won, lost = each == 1, each == 0
    between = each[~won & ~lost].sum() / len(each)
    low = won.mean() * 0.025 ** (1 / max(1, pairs[won].sum())) + between
    high = 1 - lost.mean() * 0.025 ** (1 / max(1, pairs[lost].sum())) - (~won & ~lost).mean() + between
    return Estimate(found.value, float(low), float(high))


def paired_difference(x: Scores, y: Scores) -> Estimate:
    r"""Mean over tasks of the mean over seeds of $d = x - y$, with its 95 % interval by Student's t.

    $$\bar d = \frac1M \sum_m \bar d_m, \quad \bar d \pm t_{0.975,\nu}\, s, \quad
      s^2 = \frac{1}{M^2} \sum_m \frac{s_m^2}{n_m}, \quad \nu = \frac{(\sum_m s_m^2/n_m)^2}{\sum_m (s_m^2/n_m)^2/(n_m - 1)}$$

    About new seeds on these tasks. With one task it is the paired t interval.

    A training that diverged has the score infinity. The interval is then the limit as all infinite scores grow alike without bound: its bounds are
    infinite, and where every seed of X diverged and none of Y did, both are. Two that diverged with the same seed are level.

    Args:
        x: scores of X, one array a task.
        y: scores of Y on the same tasks and seeds, in the same order.

    Returns:
        Bounds are NaN where a task has a single seed.

    Raises:
        InputError: for no tasks, NaN, or scores that do not pair up.

    Source: Student 1908; degrees of freedom Welch 1947, Satterthwaite 1946. The limit is ours.
    """
    x, y = _paired(x, y)
    infinite = [np.isinf(a) * 1.0 - np.isinf(b) for a, b in zip(x, y, strict=True)]
    if any(d.any() for d in infinite):
        return Estimate(*(float(bound * np.inf) if bound else bound for bound in _student_interval(infinite)))
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return _student_interval([np.where(np.isinf(a), 0.0, a - b) for a, b in zip(x, y, strict=True)])


def mean_interval(values: Float[np.ndarray, " seeds"]) -> Estimate:
    r"""$\bar x \pm t_{0.975, n-1}\, s/\sqrt n$; the bounds are NaN for a single value, or one that is not finite.

    Args:
        values: one a seed.

    Examples:
        >>> import numpy as np
        >>> from lopt.evaluate import mean_interval
        >>> str(mean_interval(np.array([1.0, 2.0, 3.0])))
        '2.000 ± 2.484'
    """
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return Estimate(float(np.mean(values)), float("nan"), float("nan"))
    return _student_interval([values])


def _student_interval(differences: Sequence[Float[np.ndarray, " _"]]) -> Estimate:
    """The interval of `paired_difference`, of finite numbers."""
    mean = float(np.mean([d.mean() for d in differences]))
    if min(map(len, differences)) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    sizes = np.array([len(d) for d in differences])
    shares = np.array([d.var(ddof=1) for d in differences]) / sizes
    half = np.sqrt(shares.sum()) / len(differences) * student(0.975, shares, sizes) if shares.any() else 0.0
    return Estimate(mean, mean - float(half), mean + float(half))


def wilson(successes: float, trials: int) -> Estimate:
    r"""A fraction with Wilson's 95 % interval, $\frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}$.

    Args:
        successes: how many; a tie may count as half.
        trials: of how many.

    Raises:
        InputError: for no trials, or more successes than trials.

    Source: Wilson 1927.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(
            f"successes is {successes} of {trials} trials; it must lie between 0 and a positive number of trials."
        )
    z, p = 1.959963984540054, successes / trials
    middle, half = p + z**2 / (2 * trials), z * np.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return Estimate(p, max(0.0, float((middle - half) / scale)), min(1.0, float((middle + half) / scale)))


def performance_ratios(times: Float[np.ndarray, "optimizers tasks"]) -> Float[np.ndarray, "optimizers tasks"]:
    r"""Time over the best time of the task, $r_{s,w} = t_{s,w} / \min_{s'} t_{s',w}$; infinity where the target was not reached.

    Args:
        times: to target, in any unit; infinity where it was not reached.

    Raises:
        InputError: for a time that is NaN or not positive.

    Source: Dolan & Moré 2002; Dahl et al. 2023 (arXiv 2306.07179).
    """
    if np.isnan(times).any() or (times <= 0).any():
        raise InputError(
            "times has a number that is NaN or not positive; a time is positive, infinity where the target was not reached."
        )
    best = times.min(axis=0)
    reached = np.isfinite(times)
    return np.where(reached, np.where(reached, times, 1.0) / np.where(np.isfinite(best), best, 1.0), np.inf)


def performance_profile(
    times: Float[np.ndarray, "optimizers tasks"], ratios: Float[np.ndarray, " ratios"]
) -> Float[np.ndarray, "optimizers ratios"]:
    r"""Fraction of tasks on which an optimizer is at most $\tau$ times as slow as the fastest, $\rho_s(\tau) = \frac1M |\{w: r_{s,w} \le \tau\}|$.

    Args:
        times: to target; infinity where it was not reached.
        ratios: the values of $\tau$.

    Raises:
        InputError: as `performance_ratios`.

    Source: as there.
    """
    return (performance_ratios(times)[:, :, None] <= ratios).mean(axis=1)


def algoperf_score(
    times: Float[np.ndarray, "optimizers tasks"], r_max: float = R_MAX
) -> Float[np.ndarray, " optimizers"]:
    r"""Area under the performance profile, 1 for an optimizer that is fastest everywhere, 0 for one that is always $r_{max}$ times as slow.

    $$B_s = \frac{1}{r_{max} - 1} \int_1^{r_{max}} \rho_s(\tau)\, d\tau = \frac1M \sum_w \frac{\max(0, r_{max} - r_{s,w})}{r_{max} - 1}$$

    The integral is exact, not on a grid.

    Args:
        times: to target; infinity where it was not reached.
        r_max: where the profile ends.

    Raises:
        InputError: as `performance_ratios`, and for an `r_max` of at most 1.

    Source: Dahl et al. 2023; AlgoPerf's documentation of the score.
    """
    if r_max <= 1:
        raise InputError(f"r_max is {r_max}; it must be above 1.")
    return np.maximum(0.0, r_max - performance_ratios(times)).mean(axis=1) / (r_max - 1)


def ranks(scores: Float[np.ndarray, "optimizers tasks"]) -> Float[np.ndarray, "optimizers tasks"]:
    """Rank of each optimizer on each task, 1 the lowest score; ties share the mean of their ranks, infinities tie at the end.

    Args:
        scores: lower is better; NaN where an optimizer did not run, which has rank NaN and takes no place.
    """
    below = (scores[:, None] > scores[None]).sum(axis=1)
    equal = (scores[:, None] == scores[None]).sum(axis=1)  # itself included
    return np.where(np.isnan(scores), np.nan, below + (equal + 1) / 2)


def _checked(scores: Scores, name: str) -> list[Float[np.ndarray, " _"]]:
    arrays = [np.asarray(x, float) for x in scores]
    if not arrays or any(x.ndim != 1 or not x.size for x in arrays):
        raise InputError(f"{name} has {[x.shape for x in arrays]}; it must be one array a task, of one score a seed.")
    if any(np.isnan(x).any() for x in arrays):
        raise InputError(f"{name} has a score that is NaN; a training that diverged has the score infinity.")
    return arrays


def _paired(x: Scores, y: Scores) -> tuple[list[Float[np.ndarray, " _"]], list[Float[np.ndarray, " _"]]]:
    x, y = _checked(x, "x"), _checked(y, "y")
    if [len(a) for a in x] != [len(b) for b in y]:
        raise InputError(f"x has {[len(a) for a in x]} seeds a task and y {[len(b) for b in y]}; pairs need the same.")
    return x, y


def _improvement(
    x: Scores, y: Scores, paired: bool
) -> tuple[Callable[..., Float[np.ndarray, " resamples"]], list[list[int]]]:
    """The probability of improvement as a function of counts, and the sizes that `bootstrap` takes."""
    x, y = _paired(x, y) if paired else (_checked(x, "x"), _checked(y, "y"))
    if len(x) != len(y):
        raise InputError(f"x has {len(x)} tasks and y {len(y)}; they must have the same.")
    lower = [(a[:, None] < b) + 0.5 * (a[:, None] == b) for a, b in zip(x, y, strict=True)]
    sizes = [[len(a) for a in x], [len(b) for b in y]]

    if paired:
        return partial(_of_pairs, [np.diag(k) for k in lower]), sizes[:1]
    return partial(_of_all, lower), sizes


def _variance(x: Scores, y: Scores) -> float | None:
    """Of the probability of improvement from all pairs; None where a task has a single seed."""
    if min(len(a) for a in (*x, *y)) < 2:
        return None
    total = 0.0
    for a, b in zip(x, y, strict=True):
        k = (a[:, None] < b) + 0.5 * (a[:, None] == b)
        rows, columns = k.mean(axis=1, keepdims=True), k.mean(axis=0, keepdims=True)
        n, m = k.shape
        together = ((k - rows - columns + k.mean()) ** 2).sum() / ((n - 1) * (m - 1))
        total += rows.var(ddof=1) / n + columns.var(ddof=1) / m - together / (n * m)
    return max(0.0, float(total)) / len(x) ** 2


def _of_pairs(lower: list[Float[np.ndarray, " _"]], counts: Counts) -> Float[np.ndarray, " resamples"]:
    return _mean_over_tasks([c @ k for c, k in zip(counts, lower, strict=True)], counts)


def _of_all(lower: list[Float[np.ndarray, "_ _"]], x: Counts, y: Counts) -> Float[np.ndarray, " resamples"]:
    wins = [((a @ k) * b).sum(axis=1) / b.sum(axis=1).clip(1) for a, k, b in zip(x, lower, y, strict=True)]
    return _mean_over_tasks(wins, x)


def _mean_over_tasks(sums: list[Float[np.ndarray, " resamples"]], counts: Counts) -> Float[np.ndarray, " resamples"]:
    """Mean over tasks of sums over seeds by their number; a task that was drawn twice counts twice, one that was not drawn not at all."""
    times = np.stack([c.mean(axis=1) for c in counts])  # 1 where seeds are resampled
    means = np.stack([s / c.shape[1] for s, c in zip(sums, counts, strict=True)])  # zero for a task not drawn
    return means.sum(axis=0) / times.sum(axis=0)
