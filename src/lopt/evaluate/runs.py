"""What evaluations are made of: units of work, the runs and timings they give."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Run(NamedTuple):
    """One training: one optimizer with one setting, on one task, to one horizon, from one seed."""

    task: str  # a name that `lopt tasks` prints, its fields after it where they are not the default: `digits_mlp{"widths":[64]}`
    optimizer: str  # the name under which it is reported; all settings of a tuned one share it
    config: dict[str, Any]  # hyper-parameters, as JSON has them: learning_rate, ...
    fingerprint: str | None  # of a saved optimizer, `Card.fingerprint`
    horizon: int  # inner steps of the whole training, and what the optimizer was told
    seed: int  # runs of one task and horizon with the same seed share problem, start and minibatches
    steps: Int[np.ndarray, " evals"]  # at which the curves were evaluated; the first is 0, the last the horizon
    train_loss: Float[np.ndarray, " evals"]
    valid_loss: Float[np.ndarray, " evals"]
    test_loss: Float[np.ndarray, " evals"]
    metrics: dict[str, Float[np.ndarray, " evals"]]  # `test_accuracy`, ...


class Timing(NamedTuple):
    """Wall-clock of one training's steps, measured in turn with all other optimizers of the task in one process."""

    task: str
    optimizer: str
    horizon: int
    turn: int  # optimizers with the same turn ran one after the other
    seconds_per_step: float  # of a single training, without compilation and evaluation
    session: str = ""  # turns compare within one session alone: others were hours or machines apart


class Unit(NamedTuple):
    """What is trained, and written, at once: all settings and seeds of an optimizer on a task to a horizon."""

    task: str
    optimizer: str
    horizon: int


class Done(NamedTuple):
    """How a unit of work went."""

    unit: Unit
    seconds: float  # of wall-clock, with compilation and evaluation
    compile_seconds: float  # of the training steps
    error: str | None  # None: all its runs are there


def sorted_json(value: Any) -> str:
    """JSON with sorted keys: the same text for the same setting, card or machine."""
    return json.dumps(value, sort_keys=True)


__all__ = ["Done", "Run", "Timing", "Unit"]
