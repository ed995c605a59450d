"""Tuned baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.training import train_batch
from lopt.optimizer import Optimizer
from lopt.optimizers.hand_designed import Adam
from lopt.task import Task

LEARNING_RATES = tuple(float(f"{10 ** (e / 2):.0e}") for e in range(-12, 3))  # 1e-6 to 10, 15 half-decades


class Sweep(NamedTuple):
    """Final training losses of a learning-rate sweep."""

    learning_rates: tuple[float, ...]
    train_loss: Float[np.ndarray, "rates seeds"]
    best: float  # the rate with the lowest mean over seeds
    initial_loss: Float[np.ndarray, " seeds"] | None = None  # before the first step


def tune_adam(
    task: Task,
    *,
    steps: int,
    key: PRNGKeyArray,
    seeds: int = 5,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Sweep:
    """Tune Adam's learning rate on `task`: `tune` with `Adam`."""
    return tune(
        lambda rate: Adam(learning_rate=rate), task, steps=steps, key=key, seeds=seeds, learning_rates=learning_rates
    )


def tune(
    make: Callable[[Float[Array, ""]], Optimizer],
    task: Task,
    *,
    steps: int,
    key: PRNGKeyArray,
    seeds: int = 5,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Sweep:
    """Tune the learning rate of an optimizer on `task`: all rates and seeds in one vmapped compile.

    The best rate has the lowest final training loss, averaged over seeds; a rate with a seed that is not finite ranks last.

    Args:
        make: the optimizer at a learning rate.
        task: what to train.
        steps: inner steps.
        key: draws problems, starts and minibatches, the same for all rates.
        seeds: trainings a rate.
        learning_rates: the grid.

    Raises:
        InputError: where every rate of the grid diverged.
    """
    rates = jnp.asarray(learning_rates, jnp.float32)
    batch = jax.vmap(make)(rates)
    record = train_batch(batch, task, steps=steps, key=key, seeds=seeds, evals=1, batch=len(rates))
    final = record.train_loss[:, :, -1]
    mean = np.where(np.isfinite(final).all(axis=1), final.mean(axis=1), np.inf)
    if not np.isfinite(mean).any():
        raise InputError(f"{type(batch).__name__} diverged at every learning rate of the grid on this task.")
    return Sweep(tuple(learning_rates), final, learning_rates[int(mean.argmin())], record.train_loss[0, :, 0])
