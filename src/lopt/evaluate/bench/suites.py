"""What a bench trains: tasks, horizons, seeds, the size of the grids."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.baselines import BASELINES, LEARNING_RATES, settings
from lopt.evaluate.grid import Protocol
from lopt.names import unknown, with_fields
from lopt.tasks import find_corpus

Axes = Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tasks and how they are trained.

    Args:
        name: of the suite.
        description: one line.
        tasks: names as runs carry them.
        steps: inner steps of a training.
        steps_of: of tasks that take another number.
        multiples: of the steps, for tasks that are trained to several horizons.
        protocol: seeds, evaluations, rates: what all runs share.
        eval_sizes: of tasks whose evaluations look at another number of examples than the protocol says.
        optimizers: by default.
        axes: tasks by what they vary of the first one.
        note: what a report of it says first.
        reference_multiple: of a task's shortest horizon, to which Adam's grid is trained as well, where no horizon of the task is as long. Speed-up
            over Adam is read from all of Adam's trainings on the task, and cannot exceed the longest of them over the optimizer's own.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    steps: int = 200
    steps_of: Mapping[str, int] = dataclasses.field(default_factory=dict)
    multiples: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    eval_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    optimizers: tuple[str, ...] = tuple(BASELINES)
    axes: Axes = dataclasses.field(default_factory=dict)
    reference_multiple: int = 1
    note: str = ""

    def cells(self) -> list[tuple[str, int]]:
        """Every task with every horizon that it is trained to: the first horizon of all tasks, then the second."""
        multiples = {task: self.multiples.get(task, (1,)) for task in self.tasks}
        return [
            (task, multiples[task][i] * self.steps_of.get(task, self.steps))
            for i in range(max(map(len, multiples.values()), default=0))
            for task in self.tasks
            if i < len(multiples[task])
        ]

    def reference_cells(self) -> list[tuple[str, int]]:
        """Tasks and longer horizons to which Adam alone is trained, and on which nobody is scored."""
        horizons: dict[str, list[int]] = {}
        for task, horizon in self.cells():
            horizons.setdefault(task, []).append(horizon)
        longer = {task: (self.reference_multiple * min(known), max(known)) for task, known in horizons.items()}
        return [(task, horizon) for task, (horizon, longest) in longer.items() if horizon > longest]

    def changed(self, *, steps: int | None = None, seeds: int | None = None) -> Suite:
        """The suite with other steps, the same for all its tasks, or with other seeds.

        Raises:
            InputError: for numbers below 1.
        """
        at_least(1, **{name: n for name, n in (("steps", steps), ("seeds", seeds)) if n is not None})
        suite = self if steps is None else dataclasses.replace(self, steps=steps, steps_of={})
        if seeds is not None:
            suite = dataclasses.replace(suite, protocol=suite.protocol._replace(seeds=seeds))
        return suite

    def protocol_of(self, task: str) -> Protocol:
        """The protocol of a task's runs."""
        return self.protocol._replace(eval_size=self.eval_sizes.get(task, self.protocol.eval_size))

    def chosen(
        self, tasks: Sequence[str] = (), shortest: int | None = None, longest: int | None = None
    ) -> set[tuple[str, int]]:
        """Tasks and horizons that a call asks for, those of `reference_cells` among them. All by default.

        Args:
            tasks: of the suite, those of a corpus also without its name.
            shortest: steps of a training, at least.
            longest: steps of a training, at most.

        Returns:
            Names and horizons.

        Raises:
            InputError: for a task that the suite does not have, with the nearest ones, and where no training is left.
        """
        bounds = {name: n for name, n in (("shortest", shortest), ("longest", longest)) if n is not None}
        at_least(1, **bounds)
        aliases = {task: task.partition("/")[2] or task for task in self.tasks}
        for task in tasks:
            if task not in {*aliases, *aliases.values()}:
                raise InputError(unknown(f"task of {self.name}", task, aliases.values()))
        cells = [
            (task, horizon)
            for task, horizon in (*self.cells(), *self.reference_cells())
            if not tasks or task in tasks or aliases[task] in tasks
        ]
        low, high = bounds.get("shortest", 1), bounds.get("longest", math.inf)
        if not (found := {(task, horizon) for task, horizon in cells if low <= horizon <= high}):
            words = {"shortest": "or more", "longest": "or fewer"}
            asked = " and ".join(f"{steps:,} {words[name]}" for name, steps in bounds.items())
            known = ", ".join(f"{horizon:,}" for horizon in sorted({horizon for _, horizon in cells}))
            raise InputError(f"No training of {self.name} has {asked} steps; these tasks have {known}.")
        return found

    def settled(self) -> dict[str, Any]:
        """What an archive keeps of it, and holds every later bench to."""
        return {
            "suite": self.name,
            "cells": self.cells(),
            **self.protocol._asdict(),
            "eval_sizes": dict(self.eval_sizes),
            "axes": dict(self.axes),
            "grids": {name: settings(name, self.protocol.learning_rates) for name in BASELINES},
            "reference_multiple": self.reference_multiple,
        }


