"""The lineage of a population: a line for every evaluation and every copy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lopt import checkpoint
from lopt.errors import InputError
from lopt.population.cycle import Selection

LINEAGE = "lineage.jsonl"


class Lineage:
    """The file `lineage.jsonl` of a run directory.

    A line is `{"cycle", "event": "evaluation", "member", "loss", "trainer"}`, its loss null where the member diverged, or
    `{"cycle", "event": "copy", "member", "from", "trainer", "changed"}`, with the trainer from then on and whether it is another than the parent's.
    A parent of -1 is the best member so far, as it was then.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.path = folder / LINEAGE
        self.waiting: list[str] = []

    def resume(self, cycles: int, members: int) -> None:
        """Cut off what comes after so many cycles.

        Args:
            cycles: those of the checkpoint.
            members: of the population.

        Raises:
            InputError: for a file that does not lead up to that cycle.
        """
        kept, evaluations = [], 0
        content = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            try:
                found = json.loads(line)
                if found["cycle"] > cycles:
                    break
                if found["event"] == "evaluation":
                    if (found["cycle"], found["member"]) != (1 + evaluations // members, evaluations % members):
                        raise ValueError
                    evaluations += 1
                elif found["event"] != "copy" or found["cycle"] != -(-evaluations // members):
                    raise ValueError
            except (ValueError, TypeError, KeyError) as error:
                if evaluations == cycles * members:
                    break  # half a line, after the checkpoint
                raise InputError(f"{self.path} is damaged: line {number} is not what happened next.") from error
            kept.append(line)
        if evaluations != cycles * members:
            raise InputError(
                f"{self.path} is damaged: it has {evaluations} evaluations, {cycles} cycles of {members} members have {cycles * members}."
            )
        checkpoint.write_bytes(self.path, b"".join(kept))

    def log(self, step: int, selection: Selection) -> None:
        """Keep the lines of a cycle for the next `save`; arrays on the host."""
        for member, (loss, trainer) in enumerate(zip(selection.losses, selection.trainers, strict=True)):
            value = float(loss) if math.isfinite(loss) else None
            self._line(cycle=step, event="evaluation", member=member, loss=value, trainer=int(trainer))
        for member in np.flatnonzero(selection.copied):
            parent, chosen = int(selection.parents[member]), int(selection.chosen[member])
            changed = parent >= 0 and chosen != int(selection.trainers[parent])
            self._line(
                cycle=step, event="copy", member=int(member), **{"from": parent}, trainer=chosen, changed=changed
            )

    def _line(self, **fields: Any) -> None:
        self.waiting.append(json.dumps(fields) + "\n")

    def save(self) -> None:
        """Append the lines; the checkpoint comes after, and `resume` cuts off what it does not know."""
        with self.path.open("a") as file:
            file.writelines(self.waiting)
        self.waiting.clear()


__all__ = ["LINEAGE", "Lineage"]
