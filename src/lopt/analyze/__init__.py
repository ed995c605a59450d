"""Questions asked of an optimizer on a task. One file a question, one row in `ANALYSES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lopt.analyze.certificate import Certificate, write_certificate
from lopt.analyze.dynamics import Dynamics, dynamics, growth, lyapunov_exponent
from lopt.analyze.linear import amplification, overshoot, sharpness, spectrum
from lopt.analyze.noisy_quadratic import Box, LinearTraining, admissible_box
from lopt.analyze.stability import (
    certify,
    critical_factor,
    multiplied_losses,
    noise_amplification,
    observed_factor,
)

# The one place where analyses get their names. Each takes an optimizer, a task and `key=`, and returns a frozen dataclass.
ANALYSES: dict[str, Callable[..., Any]] = {"dynamics": dynamics, "stability": certify}

__all__ = [
    "ANALYSES",
    "Box",
    "Certificate",
    "Dynamics",
    "LinearTraining",
    "admissible_box",
    "amplification",
    "certify",
    "critical_factor",
    "dynamics",
    "growth",
    "lyapunov_exponent",
    "multiplied_losses",
    "noise_amplification",
    "observed_factor",
    "overshoot",
    "sharpness",
    "spectrum",
    "write_certificate",
]
