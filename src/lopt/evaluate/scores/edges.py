"""Where a grid of learning rates was too narrow: the best one is its lowest or its highest."""

from __future__ import annotations

from collections.abc import Iterable

from lopt.evaluate.runs import Run, Unit


def at_the_edge(chosen: Iterable[Run], tried: Iterable[Run]) -> dict[Unit, str]:
    """The tasks, optimizers and horizons whose chosen learning rate ends its grid, and which end it is: a better one may lie beyond.

    Args:
        chosen: the selected runs, one setting for each.
        tried: the runs of all settings. A grid of one rate has no ends.

    Returns:
        `lowest` or `highest`, in the order of `chosen`.
    """
    rates: dict[Unit, set[float]] = {}
    for run in tried:
        if "learning_rate" in run.config:
            rates.setdefault(_unit(run), set()).add(run.config["learning_rate"])
    found = {}
    for run in chosen:
        grid, rate = rates.get(_unit(run), set()), run.config.get("learning_rate")
        if len(grid) > 1 and rate in (min(grid), max(grid)):
            found[_unit(run)] = "lowest" if rate == min(grid) else "highest"
    return found


def _unit(run: Run) -> Unit:
    return Unit(run.task, run.optimizer, run.horizon)


__all__ = ["at_the_edge"]
