"""Tasks, one file a family. `create` builds any of them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lopt.names import build
from lopt.task import Task
from lopt.tasks.analytic_continuation import AnalyticContinuation
from lopt.tasks.augment import RandomSubspace, Reparametrized
from lopt.tasks.data import MissingDataError
from lopt.tasks.gradients import DelayedGradients, NoisyGradients, NormalizedGradients, SparseGradients
from lopt.tasks.image_mlp import ImageMLP, digits_mlp, fashion_mlp
from lopt.tasks.learned_optimizer_training import LearnedOptimizerTraining, learned_optimizer_training
from lopt.tasks.quadratic import Quadratic
from lopt.tasks.quantized_gnn import QuantizedGNN
from lopt.tasks.reduced import LowPrecision, ReducedBatch

TASKS: dict[str, Callable[..., Task]] = {
    "analytic_continuation": AnalyticContinuation,
    "digits_mlp": digits_mlp,
    "fashion_mlp": fashion_mlp,
    "learned_optimizer_training": learned_optimizer_training,
    "quadratic": Quadratic,
    "quantized_gnn": QuantizedGNN,
}


def create(name: str, /, **fields: Any) -> Task:
    """Build a task by the name that `lopt list` prints.

    Args:
        name: a key of `TASKS`.
        **fields: arguments of its constructor.

    Raises:
        InputError: for an unknown name or field, with the nearest ones.
        MissingDataError: for data that are not on this machine.

    Examples:
        >>> import lopt
        >>> lopt.tasks.create("digits_mlp", widths=(64, 64)).widths
        (64, 64)
    """
    return build("task", TASKS, name, **fields)


__all__ = [
    "TASKS",
    "AnalyticContinuation",
    "DelayedGradients",
    "ImageMLP",
    "LearnedOptimizerTraining",
    "LowPrecision",
    "MissingDataError",
    "NoisyGradients",
    "NormalizedGradients",
    "Quadratic",
    "QuantizedGNN",
    "RandomSubspace",
    "ReducedBatch",
    "Reparametrized",
    "SparseGradients",
    "create",
    "digits_mlp",
    "fashion_mlp",
    "learned_optimizer_training",
]
