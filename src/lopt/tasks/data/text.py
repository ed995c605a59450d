"""Text that comes with Python, as numbers of characters."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, UInt8

from lopt.checks import one_of
from lopt.errors import InputError
from lopt.tasks.data.images import MissingDataError

Prose = Literal["prose", "source"]

# 64 characters; capitals count as small letters, and whatever else there is as "?", the last.
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789.,:;'\"()[]{}_-+*/=<>#@|~%?"
SOURCES = ("argparse", "ast", "dataclasses", "datetime", "difflib", "inspect", "random", "statistics", "typing")


class Windows(NamedTuple):
    """Pieces of text: `inputs[i, t]` is followed by `targets[i, t]`."""

    inputs: UInt8[Array | np.ndarray, "windows length"]
    targets: UInt8[Array | np.ndarray, "windows length"]


class Text(NamedTuple):
    """Pieces of a text that do not overlap; its first four fifths train, a tenth validates, a tenth tests."""

    train: Windows
    valid: Windows
    test: Windows
    classes: int  # characters of the alphabet


@functools.cache
def text(name: Prose = "prose", length: int = 32) -> Text:
    """English prose or Python source from this Python itself, cut into windows of `length` characters.

    It differs between versions of Python: losses on it can be compared within one version only.

    Args:
        name: `prose`, the help topics of `pydoc_data` (0.46 million characters), or `source`, modules of the standard library.
        length: characters a window.

    Raises:
        InputError: for another name or a length below 1.
        MissingDataError: if this Python came without them.
    """
    one_of("name", name, Prose)
    if not 1 <= length <= 1_000:
        raise InputError(f"length is {length}; it must be from 1 to 1,000.")
    numbers = encode(_prose() if name == "prose" else _source())
    cuts = np.split(numbers, [int(0.8 * len(numbers)), int(0.9 * len(numbers))])

    def windows(part: np.ndarray) -> Windows:
        count = (len(part) - 1) // length
        inputs, targets = (part[i : i + count * length].reshape(count, length) for i in (0, 1))
        return Windows(inputs, targets)

    train, valid, test = (windows(c) for c in cuts)
    return Text(train, valid, test, len(ALPHABET))


def encode(characters: str) -> UInt8[np.ndarray, " characters"]:
    """The number of every character in `ALPHABET`."""
    numbers = np.full(256, len(ALPHABET) - 1, np.uint8)
    for i, character in enumerate(ALPHABET):
        numbers[ord(character)] = numbers[ord(character.upper())] = i
    return numbers[np.frombuffer(characters.encode("latin-1", "replace"), np.uint8)]


def _prose() -> str:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise MissingDataError(
            "Python's help topics are not on this machine: install a Python with its module pydoc_data "
            "(apt-get install python3, or one from python.org)."
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


def _source() -> str:
    specs = (importlib.util.find_spec(name) for name in SOURCES)
    files = [Path(spec.origin or "") if spec else Path() for spec in specs]
    if not all(f.suffix == ".py" and f.is_file() for f in files):
        raise MissingDataError(
            "The sources of Python's standard library are not on this machine: install a Python with its .py files "
            "(apt-get install python3, or one from python.org)."
        )
    return "\n".join(f.read_text(encoding="utf-8") for f in files)
