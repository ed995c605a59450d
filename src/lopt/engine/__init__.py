"""Where meta-gradients are computed."""

from __future__ import annotations

from lopt.engine.engine import Engine, Gradients
from lopt.engine.local import Local, gradients

__all__ = ["Engine", "Gradients", "Local", "gradients"]
