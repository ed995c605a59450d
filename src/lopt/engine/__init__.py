"""Where meta-gradients are computed."""

from __future__ import annotations

from lopt.engine.cluster import RayEngine
from lopt.engine.drawn import Drawn
from lopt.engine.engine import Engine, Gradients, Unreachable
from lopt.engine.local import Local, gradients, merge
from lopt.engine.pool import WorkerStatus

__all__ = ["Drawn", "Engine", "Gradients", "Local", "RayEngine", "Unreachable", "WorkerStatus", "gradients", "merge"]
