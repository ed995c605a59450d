"""A meta-trained optimizer on a small conv net and classes that it has not seen, against tuned first-order ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lopt import zoo
from lopt.errors import InputError
from lopt.evaluate.baselines import LEARNING_RATES, tune
from lopt.evaluate.compare import COLUMNS, Interval, cells, interval, summarise
from lopt.evaluate.training import train
from lopt.optimizer import Optimizer
from lopt.optimizers import Adam, Momentum, RMSProp
from lopt.reproduce.claims import Claim
from lopt.tasks import ImageConv
from lopt.tasks.data import MissingDataError, images, only_classes

TEST_CLASSES = (1, 3, 5, 7, 9)  # of Fashion-MNIST; the others are for meta-training
LEARNED = "meta-trained"

BASELINES: dict[str, Callable[[Array | float], Optimizer]] = {
    "Adam, tuned": lambda rate: Adam(learning_rate=rate),
    "RMSProp, tuned": lambda rate: RMSProp(learning_rate=rate),
    "momentum, tuned": lambda rate: Momentum(learning_rate=rate),
}


def headline(
    key: PRNGKeyArray,
    *,
    weights: str | Path | None = None,
    data: str = "fashion_14",
    classes: Sequence[int] = TEST_CLASSES,
    filters: Sequence[Sequence[int]] = ((3, 3, 8), (3, 3, 16)),
    batch_size: int = 32,
    steps: int = 500,
    seeds: int = 5,
    evals: int = 40,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Claim:
    """Train with a saved optimizer and with Adam, RMSProp and momentum, each at the best of its learning rates on the same seeds.

    The target is the least final training loss among the tuned ones, mean over seeds. Seconds are those of one training of several
    that run together, without compilation and evaluation, at the mean over all stretches.

    Args:
        key: draws starts and minibatches, the same for all.
        weights: the saved optimizer, by name or path; nothing is run without, or without the data.
        data: a name of `lopt.tasks.data.IMAGES`.
        classes: which of its classes are told apart; meta-training must not have seen them.
        filters: of the conv net.
        batch_size: examples a minibatch.
        steps: inner steps.
        seeds: trainings each.
        evals: evaluations of a training.
        learning_rates: the grid.

    Source: Metz et al. 2019, section 5, at the scale of this machine: Fashion-MNIST instead of ImageNet at 32x32.
    """
    title = "(f) The meta-trained optimizer is faster than tuned first-order ones"
    statement = (
        "On a small conv net and classes that meta-training has not seen, the meta-trained optimizer is faster in wall-clock than the best tuned first-order "
        "optimizer, and ends at a lower test loss."
    )
    criterion = (
        "The mean time to the best baseline's final train loss is below that baseline's own with every seed reaching it, and the final test loss is lower "
        "than that of every baseline, by more than the 95 % interval of the paired difference."
    )
    if weights is None:
        return Claim("headline", title, statement, criterion, "Not run: no weights were given (--weights).", None, {})
    try:
        found_images = images(data)
    except MissingDataError as error:
        return Claim("headline", title, statement, criterion, f"Not run: {error}", None, {})
    if seeds < 2:
        raise InputError(f"seeds is {seeds}; it must be at least 2, for an interval.")
    task = ImageConv(only_classes(found_images, classes), filters=filters, batch_size=batch_size)
    options: dict[str, Any] = {"steps": steps, "key": key, "seeds": seeds}
    sweeps = {n: tune(make, task, learning_rates=learning_rates, **options) for n, make in BASELINES.items()}
    optimizers = {LEARNED: zoo.load(weights)} | {n: make(sweeps[n].best) for n, make in BASELINES.items()}
    records = {n: train(optimizer, task, evals=evals, **options) for n, optimizer in optimizers.items()}
    best = min(BASELINES, key=lambda n: float(records[n].train_loss[:, -1].mean()))
    target = float(records[best].train_loss[:, -1].mean())
    table = {n: summarise(n, record, target) for n, record in records.items()}
    times, own = np.array(table[LEARNED].milliseconds_to_target), table[best].milliseconds_per_step.mean * steps
    better = {n: interval(records[n].test_loss[:, -1] - records[LEARNED].test_loss[:, -1]) for n in BASELINES}
    held = bool(np.isfinite(times).all() and times.mean() < own and all(_above(gain) for gain in better.values()))
    card = zoo.read_card(weights)
    reached = int(np.isfinite(times).sum())
    fast = f"in {times.mean():.0f} ms" if reached == seeds else f"with {reached} of {seeds} seeds"
    found = (
        f"{card.optimizer}, meta-trained on {', '.join(card.tasks) or 'what its card does not say'}, reached the final train loss of {best}, "
        f"{target:.4f}, {fast}; the latter takes {own:.0f} ms. Test loss below that of "
        + ", ".join(f"{n} by {gain}" for n, gain in better.items())
        + "."
    )
    numbers = {
        "weights": str(weights),
        "meta_training": {"command": card.command, "tasks": list(card.tasks), "meta_steps": card.meta_steps},
        "data": data,
        "classes": list(classes),
        "steps": steps,
        "target": target,
        "best_baseline": best,
        "learning_rates": {n: s.best for n, s in sweeps.items()},
        "test_loss_gain": {n: list(gain) for n, gain in better.items()},
        "milliseconds_to_target": {n: row.milliseconds_to_target for n, row in table.items()},
        "optimizers": {
            n: {
                "steps": r.steps,
                "seconds": r.steps * float(r.seconds_per_step.mean()),
                "train_loss": r.train_loss,
                "test_loss": r.test_loss,
            }
            for n, r in records.items()
        },
    }
    rows: list[dict[str, str]] = [dict(zip(COLUMNS, cells(row), strict=True)) for row in table.values()]
    return Claim("headline", title, statement, criterion, found, held, numbers, rows)


def _above(gain: Interval) -> bool:
    return gain.mean - gain.half > 0.0


__all__ = ["headline"]
