"""Lines and loops of Python source: which are needed, and from where on a tensor is not read any more."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

NAME = re.compile(r"\b[acikv]\d+(?:_\d+)?\b")


@dataclasses.dataclass
class Line:
    """`names = text`, or a statement where there are no names."""

    names: Sequence[str]
    text: str

    def reads(self) -> set[str]:
        """The names that it reads."""
        return set(NAME.findall(self.text))

    def render(self) -> Iterator[str]:
        """Its source."""
        yield f"{', '.join(self.names)} = {self.text}" if self.names else self.text


@dataclasses.dataclass
class Block:
    """Lines and loops one after another.

    Attributes:
        items: the lines and loops.
        seen: the names of every expression that it holds.
    """

    items: list[Line | Loop] = dataclasses.field(default_factory=list)
    seen: dict[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Loop:
    """A loop over a range.

    Attributes:
        counter: its name.
        length: how many turns.
        block: the body.
    """

    counter: str
    length: int
    block: Block

    def reads(self) -> set[str]:
        """The names that its body reads."""
        return set().union(*(item.reads() for item in self.block.items))

    def render(self) -> Iterator[str]:
        """Its source."""
        yield f"for {self.counter} in range({self.length}):"
        for item in self.block.items:
            for line in item.render():
                yield f"    {line}"


def render(block: Block, results: Sequence[str]) -> tuple[str, int]:
    """The body of a function.

    Args:
        block: what it computes; expressions without effect, whose values nothing needs, are left out.
        results: the names that it returns.

    Returns:
        The source, and how many lines of it compute.
    """
    live, kept = set(results), []
    for item in reversed(block.items):
        if isinstance(item, Loop) or not item.names or live.intersection(item.names):
            kept.append((item, live))  # what is read later on
            live = live | item.reads()
    lines, defined, returned = [], set(), set(results)
    for item, later in reversed(kept):
        lines += item.render()
        if isinstance(item, Line):
            defined |= set(item.names)
        gone = sorted(
            (item.reads() | (set(item.names) if isinstance(item, Line) else set())) & defined - later - returned
        )
        if gone:  # its memory is free for the next
            lines.append(f"del {', '.join(gone)}")
            defined -= set(gone)
    text = "".join(f"    {line}\n" for line in lines)
    return text, sum(not line.startswith(("del ", "for ")) for line in lines)
