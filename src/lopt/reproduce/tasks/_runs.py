"""Meta-trained arms, shipped or made on the spot, and how they and Adam do on the held-out tasks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lopt import zoo
from lopt.checkpoint import write_text
from lopt.errors import InputError
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.population.evolve import stack
from lopt.reproduce.tasks._arms import ARMS, HORIZON, PAIRS, TRUNCATION, Trained, blinded, new_rule, train_arm
from lopt.reproduce.tasks._hand_designed import ADAM_RATES, HandDesigned, adams
from lopt.reproduce.tasks._tasks import PROGRAMS, Pool, by_program, check_programs, held_out, subset
from lopt.unroll import start
from lopt.unroll import step as inner_step
from lopt.zoo import Card

WEIGHTS = Path(__file__).parent / "weights"  # of every arm and seed, with cards, and `meta_loss.csv`
LEAST = 50  # meta-steps that may show anything
SPLITS = ("train", "test")
CHUNK = 14  # hand-designed settings that train at once
TRAINABLE = 0.1  # part of the loss at the start that some rate of Adam must take away on both splits


def absent(names: Sequence[str], seeds: int, meta_steps: int | None) -> str:
    """Why a claim cannot be measured; empty where it can.

    Args:
        names: of `ARMS`.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.

    Raises:
        InputError: for the name of no arm.
    """
    for name in names:
        if name not in ARMS:
            raise InputError(unknown("arm", name, ARMS))
    if seeds < 2 or (meta_steps is not None and meta_steps < LEAST):
        steps = "the shipped meta-steps" if meta_steps is None else f"{meta_steps} meta-steps"
        return f"{steps} from {seeds} seeds cannot tell arms apart; it takes at least {LEAST} from 2."
    missing = [n for n in names for s in range(seeds) if not _weights(n, s).exists()]
    if meta_steps is None and missing:
        return f"no weights of {seeds} seeds are shipped for {', '.join(dict.fromkeys(missing))}; give meta_steps."
    return ""


@lru_cache(maxsize=64)
def trained_arm(
    name: str, seed: int, meta_steps: int | None, programs: tuple[str, ...], runs: str | None = None
) -> Trained:
    """An arm from a seed: the shipped one, or made now and kept for the next claim.

    Args:
        name: of `ARMS`.
        seed: from 0.
        meta_steps: of the meta-training; `None` for the shipped one.
        programs: of `PROGRAMS`, for a meta-training.
        runs: a folder for the run directories of all meta-trainings.

    Raises:
        InputError: for shipped weights of another architecture or size, or a run directory of another configuration.
    """
    if meta_steps is not None:
        folder = None if runs is None else Path(runs) / f"{name.replace(' ', '-')}-{seed}"
        return train_arm(name, seed, meta_steps=meta_steps, programs=programs, folder=folder)
    rule, wanted = zoo.load(_weights(name, seed)), new_rule(ARMS[name].kind, jax.random.key(0))
    if _shape(rule) != _shape(wanted):
        raise InputError(f"{_weights(name, seed)} does not fit the arm {name}: it must be a {ARMS[name].kind} of its sizes.")
    with (WEIGHTS / "meta_loss.csv").open(newline="") as file:
        (row,) = [r for r in csv.DictReader(file) if (r["arm"], r["seed"]) == (name, str(seed))]
    curve = np.asarray(row["meta_loss"].split(), np.float64)
    others = int(row["meta_steps"]), float(row["compile_seconds"]), float(row["inner_steps_per_second"])
    return Trained(blinded(rule) if ARMS[name].blind else rule, curve, *others)


def write_arms(arms: Mapping[tuple[str, int], Trained], folder: Path, *, parts: int = 50) -> None:
    """Write arms as `trained_arm` reads them: `ARM-SEED.safetensors` with its card, and the means of meta-losses in `meta_loss.csv`.

    Args:
        arms: by name and seed, meta-trained on all programs.
        folder: where they go.
        parts: stretches of a meta-training over which meta-losses are averaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("arm", "seed", "meta_steps", "compile_seconds", "inner_steps_per_second", "meta_loss"))
    for (name, seed), found in arms.items():
        first = subset(ARMS[name].size, seed, tuple(PROGRAMS))[0]
        card = Card(
            description=f"The arm {name} of lopt reproduce tasks, seed {seed}: for its claims, not for use. Of its {ARMS[name].size} tasks the first is named.",
            tasks=({"name": "sampled", "fields": {"seed": first}},),
            seed=seed,
            meta_steps=found.meta_steps,
            inner_steps=found.meta_steps * 2 * PAIRS * TRUNCATION,
            horizon=(HORIZON, HORIZON),
        )
        rule = found.optimizer
        plain = new_rule(ARMS[name].kind, jax.random.key(0))
        rule = jax.tree.unflatten(jax.tree.structure(plain), jax.tree.leaves(rule))
        zoo.save(folder / _weights(name, seed).name, rule, card)
        curve = " ".join(f"{x.mean():.5g}" for x in np.array_split(found.meta_loss, min(parts, len(found.meta_loss))))
        rate = (f"{found.compile_seconds:.1f}", f"{found.inner_steps_per_second:.0f}")
        table.writerow((name, seed, found.meta_steps, *rate, curve))
    write_text(folder / "meta_loss.csv", text.getvalue())


