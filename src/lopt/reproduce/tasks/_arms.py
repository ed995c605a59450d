"""The arms that the claims share, and how they are meta-trained: one compiled program for every program of tasks and architecture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.engine import Drawn
from lopt.errors import InputError
from lopt.estimators import PES
from lopt.meta_train import Progress, meta_train
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.optimizers import HierarchicalLSTM, create
from lopt.reproduce.tasks._tasks import PROGRAMS, by_program, subset
from lopt.run_directory import metrics_of

PAIRS, TRUNCATION, HORIZON, STD = 4, 20, 100, 0.01  # of PES; particles, inner steps, inner steps
CLIP = 0.1  # of every element of a meta-gradient
AVERAGE = 0.99  # decay of the average of the meta-parameters, which is kept

# Architectures, small: their fields and the outer learning rate. As in the paper, the LSTM has a lower one.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "hierarchical_lstm": ({"hidden": (16, 16), "lstm_hidden": 16, "step_mult": 0.01, "exp_mult": 0.1}, 1e-3),
    "mlp": ({"hidden": (16, 16), "step_mult": 0.01, "exp_mult": 0.1}, 1e-3),
    "lstm": ({"hidden": 10}, 3e-4),
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
    compile_seconds: float  # what meta-steps took beyond their median; little for programs that are compiled
    inner_steps_per_second: float  # all particles together, in a meta-step of the median


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
    losses: list[float] = []
    at = [time.perf_counter()]

    def keep(progress: Progress) -> None:
        losses.append(progress.meta_loss)
        at.append(time.perf_counter())
        on_step(progress.step, progress.meta_loss)

    found = meta_train(
        rule,
        estimators,
        _outer(arm.clip, KINDS[arm.kind][1]),
        steps=meta_steps,
        key=jax.random.fold_in(key, 1),
        average=AVERAGE,
        run_dir=folder,
        settings={"arm": name, "programs": list(programs)},
        engine=Drawn([int(p.count) for p in pools.values()]),
        on_step=keep,
    )
    if folder is not None:
        losses = [line["meta_loss"] for line in metrics_of(folder)]
    seconds = np.diff(at)
    usual = float(np.median(seconds)) if len(seconds) else np.inf
    compiling = max(0.0, float(seconds.sum()) - usual * len(seconds)) if len(seconds) else 0.0
    return Trained(found.optimizer, np.array(losses, np.float64), meta_steps, compiling, 2 * PAIRS * TRUNCATION / usual)


@lru_cache(maxsize=16)  # what is built anew compiles anew
def _outer(clip: float, learning_rate: float) -> optax.GradientTransformation:
    return optax.chain(optax.clip(clip), optax.adam(learning_rate))


__all__ = ["ARMS", "HOME", "KINDS", "Arm", "Blind", "Trained", "blinded", "new_rule", "train_arm"]
