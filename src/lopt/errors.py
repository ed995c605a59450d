"""The errors for unusable arguments, names and files, and for optional packages that are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """An argument, a name or a file cannot be used. The message says what was given and what is allowed."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import optional packages inside this context: if one is missing, the error names the extra that installs it.

    Args:
        extra: an optional dependency of `pyproject.toml`, as `plot`.

    Raises:
        InputError: if an import inside the context finds no package.

    Examples:
        >>> from lopt.errors import needs_extra
        >>> with needs_extra("plot"):
        ...     import a_missing_package
        Traceback (most recent call last):
            ...
        lopt.errors.InputError: The package a_missing_package is not installed; it comes with the extra plot: pip install 'PATH-TO-CLONE[plot]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise InputError(
            f"The package {package} is not installed; it comes with the extra {extra}: pip install 'PATH-TO-CLONE[{extra}]'."
        ) from error
