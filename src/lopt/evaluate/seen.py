"""Whether what an optimizer was meta-trained on is in a benchmark."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from lopt.errors import InputError
from lopt.evaluate.contenders import split_fields
from lopt.tasks import TASKS, find_member


def seen(card_tasks: Iterable[str], tasks: Iterable[str]) -> list[str]:
    """The tasks of a benchmark that are on a card.

    Two names are the same task where they call the same constructor with the same arguments: fields that are given their default, their order, lists for
    tuples and the names of corpora make no difference. Coordinates and horizons that meta-training changed do not either. Tasks that merely share
    data or an architecture are others; so is the same problem by another constructor, as `small_images/digits_32` and `digits_mlp`.

    Args:
        card_tasks: as `zoo.Card.tasks` has them: `digits_mlp(widths=(64,))` or `corpus/member`, perhaps with `, horizon untold` behind.
        tasks: names that runs carry: `digits_mlp{"widths":[64]}` or `corpus/member`.

    Returns:
        Of `tasks`, in their order.

    Examples:
        >>> from lopt.evaluate.seen import seen
        >>> seen(["digits_mlp(widths=(64,)), horizon untold"], ['digits_mlp{"widths":[64]}', "digits_mlp"])
        ['digits_mlp{"widths":[64]}']
    """
    known = {_call(*_of_card(text)) for text in card_tasks}
    return [task for task in tasks if _call(*_of_run(task)) in known]


def _of_run(text: str) -> tuple[str, dict[str, Any]]:
    try:
        return split_fields(text)
    except InputError:  # in an archive that was written by hand
        return text, {}


def _of_card(text: str) -> tuple[str, dict[str, Any]]:
    """Name and fields of what `recipes.TaskSpec` writes on a card; what stands behind them is left off."""
    head, *_ = _split(text)
    name, bracket, rest = head.partition("(")
    parts = [part.partition("=") for part in _split(rest.removesuffix(")"))] if bracket else []
    return name.strip(), {key.strip(): _value(value.strip()) for key, equals, value in parts if equals}


def _split(text: str) -> list[str]:
    """Parts between commas that are in no brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _value(text: str) -> Any:
    """Cards have texts without quotation marks."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _call(name: str, fields: dict[str, Any]) -> Any:
    """What a name builds: constructor and arguments, or the name itself where there is no such task."""
    try:
        builder = find_member(name) if "/" in name else TASKS[name]
        return _frozen(functools.partial(builder, **fields))
    except (InputError, KeyError, TypeError):
        return name, _frozen(fields)


def _frozen(value: Any) -> Any:
    """Arguments that compare: defaults filled in, lists as tuples, numbers apart from truth values."""
    if isinstance(value, functools.partial):
        function: Callable[..., Any] = value.func
        bound = inspect.signature(function).bind(*value.args, **value.keywords)
        bound.apply_defaults()
        return function, _frozen(bound.arguments)
    if callable(value):
        return _frozen(functools.partial(value)) if value in TASKS.values() else value
    if isinstance(value, dict):
        return tuple((k, _frozen(value[k])) for k in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, bool):
        return bool, value
    return value if isinstance(value, Hashable) else repr(value)


__all__ = ["seen"]
