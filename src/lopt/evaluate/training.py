"""Train one task with one optimizer, over many seeds at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.errors import InputError
from lopt.optimizer import Optimizer, update_if_finite
from lopt.optimizers.from_optax import FromOptax
from lopt.task import Task
from lopt.unroll import Inner, start

SPLITS = ("train", "valid", "test")


class TrainRecord(NamedTuple):
    """What a training did. Curves have a leading axis of seeds; evaluations are at `steps`, the first of which is 0."""

    steps: Int[np.ndarray, " evals"]
    train_loss: Float[np.ndarray, "seeds evals"]
    valid_loss: Float[np.ndarray, "seeds evals"]
    test_loss: Float[np.ndarray, "seeds evals"]
    metrics: dict[str, Float[np.ndarray, "seeds evals"]]  # `train_accuracy`, ...: what else the task reports
    minibatch_loss: Float[np.ndarray, "seeds steps"]
    params: PyTree  # final, leading axis of seeds
    seconds: float  # of all seeds together, without compilation and evaluation
    compile_seconds: float

    @property
    def seconds_per_step(self) -> float:
        """Wall-clock seconds of one inner step of one seed."""
        return self.seconds / self.minibatch_loss.size


def train(
    optimizer: Optimizer | optax.GradientTransformation,
    task: Task,
    *,
    steps: int,
    key: PRNGKeyArray,
    seeds: int = 1,
    evals: int = 20,
    on_eval: Callable[[int], None] | None = None,
) -> TrainRecord:
    """Train `task` with `optimizer`.

    A seed draws the problem, its initial parameters and the minibatches; the same key and seed meet the same ones whatever the
    optimizer, so comparisons are paired. Steps with a non-finite gradient are skipped.

    Args:
        optimizer: a lopt `Optimizer`, or any optax transformation.
        task: what to train.
        steps: inner steps; the horizon handed to the optimizer.
        key: draws everything.
        seeds: independent trainings, run together.
        evals: how many times, evenly spaced, all splits are evaluated.
        on_eval: called with the step after each evaluation.

    Raises:
        InputError: for a number of steps, seeds or evaluations below 1.

    Example:
        >>> import jax, lopt, optax
        >>> task = lopt.tasks.create("quadratic", dim=3)
        >>> record = lopt.train(optax.sgd(0.1), task, steps=20, key=jax.random.key(0), seeds=2, evals=4)
        >>> record.train_loss.shape
        (2, 5)
    """
    if not isinstance(optimizer, Optimizer):
        optimizer = FromOptax(optimizer)
    one = jax.tree.map(lambda x: x[None], optimizer)
    record = train_batch(one, task, steps=steps, key=key, seeds=seeds, evals=evals, batch=1, on_eval=on_eval)
    arrays = record._replace(steps=(), seconds=(), compile_seconds=())
    return jax.tree.map(lambda x: x[0], arrays)._replace(
        steps=record.steps, seconds=record.seconds, compile_seconds=record.compile_seconds
    )


def train_batch(
    optimizers: Optimizer,
    task: Task,
    *,
    steps: int,
    key: PRNGKeyArray,
    seeds: int,
    evals: int,
    batch: int,
    on_eval: Callable[[int], None] | None = None,
) -> TrainRecord:
    """`train` for a batch of optimizers of one kind, in one compile.

    Args:
        optimizers: an optimizer whose leaves have a leading axis of `batch`.
        task, steps, key, seeds, evals, on_eval: as for `train`.
        batch: length of that axis.

    Returns:
        A record whose arrays have `batch` as their first axis and seeds as their second.
    """
    for name, number in (("steps", steps), ("seeds", seeds), ("evals", evals)):
        if number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1.")
    keys = jax.random.split(key, seeds)

    # All combinations of optimizers and seeds, the seeds running fastest, under one vmap.
    def cross(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        over_seeds = jax.vmap(fn, in_axes=(None, None, 0, 0))
        return jax.vmap(over_seeds, in_axes=(0, None, 0, None), axis_size=batch)

    def begin(optimizer: Optimizer, task: Task, _: None, key: PRNGKeyArray) -> Inner:
        return start(optimizer, task, jax.random.fold_in(key, 0), steps)

    def advance(length: int) -> Callable[..., tuple[Inner, Array]]:
        def run(optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray) -> tuple[Inner, Array]:
            return _advance(optimizer, task, inner, key, length)

        return run

    def evaluate(optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray) -> dict[str, Array]:
        params = optimizer.eval_params(inner.opt_state, inner.params)
        found = {s: task.metrics(inner.problem, params, jax.random.fold_in(key, 2), s) for s in SPLITS}
        return {f"{split}_{name}": value for split, ms in found.items() for name, value in ms.items()}

    inner = jax.jit(cross(begin))(optimizers, task, None, keys)
    evaluate_all = jax.jit(cross(evaluate))
    every = max(1, steps // evals)
    compiled: dict[int, Callable[..., tuple[Inner, Array]]] = {}
    seconds = compile_seconds = 0.0
    at, curves, minibatch = [0], [jax.device_get(evaluate_all(optimizers, task, inner, keys))], []
    while at[-1] < steps:
        length = min(every, steps - at[-1])
        if length not in compiled:
            began = time.perf_counter()
            program = jax.jit(cross(advance(length)), donate_argnums=2)
            compiled[length] = program.lower(optimizers, task, inner, keys).compile()
            compile_seconds += time.perf_counter() - began
        began = time.perf_counter()
        inner, losses = jax.block_until_ready(compiled[length](optimizers, task, inner, keys))
        seconds += time.perf_counter() - began
        minibatch.append(np.asarray(losses))
        at.append(at[-1] + length)
        curves.append(jax.device_get(evaluate_all(optimizers, task, inner, keys)))
        if on_eval is not None:
            on_eval(at[-1])
    stacked = {name: np.stack([c[name] for c in curves], axis=-1) for name in curves[0]}
    return TrainRecord(
        steps=np.asarray(at),
        train_loss=stacked.pop("train_loss"),
        valid_loss=stacked.pop("valid_loss"),
        test_loss=stacked.pop("test_loss"),
        metrics=stacked,
        minibatch_loss=np.concatenate(minibatch, axis=-1),
        params=inner.params,
        seconds=seconds,
        compile_seconds=compile_seconds,
    )


def _advance(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, length: int
) -> tuple[Inner, Float[Array, " length"]]:
    """`unroll` with the guard against non-finite gradients; the minibatch of a step depends on its number alone."""
    stream = jax.random.fold_in(key, 1)

    def step(inner: Inner, _: None) -> tuple[Inner, Float[Array, ""]]:
        at = optimizer.eval_params(inner.opt_state, inner.params)
        batch_key = jax.random.fold_in(stream, inner.step)
        loss, grads = jax.value_and_grad(lambda p: task.loss(inner.problem, p, batch_key))(at)
        updates, opt_state = update_if_finite(optimizer, grads, inner.opt_state, inner.params, value=loss)
        params = optax.apply_updates(inner.params, updates)
        return inner._replace(params=params, opt_state=opt_state, step=inner.step + 1), loss

    return jax.lax.scan(step, inner, length=length)


__all__ = ["TrainRecord", "train", "train_batch"]
