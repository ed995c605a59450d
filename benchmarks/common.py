"""What the benchmarks share: tables, and the file they write. Facts about the machine and quartiles are `lopt.evaluate.timing`'s."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lopt.checkpoint import write_text
from lopt.evaluate import timing
from lopt.evaluate.timing import machine
from lopt.machine import cores

__all__ = ["RESULTS", "cores", "header", "machine", "show", "spread", "text", "write"]

RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float] | np.ndarray, digits: int = 4) -> dict[str, float]:
    """Median and quartiles, as results are written."""
    return timing.spread(values).as_json(digits)


def show(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def header(*cells: str) -> None:
    """Print the head of a Markdown table."""
    show(*cells)
    show(*("---" for _ in cells))


def text(values: dict[str, float]) -> str:
    """A `spread` to three digits."""
    return "{median:.3g} ({q1:.3g} - {q3:.3g})".format(**values)


def write(out: Path, facts: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """One JSON file: the command, the machine, the results."""
    script, *arguments = sys.argv
    shown = [a for a in arguments if a not in (str(out), "--out")]
    command = " ".join(["python", f"benchmarks/{Path(script).name}", *shown])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps({"command": command, "machine": facts, "results": results}, indent=1) + "\n")
