"""What lopt raises when what it was given cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """An argument, a name or a file cannot be used; the message says what was given and what is allowed."""
