"""Every optimizer meta-trains: a short run on two tasks lowers the losses of trainings that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float, PRNGKeyArray

import lopt
from lopt.estimators import ESSingle


class Row(NamedTuple):
    """An optimizer, how it is built, and how it is meta-trained."""

    name: str
    fields: Mapping[str, Any]
    learning_rate: float = 3e-3  # of the outer Adam
    steps: int = 150


ROWS = [
    Row("hierarchical_lstm", {"lstm_hidden": 8, "hidden": (16,), "step_mult": 1e-2}),
    Row("velo", {"lstm_hidden": 8, "bank": 4, "step_mult": 1e-2}),
    Row("celo", {"lstm_hidden": 8, "step_mult": 1e-1}),
    Row("celo2", {"learning_rate": 1e-2}),
]

HORIZON = 60  # inner steps
SEEDS = 32  # trainings of each task before and after
SIGMAS = 4.0  # standard errors by which the mean improvement must differ from zero
TASKS = (lambda: lopt.tasks.Quadratic(dim=5, low=-1.0), lambda: lopt.tasks.digits_mlp(widths=(8,), batch_size=16))


def mean_losses(optimizer: lopt.Optimizer, task: lopt.Task, key: PRNGKeyArray) -> Float[Array, " seeds"]:
    """Normalised, over a training, clipped as a diverged one would otherwise decide alone."""

    def run(key: PRNGKeyArray) -> Array:
        inner = lopt.start(optimizer, task, key, HORIZON)
        _, losses = lopt.unroll(optimizer, task, inner, jax.random.fold_in(key, 1), HORIZON)
        return jnp.mean(jnp.clip(jnp.nan_to_num(jax.vmap(task.normalize)(losses), nan=2.0), -2.0, 2.0))

    return jax.vmap(run)(jax.random.split(key, SEEDS))


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_meta_training_lowers_the_loss(row: Row) -> None:
    """Seeds 0 to 2; on each task the improvement, paired over 32 seeds, is more than four standard errors."""
    tasks = [make() for make in TASKS]
    estimators = [ESSingle(task, pairs=8, truncation=20, horizon=HORIZON) for task in tasks]
    optimizer = lopt.create(row.name, key=jax.random.key(0), **row.fields)
    outer = optax.chain(optax.clip(0.1), optax.adam(row.learning_rate))
    after = lopt.meta_train(optimizer, estimators, outer, steps=row.steps, key=jax.random.key(1)).optimizer
    for i, task in enumerate(tasks):
        key = jax.random.fold_in(jax.random.key(2), i)
        before, now = (np.asarray(jax.jit(mean_losses)(o, task, key)) for o in (optimizer, after))
        gain = before - now
        error = gain.std(ddof=1) / np.sqrt(SEEDS)
        assert gain.mean() > SIGMAS * error, f"{type(task).__name__}: {gain.mean():.4f} ± {error:.4f}"
