"""Questions asked of an optimizer on a task. One file a question, one row in `ANALYSES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lopt.analyze.adaptation import Adaptation, adaptation
from lopt.analyze.certificate import Certificate, write_certificate
from lopt.analyze.descent import LANDSCAPES, Descent, Scene, descend, scenes_of
from lopt.analyze.dynamics import Dynamics, dynamics, growth, lyapunov_exponent
from lopt.analyze.explain import Explained, explain
from lopt.analyze.linear import amplification, overshoot, sharpness, spectrum
from lopt.analyze.momentum import Modes, heavy_ball, momentum
from lopt.analyze.noisy_quadratic import Box, LinearTraining, admissible_box
from lopt.analyze.page import MECHANISMS, Finding, mechanisms, write_mechanisms
from lopt.analyze.response import Response, response
from lopt.analyze.schedule import Schedule, schedule
from lopt.analyze.stability import (
    certify,
    critical_factor,
    multiplied_losses,
    noise_amplification,
    observed_factor,
)
from lopt.analyze.state_space import StateSpace, state_space
from lopt.analyze.watch import watch_page, write_watch

# The one place where analyses get their names, those of mechanisms by the table of their page. Each takes an optimizer, a task and `key=`, and
# returns a frozen dataclass.
ANALYSES: dict[str, Callable[..., Any]] = {
    **{name: analysis for name, (analysis, _) in MECHANISMS.items()},
    "dynamics": dynamics,
    "stability": certify,
}

__all__ = [
    "ANALYSES",
    "LANDSCAPES",
    "MECHANISMS",
    "Adaptation",
    "Box",
    "Certificate",
    "Descent",
    "Dynamics",
    "Explained",
    "Finding",
    "LinearTraining",
    "Modes",
    "Response",
    "Scene",
    "Schedule",
    "StateSpace",
    "adaptation",
    "admissible_box",
    "amplification",
    "certify",
    "critical_factor",
    "descend",
    "dynamics",
    "explain",
    "growth",
    "heavy_ball",
    "lyapunov_exponent",
    "mechanisms",
    "momentum",
    "multiplied_losses",
    "noise_amplification",
    "observed_factor",
    "overshoot",
    "response",
    "scenes_of",
    "schedule",
    "sharpness",
    "spectrum",
    "state_space",
    "watch_page",
    "write_certificate",
    "write_mechanisms",
    "write_watch",
]
