"""An archive as plain tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lopt.errors import InputError
from lopt.evaluate.bench.archive import Archive
from lopt.evaluate.runs import Run, Timing, sorted_json

if TYPE_CHECKING:
    from lopt.evaluate.scores.summary import Scores

FIXED = (
    "task",
    "optimizer",
    "horizon",
    "config",
    "fingerprint",
    "seed",
    "step",
    "train_loss",
    "valid_loss",
    "test_loss",
)


def export(archive: Archive, path: str | Path) -> list[Path]:
    """Write the runs of an archive as CSV, a row an evaluation, and beside them its timings as `NAME-timings.csv`.

    Args:
        archive: of a bench.
        path: ends in `.csv`.

    Returns:
        The two files.

    Raises:
        InputError: for another ending.
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise InputError(f"{path} must end in .csv.")
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = archive.runs()
    metrics = sorted({name for run in runs for name in run.metrics})
    beside = path.with_name(f"{path.stem}-timings.csv")
    _write(path, (*FIXED, *metrics), (row for run in runs for row in _rows(run, metrics)))
    _write(beside, Timing._fields, archive.timings())
    return [path, beside]


CELLS = (
    "task",
    "optimizer",
    "steps",
    "config",
    "seeds",
    "train_loss",
    "train_loss_sd",
    "test_loss",
    "normalized",
    "normalized_test",
    "speedup",
    "speedup_is_lower_bound",
    "steps_to_target",
    "diverged",
    "milliseconds_per_step",
    "times_adam",
)


def cells_csv(scores: Scores, runs: Sequence[Run]) -> str:
    """A benchmark in small: a row for each optimizer, task and horizon as CSV; losses are means over seeds at the end, to five digits.

    Args:
        scores: of the benchmark; `Cell` says what the columns are.
        runs: that were scored, for their settings.
    """
    settings = {(run.task, run.optimizer, run.horizon): sorted_json(run.config) for run in runs}
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(CELLS)
    for cell in scores.cells:
        numbers = (
            cell.train_loss.mean(),
            cell.train_loss.std(ddof=1) if len(cell.seeds) > 1 and np.isfinite(cell.train_loss).all() else np.nan,
            cell.test_loss.mean(),
            cell.normalized.mean(),
            cell.normalized_test.mean(),
            cell.speedup,
            int(cell.saturated),
            cell.steps_to_target,
            cell.diverged,
            1e3 * cell.seconds_per_step.median,
            cell.cost.median,
        )
        setting = settings.get((cell.task, cell.optimizer, cell.horizon), "{}")
        fixed = (cell.task, cell.optimizer, cell.horizon, setting, len(cell.seeds))
        table.writerow((*fixed, *("" if np.isnan(x) else f"{x:.5g}" for x in numbers)))
    return out.getvalue()


def _rows(run: Run, metrics: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    config = sorted_json(run.config)
    for i, step in enumerate(run.steps):
        losses = (float(curve[i]) for curve in (run.train_loss, run.valid_loss, run.test_loss))
        others = (float(run.metrics[name][i]) if name in run.metrics else None for name in metrics)
        yield (run.task, run.optimizer, run.horizon, config, run.fingerprint, run.seed, int(step), *losses, *others)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)


__all__ = ["CELLS", "cells_csv", "export"]
