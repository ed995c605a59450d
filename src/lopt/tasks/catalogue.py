"""All named tasks: what there is, what data they need, where they come from. Nothing is loaded before a task is built."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, NamedTuple

from lopt import tasks
from lopt.tasks.corpora.corpus import CORPORA, find_corpus, find_member
from lopt.tasks.corpora.measured import Figures, figures_of
from lopt.tasks.corpora.sampling import task_recipe
from lopt.tasks.naming import TaskName

WICHROWSKA_EVERY = 4
COORDINATES = ("reparametrized",)  # wrappers that leave the problems and their losses as they are


class Entry(NamedTuple):
    """A line of the catalogue."""

    name: str
    split: str  # of its corpus; empty for a named task
    figures: Figures | None
    data: str
    source: str


def resolved(task: TaskName) -> TaskName:
    """The same task with its corpus resolved and every field that it leaves to its default.

    Raises:
        InputError: for an unknown corpus or member.
        KeyError: for an unknown name.
        TypeError: for fields that the task does not have.
    """
    if "/" in task.name:
        member = find_member(task.name)
        task = dataclasses.replace(member, wrappers=(*member.wrappers, *task.wrappers))
    bound = inspect.signature(tasks.TASKS[task.name].build).bind(**task.fields)
    bound.apply_defaults()
    return dataclasses.replace(task, fields={k: _whole(v) for k, v in bound.arguments.items()})


def identity(task: TaskName) -> str:
    """One text for one task, whatever it is called and in whatever coordinates: its resolved form, or what was given where there is no such task."""
    try:
        found = resolved(task)
    except (KeyError, TypeError, ValueError):
        found = task
    kept = (wrapping for wrapping in found.wrappers if wrapping[0] not in COORDINATES)
    return str(dataclasses.replace(found, wrappers=tuple(kept)))


def entries(corpus: str | None = None, figures: dict[str, Figures] | None = None) -> list[Entry]:
    """The named tasks, or the members of a corpus.

    Args:
        corpus: a key of `CORPORA`.
        figures: what was measured; the package's own by default.

    Raises:
        InputError: for an unknown corpus.
    """
    if corpus is None:
        named = [("", name, TaskName(name)) for name in tasks.TASKS]
    else:
        splits = find_corpus(corpus)._asdict()
        named = [(split, f"{corpus}/{m}", task) for split, members in splits.items() for m, task in members.items()]
    of_all = CORPORA[corpus].source if corpus else ""
    return [
        Entry(name, split, figures_of(name, figures), data_of(task), of_all or tasks.TASKS[task.name].source)
        for split, name, task in named
    ]


def corpus_sizes() -> dict[str, dict[str, int]]:
    """How many members every corpus has, by split."""
    return {name: {split: len(b) for split, b in find_corpus(name)._asdict().items()} for name in CORPORA}


def to_measure(corpus: str | None = None) -> list[str]:
    """The tasks that `lopt tasks --measure` measures.

    Without a corpus all named tasks, all members of `small_images` and `held_out`, and of the large corpora a selection, lest it take hours: every
    `WICHROWSKA_EVERY`th member of `wichrowska2017_full` and one of each family of `taskset`. With a corpus all its members, but of `taskset` the same few.

    Args:
        corpus: only its members.
    """
    if corpus is None:
        whole = [name for c in ("small_images", "held_out") for name in to_measure(c)]
        ensemble = to_measure("wichrowska2017_full")[::WICHROWSKA_EVERY]
        return [*tasks.TASKS, *whole, *ensemble, *to_measure("taskset")]
    members = [name for split in find_corpus(corpus) for name in split]
    if corpus == "taskset":
        first = {}
        for member in members:
            first.setdefault(task_recipe(int(member.removeprefix("sampled_"))).config.family, member)
        members = list(first.values())
    return [f"{corpus}/{member}" for member in members]


def data_of(task: TaskName) -> str:
    """The data that a task needs, by the row of its name in `TASKS`."""
    data = tasks.TASKS[task.name].data
    return data if isinstance(data, str) else data(**resolved(task).fields)


def _whole(value: Any) -> Any:
    """Whole numbers as integers, at every depth, so that 1.0 and 1 are one value."""
    if isinstance(value, tuple):
        return tuple(map(_whole, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value
