"""What a page shows of runs themselves: curves, looks of optimizers, failures, settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lopt.evaluate.report.page import COLORS
from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.scores.cells import diverged

SPLITS = ("train", "valid", "test")
DASHES = ("solid", "dash", "dot", "dashdot")  # plotly's names
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")  # plotly's names
FEW = 8  # so many curves can be told apart at once

Problem = tuple[str, int]  # a task and a horizon


class Look(NamedTuple):
    """How an optimizer is drawn. No two have both the same shape and the same colour, nor the same colour and dash."""

    name: str
    color: str  # of a CSS variable `--NAME`: `reference`, or `o0` to `o5`
    dash: str
    shape: str
    learned: bool  # drawn thicker
    shown: bool  # at first


class Curve(NamedTuple):
    """One optimizer on one problem: mean over seeds and range."""

    optimizer: str
    steps: list[int]
    bands: dict[str, tuple[list[float | None], list[float | None], list[float | None]]]  # split: mean, lowest, highest
    seconds: float | None  # per step


class Failure(NamedTuple):
    """What went wrong in trainings of one optimizer on one problem."""

    optimizer: str
    problem: Problem
    what: str


def looks(ranking: Sequence[str], learned: Iterable[str], reference: str = "adam") -> list[Look]:
    """A look for each optimizer. Where there are many, only the learned ones, the reference and the first others are shown at first.

    Args:
        ranking: all optimizers, best first.
        learned: those that are meta-trained.
        reference: the one that is drawn in the colour of the text.
    """
    learned = set(learned)
    found, plain = [], 0
    others = [name for name in ranking if name not in learned and name != reference]
    room = max(2, FEW - len(learned) - (reference in ranking))
    shown = {*learned, reference, *others[:room]} if len(ranking) > FEW else set(ranking)
    for i, name in enumerate(ranking):
        if name == reference:
            color, dash = "reference", "longdash"
        else:
            color = f"o{plain % len(COLORS)}"
            dash = DASHES[(plain + plain // 12) % len(DASHES)]  # 12: after so many, colours and dashes meet again
            plain += 1
        shape = SHAPES[i % len(SHAPES)] + ("-open" if i // len(SHAPES) % 2 else "")
        found.append(Look(name, color, dash, shape, name in learned, name in shown))
    return found


def learned(runs: Iterable[Run]) -> list[str]:
    """Optimizers that come from saved weights."""
    return list(dict.fromkeys(run.optimizer for run in runs if run.fingerprint is not None))


def grouped(runs: Iterable[Run]) -> dict[Problem, dict[str, list[Run]]]:
    """Runs by problem and optimizer, in the order of their first appearance; horizons of a task from short to long."""
    found: dict[Problem, dict[str, list[Run]]] = {}
    for run in runs:
        found.setdefault((run.task, run.horizon), {}).setdefault(run.optimizer, []).append(run)
    order = {task: i for i, task in enumerate(dict.fromkeys(task for task, _ in found))}
    return dict(sorted(found.items(), key=lambda item: (order[item[0][0]], item[0][1])))


def seconds_per_step(timings: Iterable[Timing]) -> dict[tuple[str, str], float]:
    """The median over turns, by task and optimizer."""
    found: dict[tuple[str, str], list[float]] = {}
    for timing in timings:
        found.setdefault((timing.task, timing.optimizer), []).append(timing.seconds_per_step)
    return {key: float(np.median(values)) for key, values in found.items()}


def curves(runs: Iterable[Run], timings: Iterable[Timing]) -> dict[Problem, list[Curve]]:
    """The curves of every problem. A mean is None from where a seed is not finite; the range is that of finite seeds."""
    clock = seconds_per_step(timings)
    return {
        problem: [
            Curve(
                name,
                [int(step) for step in seeds[0].steps],
                {split: _band(np.stack([getattr(run, f"{split}_loss") for run in seeds])) for split in SPLITS},
                clock.get((problem[0], name)),
            )
            for name, seeds in found.items()
        ]
        for problem, found in grouped(runs).items()
    }


def _band(
    values: Float[np.ndarray, "seeds evals"],
) -> tuple[list[float | None], list[float | None], list[float | None]]:
    finite = np.isfinite(values)
    mean = np.where(finite.all(axis=0), np.where(finite, values, 0).mean(axis=0), np.nan)
    low, high = np.where(finite, values, np.inf).min(axis=0), np.where(finite, values, -np.inf).max(axis=0)
    return rounded(mean), rounded(low), rounded(high)


def rounded(values: Iterable[float] | np.ndarray, digits: int = 4) -> list[float | None]:
    """Significant digits that a plot needs; None where a value is not finite."""
    return [float(f"{x:.{digits}g}") if np.isfinite(x) else None for x in values]


def failures(runs: Sequence[Run], baselines: Iterable[str]) -> list[Failure]:
    """Trainings that diverged, ended above where they began or went through losses that are not finite, and optimizers that a problem lacks.

    Args:
        runs: one setting for each optimizer on each problem.
        baselines: as for `lopt.evaluate.scores.cells.diverged`, which says what has diverged.
    """
    problems, seeds_of = grouped(runs), diverged(runs, baselines)
    names = dict.fromkeys(name for found in problems.values() for name in found)
    failed = []
    for problem, found in problems.items():
        for name in names:
            seeds = found.get(name, [])
            lost = seeds_of.get(Unit(problem[0], name, problem[1]), [])
            bad = [run for run in seeds if run.seed in lost]
            rose = [run for run in seeds if run.seed not in lost and run.train_loss[-1] > run.train_loss[0]]
            back = [run for run in seeds if run.seed not in lost and _broken(run)]
            if not seeds:
                failed.append(Failure(name, problem, "was not run"))
            if bad:
                at = [step for run in bad for step in _broken(run)[:1]]
                when = f"not finite from step {min(at):,}" if at else "with finite losses far above the start"
                failed.append(Failure(name, problem, f"diverged in {len(bad)} of {len(seeds)} seeds, {when}"))
            if rose:
                what = f"ended above its initial train loss in {len(rose)} of {len(seeds)} seeds"
                failed.append(Failure(name, problem, what))
            if back:
                what = f"had a loss that was not finite on the way in {len(back)} of {len(seeds)} seeds, and came back"
                failed.append(Failure(name, problem, what))
    return failed


def _broken(run: Run) -> list[int]:
    """The steps at which the train loss was not finite."""
    return [int(step) for step in run.steps[~np.isfinite(run.train_loss)]]


def settings(runs: Iterable[Run]) -> dict[Problem, dict[str, list[str]]]:
    """The hyper-parameters of each optimizer on each problem, a text each."""
    return {
        problem: {name: setting(seeds[0].config) for name, seeds in found.items() if seeds[0].config}
        for problem, found in grouped(runs).items()
    }


def setting(config: dict[str, Any]) -> list[str]:
    """Hyper-parameters as text.

    Examples:
        >>> setting({"learning_rate": 0.001, "schedule": "cosine"})
        ['learning_rate 0.001', 'schedule cosine']
    """
    return [f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in config.items()]
