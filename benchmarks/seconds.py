"""Time of whole training steps, gradient and update, over those of Adam, on networks of the benches.

Run: `python benchmarks/seconds.py`. Writes `benchmarks/results/seconds.json`. With `--suite` and `--table` it times the tasks of a bench, and
says from the bench's table after which part of the seconds that Adam takes to its final loss each optimizer reached that loss.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

import lopt
from common import RESULTS, header, machine, show, spread, text, write
from lopt.evaluate.bench.suites import find_suite
from lopt.evaluate.timing import TURNS, Stretch, in_turns
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.tasks import TaskName, create

HORIZON = 10_000
ADAM = "adam"
WARM = 16  # steps before any is timed: some optimizers do more at the first ones
NETWORKS = {  # the task, sizes of a batch, steps of a stretch
    "MLP 64-32-10, digits": (TaskName("digits_mlp", {"widths": (32,)}), (16, 64, 256), 512),
    "MLP 784-128-64-10, Fashion-MNIST": (TaskName("fashion_mlp", {"size": 28, "widths": (128, 64)}), (16, 64, 256), 32),
    "conv net, 28x28 Fashion-MNIST": (TaskName("conv_net", {"images": "fashion_28"}), (16, 64), 32),
    "transformer, text": (TaskName("char_transformer", {"width": 64}), (4, 16), 8),
}


def optimizer(name: str) -> Optimizer:
    """One of `lopt list` at its defaults, or a saved one."""
    return lopt.create(name) if name in lopt.optimizers.OPTIMIZERS else lopt.load(name)


class Measured(NamedTuple):
    """A network with a size of its batch."""

    network: str
    batch: int | None  # None: the task's own
    task: Task
    length: int | None  # of a stretch, in steps; None: of about the usual time


def networks() -> Iterable[Measured]:
    """All of `NETWORKS`."""
    for network, (name, batches, length) in NETWORKS.items():
        for batch in batches:
            yield Measured(network, batch, create(TaskName(name.name, {**name.fields, "batch_size": batch})), length)


def passed(table: Path) -> dict[tuple[str, str], dict[int, float | None]]:
    """From a bench's table, by task and optimizer: the part of Adam's steps to its final loss that the optimizer took to it, by horizon; None if never."""
    with table.open(newline="") as file:
        rows = {(r["task"], r["optimizer"], int(r["steps"])): float(r["steps_to_target"]) for r in csv.DictReader(file)}
    found: dict[tuple[str, str], dict[int, float | None]] = {}
    for (task, name, horizon), steps in rows.items():
        part = steps / rows[task, ADAM, horizon]
        found.setdefault((task, name), {})[horizon] = part if np.isfinite(part) else None
    return found


def main(
    optimizers: tuple[str, ...] = ("general-1", "controlled_muon"),
    suite: str | None = None,
    table: Path | None = None,
    turns: int = TURNS,
    out: Path | None = None,
) -> None:
    """Time steps.

    Args:
        optimizers: names from `lopt list`, names of the zoo, or paths; all are told the horizon.
        suite: time its tasks in place of the networks.
        table: the losses of that bench, as `lopt report --cells` writes them; with rows of Adam and of the optimizers, told and untold.
        turns: of each network and batch; in a turn each optimizer takes a stretch of steps.
        out: the JSON file to write; `results/seconds.json` by default, or `results/seconds_SUITE.json`.
    """
    if table is not None and suite is None:
        raise SystemExit("table is of a suite; name it.")
    known = {} if table is None else passed(table)
    labels = {o: {"told": o, "untold": f'{o}{{"tell_horizon":false}}'} for o in optimizers} if table else {}
    if missing := {x for of in labels.values() for x in of.values()} - {name for _, name in known}:
        raise SystemExit(f"The table has no rows of {', '.join(sorted(missing))}.")
    facts, out = machine(), out or RESULTS / f"seconds{'' if suite is None else f'_{suite}'}.json"
    results: list[dict[str, Any]] = []
    head = ["seconds to Adam's final loss, × Adam"] if table else []
    header("network", "parameters", "batch", "optimizer", "ms a step", "ratio to Adam", *head)
    chosen = networks() if suite is None else (Measured(n, None, create(n), None) for n in find_suite(suite).tasks)
    for network, batch, task, length in chosen:
        stretches = {o: _warm(optimizer(o), task, length) for o in (ADAM, *optimizers)}
        seconds = in_turns(stretches, turns)
        for o in optimizers:
            ratio = seconds[o] / seconds[ADAM]
            row = {
                "network": network,
                "parameters": stretches[o].parameters,
                "batch": batch,
                "optimizer": o,
                "step_ms": spread(1e3 * seconds[o]),
                "ratio_to_adam": spread(ratio),
            }
            parts = {told: known.get((network, label), {}) for told, label in labels.get(o, {}).items()}
            cost = float(np.median(ratio))
            to_loss = {t: {n: part and part * cost for n, part in of.items()} for t, of in parts.items()}
            if table is not None:
                row["seconds_to_adams_loss_over_adams"] = to_loss
            said = "; ".join(
                f"{told}, {n:,} steps: {'never' if x is None else f'{x:.2f}'}"
                for told, of in to_loss.items()
                for n, x in of.items()
            )
            results.append(row)
            shown = [said] if table else []
            show(network, f"{row['parameters']:,}", batch, o, text(row["step_ms"]), text(row["ratio_to_adam"]), *shown)
        write(out, facts, results)


def _warm(optimizer: Optimizer, task: Task, length: int | None) -> Stretch:
    """A stretch that begins after some steps."""
    stretch = Stretch(optimizer, task, HORIZON, jax.random.key(0), length)
    stretch.compile()
    assert stretch.program is not None
    stretch.inner = stretch.program(optimizer, task, stretch.inner, stretch.key, WARM)
    return stretch


if __name__ == "__main__":
    tyro.cli(main)
