"""A short meta-training on a small mixture lowers the meta-loss of every learned optimizer, on problems that it has not met."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

import lopt
from lopt.estimators import ESSingle, meta_loss
from registry import OPTIMIZERS

HORIZON = 40
PROBLEMS = 64


class Run(NamedTuple):
    """What a meta-training needs: fields that set the scale of steps, and an outer learning rate."""

    fields: dict[str, Any]
    learning_rate: float = 3e-3
    steps: int = 200


RUNS = {
    "small_fc": Run({"step_mult": 1e-2}),
    "star": Run({"nominal_step": 3e-3}),
    "mlp": Run({"step_mult": 1e-2}),
    "gru": Run({"hidden": 16}),
    "lstm": Run({}),
    "hierarchical_rnn": Run({"initial_rates": (1e-4, 1e-2)}, learning_rate=5e-3, steps=300),
    "hierarchical_lstm": Run({"lstm_hidden": 8, "hidden": (16,), "step_mult": 1e-2}),
    "velo": Run({"lstm_hidden": 8, "bank": 4, "step_mult": 1e-2}),
    "celo": Run({"lstm_hidden": 8, "step_mult": 1e-1}),
    "celo2": Run({"learning_rate": 1e-2}),
    "relative_mlp": Run({"nominal_step": 0.01}, steps=400),
    "controlled_muon": Run({"learning_rate": 2.5e-2}, learning_rate=1e-2, steps=300),
}


def mixture() -> list[lopt.Task]:
    return [lopt.tasks.Quadratic(dim=10, low=-1.0, noise=0.1), lopt.tasks.digits_mlp(widths=(8,), batch_size=16)]


@jax.jit
def losses_on_new_problems(optimizer: lopt.Optimizer, task: lopt.Task) -> Array:
    """The meta-loss of whole trainings, seeds 1,000 and up."""

    def run(seed: Array) -> Array:
        key = jax.random.key(seed)
        inner = lopt.start(optimizer, task, key, HORIZON)
        _, losses = lopt.unroll(optimizer, task, inner, jax.random.fold_in(key, 1), HORIZON)
        return meta_loss(jax.vmap(task.normalize)(losses))[0]

    return jax.vmap(run)(1_000 + jnp.arange(PROBLEMS))


def meta_trains(name: str, run: Run) -> dict[str, tuple[float, float, float]]:
    """For every task of the mixture, the meta-loss before and after and how many standard errors the paired difference is from zero."""
    start = lopt.create(name, key=jax.random.key(0), **run.fields)
    estimators = [ESSingle(task, pairs=16, truncation=20, horizon=HORIZON) for task in mixture()]
    outer = optax.chain(optax.clip(0.1), optax.adam(run.learning_rate))
    end = lopt.meta_train(start, estimators, outer, steps=run.steps, key=jax.random.key(1)).optimizer
    found = {}
    for task in mixture():
        before, after = (np.asarray(losses_on_new_problems(o, task)) for o in (start, end))
        error = (before - after).std(ddof=1) / np.sqrt(PROBLEMS)
        found[type(task).__name__] = (float(before.mean()), float(after.mean()), float((before - after).mean() / error))
    return found


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_short_meta_training_lowers_the_meta_loss(name: str) -> None:
    """On both tasks, by five standard errors and by a tenth."""
    for task, (before, after, errors) in meta_trains(name, RUNS[name]).items():
        assert errors > 5.0, task
        assert after < 0.9 * before, task


def test_every_learned_optimizer_has_a_run() -> None:
    assert set(RUNS) == {row.name for row in OPTIMIZERS if row.learned}
