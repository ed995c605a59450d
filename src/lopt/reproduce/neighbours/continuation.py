"""A meta-trained optimizer against the maximum-entropy method and a tuned Adam: how near to the spectrum, and in what time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.evaluate.scores.statistics import mean_interval
from lopt.optimizer import Optimizer
from lopt.optimizers import Adam
from lopt.reproduce.claims import Claim
from lopt.reproduce.neighbours._spectra import NOISES, STEPS, Surrogate, learned, surrogates
from lopt.reproduce.neighbours.maximum_entropy import MaximumEntropy
from lopt.tasks.surfaces.analytic_continuation import ContinuationProblem
from lopt.unroll import Inner, unroll

FASTER = 10.0  # times, by the criterion
MARGIN = 0.02  # of the distance to the spectrum, a hundredth of the largest one
SPECTRA, META_STEPS = 16, 50  # below which nothing can be said
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


def too_small(spectra: int, meta_steps: int | None) -> str:
    """Why a claim on spectra cannot be measured; empty where it can.

    Args:
        spectra: how many.
        meta_steps: of a meta-training now.
    """
    if spectra < SPECTRA:
        return f"Not run: {spectra} spectra are too few; it takes {SPECTRA}."
    if meta_steps is not None and meta_steps < META_STEPS:
        return f"Not run: {meta_steps} meta-steps are too few; it takes {META_STEPS}."
    return ""


def draw(
    task: Surrogate, key: PRNGKeyArray, number: int
) -> tuple[Float[np.ndarray, "spectra frequencies"], Float[np.ndarray, "spectra points"]]:
    """Random spectra, and a noisy correlation function of each."""
    problems = jax.vmap(task.sample)(jax.random.split(key, number))
    spectra = np.asarray(problems.spectrum, np.float64)
    return spectra / spectra.sum(axis=1, keepdims=True), np.asarray(problems.train, np.float64)


def maximum_entropy(task: Surrogate) -> MaximumEntropy:
    """The method for the kernel and the noise of a task."""
    return MaximumEntropy(np.asarray(task.base.kernel, np.float64), task.base.noise)


@partial(jax.jit, static_argnums=3)
def recovered(
    optimizer: Optimizer, task: Surrogate, data: Float[Array, " points"], steps: int
) -> Float[Array, " frequencies"]:
    """The spectrum after some steps of an optimizer from the default model.

    Args:
        optimizer: moves the logits.
        task: whose training loss it descends.
        data: a correlation function.
        steps: how many.
    """
    problem = ContinuationProblem(jnp.zeros_like(task.base.model), data, data, data)
    key = jax.random.key(0)  # there is nothing to draw
    params = task.init(problem, key)
    state = optimizer.init(params, key=key, horizon=steps)
    inner = Inner(problem, params, state, jnp.zeros((), jnp.int32), jnp.asarray(steps, jnp.int32))
    inner, _ = unroll(optimizer, task, inner, key, steps)
    return jax.nn.softmax(optimizer.eval_params(inner.opt_state, inner.params))


def recovery(optimizer: Optimizer, task: Surrogate, steps: int) -> Callable[[np.ndarray], np.ndarray]:
    """`recovered` as a compiled function of the data alone."""
    like = jax.ShapeDtypeStruct((task.base.kernel.shape[0],), jnp.float32)
    program = recovered.lower(optimizer, task, like, steps).compile()
    return lambda data: np.asarray(program(optimizer, task, data.astype(np.float32)), np.float64)


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


def measured(
    recover: Callable[[np.ndarray], np.ndarray], spectra: np.ndarray, data: np.ndarray
) -> tuple[Float[np.ndarray, " spectra"], Float[np.ndarray, " spectra"]]:
    """The error on every spectrum and the processor seconds that it took, after one call that is not counted."""
    recover(data[0])
    errors, seconds = [], []
    for true, one in zip(spectra, data, strict=True):
        began = time.process_time()
        found = recover(one)
        seconds.append(time.process_time() - began)
        errors.append(np.abs(found / found.sum() - true).sum())
    return np.asarray(errors), np.asarray(seconds)


__all__ = ["continuation", "recovered"]
