"""Where runs and optimizers come from, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lopt.evaluate.report.seen import seen
from lopt.evaluate.runs import Run

SEVERAL = "The runs come from several machines or versions, which the table of origins names."


class Facts(NamedTuple):
    """A table of plain text."""

    id: str
    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def origins_table(origins: Sequence[tuple[Mapping[str, Any], int]]) -> Facts | None:
    """What the units of work do not share of machine and versions; None where they share all.

    Args:
        origins: as `Archive.origins` has them.
    """
    names = dict.fromkeys(name for facts, _ in origins for name in facts)
    differ = [name for name in names if len({str(facts.get(name)) for facts, _ in origins}) > 1]
    if not differ:
        return None
    rows = [(f"{units:,}", *(str(facts.get(name, "not written")) for name in differ)) for facts, units in origins]
    return Facts("origins", "Origins of the runs", ("units of work", *differ), rows)


def seen_table(cards: Mapping[str, Mapping[str, Any]], tasks: Iterable[str]) -> Facts | None:
    """Which tasks of the bench saved optimizers were meta-trained on, by their cards; None where there are no saved ones.

    Args:
        cards: of saved optimizers, by the name under which they are reported.
        tasks: of the bench.
    """
    if not cards:
        return None
    tasks = list(tasks)
    found = {optimizer: seen(card["tasks"], tasks) for optimizer, card in cards.items() if card.get("tasks")}
    rows = [(o, ", ".join(found[o]) or "none" if o in found else "the card does not say") for o in cards]
    return Facts("seen", "Seen in meta-training", ("optimizer", "tasks of this bench on its card"), rows)


def other_horizons(trained: Iterable[Run], horizons: Mapping[str, int]) -> list[int]:
    """To what other horizons tasks were trained than those of the summaries.

    Args:
        trained: all runs that a report may be of.
        horizons: of each task: that of the summaries.
    """
    return sorted({run.horizon for run in trained if run.horizon != horizons.get(run.task)})
