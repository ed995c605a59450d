"""Estimators of the meta-gradient, one file each."""

from __future__ import annotations

from lopt.estimators.es_single import ESSingle
from lopt.estimators.estimator import Estimator, meta_loss
from lopt.estimators.particles import AntitheticES
from lopt.estimators.pes import PES
from lopt.estimators.truncated_es import TruncatedES

ESTIMATORS: dict[str, type[AntitheticES]] = {
    "es_single": ESSingle,
    "pes": PES,
    "truncated_es": TruncatedES,
}

__all__ = ["ESTIMATORS", "PES", "AntitheticES", "ESSingle", "Estimator", "TruncatedES", "meta_loss"]
