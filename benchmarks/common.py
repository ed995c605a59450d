"""What the benchmarks share: facts about the machine, quartiles, and the file they write."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def cores() -> list[int]:
    """The cores this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def machine() -> dict[str, Any]:
    """What a figure depends on. `load_before` is the number of runnable processes a minute before: well below 1 if the machine is quiet."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {
        "cpu": next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
        ),
        "cores": len(cores()),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and quartiles, to `digits` significant digits."""
    quartiles = np.quantile(np.asarray(values, np.float64), [0.5, 0.25, 0.75])
    return dict(zip(("median", "q1", "q3"), (float(f"{q:.{digits}g}") for q in quartiles), strict=True))


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
    out.write_text(json.dumps({"command": command, "machine": facts, "results": results}, indent=1) + "\n")
