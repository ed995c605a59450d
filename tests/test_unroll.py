"""The inner step, alone and in the loops that take it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt.optimizer import Optimizer

KEY = jax.random.key(3)
TASK = lopt.tasks.Quadratic(dim=3, noise=0.1)


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


class Ahead(Optimizer):
    """Gradient descent that holds the parameters it has found in its state and looks one gradient further on."""

    def init(self, params: Any, **_: Any) -> Any:
        return jax.tree.map(jnp.array, params)

    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> tuple[Any, Any]:
        found = state - 0.1 * updates
        return found - 0.2 * updates - params, found

    def eval_params(self, state: Any, params: Any) -> Any:
        del params
        return state


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("optimizer", [lopt.optimizers.Momentum(learning_rate=0.1), Ahead()])
def test_an_unroll_is_its_steps(optimizer: Optimizer, split: Any) -> None:
    begun = inner = lopt.start(optimizer, TASK, KEY, 8)
    step = jax.jit(lambda i, k: lopt.step(optimizer, TASK, i, k, split=split))
    losses = []
    for key in jax.random.split(KEY, 5):
        inner, loss = step(inner, key)
        losses.append(loss)
    after, found = jax.jit(lambda i: lopt.unroll(optimizer, TASK, i, KEY, 5, split=split))(begun)
    assert_same((after, found), (inner, jnp.stack(losses)))
    assert (int(after.step), int(after.horizon)) == (5, 8)


def test_a_training_is_guarded_steps() -> None:
    """With the streams of keys that `train` documents: problem and start from 0, minibatches from 1."""
    optimizer, steps = Ahead(), 4
    record = lopt.train(optimizer, TASK, steps=steps, key=KEY, evals=1)
    (key,) = jax.random.split(KEY, 1)
    inner = lopt.start(optimizer, TASK, jax.random.fold_in(key, 0), steps)
    step = jax.jit(lambda i, k: lopt.step(optimizer, TASK, i, k, guarded=True, split=None))
    losses = []
    for i in range(steps):
        inner, loss = step(inner, jax.random.fold_in(jax.random.fold_in(key, 1), i))
        losses.append(loss)
    np.testing.assert_allclose(record.minibatch_loss[0], losses, rtol=1e-6)
    np.testing.assert_allclose(record.params[0], optimizer.eval_params(inner.opt_state, inner.params), atol=1e-6)


def test_the_loss_is_where_it_is_said_to_be() -> None:
    """At `eval_params` for a split, at the point of the gradient for none."""
    inner = lopt.start(Ahead(), TASK, KEY, 8)
    inner, _ = lopt.step(Ahead(), TASK, inner, KEY)
    key = jax.random.key(4)
    at = {split: lopt.step(Ahead(), TASK, inner, key, split=split)[1] for split in ("train", "test", None)}
    for split in ("train", "test"):
        assert at[split] == TASK.loss(inner.problem, inner.opt_state, key, split)
    assert at[None] == TASK.loss(inner.problem, inner.params, key, "train") != at["train"]


def test_a_guarded_step_skips_a_gradient_that_is_not_finite() -> None:
    optimizer = lopt.optimizers.Momentum(learning_rate=0.1)
    inner = lopt.start(optimizer, TASK, KEY, 8)
    inner = inner._replace(params=jnp.full_like(inner.params, 1e30))
    guarded, _ = lopt.step(optimizer, TASK, inner, KEY, guarded=True)
    assert_same(guarded, inner._replace(step=jnp.int32(1)))
    plain, _ = lopt.step(optimizer, TASK, inner, KEY)
    assert (plain.params != inner.params).any()
