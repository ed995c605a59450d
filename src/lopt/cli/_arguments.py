"""What several commands take and say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from lopt.errors import InputError

Fields = tuple[str, ...]
RANDOM = "lopt: {} has random weights; the path of a saved optimizer gives trained ones"


def task_of(name: str, fields: Fields) -> Any:
    """The task of this name with these arguments."""
    from lopt import tasks

    return tasks.create(name, **parse(fields))


def optimizer_of(name: str, fields: Fields) -> Any:
    """What `train` and `probe` take: an optimizer at one setting."""
    from lopt.evaluate.contenders import is_random, one_setting
    from lopt.names import split_fields

    found = one_setting(name, parse(fields))
    if is_random(kind := split_fields(name)[0]):
        print(RANDOM.format(kind), file=sys.stderr)
    return found


def contestant(text: str) -> Any:
    """What `compare` takes: the name of a baseline that is to be tuned, or an optimizer."""
    from lopt.evaluate.contenders import contender, is_random

    found = contender(text)
    if found.is_tuned:
        return found.name
    if not found.tell_horizon:
        raise InputError(
            f"{text}: compare tells all optimizers the horizon; leave tell_horizon out, or use lopt bench."
        )
    if is_random(found.name):
        print(RANDOM.format(found.name), file=sys.stderr)
    return found.optimizer(found.fields or {})


def parse(fields: Fields) -> dict[str, Any]:
    """`name=value` as a dictionary; a value is JSON, or else text."""
    parsed = {}
    for field in fields:
        name, equals, text = field.partition("=")
        if not equals:
            raise InputError(f"{field!r} is not of the form name=value.")
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            parsed[name] = text
    return parsed


def summary(thing: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def say(text: str) -> None:
    """A line of progress."""
    from lopt.console import console

    console.print(text, style="dim")
