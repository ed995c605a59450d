"""Whether what an optimizer was meta-trained on is in a benchmark."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import equinox as eqx

from lopt.errors import InputError
from lopt.evaluate.contenders import split_fields
from lopt.task import Task
from lopt.tasks import TASKS, find_member

Named = tuple[str, dict[str, Any]]  # a task's name and fields


def seen(card_tasks: Iterable[str], tasks: Iterable[str]) -> list[str]:
    """The tasks of a benchmark that are on a card.

    Two names are the same task where they build the same thing: the same type, with the same fields and the same data. So `digits_mlp` is
    `small_images/digits_32`. Fields that are given their default, their order, lists for tuples and the names of corpora make no difference.
    Coordinates and horizons that meta-training changed do not either. Tasks that merely share data or an architecture are others. A task that
    cannot be built here, for want of its data or of such a name, is compared by constructor and arguments alone.

    Args:
        card_tasks: as `zoo.Card.tasks` has them: `digits_mlp(widths=(64,))` or `corpus/member`, perhaps with `, horizon untold` behind.
        tasks: names that runs carry: `digits_mlp{"widths":[64]}` or `corpus/member`.

    Returns:
        Of `tasks`, in their order.

    Examples:
        >>> from lopt.evaluate.report.seen import seen
        >>> seen(["digits_mlp(widths=(64,)), horizon untold"], ['digits_mlp{"widths":[64]}', "digits_mlp"])
        ['digits_mlp{"widths":[64]}']
    """
    return seen_by({"": card_tasks}, tasks)[""]


def seen_by(cards: Mapping[str, Iterable[str]], tasks: Iterable[str]) -> dict[str, list[str]]:
    """`seen` for several cards; every task is built once.

    Args:
        cards: the tasks of each card, by whatever name.
        tasks: names that runs carry.
    """
    built: dict[Hashable, Task | None] = {}

    def build(call: Hashable, text: Named) -> Task | None:
        if call not in built:
            built[call] = _build(*text)
        return built[call]

    def same(one: tuple[Hashable, Named], other: tuple[Hashable, Named]) -> bool:
        a, b = build(*one), build(*other)
        return a is not None and type(a) is type(b) and bool(eqx.tree_equal(a, b))

    named, found = {task: (_call(*text), text) for task in tasks for text in [_of_run(task)]}, {}
    for card, texts in cards.items():
        known = {_call(*text): text for text in map(_of_card, texts)}
        found[card] = [
            task
            for task, (call, text) in named.items()
            if call in known or any(same((call, text), other) for other in known.items())
        ]
    return found


def _of_run(text: str) -> Named:
    try:
        return split_fields(text)
    except InputError:  # in an archive that was written by hand
        return text, {}


def _of_card(text: str) -> Named:
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


def _builder(name: str) -> Callable[..., Task]:
    return find_member(name) if "/" in name else TASKS[name]


def _build(name: str, fields: dict[str, Any]) -> Task | None:
    """The task, or `None` where it cannot be built: a page must not fail for what somebody's card says."""
    try:
        return _builder(name)(**{key: _tuples(value) for key, value in fields.items()})
    except Exception:
        return None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _call(name: str, fields: dict[str, Any]) -> Any:
    """What a name builds: constructor and arguments, or the name itself where there is no such task."""
    try:
        return _frozen(functools.partial(_builder(name), **fields))
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


__all__ = ["seen", "seen_by"]
