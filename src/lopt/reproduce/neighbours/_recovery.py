"""How the claims on spectra recover them, and how they judge it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.optimizer import Optimizer
from lopt.reproduce.neighbours._spectra import Surrogate
from lopt.reproduce.neighbours.maximum_entropy import MaximumEntropy
from lopt.tasks.surfaces.analytic_continuation import ContinuationProblem
from lopt.unroll import Inner, unroll

SPECTRA, META_STEPS = 16, 50  # below which nothing can be said


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
