"""Numbers that say where a curve begins and ends."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def first_tenth(curves: Float[np.ndarray, "*curves points"]) -> Float[np.ndarray, "*curves"]:
    """The means of the first tenth of curves, of one point at least.

    Args:
        curves: along the last axis.
    """
    return np.asarray(curves[..., : _tenth(curves)].mean(axis=-1))


def last_tenth(curves: Float[np.ndarray, "*curves points"]) -> Float[np.ndarray, "*curves"]:
    """The means of the last tenth of curves, of one point at least.

    Args:
        curves: along the last axis.
    """
    return np.asarray(curves[..., -_tenth(curves) :].mean(axis=-1))


def _tenth(curves: Float[np.ndarray, "*curves points"]) -> int:
    return max(1, curves.shape[-1] // 10)
