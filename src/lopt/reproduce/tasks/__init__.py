"""Metz et al. 2020, *Tasks, stability, architecture, and compute*: its claims, measured."""

from __future__ import annotations

from lopt.reproduce.claims import ClaimSpec, Paper
from lopt.reproduce.tasks import _figures
from lopt.reproduce.tasks.architecture import architecture
from lopt.reproduce.tasks.axes import axes
from lopt.reproduce.tasks.clip import clip
from lopt.reproduce.tasks.more_tasks import more_tasks
from lopt.reproduce.tasks.regularisation import regularisation
from lopt.reproduce.tasks.table import table
from lopt.reproduce.tasks.validation import validation

# Arms that `--quick` meta-trains itself, on one program; all its claims share them.
QUICK = {"seeds": 2, "meta_steps": 100, "programs": ("softmax, breast cancer",)}
FEW = QUICK | {"tasks": 20, "steps": 100}  # held out

PAPER = Paper(
    title="Tasks, stability, architecture, and compute",
    source=(
        "Metz et al. 2020, Tasks, stability, architecture, and compute: Training more effective learned optimizers, and using them to train themselves, "
        "at the scale of one small machine. Criteria are ours and were settled before any run. "
        "The claims and the published figures come from notes that were taken while reading the paper; its text was not at hand when this was written."
    ),
    claims={
        "more_tasks": ClaimSpec(more_tasks, _figures.more_tasks, FEW | {"sizes": (1, 100)}),
        "architecture": ClaimSpec(architecture, _figures.architecture, FEW),
        "clip": ClaimSpec(clip, _figures.clip, QUICK),
        "regularisation": ClaimSpec(regularisation, _figures.regularisation, QUICK | {"starts": 16, "steps": 300}),
        "validation": ClaimSpec(validation, _figures.validation, FEW),
        "axes": ClaimSpec(axes, _figures.axes, QUICK | {"names": ("share",), "starts": 2}),
        "table": ClaimSpec(table, _figures.table, FEW | {"trials": 14, "candidates": 14, "tuning": 10}),
    },
)

__all__ = ["PAPER", "architecture", "axes", "clip", "more_tasks", "regularisation", "table", "validation"]
