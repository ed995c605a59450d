"""What constructors of optimizers refuse: sizes and decays that no rule can have."""

from __future__ import annotations

from collections.abc import Sequence

from lopt.errors import InputError


def check_sizes(**sizes: int) -> None:
    """Refuse numbers of units below 1.

    Args:
        **sizes: by the name of the argument.

    Raises:
        InputError: for the first such one.
    """
    for name, given in sizes.items():
        if given < 1:
            raise InputError(f"{name} is {given}; it must be at least 1.")


def check_widths(**widths: Sequence[int]) -> None:
    """Refuse no hidden layer, and widths below 1.

    Args:
        **widths: by the name of the argument.

    Raises:
        InputError: for the first such one.
    """
    for name, given in widths.items():
        if not given or min(given) < 1:
            raise InputError(f"{name} is {tuple(given)}; it must hold at least one width, each at least 1.")


def check_decays(**decays: float | Sequence[float]) -> None:
    """Refuse no decay, and decays outside of $[0, 1)$.

    Args:
        **decays: one or several, by the name of the argument.

    Raises:
        InputError: for the first such one.
    """
    for name, given in decays.items():
        if isinstance(given, Sequence):
            if not given or not all(0 <= decay < 1 for decay in given):
                raise InputError(f"{name} is {tuple(given)}; it must hold at least one, each at least 0 and below 1.")
        elif not 0 <= given < 1:
            raise InputError(f"{name} is {given}; it must be at least 0 and below 1.")
