"""An archive as plain tables."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopt.errors import InputError
from lopt.evaluate.archive import Run, Timing, sorted_json

if TYPE_CHECKING:
    from lopt.evaluate.archive import Archive

FIXED = ("task", "optimizer", "horizon", "config", "weights", "seed", "step", "train_loss", "valid_loss", "test_loss")


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


def _rows(run: Run, metrics: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    config = sorted_json(run.config)
    for i, step in enumerate(run.steps):
        losses = (float(curve[i]) for curve in (run.train_loss, run.valid_loss, run.test_loss))
        others = (float(run.metrics[name][i]) if name in run.metrics else None for name in metrics)
        yield (run.task, run.optimizer, run.horizon, config, run.weights, run.seed, int(step), *losses, *others)


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
    texts = ("task", "optimizer", "config", "weights", "session")

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


__all__ = ["export"]
