"""Understand an optimizer: one file for each question, one row for each in `ANALYSES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lopt.analyze.dynamics import amplification, growth, lyapunov_exponent, overshoot, sharpness, spectrum
from lopt.analyze.noisy_quadratic import Box, LinearTraining, admissible_box
from lopt.analyze.stability import (
    Certificate,
    certify,
    critical_factor,
    multiplied_losses,
    noise_amplification,
    observed_factor,
)

# The one place where analyses get their names.
ANALYSES: dict[str, Callable[..., Any]] = {"stability": certify}

__all__ = [
    "ANALYSES",
    "Box",
    "Certificate",
    "LinearTraining",
    "admissible_box",
    "amplification",
    "certify",
    "critical_factor",
    "growth",
    "lyapunov_exponent",
    "multiplied_losses",
    "noise_amplification",
    "observed_factor",
    "overshoot",
    "sharpness",
    "spectrum",
]
