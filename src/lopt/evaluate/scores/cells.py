"""From runs to scores, first half: what each optimizer did on each task.

Awkward cases are treated the same everywhere. A training whose loss is not finite has the loss infinity. A task on which no baseline made
progress cannot be normalised: its normalised losses are NaN. Without the reference on a task, what needs it is NaN. A seed that an optimizer
lacks is left out of its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lopt.errors import InputError
from lopt.evaluate.runs import Run, Timing, Unit, sorted_json
from lopt.evaluate.scores.speedup import Envelope, envelope, speed_up
from lopt.evaluate.timing import Spread, spread

DIVERGED = 2.0  # normalised loss: as far above the start as the best baseline ended below it
Group = dict[tuple[str, str, int], dict[int, Run]]  # runs by task, optimizer and horizon, then by seed


class Cell(NamedTuple):
    """One optimizer on one task, trained to one horizon. Arrays are in the order of `seeds`, which rises."""

    task: str
    optimizer: str
    horizon: int
    seeds: tuple[int, ...]
    train_loss: Float[np.ndarray, " seeds"]  # at the end, infinity if not finite
    test_loss: Float[np.ndarray, " seeds"]  # of the setting for test losses, see `cells`
    normalized: Float[np.ndarray, " seeds"]  # train loss: 0 the best baseline's mean, 1 the start's
    normalized_test: Float[np.ndarray, " seeds"]
    diverged: int  # seeds, by `diverged`
    target: float  # the tuned reference's final train loss, mean over seeds; NaN where there is none
    steps_to_target: (
        float  # of the mean over seeds: first evaluated step at which it is at most the target; infinity if never
    )
    steps_to_target_each: Float[np.ndarray, " seeds"]
    seconds_per_step: Spread  # interleaved with the other optimizers
    cost: Spread  # seconds a step over those of the reference in the same turn
    seconds_to_target: Spread  # steps to target x seconds a step
    speedup: (
        float  # Adam's steps for each step, at the mean over seeds of the final train loss; NaN without a reference
    )
    saturated: bool  # below all that the reference reached: at least `speedup`
    reference: Envelope | None  # what the speed-up was read from


def cells(
    runs: Sequence[Run],
    timings: Sequence[Timing] = (),
    *,
    baselines: Iterable[str],
    reference: str = "adam",
    sweep: Sequence[Run] = (),
    tested: Sequence[Run] = (),
) -> list[Cell]:
    r"""What each optimizer did on each task at each horizon.

    With means over seeds, $\ell_0$ the loss at the start and $\ell_b$ the lowest final loss of a baseline, the normalised loss of a seed is
    $(\ell - \ell_b) / (\ell_0 - \ell_b)$: below 0 is better than the best tuned baseline, 1 is no progress, above 1 is harm. Start and best
    baseline are those of the same task and horizon; the test loss has its own.

    Args:
        runs: one setting for each task, optimizer and horizon, several seeds.
        timings: of the same optimizers; those of another horizon of the task stand in where there are none of the same.
        baselines: names of the optimizers of which the best is 0.
        reference: name of the tuned Adam: its final train loss is the target, and speed-up is over it.
        sweep: runs of the reference at all learning rates, which need not be selected, at best to a longer horizon than the others: they make the
            envelope that speed-up is read from. Without them it is made of the reference's selected runs, and is higher than it should be.
        tested: runs to take test losses from, of the settings with the lowest validation loss. Where they lack an optimizer on a task, its test losses are
            those of `runs`.

    Returns:
        In the order of tasks, horizons and optimizers as they first occur in `runs`.

    Raises:
        InputError: for several settings or the same seed twice of one task, optimizer and horizon, no runs of a baseline at all, or other seeds in `tested`.

    Source: normalised loss after Metz et al. 2020 (arXiv 2009.11243), section 4.2 [mapping reconstructed]; speed-up: Metz et al. 2022
    (arXiv 2211.09760); time to target: Dahl et al. 2023 (arXiv 2306.07179).
    """
    groups = _grouped(runs)
    by_valid = groups | _grouped(tested)
    if other := next((key for key in groups if groups[key].keys() != by_valid[key].keys()), None):
        raise InputError(
            f"tested has other seeds of {other[1]} on {other[0]} to step {other[2]} than runs; they must be the same."
        )
    known, baselines = {optimizer for _, optimizer, _ in groups}, set(baselines)
    if runs and not baselines & known:
        raise InputError(f"baselines are {sorted(baselines)}; at least one of them must be among {sorted(known)}.")
    envelopes = _envelopes(runs, sweep, reference)
    found = []
    for task, horizon in dict.fromkeys((task, horizon) for task, _, horizon in groups):
        here = {o: seeds for (t, o, h), seeds in groups.items() if (t, h) == (task, horizon)}
        checked = {o: by_valid[task, o, horizon] for o in here}
        scale = {"train": _scale(here, baselines, "train"), "test": _scale(checked, baselines, "test")}
        target = float(_mean_curve(here[reference])[-1]) if reference in here else float("nan")
        target = target if np.isfinite(target) else float("nan")
        for optimizer, seeds in here.items():
            final = {"train": _final(seeds, "train"), "test": _final(checked[optimizer], "test")}
            found.append(
                _cell(task, optimizer, horizon, seeds, final, scale, target, timings, reference, envelopes.get(task))
            )
    return found


def diverged(runs: Sequence[Run], baselines: Iterable[str]) -> dict[Unit, list[int]]:
    """The seeds that diverged of each task, optimizer and horizon: the one definition, for scores, tables and pages.

    A training diverged if its final train loss is not finite, or its normalised one is above `DIVERGED`. Where no baseline made progress, only the
    first counts.

    Args:
        runs: one setting for each task, optimizer and horizon.
        baselines: names of the optimizers of which the best is 0; others than those in `runs` do no harm.

    Raises:
        InputError: for several settings or the same seed twice of one task, optimizer and horizon.
    """
    groups, names = _grouped(runs), set(baselines)
    here: dict[tuple[str, int], dict[str, dict[int, Run]]] = {}
    for (task, optimizer, horizon), seeds in groups.items():
        here.setdefault((task, horizon), {})[optimizer] = seeds
    scales = {problem: _scale(found, names, "train") for problem, found in here.items()}
    return {
        Unit(task, optimizer, horizon): [
            seed
            for seed, bad in zip(seeds, _has_diverged(_final(seeds, "train"), scales[task, horizon]), strict=True)
            if bad
        ]
        for (task, optimizer, horizon), seeds in groups.items()
    }


def _has_diverged(final: Float[np.ndarray, " seeds"], scale: tuple[float, float]) -> Bool[np.ndarray, " seeds"]:
    start, best = scale
    return ~np.isfinite(final) | ((final - best) / (start - best) > DIVERGED)  # a comparison with NaN is false


def _grouped(runs: Sequence[Run]) -> Group:
    groups: Group = {}
    for run in runs:
        key = (run.task, run.optimizer, run.horizon)
        seeds = groups.setdefault(key, {})
        if run.seed in seeds:
            raise InputError(
                f"runs has seed {run.seed} of {run.optimizer} on {run.task} to step {run.horizon} twice; select one setting."
            )
        seeds[run.seed] = run
        settings = {sorted_json(r.config) for r in seeds.values()}
        if len(settings) > 1:
            raise InputError(
                f"runs has several settings of {run.optimizer} on {run.task} to step {run.horizon}; select one."
            )
    return {key: dict(sorted(seeds.items())) for key, seeds in groups.items()}


def _envelopes(runs: Sequence[Run], sweep: Sequence[Run], reference: str) -> dict[str, Envelope]:
    """By task, from the sweep where it has the task. Tasks on which the reference is not finite at the start are left out."""
    for run in sweep:
        if run.optimizer != reference:
            raise InputError(f"sweep has runs of {run.optimizer}; it must hold those of {reference}.")
    swept = {run.task for run in sweep}
    by_task: dict[str, list[Run]] = {}
    for run in (*sweep, *(run for run in runs if run.optimizer == reference and run.task not in swept)):
        if np.isfinite(run.train_loss[0]):
            by_task.setdefault(run.task, []).append(run)
    return {task: envelope(known) for task, known in by_task.items()}


def _final(seeds: Mapping[int, Run], split: str) -> Float[np.ndarray, " seeds"]:
    last = np.array([getattr(run, f"{split}_loss")[-1] for run in seeds.values()], float)
    return np.where(np.isfinite(last), last, np.inf)


def _mean_curve(seeds: Mapping[int, Run]) -> Float[np.ndarray, " evals"]:
    """Of the train loss. The target is its end, so that the reference meets its own target to the last bit."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return np.mean([run.train_loss.astype(float) for run in seeds.values()], axis=0)


