"""The error for arguments, names and files that cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """An argument, a name or a file cannot be used. The message says what was given and what is allowed."""
