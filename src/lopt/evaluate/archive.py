"""What evaluations leave behind."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Run(NamedTuple):
    """One training: one optimizer with one setting, on one task, to one horizon, from one seed."""

    task: str  # a name that `lopt tasks` prints
    optimizer: str  # the name under which it is reported; all settings of a tuned one share it
    config: dict[str, Any]  # hyper-parameters, as JSON has them: learning_rate, ...
    weights: str | None  # sha256 of a saved optimizer's weights, None where there are none
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
