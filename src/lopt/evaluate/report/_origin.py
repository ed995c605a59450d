"""What a reader must know of a benchmark's runs, of their origin and of those that are not in the summaries, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lopt.evaluate.report._summary import Name, listed
from lopt.evaluate.report.seen import seen
from lopt.evaluate.runs import Run

VALUES = {"lopt": "versions of lopt", "machine": "machines", "XLA_FLAGS": "values of XLA_FLAGS"}
NAMED = 5  # tasks of a sentence
NOT_WRITTEN = "one that was not written down"


def mixed(origins: Sequence[tuple[Mapping[str, Any], int]]) -> list[str]:
    """What the units of work do not share of machine and versions, a sentence each.

    Args:
        origins: as `Archive.origins` has them.
    """
    known = [({"machine": _machine(facts), **facts}, units) for facts, units in origins]
    names = dict.fromkeys(name for facts, _ in known for name in facts if name not in ("cpu", "cores"))
    total = sum(units for _, units in origins)
    found = []
    for name in ("lopt", *(name for name in names if name != "lopt")):
        counts: Counter[str] = Counter()
        for facts, units in known:
            counts[NOT_WRITTEN if (value := facts.get(name)) is None else str(value) or "none"] += units
        if len(counts) > 1:
            what = VALUES.get(name, f"versions of {name}")
            shares = listed([f"{value} ({units:,} of {total:,} units of work)" for value, units in counts.items()])
            found.append(f"The runs come from {len(counts)} {what}: {shares}.")
    return found


def _machine(facts: Mapping[str, Any]) -> str | None:
    return f"{facts['cpu']} with {facts.get('cores', 'unknown')} cores" if "cpu" in facts else None


def not_scored(trained: Iterable[Run], horizons: Mapping[str, int], name: Name) -> list[str]:
    """To what other horizons tasks were trained than those of the summaries, in a sentence; none where there are no others.

    Args:
        trained: all runs that a report may be of.
        horizons: of each task: that of the summaries.
        name: how a name is written.
    """
    others = {(run.task, run.horizon) for run in trained if run.horizon != horizons.get(run.task)}
    tasks = {task for task, _ in others}
    if not others:
        return []
    steps = listed([f"{horizon:,}" for horizon in sorted({horizon for _, horizon in others})])
    command = f"{name('lopt report --horizon')} scores those."
    if len(tasks) == len(horizons):
        return [f"Also trained to {steps} steps; {command}"]
    were = "1 task was" if len(tasks) == 1 else f"{len(tasks)} tasks were"
    return [f"{were} also trained to {steps} steps; {command}"]


def meta_trained_here(
    cards: Mapping[str, Mapping[str, Any]], found: Mapping[str, Sequence[str]], name: Name
) -> list[str]:
    """Which saved optimizers were meta-trained on tasks of the bench, by their cards, a sentence each; where there are none, one for all.

    Args:
        cards: of saved optimizers.
        found: of each the tasks of the bench that are on its card, by `on_cards`.
        name: how a name is written.
    """
    said = [
        f"{name(optimizer)} was meta-trained on {_some([name(task) for task in there])} of this bench."
        for optimizer, there in found.items()
        if there
    ]
    if found and not said:
        said.append(f"No task of this bench is on the card of {_either(map(name, found))}.")
    if silent := [name(optimizer) for optimizer in cards if optimizer not in found]:
        said.append(f"The card of {_either(silent)} does not say on what it was meta-trained.")
    return said


def on_cards(cards: Mapping[str, Mapping[str, Any]], tasks: Iterable[str]) -> dict[str, list[str]]:
    """Of each saved optimizer whose card says on what it was meta-trained, the tasks of the bench that are among it."""
    tasks = list(tasks)
    return {optimizer: seen(card["tasks"], tasks) for optimizer, card in cards.items() if card.get("tasks")}


def _some(parts: Sequence[str]) -> str:
    """At most the first `NAMED`, and how many others there are."""
    more = len(parts) - NAMED
    return listed([*parts[:NAMED], f"{more} more"] if more > 0 else parts)


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
