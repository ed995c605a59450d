"""The meta-trained arms that the claims on networks share: shipped ones or ones made on the spot, and how they train the home task."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from lopt import zoo
from lopt.checkpoint import write_text
from lopt.errors import InputError
from lopt.evaluate.training import train_batch
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.population.evolve import stack
from lopt.reproduce._curves import last_tenth
from lopt.reproduce.stability._arms import (
    ARMS,
    BLACK_BOX,
    HORIZON,
    PAIRS,
    STAR_ARMS,
    TRUNCATION,
    Trained,
    home_task,
    train_arms,
)
from lopt.task import Task
from lopt.zoo import Card

WEIGHTS = Path(__file__).parent / "weights"  # of every arm and seed, with cards, and `meta_loss.csv`
DIVERGED = 2.0  # times the loss at the start, as in a certificate


@lru_cache(maxsize=4)
def trained_arms(names: tuple[str, ...], seeds: int, meta_steps: int | None) -> Mapping[str, Trained]:
    """Arms, meta-trained from seeds 0, 1, ...: the shipped ones, or made now and kept for the next claim.

    Args:
        names: of `ARMS`.
        seeds: how many.
        meta_steps: of the meta-training; `None` for the shipped ones.
    """
    if meta_steps is not None:
        keys = jax.random.split(jax.random.key(0), seeds)
        return train_arms(names, home_task()[1], keys, meta_steps=meta_steps)
    with (WEIGHTS / "meta_loss.csv").open(newline="") as file:
        rows = {(row["arm"], int(row["seed"])): row for row in csv.DictReader(file)}
    return {
        name: Trained(
            tuple(zoo.load(WEIGHTS / f"{name}-{seed}.safetensors") for seed in range(seeds)),
            np.asarray([rows[name, seed]["meta_loss"].split() for seed in range(seeds)], np.float64),
            int(rows[name, 0]["meta_steps"]),
        )
        for name in names
    }


def write_arms(
    arms: Mapping[str, Trained], folder: Path, *, parts: int = 50, seconds: float | None = None, command: str = ""
) -> None:
    """Write arms as `trained_arms` reads them: `ARM-SEED.safetensors` with its card, and the means of meta-losses in `meta_loss.csv`.

    Args:
        arms: meta-trained on the home task.
        folder: where they go.
        parts: stretches of a meta-training over which meta-losses are averaged.
        seconds: of all meta-trainings together.
        command: that made them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home, text = home_task()[0], io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("arm", "seed", "meta_steps", "meta_loss"))
    for name, trained in arms.items():
        meta_steps = trained.meta_steps
        for seed, (rule, curve) in enumerate(zip(trained.optimizers, trained.meta_loss, strict=True)):
            card = Card(
                description=f"The arm {name} of lopt reproduce stability: STAR on a small MLP, seed {seed}.",
                tasks=(home.to_json(),),
                seed=seed,
                meta_steps=meta_steps,
                inner_steps=meta_steps * 2 * PAIRS * TRUNCATION,
                horizon=(HORIZON, HORIZON),
                seconds=seconds,
                command=command,
            )
            zoo.save(folder / f"{name}-{seed}", rule, card)
            table.writerow((name, seed, meta_steps, " ".join(f"{x:.5g}" for x in smoothed(curve, parts))))
    write_text(folder / "meta_loss.csv", text.getvalue())


def absent(names: Sequence[str], seeds: int, meta_steps: int | None) -> str:
    """Why a claim cannot be measured; empty where it can.

    Args:
        names: as for `trained_arms`.
        seeds: as for `trained_arms`.
        meta_steps: as for `trained_arms`.

    Raises:
        InputError: for the name of no arm.
    """
    if not names:
        return "no arms were named (names=...)."
    for name in names:
        if name not in ARMS:
            raise InputError(unknown("arm", name, ARMS))
    if BLACK_BOX not in names or not set(names) & set(STAR_ARMS):
        return f"names needs {BLACK_BOX} and one of {', '.join(STAR_ARMS)}."
    missing = [n for n in names for seed in range(seeds) if not (WEIGHTS / f"{n}-{seed}.safetensors").exists()]
    if meta_steps is None and missing:
        return f"no weights are shipped for {', '.join(dict.fromkeys(missing))}; give meta_steps."
    return ""


