"""What the sampled tasks are: their static parts, all listed, and the distribution of the rest."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lopt.checks import at_least
from lopt.tasks.data import images as sets
from lopt.tasks.data import tables, text
from lopt.tasks.networks.autoencoder import Autoencoder
from lopt.tasks.networks.image_conv import ImageConv
from lopt.tasks.networks.image_mlp import ImageMLP
from lopt.tasks.networks.language import CharRNN, CharTransformer
from lopt.tasks.networks.layers import Activation
from lopt.tasks.networks.learning import LearningTask
from lopt.tasks.networks.tabular import Tabular

Family = Literal["softmax", "mlp", "conv", "autoencoder", "vae", "tabular", "char_rnn", "char_transformer"]

BUILDERS: dict[str, Any] = {
    "softmax": ImageMLP,
    "mlp": ImageMLP,
    "conv": ImageConv,
    "autoencoder": Autoencoder,
    "vae": functools.partial(Autoencoder, variational=True),
    "tabular": Tabular,
    "char_rnn": CharRNN,
    "char_transformer": CharTransformer,
}
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
NOISE = (0.0, 0.0, 0.0, 0.1, 0.3)  # shares of noisy training targets: none for three tasks in five


class Config(NamedTuple):
    """The static part of a sampled task: what a compiled program depends on."""

    family: Family
    dataset: str
    fields: tuple[tuple[str, Any], ...]  # arguments of the family's class

    def build(self) -> LearningTask:
        """The family's task, its examples in order of their classes; the same object every time."""
        return _build(self)

    @property
    def has_labels(self) -> bool:
        """Whether the targets are classes, which can be merged and disturbed."""
        return self.family in ("softmax", "mlp", "conv") or self.dataset in ("breast_cancer", "wine")

    @property
    def classes(self) -> int:
        """Classes that examples are drawn by; 1 where they have none."""
        known = {"breast_cancer": 2, "wine": 3, "diabetes": 1, "prose": 1, "source": 1}
        return known.get(self.dataset, 10)


class Recipe(NamedTuple):
    """A sampled task in words: its static part, then its sampled part."""

    config: Config
    activation: Activation  # of hidden layers, where the family has them
    init_scale: float  # factor of all initial weight matrices
    share: float  # share of the training examples that is used
    kept: tuple[int, ...]  # classes that are drawn from
    mapped: tuple[int, ...]  # the label that each class gets: classes may share one
    noise: float  # share of training labels replaced by a random one; for numbers, deviation of the noise on targets
    noise_seed: int  # decides which labels


# The static parts. Frozen: a change would change what a seed gives, so a new list needs a new name.


def _configs(family: Family, datasets: Iterable[str], *fields: dict[str, Any]) -> list[Config]:
    common = {"eval_size": 256}
    return [Config(family, d, tuple(sorted((common | f).items()))) for d in datasets for f in fields]


CONFIGS: tuple[Config, ...] = tuple(
    _configs("softmax", ("digits", "fashion_8", "fashion_14"), {"widths": (), "batch_size": 64})
    + _configs(
        "mlp",
        ("digits", "fashion_8", "fashion_14"),
        {"widths": (32,), "batch_size": 64},
        {"widths": (128,), "batch_size": 16},
        {"widths": (64, 64), "batch_size": 128, "objective": "squared_error"},
        {"widths": (32, 32, 32, 32), "batch_size": 64, "norm": "layer"},
    )
    + _configs("mlp", ("fashion_8_crops", "fashion_8_edges"), {"widths": (32, 32), "batch_size": 32, "norm": "batch"})
    + _configs(
        "conv",
        ("digits", "fashion_8"),
        {"filters": ((3, 3, 8),), "batch_size": 32},
        {"filters": ((3, 3, 8), (3, 3, 16)), "batch_size": 64, "norm": "layer"},
        {"filters": ((3, 3, 16), (3, 3, 16)), "batch_size": 16, "objective": "squared_error"},
    )
    + _configs(
        "autoencoder",
        ("digits", "fashion_8"),
        {"widths": (), "code": 16, "batch_size": 64},
        {"widths": (64,), "code": 8, "batch_size": 128},
    )
    + _configs("vae", ("digits", "fashion_8"), {"widths": (32,), "code": 8, "batch_size": 64})
    + _configs(
        "tabular",
        ("breast_cancer", "wine", "diabetes"),
        {"widths": (), "batch_size": 16},
        {"widths": (32, 32), "batch_size": 32},
    )
    + _configs(
        "char_rnn",
        ("prose", "source"),
        {"cell": "rnn", "hidden": 32, "batch_size": 16},
        {"cell": "gru", "hidden": 32, "batch_size": 16},
        {"cell": "lstm", "hidden": 16, "batch_size": 32},
    )
    + _configs("char_transformer", ("prose", "source"), {"width": 16, "depth": 1, "heads": 2, "batch_size": 16})
)


