"""Train one task with one optimizer, over many seeds at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from lopt.checks import at_least
from lopt.evaluate.equal import Equal
from lopt.optimizer import Optimizer, Params
from lopt.optimizers.from_optax import FromOptax
from lopt.task import Problem, Task
from lopt.unroll import Inner, start
from lopt.unroll import step as inner_step

SPLITS = ("train", "valid", "test")
BLOCK = 1024  # inner steps that one call of a compiled program takes, at most


class TrainRecord(NamedTuple):
    """What a training did. Curves have a leading axis of seeds; evaluations are at `steps`, the first of which is 0."""

    steps: Int[np.ndarray, " evals"]
    train_loss: Float[np.ndarray, "seeds evals"]
    valid_loss: Float[np.ndarray, "seeds evals"]
    test_loss: Float[np.ndarray, "seeds evals"]
    metrics: dict[str, Float[np.ndarray, "seeds evals"]]  # `train_accuracy`, ...: what else the task reports
    minibatch_loss: Float[np.ndarray, "seeds steps"]  # where the gradients were taken
    params: PyTree  # final, those of `eval_params`, leading axis of seeds
    seconds: Float[
        np.ndarray, " stretches"
    ]  # between evaluations, all seeds together, without compilation and evaluation
    compile_seconds: float

    @property
    def seconds_per_step(self) -> Float[np.ndarray, " stretches"]:
        """Wall-clock seconds of one inner step of one seed, in every stretch between evaluations."""
        runs = self.minibatch_loss.size // self.minibatch_loss.shape[-1]
        return self.seconds / np.diff(self.steps) / runs


def train(
    optimizer: Optimizer | optax.GradientTransformation,
    task: Task,
    *,
    steps: int,
    key: PRNGKeyArray,
    seeds: int = 1,
    evals: int = 20,
    tell_horizon: bool = True,
    on_eval: Callable[[int], None] | None = None,
) -> TrainRecord:
    """Train `task` with `optimizer`.

    A seed draws the problem, its initial parameters and the minibatches; the same key and seed meet the same ones whatever the
    optimizer, so comparisons are paired. Steps with a non-finite gradient are skipped.

    Args:
        optimizer: a lopt `Optimizer`, or any optax transformation.
        task: what to train.
        steps: inner steps.
        key: draws everything.
        seeds: independent trainings, run together.
        evals: how many times all splits are evaluated after the start, as evenly as whole steps allow; at most once a step.
        tell_horizon: whether the optimizer is told `steps`; some must be.
        on_eval: called with the step after each evaluation.

    Raises:
        InputError: for a number of steps, seeds or evaluations below 1.

    Examples:
        >>> import jax, lopt, optax
        >>> task = lopt.tasks.create("quadratic", dim=3)
        >>> record = lopt.train(optax.sgd(0.1), task, steps=20, key=jax.random.key(0), seeds=2, evals=4)
        >>> record.train_loss.shape
        (2, 5)
    """
    one = jax.tree.map(lambda x: x[None], as_optimizer(optimizer))
    record = train_batch(
        one, task, steps=steps, key=key, seeds=seeds, evals=evals, batch=1, tell_horizon=tell_horizon, on_eval=on_eval
    )
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
    tell_horizon: bool = True,
    on_eval: Callable[[int], None] | None = None,
) -> TrainRecord:
    """`train` for a batch of optimizers of one kind, in one compile. Other arguments as there.

    Args:
        optimizers: an optimizer whose leaves have a leading axis of `batch`.
        batch: length of that axis.

    Returns:
        A record whose arrays have `batch` as their first axis and seeds as their second.
    """
    at_least(1, steps=steps, seeds=seeds, evals=evals)
    keys = jax.random.split(key, seeds)
    inner = _begin(optimizers, task, keys, steps, batch, tell_horizon)

    def evaluate(inner: Inner) -> dict[str, np.ndarray]:
        params = _eval_params(optimizers, inner, batch)
        return jax.device_get(_evaluate(task, inner.problem, params, keys))

    began = time.perf_counter()
    program = _advance.lower(optimizers, task, inner, keys, 1, batch).compile()
    compile_seconds = time.perf_counter() - began
    at = np.round(np.linspace(0, steps, min(evals, steps) + 1)).astype(int)
    curves, minibatch, seconds = [evaluate(inner)], [], []
    for before, after in itertools.pairwise(at.tolist()):
        length = after - before
        began = time.perf_counter()
        for taken in range(0, length, BLOCK):
            block = min(BLOCK, length - taken)
            inner, losses = program(optimizers, task, inner, keys, block)
            minibatch.append(np.asarray(losses)[..., :block])
        jax.block_until_ready(inner)
        seconds.append(time.perf_counter() - began)
        curves.append(evaluate(inner))
        if on_eval is not None:
            on_eval(after)
    stacked = {name: np.stack([c[name] for c in curves], axis=-1) for name in curves[0]}
    return TrainRecord(
        steps=at,
        train_loss=stacked.pop("train_loss"),
        valid_loss=stacked.pop("valid_loss"),
        test_loss=stacked.pop("test_loss"),
        metrics=stacked,
        minibatch_loss=np.concatenate(minibatch, axis=-1),
        params=_eval_params(optimizers, inner, batch),
        seconds=np.asarray(seconds),
        compile_seconds=compile_seconds,
    )


def as_optimizer(optimizer: Optimizer | optax.GradientTransformation) -> Optimizer:
    """An optimizer as it is, an optax transformation as `FromOptax`: the same object for equal ones, so that they share compiled programs."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    return _from_optax(Equal(optimizer))


