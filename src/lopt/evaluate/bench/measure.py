"""Measure named tasks: their cost, where a loss starts and how far a tuned baseline brings it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lopt.checkpoint import write_text
from lopt.errors import InputError
from lopt.evaluate.baselines import LEARNING_RATES, Baseline
from lopt.evaluate.grid import tune
from lopt.evaluate.timing import Stretch, in_turns, machine, spread
from lopt.evaluate.training import default_key
from lopt.task import Task
from lopt.tasks import MissingDataError, TaskName, create, find_member
from lopt.tasks.catalogue import identity
from lopt.tasks.corpora.measured import Figures, measured_name, read_measured
from lopt.version import __version__

STEPS = 50  # of each training of the sweep
SEEDS = 3
TIMED_STEPS, REPEATS = 20, 10  # a timed stretch, and how many of them
DIGITS = 5  # significant, of losses


def measure(
    names: Sequence[str],
    out: Path,
    *,
    command: str,
    steps: int = STEPS,
    seeds: int = SEEDS,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Measure tasks and write what is found to a file, after every task, by write-then-rename. Those that the file has are skipped,
    and what has two names is measured once.

    Parameters, milliseconds a step of Adam, their ratio to `digits_mlp`, the initial training loss and the best that Adam reaches at one of `LEARNING_RATES`
    constant rates (`tune`), means over seeds. A task whose data are missing is left out.

    Args:
        names: named tasks, or `corpus/member`.
        out: the file; read by `read_measured`.
        command: goes into the provenance.
        steps: of each training of the sweep.
        seeds: trainings a rate.
        on_progress: told what is being done.
    """
    tell = on_progress or (lambda _: None)
    runs, tasks = read_measured(out) if out.exists() else ([], {})
    runs, tasks = list(runs), dict(tasks)
    wanted = [n for n in dict.fromkeys(map(measured_name, names)) if n not in tasks]
    if not wanted:
        return
    run = _provenance(command, steps, seeds)
    # A run that was stopped and continued is one run, whatever the load.
    index = next((i for i, r in enumerate(runs) if r | {"load_before": 0} == run | {"load_before": 0}), len(runs))
    runs = runs if index < len(runs) else [*runs, run]
    base = stretch(create("digits_mlp"))
    known = {identity(TaskName.parse(name)): row for name, row in tasks.items()}  # a task may have two names
    for i, name in enumerate(wanted):
        tell(f"{i + 1} of {len(wanted)}: {name}")
        if (this := identity(named := TaskName.parse(name))) not in known:
            try:
                task = create(find_member(name) if "/" in name else named)  # a member before it is normalised
            except MissingDataError as error:
                tell(f"{name} is left out: {error}")
                continue
            known[this] = figures(task, base, run=index, steps=steps, seeds=seeds)
        tasks[name] = known[this]
        found = {"runs": runs, "tasks": {n: t._asdict() for n, t in sorted(tasks.items())}}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, _dump(found))
        if i % 20 == 19:
            jax.clear_caches()  # hundreds of programs that nobody will run again


def figures(task: Task, base: Stretch, *, run: int, steps: int = STEPS, seeds: int = SEEDS) -> Figures:
    """Measure one task.

    Args:
        task: what to measure.
        base: of `digits_mlp`.
        run: index of the provenance.
        steps: as for `measure`.
        seeds: as for `measure`.
    """
    this = stretch(task)
    times = in_turns({"this": this, "base": base}, REPEATS)
    try:
        adam = tune("adam", task, steps=steps, key=default_key(0), seeds=seeds)
        initial, best = np.array([run.train_loss[0] for run in adam.chosen]), adam.train_loss
        rate = adam.setting["learning_rate"]
    except InputError:  # at every rate a loss was not finite
        initial, best, rate = None, None, None
    milliseconds, ratio = (spread(x).as_json()["median"] for x in (1e3 * times["this"], times["this"] / times["base"]))
    return Figures(this.parameters, milliseconds, ratio, _mean(initial), _mean(best), rate, run)


def stretch(task: Task, steps: int = TIMED_STEPS) -> Stretch:
    """Steps of Adam, by which the cost of a task is told."""
    return Stretch(Baseline("adam", {"learning_rate": 1e-3}), task, steps, default_key(0), steps)


def _mean(losses: np.ndarray | None) -> float | None:
    mean = float("nan") if losses is None else float(losses.mean())
    return float(f"{mean:.{DIGITS}g}") if math.isfinite(mean) else None


def _provenance(command: str, steps: int, seeds: int) -> dict[str, Any]:
    rates = {"steps": steps, "seeds": seeds, "learning_rates": list(LEARNING_RATES)}
    return {
        "command": command,
        "lopt": __version__,
        **machine(),
        **rates,
        "timed_steps": TIMED_STEPS,
        "repeats": REPEATS,
    }


def _dump(content: dict[str, Any]) -> str:
    """JSON, a line a task."""
    runs = ",\n".join(f"  {json.dumps(run)}" for run in content["runs"])
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in content["tasks"].items())
    return f'{{\n "runs": [\n{runs}\n ],\n "tasks": {{\n{rows}\n }}\n}}\n'