def _scale(here: Mapping[str, Mapping[int, Run]], baselines: set[str], split: str) -> tuple[float, float]:
    """Loss at the start and of the best baseline; NaN where no baseline made progress."""
    means = {o: _final(seeds, split).mean() for o, seeds in here.items() if o in baselines}
    if not means:
        return float("nan"), float("nan")
    best = min(means, key=lambda o: means[o])
    start = np.mean([getattr(run, f"{split}_loss")[0] for run in here[best].values()], dtype=float)
    if not start > means[best]:
        return float("nan"), float("nan")
    return float(start), float(means[best])


def _cell(
    task: str,
    optimizer: str,
    horizon: int,
    seeds: dict[int, Run],
    final: Mapping[str, Float[np.ndarray, " seeds"]],
    scale: Mapping[str, tuple[float, float]],
    target: float,
    timings: Sequence[Timing],
    reference: str,
    adam: Envelope | None,
) -> Cell:
    normalized = {split: (final[split] - best) / (start - best) for split, (start, best) in scale.items()}
    each = np.array([_first(run.steps, run.train_loss.astype(float), target) for run in seeds.values()])
    to_target = _first(next(iter(seeds.values())).steps, _mean_curve(seeds), target)
    per_step, cost = spreads(task, optimizer, horizon, timings, reference)
    worth = None if adam is None else speed_up(final["train"].mean(), adam, horizon)
    return Cell(
        task,
        optimizer,
        horizon,
        tuple(seeds),
        final["train"],
        final["test"],
        normalized["train"],
        normalized["test"],
        int(_has_diverged(final["train"], scale["train"]).sum()),
        target,
        to_target,
        each,
        per_step,
        cost,
        Spread(*(to_target * x for x in per_step)),
        float("nan") if worth is None else float(worth.value),
        worth is not None and bool(worth.saturated),
        adam,
    )