def _weights(name: str, seed: int) -> Path:
    return WEIGHTS / f"{name.replace(' ', '-')}-{seed}.safetensors"


def _shape(rule: Optimizer) -> Any:
    return jax.tree.structure(rule), [x.shape for x in jax.tree.leaves(rule)]


class HeldOut(NamedTuple):
    """The held-out tasks, and what normalises their losses."""

    pools: Mapping[str, Pool]
    steps: int
    seed: int
    kept: np.ndarray  # [tasks]: whether Adam trains it
    first: Mapping[str, Float[np.ndarray, " tasks"]]  # by split, the loss at the start
    adam: Mapping[str, Float[np.ndarray, "rates tasks"]]  # by split, the final losses of Adam

    def losses(self, rules: Sequence[Optimizer]) -> Mapping[str, Float[np.ndarray, "rules tasks"]]:
        """Final losses by split of all held-out tasks, of rules that differ in their numbers alone; infinity where one is not finite."""
        size = CHUNK if isinstance(rules[0], HandDesigned) else 1
        return {s: last for s, (_, last) in _losses(self.pools, rules, self.steps, self.seed, size).items()}

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
    check_programs(programs)
    pools = by_program(held_out(count, programs), rows=1)
    found = _losses(pools, adams(ADAM_RATES), steps, seed, CHUNK)
    first, last = ({s: found[s][i] for s in SPLITS} for i in (0, 1))
    first = {s: x[0] for s, x in first.items()}
    kept = np.all([last[s].min(axis=0) <= (1.0 - TRAINABLE) * first[s] for s in SPLITS], axis=0)
    if not kept.any():
        raise InputError(f"Adam trains none of the {count} held-out tasks in {steps} steps; give more steps.")
    return HeldOut(pools, steps, seed, kept, first, last)


def _losses(
    pools: Mapping[str, Pool], rules: Sequence[Optimizer], steps: int, seed: int, size: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """First and final losses by split, each [rules, tasks]. Rules go by so many at once, so that any number of them shares a program."""
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
    programs: tuple[str, ...], count: int, steps: int, rules: Sequence[HandDesigned | Optimizer]
) -> Float[np.ndarray, "rules tasks"]:
    """Final training losses over those at the start, at most 1, on tasks of the first meta-training: what hand-designed rules are tuned by.

    Args:
        programs: of `PROGRAMS`.
        count: of tasks.
        steps: of a training.
        rules: `HandDesigned` ones.
    """
    pools = by_program(subset(count, 0, programs), rows=1)
    first, last = _losses(pools, rules, steps, 1, CHUNK)["train"]
    return np.minimum(last / first, 1.0)


@lru_cache(maxsize=64)
def arm_scores(
    name: str,
    seed: int,
    meta_steps: int | None,
    programs: tuple[str, ...],
    runs: str | None,
    count: int,
    steps: int,
) -> Mapping[str, Float[np.ndarray, " kept"]]:
    """Normalised losses of an arm on the held-out tasks, by split; kept for the next claim.

    Args:
        name: as for `trained_arm`.
        seed: as for `trained_arm`.
        meta_steps: as for `trained_arm`.
        programs: as for `trained_arm`.
        runs: as for `trained_arm`.
        count: of held-out tasks.
        steps: of a training.
    """
    held = held_out_tasks(count, programs, steps)
    found = held.losses([trained_arm(name, seed, meta_steps, programs, runs).optimizer])
    return {s: held.normalised(found[s], s)[0] for s in SPLITS}


def all_scores(
    names: Sequence[str], seeds: int, split: str, **given: Any
) -> dict[str, Float[np.ndarray, "seeds kept"]]:
    """`arm_scores` of several arms and seeds on one split."""
    return {n: np.stack([arm_scores(n, seed, **given)[split] for seed in range(seeds)]) for n in names}


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


__all__ = ["SPLITS", "WEIGHTS", "HeldOut", "absent", "all_scores", "arm_scores", "held_out_tasks", "train_all", "trained_arm", "tuning_losses", "write_arms"]
