"""Larger networks for thousands of steps, by the hierarchical RNN and by an LSTM for every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt import zoo
from lopt.errors import InputError
from lopt.evaluate.training import train
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.reproduce._curves import last_tenth
from lopt.reproduce.claims import Claim
from lopt.reproduce.scale._versus import WEIGHTS, WITH_MLPS, learned_optimizer
from lopt.tasks import MissingDataError, TaskName, create

NETWORKS: dict[str, TaskName] = {
    "inception": TaskName(
        "inception_net", {"images": "fashion_28", "channels": 32, "blocks": 4, "batch_size": 8, "eval_size": 64}
    ),
    "residual": TaskName(
        "residual_net",
        {"images": "fashion_28", "channels": 64, "blocks": 3, "norm": "layer", "batch_size": 8, "eval_size": 64},
    ),
    "inception, small": TaskName(
        "inception_net", {"images": "digits", "channels": 2, "blocks": 1, "batch_size": 8, "eval_size": 64}
    ),
}
LSTM = Path(__file__).parent / "weights" / "lstm.safetensors"
LARGE = ("inception", "residual")  # those of at least 200,000 parameters
LEAST = 5_000  # steps that the claim is about
WINDOW = 50  # steps over which losses are averaged
DIVERGED = 2.0  # times the loss at the start
TRAINED = 0.5  # of the loss at the start, at most
_Words = tuple[str, str, str, str]  # of a claim: name, title, text, criterion
_PAPER = "It trains networks far larger than any problem of its meta-training stably for thousands of steps."
_OURS = "Ours: with the small MLPs of the corpus in its meta-training it trains far larger networks stably for thousands of steps."


class Course(NamedTuple):
    """What a training did, by means over windows."""

    first: float  # the training loss at the start
    losses: Float[np.ndarray, " windows"]
    parameters: int

    @property
    def diverged(self) -> bool:
        """Whether a window is above twice the loss at the start, or not finite."""
        return not bool((self.losses <= DIVERGED * self.first).all())

    @property
    def trained(self) -> bool:
        """Whether the last tenth ends at half of the loss at the start or below."""
        return bool(last_tenth(self.losses) <= TRAINED * self.first)


def large(
    key: PRNGKeyArray, *, weights: str | Path = WEIGHTS, names: Sequence[str] = LARGE, steps: int = LEAST
) -> Claim:
    """One training of each network; the curve of its minibatch losses.

    Args:
        key: draws starts and minibatches.
        weights: the saved optimizer, by name or path.
        names: of `NETWORKS`.
        steps: of a training; with fewer than 5,000 the verdict is about fewer steps, and says so.

    Raises:
        InputError: for the name of no network, or weights that the claim does not fit.

    Source: Wichrowska et al. 2017, section 5.3: Inception V3 and ResNet V2 on ImageNet there.
    """
    return _large(
        _words("large", f"(c) Trains an inception and a residual network stably for {steps:,} steps", _PAPER),
        key,
        weights,
        names,
        steps,
    )


def large_with_mlps(
    key: PRNGKeyArray, *, weights: str | Path = WITH_MLPS, names: Sequence[str] = LARGE, steps: int = LEAST
) -> Claim:
    """The same as `large` for weights whose meta-training held the small MLPs of the corpus, as that of the release of 2017 did.

    Args:
        key: as for `large`.
        weights: the saved optimizer, by name or path.
        names: as for `large`.
        steps: as for `large`.

    Raises:
        InputError: as for `large`.

    Source: as for `large`; the second arm is that of `networks_with_mlps`.
    """
    return _large(
        _words(
            "large_with_mlps",
            f"(c) Ours: trains both for {steps:,} steps, after a meta-training with small MLPs",
            _OURS,
        ),
        key,
        weights,
        names,
        steps,
    )


def large_lstm(
    key: PRNGKeyArray,
    *,
    lstm: str | Path = LSTM,
    names: Sequence[str] = LARGE,
    steps: int = LEAST,
) -> Claim:
    """The same trainings by the LSTM of Andrychowicz et al. 2016.

    Args:
        key: draws starts and minibatches.
        lstm: a saved `LSTMOptimizer`; by default one that was meta-trained on the problems of `hierarchical-rnn-1` by truncated backpropagation.
        names: of `NETWORKS`.
        steps: of a training.

    Raises:
        InputError: for the name of no network, or weights of another architecture.

    Source: Wichrowska et al. 2017, section 1.
    """
    words = (
        "large_lstm",
        f"(c) An LSTM for every parameter stalls or diverges within {steps:,} steps",
        "Earlier learned optimizers diverge or stall when they train far longer and larger than in their meta-training.",
        f"On every network a window of {WINDOW} steps is above {DIVERGED:g} times the loss at the start or not finite, or the last tenth "
        f"stays above {TRAINED:g} of it.",
    )
    card = zoo.read_card(lstm)
    if card.optimizer != "lstm":
        raise InputError(f"lstm is {str(lstm)!r}, a {card.optimizer}; it must be an lstm.")
    found = courses(zoo.load(lstm), names, steps=steps, key=key)
    if isinstance(found, str):
        return Claim(*words, found, None, {})
    return _judged(words, found, steps, bool(all(c.diverged or not c.trained for c in found.values())))


def _words(name: str, title: str, text: str) -> _Words:
    return (
        name,
        title,
        text,
        f"Means of minibatch losses over {WINDOW} steps: on every network none is above {DIVERGED:g} times the loss at the start or not finite, and those "
        f"of the last tenth of the training are at most {TRAINED:g} of it, on average.",
    )


def _large(words: _Words, key: PRNGKeyArray, weights: str | Path, names: Sequence[str], steps: int) -> Claim:
    learned, _ = learned_optimizer(weights)
    found = courses(learned, names, steps=steps, key=key)
    if isinstance(found, str):
        return Claim(*words, found, None, {})
    return _judged(words, found, steps, bool(all(c.trained and not c.diverged for c in found.values())))


def courses(optimizer: Optimizer, names: Sequence[str], *, steps: int, key: PRNGKeyArray) -> dict[str, Course] | str:
    """How an optimizer trains networks, or why that was not measured.

    Args:
        optimizer: what trains.
        names: of `NETWORKS`.
        steps: of a training.
        key: draws starts and minibatches.
    """
    for name in names:
        if name not in NETWORKS:
            raise InputError(unknown("network", name, NETWORKS))
    if steps < 2 * WINDOW or not names:
        return (
            f"Not run: {steps} steps of {len(names)} networks are too few; it takes {2 * WINDOW} steps and one network."
        )
    try:
        tasks = {name: create(NETWORKS[name]) for name in names}
    except MissingDataError as error:
        return f"Not run: {error}"
    found = {}
    for i, (name, task) in enumerate(tasks.items()):
        record = train(optimizer, task, steps=steps, key=jax.random.fold_in(key, i), evals=1)
        losses = record.minibatch_loss[0, : steps // WINDOW * WINDOW].astype(np.float64)
        parameters = sum(x.size for x in jax.tree.leaves(record.params))
        found[name] = Course(float(record.train_loss[0, 0]), losses.reshape(-1, WINDOW).mean(axis=1), parameters)
    return found


def _judged(words: _Words, found: dict[str, Course], steps: int, held: bool) -> Claim:
    rows: list[dict[str, str]] = [
        {
            "network": name,
            "parameters": f"{c.parameters:,}",
            "at the start": f"{c.first:.3g}",
            f"first {WINDOW} steps": f"{c.losses[0]:.3g}",
            "last tenth": f"{last_tenth(c.losses):.3g}",
            "greatest": f"{c.losses.max():.3g}",
            "diverged": "yes" if c.diverged else "no",
        }
        for name, c in found.items()
    ]
    numbers: dict[str, Any] = {"steps": steps, "networks": {n: c._asdict() for n, c in found.items()}}
    short = "" if steps >= LEAST else f" These are {steps:,} steps, fewer than the {LEAST:,} of the claim."
    return Claim(
        *words,
        "; ".join(f"{r['network']}: from {r['at the start']} to {r['last tenth']}" for r in rows) + "." + short,
        held,
        numbers,
        rows,
    )


__all__ = ["NETWORKS", "Course", "courses", "large", "large_lstm", "large_with_mlps"]
