"""What is known of tasks by measurement: their cost, where a loss starts and how far a tuned baseline brings it. `measured.json` holds the data.

`lopt tasks --measure` writes the file (`lopt.evaluate.bench.measure`); here it is read.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lopt.errors import InputError
from lopt.task import Task
from lopt.tasks.wrappers.normalized import Normalized

MEASURED = Path(__file__).with_name("measured.json")


class Figures(NamedTuple):
    """What was measured on a task. Losses are those of the training split, means over seeds."""

    parameters: int
    step_ms: float  # of Adam, one training alone; median
    ratio_to_digits_mlp: float  # of times measured in turns; median
    initial_loss: float | None  # None: not finite
    best_loss: float | None  # of Adam at its best rate, after the steps of the run; None: it diverged at every rate
    best_rate: float | None
    run: int  # index of its provenance among the runs of the file

    @property
    def has_scale(self) -> bool:
        """Whether the baseline lowered the loss, so that a loss can be normalised."""
        return self.initial_loss is not None and self.best_loss is not None and self.best_loss < self.initial_loss


class Measured(NamedTuple):
    """The content of a file of figures."""

    runs: list[dict[str, Any]]  # command, versions, machine, steps, seeds, rates
    tasks: dict[str, Figures]


def read_measured(path: str | Path = MEASURED) -> Measured:
    """The figures in a file.

    Args:
        path: the file; the package's own by default.

    Raises:
        InputError: for a file that does not hold figures.
    """
    path = Path(path)
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(path: Path, _: int) -> Measured:
    try:
        content = json.loads(path.read_text())
        tasks = {name: Figures(**figures) for name, figures in content["tasks"].items()}
        if not all(math.isfinite(f.step_ms) and 0 <= f.run < len(content["runs"]) for f in tasks.values()):
            raise ValueError("a time is not finite or a run is missing")
        return Measured(content["runs"], tasks)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} does not hold figures of tasks, or is damaged: {error}.") from error


def measured_name(name: str) -> str:
    """The name under which the figures of a task stand: members of `wichrowska2017` are those of `wichrowska2017_full`."""
    return name.replace("wichrowska2017/", "wichrowska2017_full/", 1) if name.startswith("wichrowska2017/") else name


def figures_of(name: str, tasks: Mapping[str, Figures] | None = None) -> Figures | None:
    """The figures of a named task or of `corpus/member`; None where it was not measured.

    Args:
        name: as for `create`.
        tasks: the figures to look in; those of the package by default.
    """
    return (read_measured().tasks if tasks is None else tasks).get(measured_name(name))


def with_scale(name: str, task: Task) -> Task:
    """The task, `Normalized` by the figures of `name` where there are some; else as it is."""
    figures = figures_of(name)
    if figures is None or not figures.has_scale:
        return task
    assert figures.initial_loss is not None
    assert figures.best_loss is not None
    return Normalized(task, figures.initial_loss, figures.best_loss)