def smoke() -> Suite:
    """Three tiny tasks, three baselines: shows in minutes that all works. Its figures say nothing about optimizers."""
    tasks = ("quadratic", "two_moons", 'digits_mlp{"widths":[16]}')
    optimizers = ("sgd", "adam", "nadamw_cosine")
    return Suite("smoke", _line(smoke), tasks, steps=50, optimizers=optimizers, reference_multiple=2)


REFERENCE_MULTIPLE = 5  # a speed-up beyond it is told as "at least"; Adam's grid then costs as much as six baselines with one rate to tune

# Of the laptop's tasks those whose steps cost over a millisecond of one core, and several.
FEWER_STEPS = {"image_vit": 100, "residual_net": 100, "char_rnn": 100, "char_transformer": 50}
LEFT_OUT = "conv_net"  # its two members would cost more than the others together: Muon alone takes 40 minutes for the grid of one
STRONG = ("adam", "adamw_cosine", "nadamw_cosine", "muon_cosine", "schedule_free_adamw")  # baselines
PIECES = dict.fromkeys(("char_rnn", "char_transformer"), 64)  # of text, that an evaluation looks at


def _held_out() -> dict[str, str]:
    """The members of the corpus `held_out`, and of each the name of its family in `TASKS`."""
    return {f"held_out/{member}": task.name for member, task in find_corpus("held_out").test.items()}


def laptop() -> Suite:
    """Eighteen tasks of the corpus `held_out`, meant for about an hour of two cores with all baselines: all but two large conv nets.

    200 steps each, 100 or 50 where a step is costly; evaluations look at 256 examples, or 64 pieces of text, each of dozens of characters.
    """
    families = {task: family for task, family in _held_out().items() if family != LEFT_OUT}
    fewer = {task: FEWER_STEPS[family] for task, family in families.items() if family in FEWER_STEPS}
    pieces = {task: PIECES[family] for task, family in families.items() if family in PIECES}
    protocol = Protocol(eval_size=256)
    return Suite(
        "laptop",
        _line(laptop),
        tuple(families),
        steps_of=fewer,
        protocol=protocol,
        eval_sizes=pieces,
        reference_multiple=REFERENCE_MULTIPLE,
    )


def held_out() -> Suite:
    """The whole corpus `held_out` at 200, 1,000 and 5,000 steps with 5 seeds: hours. Adam and the strongest of the other baselines by default.

    Nine rates of each, from 1e-4 to 1. All settings of a grid train one seed, the promising ones all five.
    """
    families = _held_out()
    tasks = tuple(sorted(families, key=lambda task: families[task] == LEFT_OUT))  # the costliest last
    pieces = {task: PIECES[family] for task, family in families.items() if family in PIECES}
    return Suite(
        "held_out",
        _line(held_out),
        tasks,
        steps=200,
        multiples=dict.fromkeys(tasks, (1, 5, 25)),
        protocol=Protocol(seeds=5, evals=25, eval_size=256, finalists=2, learning_rates=LEARNING_RATES[4:13]),
        eval_sizes=pieces,
        optimizers=STRONG,
    )