@lru_cache(maxsize=256)
def _from_optax(tx: Equal) -> FromOptax:
    return FromOptax(tx.value)


def default_key(seed: int) -> PRNGKeyArray:
    """The key of an evaluation: apart from every key of meta-training with the same seed."""
    return jax.random.fold_in(jax.random.key(seed), 0xE7A1)


# Jitted once here rather than in each call, so that trainings of one task share their compiled programs.


def _cross(fn: Callable[..., PyTree], batch: int) -> Callable[..., PyTree]:
    """`fn(optimizer, x, key)` for all pairs of optimizers and seeds; `x` has both axes, seeds the inner one."""
    return jax.vmap(jax.vmap(fn, in_axes=(None, 0, 0)), in_axes=(0, 0, None), axis_size=batch)


@partial(jax.jit, static_argnums=(4, 5))
def _begin(
    optimizers: Optimizer,
    task: Task,
    keys: Key[Array, " seeds"],
    steps: int | Int[Array, ""],
    batch: int,
    tell_horizon: bool,
) -> Inner:
    def begin(optimizer: Optimizer, _: None, key: PRNGKeyArray) -> Inner:
        return start(optimizer, task, jax.random.fold_in(key, 0), steps, tell_horizon=tell_horizon)

    return _cross(begin, batch)(optimizers, None, keys)


@partial(jax.jit, static_argnums=2)
def _eval_params(optimizers: Optimizer, inner: Inner, batch: int) -> Params:
    over_seeds = jax.vmap(lambda optimizer, inner: optimizer.eval_params(inner.opt_state, inner.params), (None, 0))
    return jax.vmap(over_seeds, axis_size=batch)(optimizers, inner)


@jax.jit
def _evaluate(task: Task, problems: Problem, params: Params, keys: Key[Array, " seeds"]) -> dict[str, Array]:
    def evaluate(problem: Problem, params: Params, key: PRNGKeyArray) -> dict[str, Array]:
        found = {s: task.metrics(problem, params, jax.random.fold_in(key, 2), s) for s in SPLITS}
        return {f"{split}_{name}": value for split, ms in found.items() for name, value in ms.items()}

    return jax.vmap(jax.vmap(evaluate), in_axes=(0, 0, None))(problems, params, keys)


@partial(jax.jit, static_argnums=5, donate_argnums=2)
def _advance(
    optimizers: Optimizer, task: Task, inner: Inner, keys: Key[Array, " seeds"], length: Int[Array, ""], batch: int
) -> tuple[Inner, Float[Array, "batch seeds block"]]:
    """`unroll` with the guard against non-finite gradients; the minibatch of a step depends on its number alone.

    The length, at most `BLOCK`, is an argument, so that trainings to any horizon share a program; losses from it on are zero.
    """

    def advance(optimizer: Optimizer, inner: Inner, key: PRNGKeyArray) -> tuple[Inner, Float[Array, " block"]]:
        stream = jax.random.fold_in(key, 1)

        def step(i: Int[Array, ""], carry: tuple[Inner, Array]) -> tuple[Inner, Array]:
            inner, losses = carry
            batch_key = jax.random.fold_in(stream, inner.step)
            inner, loss = inner_step(optimizer, task, inner, batch_key, guarded=True, split=None)
            return inner, losses.at[i].set(loss)

        return jax.lax.fori_loop(0, length, step, (inner, jnp.zeros(BLOCK)))

    return _cross(advance, batch)(optimizers, inner, keys)


__all__ = ["TrainRecord", "as_optimizer", "default_key", "train", "train_batch"]
