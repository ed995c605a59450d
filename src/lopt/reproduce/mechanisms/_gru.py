"""The recurrent optimizers that the claims share: shipped ones, or ones meta-trained on the spot by backpropagation through whole trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import optax

from lopt import tasks, zoo
from lopt.checks import at_least
from lopt.errors import InputError
from lopt.estimators import Backprop
from lopt.meta_train import meta_train
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.optimizers import GRUOptimizer
from lopt.task import Task

STEPS = 201  # of every inner training, as in the paper
CURVATURES = 1e-3, 1.0  # the least and the greatest of the linear regression

# Of the paper's published configuration of the quadratic task: weight decay, bound of a meta-gradient, decays and offset of Adam, and what the
# rate is multiplied by in each fifth of the meta-training.
WEIGHT_DECAY, CLIP, B1, B2, EPS, FALL = 2e-6, 0.04726, 1 - 0.1936, 1 - 0.4064, 4.53e-6, 0.5547


class Setting(NamedTuple):
    """What an optimizer is meta-trained on, and how.

    Attributes:
        task: a name of `lopt.tasks`.
        fields: of the task.
        scales: of the gradient that enters the network and of the update that leaves it.
        hidden: units.
        particles: trainings of a meta-step.
        meta_steps: of the shipped weights.
        rate: of the outer Adam, at the start.
    """

    task: str
    fields: Mapping[str, Any]
    scales: tuple[float, float]
    hidden: int
    particles: int
    meta_steps: int
    rate: float

    def create(self) -> Task:
        """The task."""
        return tasks.create(self.task, **self.fields)


FILTERS = ((5, 5, 8), (3, 3, 8), (3, 3, 8))
SETTINGS: dict[str, Setting] = {
    "linear": Setting(
        "quadratic", {"dim": 5, "low": -3.0, "high": 0.0, "tilted": True}, (1.0, 1.0), 64, 32, 1_000, 4e-3
    ),
    "rosenbrock": Setting("landscape", {"function": "rosenbrock", "reach": 2.0}, (0.1, 0.1), 64, 32, 400, 1e-3),
    "moons": Setting("two_moons", {"widths": (16, 16), "batch_size": 128}, (10.0, 0.1), 32, 4, 600, 2e-3),
    "conv": Setting(
        "conv_net", {"images": "digits", "filters": FILTERS, "batch_size": 32}, (10.0, 0.1), 32, 2, 300, 2e-3
    ),
}


def saved(name: str) -> str:
    """The saved optimizer of a task of `SETTINGS`, as `lopt list` has it."""
    return f"gru-{name}-1"


@lru_cache(maxsize=8)
def trained(name: str, meta_steps: int | None = None) -> Optimizer:
    """The optimizer of a task.

    Args:
        name: of `SETTINGS`.
        meta_steps: of a meta-training that is made now and kept for the next claim; `None` for the shipped weights.

    Raises:
        InputError: for an unknown name and for no meta-step.
    """
    if name not in SETTINGS:
        raise InputError(unknown("task of the paper", name, SETTINGS))
    if meta_steps is None:
        return zoo.load(saved(name))
    at_least(1, meta_steps=meta_steps)
    setting = SETTINGS[name]
    estimator = Backprop(
        setting.create(),
        truncation=None,
        horizon=STEPS,
        particles=setting.particles,
        objective="relative",
        tell_horizon=False,
    )
    scale_in, scale_out = setting.scales
    start = GRUOptimizer(hidden=setting.hidden, input_scale=scale_in, output_scale=scale_out, key=jax.random.key(0))
    outer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.clip(CLIP),
        optax.scale_by_adam(b1=B1, b2=B2, eps=EPS),
        optax.scale_by_schedule(optax.exponential_decay(-setting.rate, max(1, meta_steps // 5), FALL)),
    )
    return meta_train(start, estimator, outer, steps=meta_steps, key=jax.random.key(1)).optimizer


def each(names: Sequence[str], meta_steps: int | None) -> dict[str, tuple[Optimizer, Task]]:
    """The optimizers of some tasks, and their tasks.

    Args:
        names: of `SETTINGS`.
        meta_steps: as for `trained`.

    Raises:
        InputError: for no names, and as `trained`.
    """
    if not names:
        raise InputError(f"no tasks were named; there are {', '.join(SETTINGS)}.")
    return {name: (trained(name, meta_steps), SETTINGS[name].create()) for name in names}
