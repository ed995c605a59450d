"""Refuse arguments in one sentence: which, what was given, what is allowed."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

from lopt.errors import InputError


def at_least(name: str, given: int | float, least: int | float) -> None:
    """Refuse a number below the least.

    Args:
        name: of the argument.
        given: its value.
        least: the smallest that is allowed.

    Raises:
        InputError: for a smaller one, or NaN.

    Examples:
        >>> at_least("seeds", 0, 1)
        Traceback (most recent call last):
        ...
        lopt.errors.InputError: seeds is 0; it must be at least 1.
    """
    if not given >= least:
        raise InputError(f"{name} is {given}; it must be at least {least}.")


def positive(name: str, given: int | float) -> None:
    """Refuse a number that is not above zero and finite.

    Args:
        name: of the argument.
        given: its value.

    Raises:
        InputError: for such a number, or NaN.
    """
    if not 0 < given < float("inf"):
        raise InputError(f"{name} is {given}; it must be positive and finite.")


def share(name: str, given: int | float, *, below_one: bool = False) -> None:
    """Refuse a number outside of $[0, 1]$, or of $[0, 1)$.

    Args:
        name: of the argument.
        given: its value.
        below_one: whether 1 itself is refused.

    Raises:
        InputError: for such a number, or NaN.
    """
    if not 0 <= given <= 1 or (below_one and given == 1):
        raise InputError(f"{name} is {given}; it must be at least 0 and {'below' if below_one else 'at most'} 1.")


def one_of(name: str, given: Any, allowed: Collection[Any]) -> None:
    """Refuse what is not among the allowed values.

    Args:
        name: of the argument.
        given: its value.
        allowed: all that may be given.

    Raises:
        InputError: for anything else.
    """
    if given not in allowed:
        raise InputError(f"{name} is {given!r}; it must be one of {', '.join(map(str, allowed))}.")


def in_order(name: str, given: Sequence[int | float]) -> None:
    """Refuse numbers of which one is smaller than the one before.

    Args:
        name: of the argument.
        given: its values.

    Raises:
        InputError: for such numbers, or none.
    """
    if not given or any(b < a for a, b in itertools.pairwise(given)):
        raise InputError(f"{name} is {tuple(given)}; it must hold at least one number, and none below the one before.")


__all__ = ["at_least", "in_order", "one_of", "positive", "share"]
