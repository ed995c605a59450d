r"""Speed-up over a tuned Adam: how many of Adam's steps one step of an optimizer is worth (Metz et al. 2022, VeLO).

VeLOdrome's measure asks where Adam, had it been given the best learning rate for every length of training, would have reached the loss at
which the optimizer ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.runs import Run, sorted_json
from lopt.evaluate.scores.selection import finalists

DECAY = 0.95  # VeLOdrome's moving average, for each of the evaluations of its reference:
REFERENCE_EVALUATIONS = 10_000  # 100,000 steps, evaluated every 10


class Envelope(NamedTuple):
    """The lowest loss that the reference reached by a step, whatever its learning rate: piecewise linear, never increasing."""

    steps: Float[np.ndarray, " evals"]
    loss: Float[np.ndarray, " evals"]


class SpeedUp(NamedTuple):
    """Steps of the reference for each step of an optimizer."""

    value: Float[np.ndarray, "*shape"]
    saturated: Bool[
        np.ndarray, "*shape"
    ]  # the loss is below all that the reference reached: the speed-up is at least `value`


def envelope(runs: Sequence[Run]) -> Envelope:
    r"""What the reference can reach on a task, from its runs at all learning rates.

    $$e(t) = \min_{t' \le t}\, \min_\eta\, \mathrm{EMA}\!\left[\tfrac1n \textstyle\sum_s \ell_{\eta,s}\right](t')$$

    The moving average of VeLOdrome forgets 5 % at each of the 10,000 evaluations of its reference, 0.2 % of the training in all. Here, with
    tens of evaluations, it forgets as much in the same share of the training, $1 - 0.95^{10000\,\Delta t/T}$ from one evaluation to the
    next: next to nothing is left to smooth. Forgetting 5 % an evaluation would delay the reference by half its training. Between
    evaluations the envelope is linear, not on VeLOdrome's grid of 512 points.

    Trainings to several horizons make one envelope, the lowest of theirs: the longer the reference, the larger the speed-ups that can be told, and the
    shorter ones are evaluated more often where they last.

    Args:
        runs: of one task and one optimizer, all settings and seeds. A setting with a seed that is not finite drops out from that step on, and one that
            dropped out after some of the seeds does not take part.

    Raises:
        InputError: for no runs, several tasks or optimizers, evaluations at different steps, or no finite loss at the start.

    Source: Metz et al. 2022 (arXiv 2211.09760); google/learned_optimization, baselines/normalizers.py.
    """
    if len({(run.task, run.optimizer) for run in runs}) != 1:
        raise InputError("runs must hold one task and one optimizer, and at least one run.")
    by_horizon: dict[int, list[Run]] = {}
    for run in runs:
        by_horizon.setdefault(run.horizon, []).append(run)
    each = [_lowest(finalists(group)) for group in by_horizon.values()]
    steps = np.unique(np.concatenate([one.steps for one in each]))
    low = np.min([np.interp(steps, one.steps, one.loss, right=np.inf) for one in each], axis=0)
    if not np.isfinite(low[0]):
        raise InputError(
            f"runs of {runs[0].optimizer} on {runs[0].task} have no finite train loss at the first evaluation."
        )
    return Envelope(steps, np.minimum.accumulate(low))


def _lowest(runs: Sequence[Run]) -> Envelope:
    """The lowest smoothed loss of any setting by every evaluation, of runs to one horizon."""
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(sorted_json(run.config), []).append(run)
    steps = runs[0].steps
    if any(not np.array_equal(run.steps, steps) for run in runs):
        raise InputError(
            f"runs of {runs[0].optimizer} on {runs[0].task} were evaluated at different steps; they must be the same."
        )
    curves = []
    with np.errstate(invalid="ignore", over="ignore"):
        for group in settings.values():
            mean = np.mean([run.train_loss.astype(float) for run in group], axis=0)
            curves.append(np.where(np.isfinite(mean), mean, np.inf))
    return Envelope(
        steps.astype(float), np.minimum.accumulate(np.min([_smooth(steps, curve) for curve in curves], axis=0))
    )


def _smooth(steps: np.ndarray, curve: Float[np.ndarray, " evals"]) -> Float[np.ndarray, " evals"]:
    smooth = curve.copy()
    for i in range(1, len(curve)):
        kept = DECAY ** (REFERENCE_EVALUATIONS * (steps[i] - steps[i - 1]) / steps[-1])
        alive = np.isfinite(smooth[i - 1]) and np.isfinite(curve[i])
        smooth[i] = kept * smooth[i - 1] + (1 - kept) * curve[i] if alive else np.inf
    return smooth


def speed_up(loss: float | Float[np.ndarray, "*shape"], reference: Envelope, horizon: int) -> SpeedUp:
    r"""$\min\{t: e(t) \le \ell\} / T$: the reference's steps to a loss, for each of the optimizer's $T$.

    Censored on the right: an optimizer that ends below all that the reference ever reached gets the reference's length over $T$, and is
    marked as saturated. 0 for a loss at or above the start, or not finite.

    Args:
        loss: at which the optimizer ended.
        reference: from `envelope`.
        horizon: steps that the optimizer took.

    Raises:
        InputError: for a horizon below 1.

    Source: as `envelope`.
    """
    at_least(1, horizon=horizon)
    loss = np.asarray(loss, float)
    steps, low = reference
    saturated = loss < low[-1]
    aim = np.where(np.isfinite(loss), np.maximum(loss, low[-1]), low[0])
    after = np.searchsorted(-low, -aim, side="left").clip(0, len(low) - 1)  # the first evaluation that is as low
    before = np.maximum(after - 1, 0)
    drop = low[before] - low[after]
    share = np.where(drop > 0, (low[before] - aim) / np.where(drop > 0, drop, 1.0), 0.0).clip(0, 1)
    at = steps[before] + share * (steps[after] - steps[before])
    return SpeedUp(at / horizon, saturated)
