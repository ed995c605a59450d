"""A meta-trained optimizer on a small conv net and classes that it has not seen, against tuned first-order ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from lopt import zoo
from lopt.errors import InputError
from lopt.evaluate.baselines import LEARNING_RATES, Baseline
from lopt.evaluate.grid import tune
from lopt.evaluate.scores.resampling import Estimate
from lopt.evaluate.scores.statistics import mean_interval
from lopt.evaluate.timing import Stretch, in_turns
from lopt.evaluate.training import train
from lopt.reproduce.claims import Claim
from lopt.tasks import ImageConv
from lopt.tasks.data.images import MissingDataError, images, only_classes

TEST_CLASSES = (1, 3, 5, 7, 9)  # of Fashion-MNIST; the others are for meta-training
LEARNED = "meta-trained"

BASELINES = {"Adam, tuned": "adam", "RMSProp, tuned": "rmsprop", "momentum, tuned": "momentum"}


def headline(
    key: PRNGKeyArray,
    *,
    weights: str | Path | None = "conv-net-2",
    data: str = "fashion_28",
    classes: Sequence[int] = TEST_CLASSES,
    filters: Sequence[Sequence[int]] = ((3, 3, 8), (3, 3, 16)),
    batch_size: int = 32,
    steps: int = 500,
    seeds: int = 10,
    evals: int = 40,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Claim:
    """Train with a saved optimizer and with Adam, RMSProp and momentum, each at the best of its learning rates on the same seeds.

    The best for the final train loss decides who is faster, the best for the final validation loss whose test loss is lower. Seconds are those of one
    training, measured in turns.

    Args:
        key: draws starts and minibatches, the same for all.
        weights: the saved optimizer, by name or path; nothing is run where it is `None`, or without the data.
        data: a name of `lopt.tasks.data.images.IMAGES`.
        classes: which of its classes are told apart; meta-training must not have seen them.
        filters: of the conv net.
        batch_size: examples a minibatch.
        steps: inner steps.
        seeds: trainings each.
        evals: evaluations of a training.
        learning_rates: the grid.

    Source: Metz et al. 2019, section 5, at the scale of one small machine: Fashion-MNIST at 28x28 instead of ImageNet at 32x32.
    """
    title = "(f) The meta-trained optimizer is faster than tuned first-order ones"
    statement = (
        "On a small conv net and classes that meta-training has not seen, the meta-trained optimizer is faster in wall-clock than the best tuned first-order "
        "optimizer, and ends at a lower test loss."
    )
    criterion = (
        "The target is the final train loss of the best baseline, mean over seeds. The time of the meta-trained optimizer to it is below that baseline's own, "
        "both where the mean curve first is at or below it, with the 95 % interval over turns of timing; and its final test loss is below that of every "
        "baseline, tuned for validation loss, by more than the 95 % interval of the paired difference."
    )
    if weights is None:
        return Claim("headline", title, statement, criterion, "Not run: no weights were given (weights=...).", None, {})
    try:
        found_images = images(data)
    except MissingDataError as error:
        return Claim("headline", title, statement, criterion, f"Not run: {error}", None, {})
    if seeds < 2:
        raise InputError(f"seeds is {seeds}; it must be at least 2, for an interval.")
    task = ImageConv(only_classes(found_images, classes), filters=filters, batch_size=batch_size)
    options: dict[str, Any] = {"steps": steps, "key": key, "seeds": seeds}
    tuned = {n: tune(baseline, task, learning_rates=learning_rates, **options) for n, baseline in BASELINES.items()}
    optimizers = {LEARNED: zoo.load(weights)} | {n: grid.optimizer for n, grid in tuned.items()}
    records = {n: train(optimizer, task, evals=evals, **options) for n, optimizer in optimizers.items()}
    for_valid = {LEARNED: records[LEARNED]}
    for n, grid in tuned.items():
        same = grid.setting_by_valid == grid.setting
        by_valid = Baseline(grid.baseline, grid.setting_by_valid)
        for_valid[n] = records[n] if same else train(by_valid, task, evals=evals, **options)
    seconds = in_turns({n: Stretch(optimizer, task, steps, key) for n, optimizer in optimizers.items()})
    found = judge(
        {n: Curves(r.steps, r.train_loss, for_valid[n].test_loss, seconds[n]) for n, r in records.items()}, LEARNED
    )
    card = zoo.read_card(weights)
    sentence = (
        f"{card.optimizer}, meta-trained on {card.mixture or 'what its card does not say'}: its mean train loss reaches that with which "
        f"{found.best} ends, {found.target:.4f}, after {found.steps[LEARNED]:.0f} of {steps} steps, that of {found.best} itself first does after "
        f"{found.steps[found.best]:.0f}; in time that is {found.time_ratio} of the other's. It ends at a test loss below that of "
        + ", ".join(f"{n} by {gain}" for n, gain in found.gains.items())
        + "."
    )
    numbers = {
        "weights": str(weights),
        "meta_training": {"command": card.command, "tasks": list(card.tasks), "meta_steps": card.meta_steps},
        "data": data,
        "classes": list(classes),
        "steps": steps,
        "target": found.target,
        "best_baseline": found.best,
        "learning_rates": {n: t.setting["learning_rate"] for n, t in tuned.items()},
        "learning_rates_for_validation_loss": {n: t.setting_by_valid["learning_rate"] for n, t in tuned.items()},
        "steps_to_target": found.steps,
        "time_ratio": list(found.time_ratio),
        "test_loss_gain": {n: list(gain) for n, gain in found.gains.items()},
        "milliseconds_a_step": {n: list(mean_interval(1e3 * s)) for n, s in seconds.items()},
        "optimizers": {
            n: {
                "steps": r.steps,
                "seconds": r.steps * float(np.median(seconds[n])),
                "train_loss": r.train_loss,
                "test_loss": for_valid[n].test_loss,
            }
            for n, r in records.items()
        },
    }
    rows: list[dict[str, str]] = [
        {
            "optimizer": n,
            "train loss": str(mean_interval(r.train_loss[:, -1])),
            "test loss, tuned for validation": str(mean_interval(for_valid[n].test_loss[:, -1])),
            "test accuracy": str(mean_interval(for_valid[n].metrics["test_accuracy"][:, -1])),
            "steps to target": f"{found.steps[n]:.0f}" if np.isfinite(found.steps[n]) else "never",
            "ms a step": str(mean_interval(1e3 * seconds[n])),
            "ms to target": str(mean_interval(1e3 * found.steps[n] * seconds[n]))
            if np.isfinite(found.steps[n])
            else "never",
        }
        for n, r in records.items()
    ]
    return Claim("headline", title, statement, criterion, sentence, found.held, numbers, rows)


class Curves(NamedTuple):
    """What is judged of one optimizer."""

    steps: Int[np.ndarray, " evals"]
    train_loss: Float[np.ndarray, "seeds evals"]
    test_loss: Float[np.ndarray, "seeds evals"]
    seconds: Float[np.ndarray, " turns"]  # a step, all optimizers in the same turns


class Judgement(NamedTuple):
    """Who reaches the target when, and who generalises better."""

    best: str  # the baseline with the lowest final train loss
    target: float
    steps: dict[str, float]  # to the target, of the mean curve; infinity where it is not reached
    time_ratio: Estimate  # time to the target, meta-trained over best baseline, over turns
    gains: dict[str, Estimate]  # final test loss of a baseline less that of the meta-trained one, over seeds
    held: bool


def judge(curves: Mapping[str, Curves], learned: str) -> Judgement:
    """The criterion of `headline`, applied.

    Args:
        curves: of all optimizers, on the same seeds.
        learned: which of them is the meta-trained one.
    """
    baselines = [n for n in curves if n != learned]
    best = min(baselines, key=lambda n: float(curves[n].train_loss[:, -1].mean()))
    target = float(curves[best].train_loss[:, -1].mean())
    steps = {n: _first(c.steps, c.train_loss.mean(axis=0), target) for n, c in curves.items()}
    ratio = mean_interval(steps[learned] * curves[learned].seconds / (steps[best] * curves[best].seconds))
    gains = {n: mean_interval(curves[n].test_loss[:, -1] - curves[learned].test_loss[:, -1]) for n in baselines}
    faster, better = ratio.high < 1.0, all(gain.low > 0.0 for gain in gains.values())
    return Judgement(best, target, steps, ratio, gains, bool(faster and better))


def _first(steps: Int[np.ndarray, " evals"], curve: Float[np.ndarray, " evals"], target: float) -> float:
    reached = curve <= target
    return float(steps[reached.argmax()]) if reached.any() else float("inf")


__all__ = ["Curves", "Judgement", "headline", "judge"]
