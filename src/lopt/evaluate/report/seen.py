"""Whether what an optimizer was meta-trained on is in a benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lopt.errors import InputError
from lopt.tasks import TaskName
from lopt.tasks.catalogue import identity


def seen(card_tasks: Iterable[Any], tasks: Iterable[str]) -> list[str]:
    """The tasks of a benchmark that are on a card, under whatever name.

    Two names are one task where they stand for the same family with the same fields and wrappers. So `digits_mlp` is `small_images/digits_32`.
    Fields that are given their default make no difference, nor do scales of the parameters. Tasks that merely share data or an architecture are others.

    Args:
        card_tasks: as `zoo.Card.tasks` has them.
        tasks: names that runs carry.

    Returns:
        Of `tasks`, in their order.

    Examples:
        >>> from lopt.evaluate.report.seen import seen
        >>> seen([{"name": "small_images/digits_32"}], ["digits_mlp", "bowl"])
        ['digits_mlp']
    """
    known = {identity(TaskName.from_json(task)) for task in card_tasks}
    return [task for task in tasks if identity(_named(task)) in known]


def _named(text: str) -> TaskName:
    try:
        return TaskName.parse(text)
    except InputError:  # in an archive that was written by hand
        return TaskName(text)


__all__ = ["seen"]
