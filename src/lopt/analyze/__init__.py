"""Understand an optimizer: one file for each question, one row for each in `ANALYSES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lopt.analyze.dynamics import (
    Linear,
    Spectrum,
    largest_singular_value,
    lyapunov_exponent,
    overshoot,
    sharpness,
    spectrum,
)
from lopt.analyze.stability import Certificate, certify, critical_factor, noise_amplification, observed_factor

ANALYSES: dict[str, Callable[..., Any]] = {"stability": certify}

__all__ = [
    "ANALYSES",
    "Certificate",
    "Linear",
    "Spectrum",
    "certify",
    "critical_factor",
    "largest_singular_value",
    "lyapunov_exponent",
    "noise_amplification",
    "observed_factor",
    "overshoot",
    "sharpness",
    "spectrum",
]
