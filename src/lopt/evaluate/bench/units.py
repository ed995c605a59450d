"""The work of a bench: train one optimizer at all its settings on one task, and time the chosen ones in turns."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

from lopt.evaluate.contenders import Contender, Fields
from lopt.evaluate.grid import Protocol, train_settings
from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.timing import TURNS, Stretch, in_turns
from lopt.evaluate.training import default_key
from lopt.task import Task
from lopt.tasks import create


class Trained(NamedTuple):
    """A unit of work, done."""

    runs: list[Run]
    seconds: float
    compile_seconds: float


def train_unit(unit: Unit, who: Contender, protocol: Protocol) -> Trained:
    """Do a unit of work, by `train_settings`.

    Args:
        unit: the task, the label and the horizon.
        who: what trains.
        protocol: seeds, evaluations, rates.
    """
    began = time.perf_counter()
    task = fewer_examples(create(unit.task), protocol.eval_size)
    runs, compile_seconds = train_settings(task, unit, who, protocol, default_key(protocol.seed))
    return Trained(runs, time.perf_counter() - began, compile_seconds)


def fewer_examples(task: Task, size: int | None) -> Task:
    """The same task, its evaluations on at most so many examples, drawn by the key as always; wrapped tasks too."""
    if size is None:
        return task
    changes: Fields = {}
    for field in dataclasses.fields(task):
        value = getattr(task, field.name)
        if field.name == "eval_size":
            changes[field.name] = min(value, size)
        elif isinstance(value, Task):
            changes[field.name] = fewer_examples(value, size)
    changed = copy.copy(task)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)  # frozen; not built anew, because the arguments are not kept
    return changed


def time_task(
    name: str, horizon: int, chosen: Sequence[tuple[Contender, Fields]], protocol: Protocol, turns: int = TURNS
) -> list[Timing]:
    """Seconds a step of one training with each optimizer, `in_turns`.

    Args:
        name: the task.
        horizon: inner steps of a whole training.
        chosen: optimizers and their settings.
        protocol: gives the seed.
        turns: how many.
    """
    task, key = create(name), default_key(protocol.seed)
    stretches = {who.label: Stretch(who.optimizer(setting), task, horizon, key) for who, setting in chosen}
    seconds = in_turns(stretches, turns)
    return [
        Timing(name, label, horizon, turn, float(found[turn]))
        for turn in range(turns)
        for label, found in seconds.items()
    ]


__all__ = ["Trained", "fewer_examples", "time_task", "train_unit"]
