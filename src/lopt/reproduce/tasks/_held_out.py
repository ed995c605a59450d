"""The held-out tasks: what Adam's losses are there, and those of any rule, on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from lopt.errors import InputError
from lopt.optimizer import Optimizer
from lopt.population.evolve import stack
from lopt.reproduce.tasks._hand_designed import ADAM_RATES, HandDesigned, adams
from lopt.reproduce.tasks._tasks import Pool, by_program, held_out, subset
from lopt.unroll import start
from lopt.unroll import step as inner_step

SPLITS = ("train", "test")
CHUNK = 14  # hand-designed settings that train at once
TRAINABLE = 0.1  # part of the loss at the start that some rate of Adam must take away on both splits


class HeldOut(NamedTuple):
    """The held-out tasks, and what normalises their losses."""

    pools: Mapping[str, Pool]
    steps: int
    seed: int
    kept: Bool[np.ndarray, " tasks"]  # whether Adam trains it
    first: Mapping[str, Float[np.ndarray, " tasks"]]  # by split, the loss at the start
    adam: Mapping[str, Float[np.ndarray, "rates tasks"]]  # by split, the final losses of Adam

    def losses(self, rules: Sequence[Optimizer]) -> Mapping[str, Float[np.ndarray, "rules tasks"]]:
        """Final losses by split of all held-out tasks, of rules that differ in their numbers alone; infinity where one is not finite."""
        size = CHUNK if isinstance(rules[0], HandDesigned) else 1
        return {s: last for s, (_, last) in final_losses(self.pools, rules, self.steps, self.seed, size).items()}

    def normalised(
        self, losses: Float[np.ndarray, "rules tasks"], split: str, best: Float[np.ndarray, " tasks"] | None = None
    ) -> Float[np.ndarray, "rules kept"]:
        r"""$\min\big((\ell - b) / (a - b), 1\big)$, with $a$ the loss at the start and $b$ that of Adam's best rate for the task.

        Args:
            losses: of all held-out tasks.
            split: of these.
            best: $b$, where it is another.
        """
        first = self.first[split]
        floor = self.adam[split].min(axis=0) if best is None else best
        return np.minimum((losses - floor) / (first - floor), 1.0)[:, self.kept]


@lru_cache(maxsize=4)
def held_out_tasks(count: int, programs: tuple[str, ...], steps: int, seed: int = 0) -> HeldOut:
    """The held-out tasks with the losses of Adam at 14 rates. Those on which no rate takes away a tenth of the loss on both splits do not count.

    Args:
        count: of tasks.
        programs: of `PROGRAMS`.
        steps: of a training.
        seed: draws starts and minibatches.

    Raises:
        InputError: where no task is left.
    """
    pools = by_program(held_out(count, programs), rows=1)
    found = final_losses(pools, adams(ADAM_RATES), steps, seed, CHUNK)
    first, last = ({s: found[s][i] for s in SPLITS} for i in (0, 1))
    first = {s: x[0] for s, x in first.items()}
    kept = np.all([last[s].min(axis=0) <= (1.0 - TRAINABLE) * first[s] for s in SPLITS], axis=0)
    if not kept.any():
        raise InputError(f"Adam trains none of the {count} held-out tasks in {steps} steps; give more steps.")
    return HeldOut(pools, steps, seed, kept, first, last)


def final_losses(
    pools: Mapping[str, Pool], rules: Sequence[Optimizer], steps: int, seed: int, size: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """First and final losses by split, each [rules, tasks]; a final one that is not finite is infinity.

    Args:
        pools: the tasks; each of a pool is trained once.
        rules: that differ in their numbers alone.
        steps: of a training.
        seed: draws starts and minibatches.
        size: rules that train at once, so that any number of them shares a program.
    """
    filled = [rules[j % len(rules)] for j in range(-(-len(rules) // size) * size)]
    found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {s: ([], []) for s in SPLITS}
    for i, pool in enumerate(pools.values()):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), i), int(pool.count))
        parts = [
            jax.device_get(train_all(stack(filled[j : j + size]), pool, keys, jnp.asarray(steps)))
            for j in range(0, len(filled), size)
        ]
        for s in SPLITS:
            for end in (0, 1):
                found[s][end].append(np.concatenate([p[s][end] for p in parts])[: len(rules)])
    ends = {s: [np.concatenate(x, axis=1).astype(np.float64) for x in both] for s, both in found.items()}
    return {s: (first, np.where(np.isfinite(last), last, np.inf)) for s, (first, last) in ends.items()}


def tuning_losses(
    programs: tuple[str, ...], count: int, steps: int, rules: Sequence[Optimizer]
) -> Float[np.ndarray, "rules tasks"]:
    """Final training losses over those at the start, at most 1, on tasks of the first meta-training: what hand-designed rules are tuned by.

    Args:
        programs: of `PROGRAMS`.
        count: of tasks.
        steps: of a training.
        rules: `HandDesigned` ones.
    """
    pools = by_program(subset(count, 0, programs), rows=1)
    first, last = final_losses(pools, rules, steps, 1, CHUNK)["train"]
    return np.minimum(last / first, 1.0)


@jax.jit
def train_all(
    rules: Optimizer, pool: Pool, keys: Key[Array, " tasks"], steps: Int[Array, ""]
) -> dict[str, tuple[Float[Array, "rules tasks"], Float[Array, "rules tasks"]]]:
    """Train every task of a pool once with every rule of a stack; the losses of splits at the start and at the end.

    Args:
        rules: leaves with a leading axis.
        pool: the tasks.
        keys: one a task: its start, its minibatches and what is evaluated; the same for all rules.
        steps: of a training.
    """

    def one(rule: Optimizer, index: Int[Array, ""], key: Any) -> Any:
        task = pool.only(index)
        begun = start(rule, task, jax.random.fold_in(key, 0), steps)

        def step(i: Int[Array, ""], inner: Any) -> Any:
            return inner_step(rule, task, inner, jax.random.fold_in(jax.random.fold_in(key, 1), i), guarded=True)[0]

        def losses(params: Any) -> Float[Array, " splits"]:
            at = jax.random.fold_in(key, 2)
            return jnp.stack([task.metrics(begun.problem, params, at, s)["loss"] for s in ("train", "test")])

        ended = jax.lax.fori_loop(0, steps, step, begun)
        both = jax.lax.map(losses, jax.tree.map(lambda a, b: jnp.stack([a, b]), begun.params, ended.params))
        return both

    over_tasks = jax.vmap(one, in_axes=(None, 0, 0))
    found = jax.vmap(over_tasks, in_axes=(0, None, None))(rules, jnp.arange(len(keys)), keys)
    return {s: (found[..., 0, i], found[..., 1, i]) for i, s in enumerate(SPLITS)}


__all__ = ["CHUNK", "SPLITS", "HeldOut", "final_losses", "held_out_tasks", "train_all", "tuning_losses"]
