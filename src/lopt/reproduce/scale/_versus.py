"""What claims (a) to (c) share: a saved optimizer and tuned baselines on the same problems, starts and minibatches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt import zoo
from lopt.errors import InputError
from lopt.evaluate.grid import tune
from lopt.evaluate.training import train
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.zoo import Card

WEIGHTS = "hierarchical-rnn-2"
WITH_MLPS = Path(__file__).parent / "weights" / "small-mlps.safetensors"
KIND = "hierarchical_rnn"  # what the claims speak of
BASELINES = {"RMSProp": "rmsprop", "Adam": "adam"}
SMALL_MLPS = ("mlp_", "sparse_mlp_")  # how the members of the corpus that are networks begin


class Versus(NamedTuple):
    """Final training losses on one task, one a seed; infinity where a training diverged."""

    first: Float[np.ndarray, " seeds"]  # the losses at the start
    learned: Float[np.ndarray, " seeds"]
    tuned: dict[str, Float[np.ndarray, " seeds"]]  # by baseline, at its best rate
    rates: dict[str, float]

    @property
    def left(self) -> float:
        """The part of the way from the start to the best baseline that the learned optimizer leaves; below zero where it is ahead."""
        best = min(float(x.mean()) for x in self.tuned.values())
        first, learned = float(self.first.mean()), float(self.learned.mean())
        return (learned - best) / (first - best) if np.isfinite(learned) and first > best else float("inf")


def learned_optimizer(weights: str | Path) -> tuple[Optimizer, Card]:
    """A saved `HierarchicalRNN` that was meta-trained on members of a corpus, and its card.

    Args:
        weights: its name or path.

    Raises:
        InputError: for another architecture, or a meta-training on other tasks: the claims are not about it.
    """
    card = zoo.read_card(weights)
    if card.optimizer != KIND:
        raise InputError(f"weights is {str(weights)!r}, a {card.optimizer}; these claims are about a {KIND}.")
    strange = [str(task["name"]) for task in card.tasks if not str(task["name"]).startswith("wichrowska2017")]
    if strange or not card.tasks:
        named = f"on {strange[0]}" if strange else "on tasks that its card does not name"
        raise InputError(
            f"weights is {str(weights)!r}, meta-trained {named}; these claims need members of wichrowska2017 alone."
        )
    return zoo.load(weights), card


def versus(
    learned: Optimizer, task: Task, *, steps: int, key: PRNGKeyArray, seeds: int, learning_rates: Sequence[float]
) -> Versus:
    """Train with the learned optimizer, and with every baseline at each rate: its best one is chosen on these same seeds, in its favour.

    Args:
        learned: the optimizer.
        task: what is trained.
        steps: inner steps.
        key: draws problems, starts and minibatches, the same for all.
        seeds: trainings each.
        learning_rates: of the grids.
    """
    record = train(learned, task, steps=steps, key=key, seeds=seeds, evals=1)
    tuned = {
        name: tune(baseline, task, steps=steps, key=key, seeds=seeds, learning_rates=learning_rates)
        for name, baseline in BASELINES.items()
    }
    return Versus(
        np.asarray(record.train_loss[:, 0], np.float64),
        finite(record.train_loss[:, -1]),
        {name: finite(grid.train_loss) for name, grid in tuned.items()},
        {name: float(grid.setting["learning_rate"]) for name, grid in tuned.items()},
    )


def finite(losses: Float[np.ndarray, " seeds"]) -> Float[np.ndarray, " seeds"]:
    """Infinity for a loss that is not a number."""
    found = np.asarray(losses, np.float64)
    return np.where(np.isfinite(found), found, np.inf)


__all__ = ["BASELINES", "WEIGHTS", "Versus", "finite", "learned_optimizer", "versus"]
