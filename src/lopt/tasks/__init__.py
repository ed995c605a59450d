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

# isort: split
# Analytic families and the ensemble of Wichrowska et al.
from lopt.tasks.chaotic import ChaoticToy
from lopt.tasks.combinators import LogObjective, SumOfTasks, rescaled
from lopt.tasks.data_quadratics import DataQuadratic
from lopt.tasks.influence import InfluenceBalancing
from lopt.tasks.landscapes import SURFACES, Landscape, landscape
from lopt.tasks.least_squares import LeastSquares, PNorm
from lopt.tasks.linear_regression import LinearRegression
from lopt.tasks.matmul import MatMulSearch
from lopt.tasks.noisy_quadratic import NoisyQuadratic
from lopt.tasks.quadratic import Bowl
from lopt.tasks.small_mlp import PointMLP, clusters_mlp, random_network_mlp, two_moons
from lopt.tasks.sparse_softmax import SparseSoftmax
from lopt.tasks.wichrowska import (
    WICHROWSKA2017,
    WICHROWSKA2017_FULL,
    WICHROWSKA2017_OFF,
    WICHROWSKA2017_TEST,
)
from lopt.tasks.winding import DependencyChain, MinMaxWell, OutwardSnake

TASKS: dict[str, Callable[..., Task]] = {
    "analytic_continuation": AnalyticContinuation,
    "digits_mlp": digits_mlp,
    "fashion_mlp": fashion_mlp,
    "learned_optimizer_training": learned_optimizer_training,
    "quadratic": Quadratic,
    "quantized_gnn": QuantizedGNN,
    # Analytic families and the ensemble of Wichrowska et al.
    "bowl": Bowl,
    "chaotic": ChaoticToy,
    "clusters_mlp": clusters_mlp,
    "data_quadratic": DataQuadratic,
    "dependency_chain": DependencyChain,
    "influence_balancing": InfluenceBalancing,
    "landscape": Landscape,
    "least_squares": LeastSquares,
    "linear_regression": LinearRegression,
    "matmul_search": MatMulSearch,
    "min_max_well": MinMaxWell,
    "noisy_quadratic": NoisyQuadratic,
    "outward_snake": OutwardSnake,
    "p_norm": PNorm,
    "random_network_mlp": random_network_mlp,
    "sparse_softmax": SparseSoftmax,
    "two_moons": two_moons,
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
    "SURFACES",
    "TASKS",
    "WICHROWSKA2017",
    "WICHROWSKA2017_FULL",
    "WICHROWSKA2017_OFF",
    "WICHROWSKA2017_TEST",
    "AnalyticContinuation",
    "Bowl",
    "ChaoticToy",
    "DataQuadratic",
    "DelayedGradients",
    "DependencyChain",
    "ImageMLP",
    "InfluenceBalancing",
    "Landscape",
    "LearnedOptimizerTraining",
    "LeastSquares",
    "LinearRegression",
    "LogObjective",
    "LowPrecision",
    "MatMulSearch",
    "MinMaxWell",
    "MissingDataError",
    "NoisyGradients",
    "NoisyQuadratic",
    "NormalizedGradients",
    "OutwardSnake",
    "PNorm",
    "PointMLP",
    "Quadratic",
    "QuantizedGNN",
    "RandomSubspace",
    "ReducedBatch",
    "Reparametrized",
    "SparseGradients",
    "SparseSoftmax",
    "SumOfTasks",
    "clusters_mlp",
    "create",
    "digits_mlp",
    "fashion_mlp",
    "landscape",
    "learned_optimizer_training",
    "random_network_mlp",
    "rescaled",
    "two_moons",
]
