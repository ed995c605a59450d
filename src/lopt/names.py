"""Look a thing up by its name, say what there is when it is not there, and write a name with its fields as text."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from lopt.errors import InputError

T = TypeVar("T")
UNTOLD = ("key", "task")  # arguments that are no fields: no message prints them


def unknown(kind: str, name: str, known: Iterable[str], most: int | None = None) -> str:
    """The sentence for an unknown name: the nearest names, else all of them, or the first `most` and how many more there are."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    more = f" and {len(known) - most:,} more" if most is not None and len(known) > most else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known[:most]) or 'none'}{more}."
    return f"There is no {kind} named {name!r}; {hint}"


def build(kind: str, table: Mapping[str, Callable[..., T]], name: str, /, **fields: Any) -> T:
    """`table[name](**fields)`, with one clear sentence for an unknown name, an unknown field or a value of the wrong type."""
    if name not in table:
        raise InputError(unknown(kind, name, table))
    known = inspect.signature(table[name]).parameters
    for field in fields:
        if field not in known:
            raise InputError(unknown(f"field of {kind} {name}", field, [k for k in known if k not in UNTOLD]))
    try:
        return table[name](**fields)
    except TypeError as error:  # a value of the wrong type, or a field that is missing
        given = ", ".join(f"{k}={v!r}" for k, v in fields.items() if k not in UNTOLD)
        raise InputError(f"{kind} {name} cannot be built from {given or 'no fields'}: {error}.") from error


def with_fields(name: str, fields: Mapping[str, Any]) -> str:
    """A name with its fields as JSON after it, one text for one thing; the bare name where there are no fields.

    Examples:
        >>> from lopt.names import with_fields
        >>> with_fields("quadratic", {"noise": 0.1, "dim": 3})
        'quadratic{"dim":3,"noise":0.1}'
    """
    return name + json.dumps(fields, sort_keys=True, separators=(",", ":")) if fields else name


def split_fields(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the fields in a text of `with_fields`. JSON's arrays become tuples.

    Raises:
        InputError: where what follows the name is no JSON object.

    Examples:
        >>> from lopt.names import split_fields
        >>> split_fields('digits_mlp{"widths": [64]}')
        ('digits_mlp', {'widths': (64,)})
    """
    name, bracket, rest = text.partition("{")
    if not bracket:
        return text, {}
    try:
        return name, tuples(json.loads(bracket + rest))
    except ValueError as error:
        raise InputError(f'{text!r} is not of the form name{{"field":value}}: {error}.') from error


def tuples(value: Any) -> Any:
    """The same value with a tuple for every list in it, at every depth: what JSON read, as Python wrote it."""
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value
