"""Tasks, one file a family. `create` builds any of them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lopt.errors import InputError
from lopt.names import build
from lopt.task import Task
from lopt.tasks.corpora.corpus import CORPORA, Corpus, corpora_with, find_corpus, find_member
from lopt.tasks.corpora.measured import figures_of, normalized_corpus, with_scale
from lopt.tasks.corpora.sampled import SampledTask, sample_task, sample_tasks
from lopt.tasks.corpora.sampling import task_recipe
from lopt.tasks.data.images import MissingDataError
from lopt.tasks.learned_optimizer_training import LearnedOptimizerTraining, learned_optimizer_training
from lopt.tasks.networks.autoencoder import Autoencoder, plain_autoencoder, variational_autoencoder
from lopt.tasks.networks.image_conv import ImageConv, conv_net, residual_net
from lopt.tasks.networks.image_mlp import ImageMLP, digits_mlp, fashion_mlp
from lopt.tasks.networks.language import CharRNN, CharTransformer, char_rnn, char_transformer
from lopt.tasks.networks.quantized_gnn import QuantizedGNN
from lopt.tasks.networks.small_mlp import PointMLP, clusters_mlp, random_network_mlp, two_moons
from lopt.tasks.networks.tabular import Tabular, table_mlp
from lopt.tasks.networks.vision_transformer import VisionTransformer, image_vit
from lopt.tasks.surfaces.analytic_continuation import AnalyticContinuation
from lopt.tasks.surfaces.chaotic import ChaoticToy
from lopt.tasks.surfaces.data_quadratics import DataQuadratic
from lopt.tasks.surfaces.influence import InfluenceBalancing
from lopt.tasks.surfaces.landscapes import SURFACES, Landscape, landscape
from lopt.tasks.surfaces.least_squares import LeastSquares, PNorm
from lopt.tasks.surfaces.linear_regression import LinearRegression
from lopt.tasks.surfaces.matmul import MatMulSearch
from lopt.tasks.surfaces.noisy_quadratic import NoisyQuadratic
from lopt.tasks.surfaces.quadratic import Bowl, Quadratic
from lopt.tasks.surfaces.sparse_softmax import SparseSoftmax
from lopt.tasks.surfaces.winding import DependencyChain, MinMaxWell, OutwardSnake
from lopt.tasks.wrappers.combinators import LogObjective, SumOfTasks, rescaled
from lopt.tasks.wrappers.coordinates import RandomSubspace, Reparametrized
from lopt.tasks.wrappers.gradients import DelayedGradients, NoisyGradients, NormalizedGradients, SparseGradients
from lopt.tasks.wrappers.normalized import Normalized
from lopt.tasks.wrappers.reduced import LowPrecision, ReducedBatch

TASKS: dict[str, Callable[..., Task]] = {
    "analytic_continuation": AnalyticContinuation,
    "bowl": Bowl,
    "chaotic": ChaoticToy,
    "char_rnn": char_rnn,
    "char_transformer": char_transformer,
    "clusters_mlp": clusters_mlp,
    "conv_net": conv_net,
    "data_quadratic": DataQuadratic,
    "dependency_chain": DependencyChain,
    "digits_mlp": digits_mlp,
    "fashion_mlp": fashion_mlp,
    "image_vit": image_vit,
    "influence_balancing": InfluenceBalancing,
    "landscape": Landscape,
    "learned_optimizer_training": learned_optimizer_training,
    "least_squares": LeastSquares,
    "linear_regression": LinearRegression,
    "matmul_search": MatMulSearch,
    "min_max_well": MinMaxWell,
    "noisy_quadratic": NoisyQuadratic,
    "outward_snake": OutwardSnake,
    "p_norm": PNorm,
    "plain_autoencoder": plain_autoencoder,
    "quadratic": Quadratic,
    "quantized_gnn": QuantizedGNN,
    "random_network_mlp": random_network_mlp,
    "residual_net": residual_net,
    "sampled": sample_task,
    "sparse_softmax": SparseSoftmax,
    "table_mlp": table_mlp,
    "two_moons": two_moons,
    "variational_autoencoder": variational_autoencoder,
}


def create(name: str, /, **fields: Any) -> Task:
    """Build a task by the name that `lopt tasks` prints.

    A member of a corpus comes `Normalized` where it was measured: its `normalize` is 1 at the start and 0 at the best tuned baseline.

    Args:
        name: a key of `TASKS`, or `corpus/member` as `wichrowska2017/ackley`.
        **fields: arguments of its constructor; none for a member of a corpus.

    Raises:
        InputError: for an unknown name or field, with the nearest ones.
        MissingDataError: for data that are not on this machine.

    Examples:
        >>> import lopt
        >>> lopt.tasks.create("digits_mlp", widths=(64, 64)).widths
        (64, 64)
        >>> task = lopt.tasks.create("wichrowska2017/quadratic_25")
    """
    if "/" in name:
        member = find_member(name)
        if fields:
            given = ", ".join(fields)
            raise InputError(f"{name} is a member of a corpus; its fields are fixed, but {given} was given.")
        return with_scale(name, member)
    if name not in TASKS and (members := corpora_with(name)):
        raise InputError(f"There is no task named {name!r}; did you mean {' or '.join(members)}?")
    return build("task", TASKS, name, **fields)


__all__ = [
    "CORPORA",
    "SURFACES",
    "TASKS",
    "AnalyticContinuation",
    "Autoencoder",
    "Bowl",
    "ChaoticToy",
    "CharRNN",
    "CharTransformer",
    "Corpus",
    "DataQuadratic",
    "DelayedGradients",
    "DependencyChain",
    "ImageConv",
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
    "Normalized",
    "NormalizedGradients",
    "OutwardSnake",
    "PNorm",
    "PointMLP",
    "Quadratic",
    "QuantizedGNN",
    "RandomSubspace",
    "ReducedBatch",
    "Reparametrized",
    "SampledTask",
    "SparseGradients",
    "SparseSoftmax",
    "SumOfTasks",
    "Tabular",
    "VisionTransformer",
    "char_rnn",
    "char_transformer",
    "clusters_mlp",
    "conv_net",
    "create",
    "digits_mlp",
    "fashion_mlp",
    "figures_of",
    "find_corpus",
    "find_member",
    "image_vit",
    "landscape",
    "learned_optimizer_training",
    "normalized_corpus",
    "plain_autoencoder",
    "random_network_mlp",
    "rescaled",
    "residual_net",
    "sample_task",
    "sample_tasks",
    "table_mlp",
    "task_recipe",
    "two_moons",
    "variational_autoencoder",
]