@functools.cache
def _build(config: Config) -> LearningTask:
    with jax.ensure_compile_time_eval():
        return BUILDERS[config.family](_examples(config.family, config.dataset), **dict(config.fields))


@functools.cache
def _examples(family: Family, dataset: str) -> Any:
    """A data set in order of its classes, on the device once for all tasks that read it."""
    if family.startswith("char"):
        found: Any = text.text(dataset, 16)  # pyright: ignore[reportArgumentType]
    else:
        found = tables.table(dataset) if family == "tabular" else sets.images(dataset)

    def ordered(split: Any) -> Any:
        labels = np.asarray(split[1])
        order = np.argsort(labels, kind="stable") if labels.ndim == 1 and labels.dtype == np.int32 else slice(None)
        return type(split)(*(jnp.asarray(np.asarray(x)[order]) for x in split))

    return found._replace(train=ordered(found.train), valid=ordered(found.valid), test=ordered(found.test))


# The sampled parts.


def task_config(seed: int) -> Config:
    """The static part of task `seed`: the first two of its numbers say which. It takes a small part of the time of the whole recipe.

    Raises:
        InputError: for a negative seed.
    """
    at_least(0, seed=seed)
    first, second = _numbers(seed, 2)
    families = get_args(Family)
    known = _members(families[int(first * len(families))])
    return known[int(second * len(known))]


@functools.cache
def _members(family: Family) -> list[Config]:
    return [c for c in CONFIGS if c.family == family]


def _numbers(seed: int, count: int) -> list[float]:
    """The first numbers of a task, from 0 to below 1."""
    return ((np.random.Philox(key=seed).random_raw(count) >> np.uint64(11)) * 2.0**-53).tolist()


@functools.cache
def task_recipe(seed: int) -> Recipe:
    """What task `seed` is, without loading anything.

    The numbers are raw 64-bit outputs of numpy's Philox generator keyed with the seed, whose stream is fixed for ever, taken in a fixed order;
    a choice among n is the upper 53 bits times n.

    Raises:
        InputError: for a negative seed.
    """
    config, numbers = task_config(seed), iter(_numbers(seed, 40)[2:])

    def choose(among: Sequence[Any]) -> Any:
        return among[int(next(numbers) * len(among))]

    activation, init_scale = choose(ACTIVATIONS), round(2.0 ** (3.0 * next(numbers) - 2.0), 6)
    share, noise, noise_seed = choose((1.0, 1.0, 0.3, 0.1)), choose(NOISE), int(next(numbers) * 2**32)
    classes = config.classes
    count = choose(range(2, classes + 1)) if classes > 1 and choose((True, False)) else classes
    order = sorted(range(classes), key=[next(numbers) for _ in range(classes)].__getitem__)
    kept, groups = tuple(sorted(order[:count])), choose((classes, classes, 2))
    # A merge keeps at least two labels: classes take turns in a random order.
    mapped = [0] * classes
    for place, label in enumerate(order):
        mapped[label] = label if groups == classes else place % groups
    labelled = config.has_labels
    return Recipe(
        config,
        activation,
        init_scale,
        share,
        kept,
        tuple(mapped) if labelled else tuple(range(classes)),
        noise if labelled or config.dataset == "diabetes" else 0.0,
        noise_seed,
    )