def _first(steps: np.ndarray, curve: Float[np.ndarray, " evals"], target: float) -> float:
    """A target that is met at the start counts as one step: ratios of times need a positive one."""
    if np.isnan(target):
        return float("nan")
    reached = curve <= target
    return max(1.0, float(steps[reached.argmax()])) if reached.any() else float("inf")


def spreads(
    task: str, optimizer: str, horizon: int, timings: Sequence[Timing], reference: str
) -> tuple[Spread, Spread]:
    """Seconds a step, and their ratio to the reference's in the same turn of the same session.

    Args:
        task: what was trained.
        optimizer: by what.
        horizon: of the trainings; timings of another one of the task stand in where there are none.
        timings: of any tasks and optimizers.
        reference: whose steps are 1.
    """
    here = [t for t in timings if t.task == task]
    same = [t for t in here if t.horizon == horizon]
    here = same if any(t.optimizer == optimizer for t in same) else here
    own = [t for t in here if t.optimizer == optimizer]
    base = {(t.horizon, t.session, t.turn): t.seconds_per_step for t in here if t.optimizer == reference}
    turns = [(t.seconds_per_step, base.get((t.horizon, t.session, t.turn))) for t in own]
    ratios = [seconds / adam for seconds, adam in turns if adam is not None]
    return spread([t.seconds_per_step for t in own]), spread(ratios)
