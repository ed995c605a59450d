"""Refuse arguments in one sentence: which, what was given, what is allowed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, SupportsIndex, TypeVar, get_args

from lopt.errors import InputError

T = TypeVar("T")


def at_least(least: int | float, /, **numbers: Any) -> None:
    """Refuse a number below the least.

    Args:
        least: the smallest that is allowed.
        **numbers: by the name of the argument.

    Raises:
        InputError: for a smaller one, NaN, or what is no number.

    Examples:
        >>> at_least(1, seeds=0)
        Traceback (most recent call last):
        ...
        lopt.errors.InputError: seeds is 0; it must be at least 1.
    """
    for name, given in numbers.items():
        if isinstance(given, str):
            raise InputError(f"{name} is {given!r}; it must be a number that is at least {least}.")
        if not given >= least:
            raise InputError(f"{name} is {given}; it must be at least {least}.")


def positive(**numbers: Any) -> None:
    """Refuse a number that is not above zero.

    Args:
        **numbers: by the name of the argument.

    Raises:
        InputError: for such a number, or NaN.
    """
    for name, given in numbers.items():
        if not given > 0:
            raise InputError(f"{name} is {given}; it must be positive.")


def state_of(kind: type[T], state: object) -> T:
    """Refuse a state that is not an optimizer's own.

    Args:
        kind: the class of its states.
        state: what was given.

    Returns:
        The state.

    Raises:
        InputError: for one of another class, as that of a whole chain.
    """
    if isinstance(state, kind):
        return state
    name = type(state).__name__
    raise InputError(
        f"The state is of the class {name}, not {kind.__name__}; of a chain take the optimizer's own part, as state[1], of a wrapper its inner state."
    )


def sizes(**numbers: Any) -> None:
    """Refuse what is no positive whole number, and sequences that hold anything else.

    Args:
        **numbers: one number or a sequence of them, by the name of the argument.

    Raises:
        InputError: for the first such one.
    """
    for name, given in numbers.items():
        several = isinstance(given, Sequence) and not isinstance(given, str)
        entries: list[Any] = [*given] if several else [given]
        if not all(_is_whole(n) and n >= 1 for n in entries):
            raise InputError(f"{name} is {entries if several else given}; it must be of positive whole numbers.")


def _is_whole(number: Any) -> bool:
    return isinstance(number, SupportsIndex) and not isinstance(number, bool)


def widths(**layers: Any) -> None:
    """Refuse no hidden layer, and widths below 1.

    Args:
        **layers: by the name of the argument.

    Raises:
        InputError: for the first such one.
    """
    for name, given in layers.items():
        if not given or min(given) < 1:
            raise InputError(f"{name} is {tuple(given)}; it must hold at least one width, each at least 1.")


def shares(**numbers: Any) -> None:
    """Refuse what is not in $[0, 1)$, such as decays and probabilities of dropout, and sequences that hold nothing or anything else.

    Args:
        **numbers: one number or a sequence of them, by the name of the argument.

    Raises:
        InputError: for the first such one, or NaN.
    """
    for name, given in numbers.items():
        if isinstance(given, Sequence):
            if not given or not all(0 <= x < 1 for x in given):
                raise InputError(f"{name} is {tuple(given)}; it must hold at least one, each at least 0 and below 1.")
        elif not 0 <= given < 1:
            raise InputError(f"{name} is {given}; it must be at least 0 and below 1.")


def one_of(name: str, given: Any, allowed: Any) -> None:
    """Refuse what is not among the allowed values.

    Args:
        name: of the argument.
        given: its value.
        allowed: a collection, or a literal type.

    Raises:
        InputError: for anything else.
    """
    known = allowed if isinstance(allowed, Collection) else get_args(allowed)
    if given not in known:
        raise InputError(f"{name} is {given!r}; it must be one of {', '.join(map(str, known))}.")


__all__ = ["at_least", "one_of", "positive", "shares", "sizes", "state_of", "widths"]
