"""An archive as plain tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lopt.errors import InputError
from lopt.evaluate.archive import Run, Timing, sorted_json

if TYPE_CHECKING:
    from lopt.evaluate.archive import Archive
    from lopt.evaluate.scores import Scores

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


def export(archive: Archive, path: Path) -> list[Path]:
    """`Archive.export`: its arguments and errors."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path} must end in .csv or .parquet.")
    write = _csv if path.suffix == ".csv" else _parquet()
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = archive.runs()
    metrics = sorted({name for run in runs for name in run.metrics})
    rows = (row for run in runs for row in _rows(run, metrics))
    beside = path.with_name(f"{path.stem}-timings{path.suffix}")
    write(path, (*FIXED, *metrics), rows)
    write(beside, Timing._fields, iter(archive.timings()))
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


def _csv(path: Path, columns: Sequence[str], rows: Iterator[Any]) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)


def _parquet() -> Any:
    try:
        import duckdb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("Parquet needs duckdb: pip install 'lopt[analysis]'; CSV needs nothing.") from error

    kinds = {
        "horizon": "INTEGER",
        "seed": "INTEGER",
        "step": "INTEGER",
        "turn": "INTEGER",
        "seconds_per_step": "DOUBLE",
    }
    texts = ("task", "optimizer", "config", "fingerprint", "session")

    def write(path: Path, columns: Sequence[str], rows: Iterator[Any]) -> None:
        # By way of a CSV file: duckdb reads it a hundred times faster than it takes rows one by one.
        plain = path.with_name(f".{path.name}.csv")
        types = {c: "VARCHAR" if c in texts else kinds.get(c, "FLOAT") for c in columns}
        try:
            _csv(plain, columns, rows)
            with duckdb.connect() as db:
                table = db.read_csv(str(plain), header=True, columns=types)  # pyright: ignore[reportArgumentType]
                table.write_parquet(str(path))
        finally:
            plain.unlink(missing_ok=True)

    return write


__all__ = ["CELLS", "cells_csv", "export"]
