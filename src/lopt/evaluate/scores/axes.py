"""Scores along an axis: beyond the horizon of meta-training, and from narrow to wide, small to large, one architecture to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.scores.cells import Cell
from lopt.evaluate.scores.resampling import Estimate
from lopt.evaluate.scores.statistics import interquartile_mean_interval, mean_interval, ranks
from lopt.evaluate.scores.summary import NOT_KNOWN, Scores


class Extrapolation(NamedTuple):
    """An optimizer at a multiple of the horizon that it was meta-trained for."""

    multiple: float
    tasks: tuple[str, ...]  # that were run at it and could be normalised; compare multiples only where these agree
    normalized: (
        Estimate  # interquartile mean of the normalised final train loss, the baselines tuned for the same horizon
    )
    diverged: float  # fraction of trainings


class Curve(NamedTuple):
    """An optimizer along an axis; NaN at values whose task it did not run."""

    axis: str
    optimizer: str
    values: tuple[int | float | str, ...]
    tasks: tuple[str, ...]
    normalized: tuple[Estimate, ...]  # mean over seeds of the normalised final train loss, Student's t
    speedup: Float[np.ndarray, " values"]
    saturated: tuple[bool, ...]
    ranks: Float[np.ndarray, " values"]  # among the optimizers that ran the task
    rank: float  # mean along the axis


def extrapolation(
    cells: Sequence[Cell], optimizer: str, trained_horizon: int, *, rng: int = 0, resamples: int = 4000
) -> list[Extrapolation]:
    """How an optimizer does at each multiple of its meta-training horizon that was run, in rising order.

    Args:
        cells: at several horizons.
        optimizer: which.
        trained_horizon: the longest training of its meta-training, in inner steps; its card has it.
        rng: seed of the bootstrap.
        resamples: of each interval.

    Raises:
        InputError: for a horizon below 1.
    """
    at_least(1, trained_horizon=trained_horizon)
    found = []
    for horizon in sorted({cell.horizon for cell in cells if cell.optimizer == optimizer}):
        here = [cell for cell in cells if cell.optimizer == optimizer and cell.horizon == horizon]
        usable = [cell for cell in here if not np.isnan(cell.normalized).any()]
        scores = [cell.normalized for cell in usable]
        mean = interquartile_mean_interval(scores, rng=rng, resamples=resamples) if scores else NOT_KNOWN
        diverged = sum(cell.diverged for cell in here) / sum(len(cell.seeds) for cell in here)
        found.append(Extrapolation(horizon / trained_horizon, tuple(cell.task for cell in usable), mean, diverged))
    return found


def along(scores: Scores, axes: Mapping[str, Mapping[Any, str]]) -> list[Curve]:
    """Every optimizer along every axis: in the order of axes, then of optimizers.

    Args:
        scores: of a benchmark that ran the tasks of the axes.
        axes: by name (`width`), the task at each value (`{32: "digits_mlp...", 64: ...}`), in the order in which they are to be shown.

    Raises:
        InputError: for an axis with a task that nothing ran.

    Source: axes and mean ranks along them as in the evaluation of muLO (arXiv 2406.00153); width, batch size and data: Metz et al. 2020
    (arXiv 2009.11243), section 4.4.
    """
    table = scores.table
    found = []
    for axis, points in axes.items():
        if unknown := [task for task in points.values() if task not in scores.tasks]:
            raise InputError(f"axis {axis} has {', '.join(unknown)}; its tasks must be among those that were run.")
        tasks = tuple(points.values())
        final = [[row[t].train_loss.mean() if t in row else np.nan for t in tasks] for row in table.values()]
        placed = ranks(np.array(final))
        for row, place, optimizer in zip(table.values(), placed, scores.optimizers, strict=True):
            ran = [row.get(task) for task in tasks]
            found.append(
                Curve(
                    axis,
                    optimizer,
                    tuple(points),
                    tasks,
                    tuple(_mean(cell) for cell in ran),
                    np.array([np.nan if cell is None else cell.speedup for cell in ran]),
                    tuple(cell is not None and cell.saturated for cell in ran),
                    place,
                    float(np.mean(place[~np.isnan(place)])) if not np.isnan(place).all() else float("nan"),
                )
            )
    return found


def _mean(cell: Cell | None) -> Estimate:
    if cell is None or np.isnan(cell.normalized).any():
        return NOT_KNOWN
    return mean_interval(cell.normalized)
