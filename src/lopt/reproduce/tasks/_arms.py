"""The arms that the claims share, and how they are meta-trained: one compiled program for every program of tasks and architecture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.checks import at_least
from lopt.engine import Gradients
from lopt.errors import InputError
from lopt.estimators import PES
from lopt.meta_train import MetaState, apply, as_outer, meta_init
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.optimizers import HierarchicalLSTM, create
from lopt.reproduce.tasks._tasks import PROGRAMS, by_program, subset
from lopt.run_directory import RunDirectory, configuration

PAIRS, TRUNCATION, HORIZON, STD = 4, 20, 100, 0.01  # of PES; particles, inner steps, inner steps
CLIP = 0.1  # of every element of a meta-gradient
EVERY = 200  # meta-steps between checkpoints

# Architectures, small: their fields and the outer learning rate. As in the paper, the LSTM has a lower one.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "hierarchical_lstm": ({"hidden": (16, 16), "lstm_hidden": 16, "step_mult": 0.01, "exp_mult": 0.1}, 3e-3),
    "mlp": ({"hidden": (16, 16), "step_mult": 0.01, "exp_mult": 0.1}, 3e-3),
    "lstm": ({"hidden": 10}, 1e-3),
}


class Blind(HierarchicalLSTM):
    """The same rule, which never asks for a validation loss."""

    def __init__(self, **fields: Any):
        super().__init__(**fields)

    @property
    def validation_every(self) -> int:
        """Never."""
        return 0


class Arm(NamedTuple):
    """A meta-training."""

    kind: str = "hierarchical_lstm"
    size: int = 100  # tasks
    clip: float = CLIP
    blind: bool = False  # whether it never sees a validation loss


HOME = "100 tasks"
ARMS: dict[str, Arm] = {
    "1 task": Arm(size=1),
    "10 tasks": Arm(size=10),
    HOME: Arm(),
    "1000 tasks": Arm(size=1000),
    "feed-forward": Arm(kind="mlp"),
    "LSTM": Arm(kind="lstm"),
    "no clip": Arm(clip=float("inf")),
    "blind": Arm(blind=True),
}


class Trained(NamedTuple):
    """What a meta-training found."""

    optimizer: Optimizer
    meta_loss: Float[np.ndarray, " parts"]  # of every meta-step, or means over stretches of them
    meta_steps: int
    compile_seconds: float  # what first calls of programs took; next to nothing where another arm has made them
    inner_steps_per_second: float  # all particles together, without those


class Training(NamedTuple):
    """A meta-training in flight."""

    meta: MetaState  # its estimators are in `particles`
    particles: tuple[Any, ...]  # of each program
    meta_loss: Float[np.ndarray, " meta_steps"]
    step: Int[np.ndarray, ""]


def new_rule(kind: str, key: PRNGKeyArray) -> Optimizer:
    """An optimizer of one of the `KINDS` with random weights."""
    return create(kind, **KINDS[kind][0], key=key)


def blinded(rule: Optimizer) -> Blind:
    """A `HierarchicalLSTM` that never asks for a validation loss."""
    assert isinstance(rule, HierarchicalLSTM)
    blind = Blind(**KINDS["hierarchical_lstm"][0], key=jax.random.key(0))
    return jax.tree.unflatten(jax.tree.structure(blind), jax.tree.leaves(rule))


def train_arm(
    name: str,
    seed: int,
    *,
    meta_steps: int,
    programs: Sequence[str] = tuple(PROGRAMS),
    folder: Path | None = None,
    on_step: Callable[[int, float], None] = lambda step, meta_loss: None,
) -> Trained:
    r"""Meta-train an arm by persistent evolution strategies and Adam for the loss of the validation split. A meta-step is on one program, drawn
    as often as it has tasks, so that all tasks weigh alike and all arms take as many inner steps.

    Args:
        name: of `ARMS`.
        seed: draws the tasks, the start and all else; arms of one seed and kind start alike.
        meta_steps: how many.
        programs: of `PROGRAMS`.
        folder: a run directory, to go on after a stop.
        on_step: told the meta-step and its meta-loss.

    Raises:
        InputError: for an unknown arm or program, no meta-step, or a run directory of another configuration.
    """
    if name not in ARMS:
        raise InputError(unknown("arm", name, ARMS))
    at_least(1, meta_steps=meta_steps)
    arm, key = ARMS[name], jax.random.key(seed)
    pools = by_program(subset(arm.size, seed, programs))
    estimators = tuple(
        PES(p, pairs=PAIRS, truncation=TRUNCATION, horizon=HORIZON, std=STD, split="valid") for p in pools.values()
    )
    rule = new_rule(arm.kind, jax.random.fold_in(key, 0))
    rule = blinded(rule) if arm.blind else rule
    outer = _outer(KINDS[arm.kind][1])
    meta = _begin(outer, rule, jax.random.fold_in(key, 1), jnp.asarray(arm.clip, jnp.float32))
    particles = tuple(_particles(e, rule, jax.random.fold_in(key, 2 + i)) for i, e in enumerate(estimators))
    training = Training(meta, particles, np.zeros(meta_steps, np.float32), np.zeros((), np.int32))
    run = None
    if folder is not None:
        others = {"arm": name, "clip": str(arm.clip), "meta_steps": meta_steps, "programs": list(programs)}
        run = RunDirectory(folder, configuration(rule, estimators, outer.to_optax(), key=key, **others))
        training = run.resume(training)
    shares = np.array([float(p.count) for p in pools.values()]) / arm.size
    before = 0.0 if run is None else run.seconds_before
    began, seconds, met, first = time.perf_counter(), 0.0, set(), 0.0
    losses, start = np.array(training.meta_loss), int(training.step)
    for step in range(start, meta_steps):
        at = time.perf_counter()
        which = int(np.random.default_rng((seed, step)).choice(len(shares), p=shares))
        found, own, metrics = _estimate(
            estimators[which], training.meta.optimizer, training.particles[which], _key(key, step)
        )
        meta, _ = _apply(outer, training.meta, Gradients(found, (), metrics))
        losses[step] = float(metrics["meta_loss"])
        held = tuple(own if i == which else p for i, p in enumerate(training.particles))
        training = Training(meta, held, losses, np.asarray(step + 1, np.int32))
        spent = time.perf_counter() - at
        seconds, first = (seconds + spent, first) if which in met else (seconds, first + spent)
        met.add(which)
        if run is not None:
            clock = round(before + time.perf_counter() - began, 3)
            run.log(
                {
                    "step": step + 1,
                    "meta_loss": float(losses[step]),
                    "inner_steps": (step + 1) * 2 * PAIRS * TRUNCATION,
                    "seconds": clock,
                }
            )
            if (step + 1) % EVERY == 0 or step + 1 == meta_steps:
                run.save(training)
        on_step(step + 1, losses[step])
    counted = max(meta_steps - start - len(met), 0) * 2 * PAIRS * TRUNCATION
    rate = counted / seconds if seconds else 0.0
    return Trained(training.meta.optimizer, losses, meta_steps, first, rate)


def _key(key: PRNGKeyArray, step: int) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(key, 99), step)


@lru_cache(maxsize=8)  # compiled programs are tied to it
def _outer(learning_rate: float) -> Optimizer:
    """A clip, whose limit is a number of the state, so that arms may differ in it, and Adam."""
    return as_outer(optax.chain(optax.inject_hyperparams(optax.clip)(max_delta=CLIP), optax.adam(learning_rate)))


@jax.jit
def _begin(outer: Optimizer, rule: Optimizer, key: PRNGKeyArray, clip: Float[Array, ""]) -> MetaState:
    state = meta_init(rule, (), outer, key)
    return eqx.tree_at(lambda s: s.outer[0].hyperparams["max_delta"], state, clip)


@jax.jit
def _particles(estimator: PES, rule: Optimizer, key: PRNGKeyArray) -> Any:
    return estimator.init(rule, key)


@jax.jit
def _estimate(estimator: PES, rule: Optimizer, particles: Any, key: PRNGKeyArray) -> Any:
    return estimator.estimate(rule, particles, key)


_apply = jax.jit(apply, static_argnames="average")

__all__ = ["ARMS", "HOME", "KINDS", "Arm", "Blind", "Trained", "blinded", "new_rule", "train_arm"]
