"""Look a thing up by its name, and say what there is when it is not there."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from lopt.errors import InputError

T = TypeVar("T")


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
            raise InputError(unknown(f"field of {kind} {name}", field, known))
    try:
        return table[name](**fields)
    except TypeError as error:  # a value of the wrong type, or a field that is missing
        given = ", ".join(f"{k}={v!r}" for k, v in fields.items() if k != "key")
        raise InputError(f"{kind} {name} cannot be built from {given or 'no fields'}: {error}.") from error
