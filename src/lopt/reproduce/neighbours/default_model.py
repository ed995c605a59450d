"""The output of the learned optimizer as the default model of maximum entropy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.neighbours._recovery import draw, maximum_entropy, measured, recovery, too_small
from lopt.reproduce.neighbours._spectra import NOISES, STEPS, learned, surrogates

LEAST = 1e-9  # of a default model: a frequency whose mass is zero could get none


def default_model(
    key: PRNGKeyArray,
    *,
    weights: str | Path | None = None,
    meta_steps: int | None = None,
    noises: Sequence[float] = NOISES,
    spectra: int = 256,
) -> Claim:
    """Maximum entropy with two default models, the flat one and what the learned optimizer recovers from the same data.

    Args:
        key: draws spectra and noise.
        weights: a saved optimizer, by name or path; `None` for the shipped one.
        meta_steps: of a meta-training now; `None` for none.
        noises: levels of noise.
        spectra: how many.

    Source: Huang & Yang 2022.
    """
    words = (
        "default_model",
        "(b) As a default model it improves maximum entropy",
        "The output of the learned optimizer as a default model improves the maximum-entropy method.",
        "At every level of noise the error of maximum entropy with that default model is below its error with the flat one: the interval of the paired "
        "difference is below 0.",
    )
    if reason := too_small(spectra, meta_steps):
        return Claim(*words, reason, None, {})
    optimizer = learned(weights, meta_steps)
    rows, better = [], []
    numbers: dict[str, Any] = {"spectra": spectra, "levels": {}}
    for i, task in enumerate(surrogates(noises)):
        drawn = draw(task, jax.random.fold_in(key, i), spectra)
        method, flat = maximum_entropy(task), np.asarray(task.base.model, np.float64)
        recover = recovery(optimizer, task, STEPS)

        def informed(data: np.ndarray, method: Any = method, recover: Any = recover) -> np.ndarray:
            return method(data, np.maximum(recover(data), LEAST)).average

        def usual(data: np.ndarray, method: Any = method, flat: Any = flat) -> np.ndarray:
            return method(data, flat).average

        own, with_flat, with_learned = (measured(f, *drawn)[0] for f in (recover, usual, informed))
        less = mean_interval(with_learned - with_flat)
        better.append(less.high < 0.0)
        parts = {"learned": own, "flat": with_flat, "learned default model": with_learned}
        numbers["levels"][f"{task.base.noise:g}"] = {
            "error": {name: list(mean_interval(x)) for name, x in parts.items()},
            "difference": list(less),
        }
        rows.append(
            {
                "noise": f"{task.base.noise:g}",
                "learned alone": str(mean_interval(own)),
                "maximum entropy, flat model": str(mean_interval(with_flat)),
                "maximum entropy, learned model": str(mean_interval(with_learned)),
                "difference of the two": str(less),
            }
        )
    return Claim(
        *words,
        f"The error is lower at {sum(better)} of {len(better)} levels of noise.",
        bool(all(better)),
        numbers,
        rows,
    )


__all__ = ["default_model"]