def meta_valid() -> Suite:
    """Twelve tasks to choose by, of the corpora's splits for validation, at 500 and 2,000 steps. Adam alone by default.

    All settings of a grid train one seed, the promising ones all three.
    """
    tasks = [f"small_images/{name}" for name in list(find_corpus("small_images").valid)[::2]]
    tasks += [f"taskset/sampled_{seed}" for seed in META_VALID]
    return Suite(
        "meta_valid",
        _line(meta_valid),
        tuple(tasks),
        steps=500,
        multiples=dict.fromkeys(tasks, (1, 4)),
        protocol=Protocol(evals=25, eval_size=256, finalists=2),
        eval_sizes={"taskset/sampled_2005": 64},
        optimizers=("adam",),
        note="The tasks of this suite are to choose by, never to report on.",
    )


def wichrowska2017() -> Suite:
    """The 101 problems of the ensemble of Wichrowska et al. 2017 as released, and the 12 that they held out."""
    corpus = find_corpus("wichrowska2017")
    tasks = tuple(f"wichrowska2017/{name}" for split in (corpus.train, corpus.test) for name in split)
    return Suite(
        "wichrowska2017",
        _line(wichrowska2017),
        tasks,
        protocol=Protocol(eval_size=256),
        reference_multiple=REFERENCE_MULTIPLE,
    )


TASKSET_MEMBERS = 50
META_VALID = (
    2000,
    2003,
    2005,
    2008,
    2009,
    2014,
    2016,
    2017,
)  # the first of each family, loss and kind of data; 2005 is text


def taskset() -> Suite:
    """Sampled tasks: the first fifty of the 300 test members of the corpus `taskset`."""
    tasks = tuple(f"taskset/{name}" for name in list(find_corpus("taskset").test)[:TASKSET_MEMBERS])
    return Suite(
        "taskset",
        _line(taskset),
        tasks,
        steps=100,
        protocol=Protocol(eval_size=256),
        reference_multiple=REFERENCE_MULTIPLE,
    )


def generalisation() -> Suite:
    """How far from `digits_mlp` an optimizer still works: width, depth, batch size, data, architecture, and up to ten times its 200 steps."""
    home = "digits_mlp"

    def mlps(**fields: Any) -> tuple[str, ...]:
        (field, values), *_ = fields.items()
        return (home, *(with_fields(home, {field: value}) for value in values))

    axes: Axes = {
        "width": mlps(widths=[[8], [128], [512]]),
        "depth": mlps(widths=[[32] * 2, [32] * 4, [32] * 8]),
        "batch_size": mlps(batch_size=[8, 256, 1024]),
        "data": (home, 'table_mlp{"table":"wine"}', 'fashion_mlp{"size":8}', 'fashion_mlp{"size":14}'),
        "architecture": (
            home,
            'digits_mlp{"activation":"tanh"}',
            'digits_mlp{"norm":"batch"}',
            "conv_net",
            "image_vit",
        ),
    }
    tasks = tuple(dict.fromkeys(task for axis in axes.values() for task in axis))
    multiples = {home: (1, 2, 5, 10)}
    protocol = Protocol(eval_size=256)
    return Suite(
        "generalisation",
        _line(generalisation),
        tasks,
        multiples=multiples,
        protocol=protocol,
        axes=axes,
        reference_multiple=REFERENCE_MULTIPLE,
    )


def _line(of: Callable[[], Suite]) -> str:
    return (of.__doc__ or "").splitlines()[0]


# The one place where suites get their names.
SUITES: dict[str, Callable[[], Suite]] = {
    "generalisation": generalisation,
    "held_out": held_out,
    "laptop": laptop,
    "meta_valid": meta_valid,
    "smoke": smoke,
    "taskset": taskset,
    "wichrowska2017": wichrowska2017,
}


def find_suite(name: str) -> Suite:
    """The suite of this name: a key of `SUITES`.

    Raises:
        InputError: for an unknown name, with the nearest ones.

    Examples:
        >>> from lopt.evaluate import find_suite
        >>> len(find_suite("laptop").tasks)
        18
    """
    if name not in SUITES:
        raise InputError(unknown("suite", name, SUITES))
    return SUITES[name]()


__all__ = ["SUITES", "Suite", "find_suite"]
