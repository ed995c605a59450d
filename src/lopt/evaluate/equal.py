"""Tell whether two functions do the same by what they are made of."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import numpy as np


class Equal:
    """A value that equals another where both are made of the same code over the same numbers, however often they were built.

    `optax.adam(0.1)` builds new functions at every call. Two such calls give equal values here: their functions have the same code, globals and
    defaults, and their closures hold equal things. What cannot be looked into equals itself alone.

    Args:
        value: functions, arrays and plain data, in tuples, lists and mappings.
    """

    def __init__(self, value: Any):
        self.value = value
        self.parts = _parts(value, {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


class _Same:
    """A thing that equals itself alone. It keeps the thing alive, so that no other takes its place in memory."""

    def __init__(self, thing: Any):
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


_EMPTY = object()


def _parts(thing: Any, above: dict[int, int]) -> Hashable:
    """What decides, as something hashable. `above` numbers what is being looked into: a function may hold itself."""
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes):
        return type(thing), repr(thing)
    if id(thing) in above:
        return "above", above[id(thing)]
    above = above | {id(thing): len(above)}
    if isinstance(thing, types.FunctionType):
        cells = [_content(cell) for cell in thing.__closure__ or ()]
        inside = (cells, thing.__defaults__, thing.__kwdefaults__)
        return thing.__code__, _Same(thing.__globals__), _parts(inside, above)
    if isinstance(thing, functools.partial):
        return functools.partial, _parts((thing.func, thing.args, thing.keywords), above)
    if isinstance(thing, types.MethodType):
        return types.MethodType, _parts((thing.__func__, thing.__self__), above)
    if isinstance(thing, tuple | list):
        return type(thing), tuple(_parts(x, above) for x in thing)
    if isinstance(thing, Mapping):
        return type(thing), tuple((_parts(k, above), _parts(v, above)) for k, v in thing.items())
    if isinstance(thing, np.ndarray | np.generic | jax.Array):
        with contextlib.suppress(TypeError):  # what is traced has no content yet
            array = np.asarray(thing)
            return type(thing), str(array.dtype), array.shape, array.tobytes()
    return _Same(thing)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _EMPTY


__all__ = ["Equal"]
