"""A saved optimizer on the held-out bench, beside the rows that docs/data/held_out.csv has of the others. It trains as `lopt bench held_out` does, on the
same problems, and tunes nothing again."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from common import RESULTS, header, machine, show, write
from lopt.evaluate.bench.suites import find_suite
from lopt.evaluate.bench.units import train_unit
from lopt.evaluate.contenders import contender
from lopt.evaluate.runs import Unit
from lopt.evaluate.scores.cells import DIVERGED
from lopt.evaluate.scores.statistics import mean_interval

OTHERS = Path(__file__).parents[1] / "docs" / "data" / "held_out.csv"


def main(
    optimizer: str,
    horizons: tuple[int, ...] = (200,),
    beside: tuple[str, ...] = ("general-1", 'general-1{"tell_horizon":false}'),
    others: Path = OTHERS,
    out: Path = RESULTS / "beside.json",
) -> None:
    """Train, compare with tuned Adam and with others, print a table for each horizon.

    Args:
        optimizer: a saved one.
        horizons: of 200, 1,000 and 5,000 steps.
        beside: optimizers of the table.
        others: the rows of the bench.
        out: JSON file for the figures.
    """
    suite, facts, results = find_suite("held_out"), machine(), []
    with others.open(newline="") as file:
        known = {(r["task"], r["optimizer"], int(r["steps"])): r for r in csv.DictReader(file)}
    for horizon in horizons:
        header("task", optimizer, "seeds", "adam", *beside, f"{optimizer}, normalised", "diverged")
        for task, steps in suite.cells():
            if steps != horizon:
                continue
            row = look(task, optimizer, horizon, known)
            results.append(row)
            losses = [known[task, name, horizon]["train_loss"] for name in ("adam", *beside)]
            show(task, f"{row['train_loss']:.3g}", row["seeds"], *losses, f"{row['normalized']:.3f}", row["diverged"])
            write(out, facts, results)
        found = [row for row in results if row["steps"] == horizon]
        for name in ("adam", *beside):
            won = sum(row["train_loss"] < float(known[row["task"], name, horizon]["train_loss"]) for row in found)
            print(f"{horizon} steps: {optimizer} ends lower than {name} on {won} of {len(found)} tasks.")
        scores = np.array([row["normalized"] for row in found])
        print(f"{horizon} steps: median normalised loss {np.median(scores):.3f}, {mean_interval(scores)} over tasks.")


def look(task: str, optimizer: str, horizon: int, known: dict[tuple[str, str, int], dict[str, str]]) -> dict[str, Any]:
    """One task: 0 is tuned Adam's loss, 1 the one at the start."""
    runs = train_unit(
        Unit(task, optimizer, horizon), contender(optimizer), find_suite("held_out").protocol_of(task)
    ).runs
    last = np.array([run.train_loss[-1] for run in runs], np.float64)
    first = float(np.mean([run.train_loss[0] for run in runs]))
    adam = float(known[task, "adam", horizon]["train_loss"])
    each = (np.where(np.isfinite(last), last, np.inf) - adam) / (first - adam)
    return {
        "task": task,
        "optimizer": optimizer,
        "steps": horizon,
        "seeds": len(runs),
        "initial_loss": first,
        "train_loss": float(last.mean()),
        "test_loss": float(np.mean([run.test_loss[-1] for run in runs])),
        "normalized": float(each.mean()),
        "diverged": int(sum(not x <= DIVERGED for x in each)),
    }


if __name__ == "__main__":
    tyro.cli(main)
