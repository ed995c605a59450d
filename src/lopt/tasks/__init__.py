"""Tasks, one file a family. `create` builds any of them by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lopt.errors import InputError
from lopt.names import build, tuples
from lopt.task import Task
from lopt.tasks.corpora.corpus import CORPORA, Corpus, corpora_with, find_corpus, find_member
from lopt.tasks.corpora.measured import figures_of, with_scale
from lopt.tasks.corpora.sampled import SampledTask, sample_task, sample_tasks
from lopt.tasks.corpora.sampling import task_recipe
from lopt.tasks.data.images import MissingDataError
from lopt.tasks.learned_optimizer_training import LearnedOptimizerTraining, learned_optimizer_training
from lopt.tasks.naming import Family, TaskName
from lopt.tasks.networks.autoencoder import Autoencoder, plain_autoencoder, variational_autoencoder
from lopt.tasks.networks.image_conv import ImageConv, conv_net, residual_net
from lopt.tasks.networks.image_mlp import ImageMLP, digits_mlp, fashion_mlp
from lopt.tasks.networks.inception import ImageInception, inception_net
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

WICHROWSKA = "Wichrowska et al. 2017"


def _images(*, images: str, **_: Any) -> str:
    return images


def _fashion(*, size: int, view: str, **_: Any) -> str:
    return f"fashion_{size}" if view == "whole" else f"fashion_{size}_{view}"


def _table(*, table: str, **_: Any) -> str:
    return table


def _text(*, text: str, **_: Any) -> str:
    return text


def _sampled(*, seed: int) -> str:
    return task_recipe(seed).config.dataset


# The one place where tasks get their names: what builds one, where it comes from, the data that it needs.
TASKS: dict[str, Family] = {
    "analytic_continuation": Family(AnalyticContinuation, "Jarrell & Gubernatis 1996"),
    "bowl": Family(Bowl, WICHROWSKA),
    "chaotic": Family(ChaoticToy, "Metz et al. 2019"),
    "char_rnn": Family(char_rnn, "lopt's own", _text),
    "char_transformer": Family(char_transformer, "Vaswani et al. 2017", _text),
    "clusters_mlp": Family(clusters_mlp, WICHROWSKA),
    "conv_net": Family(conv_net, "lopt's own", _images),
    "data_quadratic": Family(DataQuadratic, WICHROWSKA),
    "dependency_chain": Family(DependencyChain, WICHROWSKA),
    "digits_mlp": Family(digits_mlp, "lopt's own", "digits"),
    "fashion_mlp": Family(fashion_mlp, "lopt's own", _fashion),
    "image_vit": Family(image_vit, "Dosovitskiy et al. 2021", _images),
    "inception_net": Family(inception_net, "Szegedy et al. 2015", _images),
    "influence_balancing": Family(InfluenceBalancing, "Vicol et al. 2021"),
    "landscape": Family(Landscape, WICHROWSKA),
    "learned_optimizer_training": Family(
        learned_optimizer_training, "the task `lopt` of google/learned_optimization", "digits"
    ),
    "least_squares": Family(LeastSquares, WICHROWSKA),
    "linear_regression": Family(LinearRegression, "Maheswaranathan et al. 2020"),
    "matmul_search": Family(MatMulSearch, WICHROWSKA),
    "min_max_well": Family(MinMaxWell, WICHROWSKA),
    "noisy_quadratic": Family(NoisyQuadratic, "Harrison, Metz & Sohl-Dickstein 2022"),
    "outward_snake": Family(OutwardSnake, WICHROWSKA),
    "p_norm": Family(PNorm, WICHROWSKA),
    "plain_autoencoder": Family(plain_autoencoder, "lopt's own", _images),
    "quadratic": Family(Quadratic, "lopt's own"),
    "quantized_gnn": Family(QuantizedGNN, "Kipf & Welling 2017; Bengio et al. 2013; Wu et al. 2018"),
    "random_network_mlp": Family(random_network_mlp, WICHROWSKA),
    "residual_net": Family(residual_net, "He et al. 2016", _images),
    "sampled": Family(sample_task, "in the manner of TaskSet (Metz et al. 2020)", _sampled),
    "sparse_softmax": Family(SparseSoftmax, WICHROWSKA),
    "table_mlp": Family(table_mlp, "lopt's own", _table),
    "two_moons": Family(two_moons, "Maheswaranathan et al. 2020"),
    "variational_autoencoder": Family(variational_autoencoder, "Kingma & Welling 2014", _images),
}


def sum_with(task: Task, *, others: Sequence[str]) -> SumOfTasks:
    """The sum of a task and of others, each as `create` takes it: `SumOfTasks`."""
    return SumOfTasks([task, *map(create, others)])


# The one place where wrappers get their names: each takes the task to wrap and its own fields.
WRAPPERS: dict[str, Callable[..., Task]] = {
    "delayed_gradients": DelayedGradients,
    "log_objective": LogObjective,
    "low_precision": LowPrecision,
    "noisy_gradients": NoisyGradients,
    "normalized_gradients": NormalizedGradients,
    "random_subspace": RandomSubspace,
    "reduced_batch": ReducedBatch,
    "reparametrized": Reparametrized,
    "rescaled": rescaled,
    "sparse_gradients": SparseGradients,
    "sum_with": sum_with,
}


def create(name: str | TaskName, /, **fields: Any) -> Task:
    """Build a task by its name. One name builds one task, wherever it stands: here, in a recipe, in a bench, on the command line.

    A member of a corpus comes `Normalized` where it was measured: its `normalize` is 1 at the start and 0 at the best tuned baseline.
    Its losses stay as they are, and so do the objectives that are made of losses without `normalize`.

    Args:
        name: what `lopt tasks` prints, as `digits_mlp` or `wichrowska2017/ackley`, or a text or `TaskName` with fields and wrappers.
        **fields: more arguments of its constructor; none for a member of a corpus.

    Raises:
        InputError: for an unknown name, field or wrapper, with the nearest ones.
        MissingDataError: for data that are not on this machine.

    Examples:
        >>> import lopt
        >>> lopt.tasks.create("digits_mlp", widths=(64, 64)).widths
        (64, 64)
        >>> lopt.tasks.create('digits_mlp{"widths":[64,64]}').widths
        (64, 64)
        >>> task = lopt.tasks.create("wichrowska2017/quadratic_25")
        >>> noisy = lopt.tasks.create('bowl{"wrappers":[["noisy_gradients",{"deviation":0.1}]]}')
    """
    task = TaskName.parse(name) if isinstance(name, str) else name
    given = {**task.fields, **fields}
    if "/" in task.name:
        if given:
            raise InputError(
                f"{task.name} is a member of a corpus; its fields are fixed, but {', '.join(given)} was given."
            )
        built = with_scale(task.name, create(find_member(task.name)))
    elif task.name not in TASKS and (members := corpora_with(task.name)):
        raise InputError(f"There is no task named {task.name!r}; did you mean {' or '.join(members)}?")
    else:
        builders = {known: family.build for known, family in TASKS.items()}
        built = build("task", builders, task.name, **tuples(given))
    for wrapper, own in task.wrappers:
        built = build("wrapper", WRAPPERS, wrapper, task=built, **tuples(dict(own)))
    return built


__all__ = [
    "CORPORA",
    "SURFACES",
    "TASKS",
    "WRAPPERS",
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
    "Family",
    "ImageConv",
    "ImageInception",
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
    "TaskName",
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
    "inception_net",
    "landscape",
    "learned_optimizer_training",
    "plain_autoencoder",
    "random_network_mlp",
    "rescaled",
    "residual_net",
    "sample_task",
    "sample_tasks",
    "sum_with",
    "table_mlp",
    "task_recipe",
    "two_moons",
    "variational_autoencoder",
]
