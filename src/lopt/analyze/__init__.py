"""Questions asked of an optimizer on a task. One file a question, one row in `ANALYSES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lopt.analyze.dynamics import Dynamics, dynamics

# The one place where analyses get their names. Each takes an optimizer, a task and a key, and returns a frozen dataclass of arrays.
ANALYSES: dict[str, Callable[..., Any]] = {"dynamics": dynamics}

__all__ = ["ANALYSES", "Dynamics", "dynamics"]
