"""What a bench trains: tasks, horizons, seeds, the size of the grids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lopt.errors import InputError
from lopt.evaluate.baselines import BASELINES
from lopt.evaluate.contenders import with_fields
from lopt.evaluate.units import Protocol
from lopt.names import unknown
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
        optimizers: by default.
        axes: tasks by what they vary of the first one.
    """

    name: str
    description: str
    tasks: tuple[str, ...]
    steps: int = 200
    steps_of: Mapping[str, int] = dataclasses.field(default_factory=dict)
    multiples: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    optimizers: tuple[str, ...] = tuple(BASELINES)
    axes: Axes = dataclasses.field(default_factory=dict)

    def cells(self) -> list[tuple[str, int]]:
        """Every task with every horizon that it is trained to."""
        return [
            (task, n * self.steps_of.get(task, self.steps))
            for task in self.tasks
            for n in self.multiples.get(task, (1,))
        ]

    def changed(self, *, steps: int | None = None, seeds: int | None = None) -> Suite:
        """The suite with other steps, the same for all its tasks, or with other seeds.

        Raises:
            InputError: for numbers below 1.
        """
        for name, number in (("steps", steps), ("seeds", seeds)):
            if number is not None and number < 1:
                raise InputError(f"{name} is {number}; it must be at least 1.")
        suite = self if steps is None else dataclasses.replace(self, steps=steps, steps_of={})
        if seeds is not None:
            suite = dataclasses.replace(suite, protocol=suite.protocol._replace(seeds=seeds))
        return suite

    def settled(self) -> dict[str, Any]:
        """What an archive keeps of it, and holds every later bench to."""
        return {
            "suite": self.name,
            "cells": self.cells(),
            **self.protocol._asdict(),
            "axes": dict(self.axes),
        }


def smoke() -> Suite:
    """Three tiny tasks, three baselines: shows in two minutes that all works. Its figures say nothing about optimizers."""
    tasks = ("quadratic", "two_moons", 'digits_mlp{"widths":[16]}')
    optimizers = ("sgd", "adam", "nadamw_cosine")
    return Suite("smoke", _line(smoke), tasks, steps=50, optimizers=optimizers)


# Steps that cost over a millisecond of one core: the figures of `lopt tasks`, and what a training of the whole grid takes.
COSTLY = ("vit_", "residual_", "transformer_", "gru_", "lstm_", "conv_")


def laptop() -> Suite:
    """The twenty tasks of the corpus `held_out`, an hour of two cores with all baselines.

    200 steps each, 100 where a step is costly; evaluations look at 256 examples.
    """
    tasks = tuple(f"held_out/{name}" for name in find_corpus("held_out").test)
    fewer = {task: 100 for task in tasks if task.partition("/")[2].startswith(COSTLY)}
    return Suite("laptop", _line(laptop), tasks, steps_of=fewer, protocol=Protocol(eval_size=256))


def wichrowska2017() -> Suite:
    """The 101 problems of the ensemble of Wichrowska et al. 2017 as released, and the 12 that they held out."""
    corpus = find_corpus("wichrowska2017")
    tasks = tuple(f"wichrowska2017/{name}" for split in (corpus.train, corpus.test) for name in split)
    return Suite("wichrowska2017", _line(wichrowska2017), tasks, protocol=Protocol(eval_size=256))


TASKSET_MEMBERS = 50


def taskset() -> Suite:
    """Sampled tasks: the first fifty of the 300 test members of the corpus `taskset`."""
    tasks = tuple(f"taskset/{name}" for name in list(find_corpus("taskset").test)[:TASKSET_MEMBERS])
    return Suite("taskset", _line(taskset), tasks, steps=100, protocol=Protocol(eval_size=256))


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
    return Suite("generalisation", _line(generalisation), tasks, multiples=multiples, protocol=protocol, axes=axes)


def _line(of: Callable[[], Suite]) -> str:
    return (of.__doc__ or "").splitlines()[0]


# The one place where suites get their names.
SUITES: dict[str, Callable[[], Suite]] = {
    "generalisation": generalisation,
    "laptop": laptop,
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
        20
    """
    if name not in SUITES:
        raise InputError(unknown("suite", name, SUITES))
    return SUITES[name]()


__all__ = ["SUITES", "Suite", "find_suite"]
