"""A meta-trained optimizer against the maximum-entropy method and a tuned Adam: how near to the spectrum, and in what time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.checks import at_least
from lopt.evaluate.scores.statistics import mean_interval
from lopt.optimizers import Adam
from lopt.reproduce.claims import Claim
from lopt.reproduce.neighbours._recovery import draw, maximum_entropy, measured, recovered, recovery, too_small
from lopt.reproduce.neighbours._spectra import NOISES, STEPS, Surrogate, learned, surrogates

FASTER = 10.0  # times, by the criterion
MARGIN = 0.02  # of the distance to the spectrum, a hundredth of the largest one
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of Adam
LENGTHS = (STEPS, 4 * STEPS, 16 * STEPS)  # of its trainings
DRAWN = 1000  # spectra whose mean a second default model is


def continuation(
    key: PRNGKeyArray,
    *,
    weights: str | Path | None = None,
    meta_steps: int | None = None,
    noises: Sequence[float] = NOISES,
    spectra: int = 256,
    tuning: int = 64,
    learning_rates: Sequence[float] = RATES,
) -> Claim:
    r"""Recover random spectra that the meta-training has not drawn. The error is $\int |A - A_\mathrm{true}|\, d\omega$, between 0 and 2.

    Times are processor seconds for one spectrum at a time, without compilation and without what is computed once for a kernel.

    Args:
        key: draws spectra and noise, the same for all.
        weights: a saved optimizer, by name or path; `None` for the shipped one.
        meta_steps: of a meta-training now; `None` for none.
        noises: levels of noise.
        spectra: how many.
        tuning: other spectra, on which Adam's rate and number of steps are chosen.
        learning_rates: of Adam's grid.

    Raises:
        InputError: for weights that the claim does not fit, no spectrum to tune on, or no rate.

    Source: Huang & Yang 2022, *Learned optimizers for analytic continuation*, at the scale of one small machine.
    """
    words = (
        "continuation",
        "(a) As good as maximum entropy in a tenth of its time",
        "A learned optimizer on well-conditioned surrogate problems recovers spectra of high quality at low cost, where maximum entropy needs far more time.",
        "At every level of noise its error is no higher than that of maximum entropy with a flat default model: "
        f"the interval of the paired difference ends below {MARGIN:g}. "
        f"And maximum entropy takes at least {FASTER:g} times as long for a spectrum, interval of the geometric mean included.",
    )
    if reason := too_small(spectra, meta_steps):
        return Claim(*words, reason, None, {})
    at_least(1, tuning=tuning, **{"the number of rates": len(learning_rates)})
    optimizer = learned(weights, meta_steps)
    tune_key, key = jax.random.split(key)
    rows: list[dict[str, str]] = []
    numbers: dict[str, Any] = {"spectra": spectra, "levels": {}}
    level, fast = [], []
    for i, task in enumerate(surrogates(noises)):
        drawn = draw(task, jax.random.fold_in(key, i), spectra)
        rate, steps = tuned(task, draw(task, jax.random.fold_in(tune_key, i), tuning), learning_rates)
        method, flat = maximum_entropy(task), np.asarray(task.base.model, np.float64)
        mean = draw(task, jax.random.fold_in(tune_key, len(noises) + i), DRAWN)[0].mean(axis=0)
        methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "learned": recovery(optimizer, task, STEPS),
            "Adam": recovery(Adam(learning_rate=rate), task, steps),
            "maximum entropy": lambda data, method=method, flat=flat: method(data, flat).average,
            "maximum entropy, mean model": lambda data, method=method, mean=mean: method(data, mean).average,
        }
        errors, seconds = {}, {}
        for name, recover in methods.items():
            errors[name], seconds[name] = measured(recover, *drawn)
        worse = {name: mean_interval(errors["learned"] - error) for name, error in errors.items()}
        slower = mean_interval(np.log(seconds["maximum entropy"] / seconds["learned"]))
        level.append(worse["maximum entropy"].high < MARGIN)
        fast.append(np.exp(slower.low) >= FASTER)
        numbers["levels"][f"{task.base.noise:g}"] = {
            "error": {name: list(mean_interval(x)) for name, x in errors.items()},
            "seconds": {name: float(np.median(x)) for name, x in seconds.items()},
            "learned_less": {name: list(x) for name, x in worse.items() if name != "learned"},
            "times_as_long": [float(np.exp(x)) for x in slower],
            "adam": {"rate": rate, "steps": steps},
        }
        rows += [
            {
                "noise": f"{task.base.noise:g}",
                "method": f"{name}, rate {rate:g}, {steps} steps" if name == "Adam" else name,
                "error": str(mean_interval(errors[name])),
                "error of the learned one less its": "" if name == "learned" else str(worse[name]),
                "ms a spectrum": f"{1e3 * np.median(seconds[name]):.2f}",
            }
            for name in methods
        ]
    times = ", ".join(f"{x['times_as_long'][0]:.1f}" for x in numbers["levels"].values())
    return Claim(
        *words,
        f"Its error is no higher than that of maximum entropy at {sum(level)} of {len(level)} levels of noise. "
        f"Maximum entropy takes {times} times as long; the interval is above {FASTER:g} at {sum(fast)} of {len(fast)}.",
        bool(all(level) and all(fast)),
        numbers,
        rows,
    )


def tuned(
    task: Surrogate, drawn: tuple[np.ndarray, np.ndarray], learning_rates: Sequence[float] = RATES
) -> tuple[float, int]:
    """Adam's rate and number of steps of the lowest mean error.

    Args:
        task: of a level of noise.
        drawn: spectra and correlation functions.
        learning_rates: of the grid.
    """
    spectra, data = drawn
    every = jax.vmap(recovered, in_axes=(None, None, 0, None))
    errors = {
        (rate, steps): np.abs(
            np.asarray(every(Adam(learning_rate=rate), task, data.astype(np.float32), steps)) - spectra
        )
        .sum(axis=1)
        .mean()
        for steps in LENGTHS
        for rate in learning_rates
    }
    return min(errors, key=lambda setting: np.nan_to_num(errors[setting], nan=np.inf))


__all__ = ["continuation"]
