"""The six arms of the ablation: one rule with and without each of its parts, and how they are meta-trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PRNGKeyArray

from lopt.checkpoint import from_bytes, to_bytes, write_bytes
from lopt.estimators import PES
from lopt.meta_train import MetaState, as_outer, meta_init, meta_step
from lopt.optimizer import Optimizer
from lopt.optimizers import STAR
from lopt.task import Task
from lopt.tasks import MissingDataError, TaskName, create

STEP = 1e-3  # of the nominal term, and of the black box
HORIZON = 200  # inner steps of a training in meta-training
FASHION = TaskName("fashion_mlp", {"size": 8, "widths": [16, 16], "batch_size": 32})
DIGITS = TaskName("digits_mlp", {"widths": [16, 16], "batch_size": 32})
PAIRS, TRUNCATION = 4, 20  # of PES
EVERY = 50  # meta-steps between checkpoints


class Arm(NamedTuple):
    """A row of the ablation."""

    nominal_step: float
    step_mult: float
    precondition: bool = True
    decay: float = 0.0  # of the meta-parameters, by AdamW: times the outer learning rate a meta-step


NOMINAL, BLACK_BOX, BOTH = "nominal", "black-box", "both"

ARMS: dict[str, Arm] = {
    NOMINAL: Arm(STEP, 0.0, False),
    BLACK_BOX: Arm(0.0, STEP, False),
    BOTH: Arm(STEP, STEP),
    "decay-0.1": Arm(STEP, STEP, decay=0.1),
    "decay-0.5": Arm(STEP, STEP, decay=0.5),
    "decay-1.0": Arm(STEP, STEP, decay=1.0),
}
STAR_ARMS = tuple(name for name, arm in ARMS.items() if arm.nominal_step and arm.step_mult)


def home_task() -> tuple[TaskName, Task]:
    """The task of the meta-training, with its name; digits where Fashion-MNIST is not on this machine."""
    try:
        return FASHION, create(FASHION)
    except MissingDataError:
        return DIGITS, create(DIGITS)


class Trained(NamedTuple):
    """An arm, meta-trained from several seeds."""

    optimizers: tuple[Optimizer, ...]  # one a seed
    meta_loss: Float[np.ndarray, "seeds parts"]  # of every meta-step, or means over stretches of them
    meta_steps: int


def train_arms(
    names: Sequence[str],
    task: Task,
    keys: Key[Array, " seeds"],
    *,
    meta_steps: int,
    learning_rate: float = 1e-2,
    pairs: int = PAIRS,
    truncation: int = TRUNCATION,
    horizon: int = HORIZON,
    std: float = 0.01,
    folder: Path | None = None,
    on_step: Callable[[str, int, float], None] = lambda names, step, meta_loss: None,
) -> dict[str, Trained]:
    r"""Meta-train arms by PES and AdamW, each from every seed. Those that differ in their decay alone are meta-trained together.

    $$\theta \leftarrow \theta - \eta_k \big( \mathrm{Adam}(\hat g) + \lambda \theta \big)$$

    Args:
        names: of `ARMS`.
        task: of the inner trainings.
        keys: one a seed. The arms of one seed start from the same weights and meet the same problems.
        meta_steps: of the outer optimizer.
        learning_rate: $\eta_0$; it falls to a tenth by a cosine.
        pairs: of particles.
        truncation: inner steps a meta-step.
        horizon: inner steps of a training.
        std: of the perturbation.
        folder: where to keep the state, to go on after a stop.
        on_step: told the arms, the meta-step and the mean meta-loss.
    """
    pes = PES(task, pairs=pairs, truncation=truncation, horizon=horizon, std=std, objective="mean")
    outer = _outer(learning_rate, meta_steps)
    groups: dict[Arm, list[str]] = {}
    for name in names:
        groups.setdefault(ARMS[name]._replace(decay=0.0), []).append(name)
    found: dict[str, Trained] = {}
    for arm, members in groups.items():
        decays = jnp.repeat(jnp.asarray([ARMS[name].decay for name in members], jnp.float32), len(keys))
        state = _begin(arm, (pes,), outer, decays, jnp.tile(keys, len(members)))
        losses = np.zeros((len(decays), meta_steps), np.float64)
        path = None if folder is None else folder / f"{'+'.join(members)}.safetensors"
        if path is not None and path.exists():
            state, found_losses = from_bytes(path.read_bytes(), (state, losses), str(path))
            losses = np.array(found_losses, np.float64)
        for step in range(int(state.step[0]), meta_steps):
            state, metrics = _meta_step((pes,), outer, state)
            losses[:, step] = np.asarray(metrics["meta_loss"])
            on_step(", ".join(members), step + 1, float(losses[:, step].mean()))
            if path is not None and ((step + 1) % EVERY == 0 or step + 1 == meta_steps):
                write_bytes(path, to_bytes((state, losses)))
        for i, name in enumerate(members):
            runs = range(i * len(keys), (i + 1) * len(keys))
            found[name] = Trained(
                tuple(at(state.optimizer, run) for run in runs), losses[runs.start : runs.stop], meta_steps
            )
    return {name: found[name] for name in names}


def at(stacked: Any, index: int) -> Any:
    """One of several trees that are stacked along a leading axis."""
    return jax.tree.map(lambda x: x[index], stacked)


@lru_cache(maxsize=8)  # compiled programs are tied to it
def _outer(learning_rate: float, meta_steps: int) -> Optimizer:
    """AdamW, whose decay is a number of its state, so that arms may differ in it."""
    rate = optax.cosine_decay_schedule(learning_rate, meta_steps, alpha=0.1)
    decayed = optax.inject_hyperparams(optax.add_decayed_weights)(weight_decay=0.0)
    return as_outer(optax.chain(optax.clip(1.0), optax.scale_by_adam(), decayed, optax.scale_by_learning_rate(rate)))


@partial(jax.jit, static_argnums=(0, 2))
def _begin(
    arm: Arm, estimators: tuple[PES, ...], outer: Optimizer, decays: Float[Array, " runs"], keys: Key[Array, " runs"]
) -> MetaState:
    """A meta-training for every decay and key."""

    def one(decay: Array, key: PRNGKeyArray) -> MetaState:
        init_key, train_key = jax.random.split(key)
        rule = STAR(nominal_step=arm.nominal_step, step_mult=arm.step_mult, precondition=arm.precondition, key=init_key)
        state = meta_init(rule, estimators, outer, train_key)
        return eqx.tree_at(lambda s: s.outer[2].hyperparams["weight_decay"], state, decay)

    return jax.vmap(one)(decays, keys)


@partial(jax.jit, static_argnums=1, donate_argnums=2)
def _meta_step(
    estimators: tuple[PES, ...], outer: Optimizer, states: MetaState
) -> tuple[MetaState, dict[str, Float[Array, " runs"]]]:
    return jax.vmap(lambda state: meta_step(estimators, outer, state))(states)


__all__ = ["ARMS", "Arm", "Trained", "home_task", "train_arms"]
