"""Estimators of the meta-gradient."""

from __future__ import annotations

from lopt.estimators.backprop import Backprop
from lopt.estimators.estimator import Estimator
from lopt.estimators.evolution import PES, AntitheticES, ESSingle, FullES, NoiseReuseES, TruncatedES
from lopt.estimators.merged import Merged
from lopt.estimators.objectives import meta_loss
from lopt.estimators.particles import Particles
from lopt.estimators.per_task import PerTask, normalize_by_average_norm
from lopt.estimators.schedules import Constant, Growing, HeavyTailed, LogUniform, Schedule, Unrolls, Widening

ESTIMATORS: dict[str, type[Particles]] = {
    "backprop": Backprop,
    "es_single": ESSingle,
    "full_es": FullES,
    "merged": Merged,
    "noise_reuse_es": NoiseReuseES,
    "pes": PES,
    "truncated_es": TruncatedES,
}

__all__ = [
    "ESTIMATORS",
    "PES",
    "AntitheticES",
    "Backprop",
    "Constant",
    "ESSingle",
    "Estimator",
    "FullES",
    "Growing",
    "HeavyTailed",
    "LogUniform",
    "Merged",
    "NoiseReuseES",
    "Particles",
    "PerTask",
    "Schedule",
    "TruncatedES",
    "Unrolls",
    "Widening",
    "meta_loss",
    "normalize_by_average_norm",
]