def best_star(arms: Mapping[str, Trained]) -> str:
    """Of the arms that have both terms, the one with the lowest mean meta-loss of the last meta-steps: by meta-training alone."""
    return min(
        (name for name in arms if name in STAR_ARMS), key=lambda name: float(last_tenth(arms[name].meta_loss).mean())
    )


def trainings(
    rules: Mapping[str, Sequence[Optimizer]], task: Task, *, steps: int, key: PRNGKeyArray, problems: int
) -> dict[str, Float[np.ndarray, "rules problems steps"]]:
    """Minibatch losses of trainings with every rule on the same problems. Rules that differ in their weights alone share a program.

    Args:
        rules: by arm, one a seed of its meta-training.
        task: what is trained.
        steps: of a training.
        key: draws problems, starts and minibatches.
        problems: how many.
    """
    found: dict[str, Any] = {}
    groups: dict[Any, list[str]] = {}
    for name, members in rules.items():
        groups.setdefault(jax.tree.structure(members[0]), []).append(name)
    for names in groups.values():
        members = [rule for name in names for rule in rules[name]]
        record = train_batch(stack(members), task, steps=steps, key=key, seeds=problems, evals=1, batch=len(members))
        sizes = [len(rules[name]) for name in names]
        parts = np.split(record.minibatch_loss.astype(np.float64), np.cumsum(sizes)[:-1])
        found |= dict(zip(names, parts, strict=True))
    return found


@lru_cache(maxsize=4)
def home_runs(
    names: tuple[str, ...], seeds: int, meta_steps: int | None, steps: int, problems: int
) -> Mapping[str, Float[np.ndarray, "seeds problems steps"]]:
    """`trainings` of arms on fresh problems of the task of their meta-training; kept for the next claim.

    Args:
        names: of `ARMS`.
        seeds: of the meta-training.
        meta_steps: as for `trained_arms`.
        steps: of a training.
        problems: how many.
    """
    arms = trained_arms(names, seeds, meta_steps)
    rules = {name: arm.optimizers for name, arm in arms.items()}
    return trainings(rules, home_task()[1], steps=steps, key=jax.random.key(1), problems=problems)


def level(losses: Float[np.ndarray, "*runs steps"], step: int, window: int = 50) -> Float[np.ndarray, "*runs"]:
    """Mean loss of the steps before this one.

    Args:
        losses: of trainings.
        step: the last that counts.
        window: how many.
    """
    return losses[..., max(0, step - window) : step].mean(axis=-1)


def diverged(losses: Float[np.ndarray, "*runs steps"], step: int) -> Bool[np.ndarray, "*runs"]:
    """Where the level at a step is above twice the first loss, or not finite.

    Args:
        losses: of trainings.
        step: where.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return ~(level(losses, step) <= DIVERGED * losses[..., 0])


def first_at(curve: Float[np.ndarray, " n"], target: float) -> float:
    """The first index at which a curve is at or below a target; infinity where it never is."""
    reached = np.flatnonzero(curve <= target)
    return float(reached[0]) if len(reached) else float("inf")


def smoothed(curves: Float[np.ndarray, "*runs n"], parts: int = 50) -> Float[np.ndarray, "*runs parts"]:
    """Means over consecutive stretches.

    Args:
        curves: along the last axis.
        parts: how many stretches, at most.
    """
    edges = np.unique(np.linspace(0, curves.shape[-1], min(parts, curves.shape[-1]) + 1).astype(int))
    return np.stack([curves[..., a:b].mean(axis=-1) for a, b in itertools.pairwise(edges)], axis=-1)


__all__ = [
    "absent",
    "best_star",
    "diverged",
    "first_at",
    "home_runs",
    "level",
    "smoothed",
    "trained_arms",
    "trainings",
    "write_arms",
]
