"""Named collections of tasks with stated splits: what to meta-train on, to choose by, and to report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lopt.errors import InputError
from lopt.names import unknown
from lopt.tasks.corpora import wichrowska
from lopt.tasks.corpora.sampling import task_recipe
from lopt.tasks.naming import TaskName

Members = Mapping[str, TaskName]


class Corpus(NamedTuple):
    """Tasks by name for meta-training, meta-validation and meta-testing. They are data: `lopt.tasks.create` builds them."""

    train: Members
    valid: Members
    test: Members


class Collection(NamedTuple):
    """A row of `CORPORA`."""

    build: Callable[[], Corpus]
    source: str = ""  # of all its members; where it is empty each has that of its task


def small_images() -> Corpus:
    """Four MLPs with 32 hidden units on 8x8 images, batches of 64; other widths validate and test.

    After the recipe of Celo (Moudgil et al. 2025), which takes MNIST, Fashion-MNIST, CIFAR-10 and SVHN at this size. Here they are digits and three views of
    Fashion-MNIST: whole, its middle, its edges. The views share photographs and labels, so there is less variety than in the original.

    Source: Moudgil et al. 2025 (Celo), with other data.
    """

    images = {
        "digits": TaskName("digits_mlp"),
        "fashion_8": TaskName("fashion_mlp", {"size": 8}),
        "fashion_8_crops": TaskName("fashion_mlp", {"size": 8, "view": "crops"}),
        "fashion_8_edges": TaskName("fashion_mlp", {"size": 8, "view": "edges"}),
    }

    def mlps(**fields: Any) -> dict[str, TaskName]:
        shown = "_".join(["x".join(map(str, fields["widths"])), *filter(None, [fields.get("activation")])])
        return {f"{name}_{shown}": TaskName(task.name, {**task.fields, **fields}) for name, task in images.items()}

    valid = mlps(widths=(32, 32)) | mlps(widths=(32,), activation="gelu")
    return Corpus(mlps(widths=(32,)), valid, mlps(widths=(128,)) | mlps(widths=(32, 32, 32, 32), activation="tanh"))


TRAIN_SEEDS, VALID_SEEDS, TEST_SEEDS = range(2_000), range(2_000, 2_300), range(2_300, 2_600)


def taskset() -> Corpus:
    """Sampled tasks: seeds 0 to 1999 train, 2000 to 2299 validate, 2300 to 2599 test.

    Training and validation leave out what `held_out` holds: variational autoencoders, transformers, the diabetes table. Testing has it all.

    Source: in the manner of TaskSet (Metz et al. 2020).
    """

    def tasks(seeds: range, only_seen: bool) -> Members:
        kept = (s for s in seeds if not (only_seen and is_held_out(s)))
        return {f"sampled_{s}": TaskName("sampled", {"seed": s}) for s in kept}

    return Corpus(tasks(TRAIN_SEEDS, True), tasks(VALID_SEEDS, True), tasks(TEST_SEEDS, False))


def is_held_out(seed: int) -> bool:
    """Whether the sampled task `seed` is of a family that no meta-training may see."""
    config = task_recipe(seed).config
    return config.family in ("vae", "char_transformer") or config.dataset == "diabetes"


def held_out() -> Corpus:
    """Twenty tasks to report on, all in `test`; no corpus here meta-trains on them.

    Thirteen are of families that no meta-training sees, because attention, residual connections, a random code and a numeric target give gradients unlike
    those of the others. Seven are of known families at sizes beyond those of meta-training: 64 characters a window, 28x28 images, two layers of 256, eight
    layers; of these the conv nets are Wichrowska's held-out ones, on Fashion-MNIST in place of MNIST. The photographs and texts do occur in meta-training.
    """

    def task(name: str, /, **fields: Any) -> TaskName:
        return TaskName(name, fields)

    tasks = {
        "vit_digits": task("image_vit"),
        "vit_digits_deep": task("image_vit", depth=4),
        "vit_fashion_8": task("image_vit", images="fashion_8", width=32),
        "residual_digits": task("residual_net"),
        "residual_digits_layer_norm": task("residual_net", norm="layer", blocks=3),
        "residual_fashion_8": task("residual_net", images="fashion_8"),
        "transformer_prose": task("char_transformer"),
        "transformer_source": task("char_transformer", text="source"),
        "transformer_prose_deep": task("char_transformer", width=16, depth=4),
        "gru_prose_long": task("char_rnn", length=64),
        "lstm_source_long": task("char_rnn", text="source", cell="lstm", length=64),
        "vae_digits": task("variational_autoencoder"),
        "vae_fashion_14": task("variational_autoencoder", images="fashion_14", widths=(64, 32)),
        "diabetes_linear": task("table_mlp", table="diabetes", widths=()),
        "diabetes_mlp": task("table_mlp", table="diabetes", widths=(32, 32)),
        "conv_fashion_28_sigmoid": task(
            "conv_net", images="fashion_28", filters=wichrowska.FILTERS, activation="sigmoid"
        ),
        "conv_fashion_28_relu": task("conv_net", images="fashion_28", filters=wichrowska.FILTERS),
        "mlp_fashion_14_wide": task("fashion_mlp", size=14, widths=(256, 256)),
        "mlp_fashion_14_deep": task("fashion_mlp", size=14, widths=(32,) * 8),
        "mlp_fashion_28_dropout": task("fashion_mlp", widths=(128, 128), norm="batch", dropout=0.5),
    }
    return Corpus({}, {}, tasks)


def wichrowska2017() -> Corpus:
    """The ensemble of Wichrowska et al. 2017 as released, and its held-out problems, of which Rosenbrock is in both; `wichrowska` has the details.

    Source: Wichrowska et al. 2017, the released problem sets.
    """
    return Corpus(wichrowska.WICHROWSKA2017, {}, wichrowska.WICHROWSKA2017_TEST)


def wichrowska2017_full() -> Corpus:
    """The same with the families that the release leaves off.

    Source: Wichrowska et al. 2017, the released problem sets.
    """
    return Corpus(wichrowska.WICHROWSKA2017_FULL, {}, wichrowska.WICHROWSKA2017_TEST)


# The one place where corpora get their names.
CORPORA: dict[str, Collection] = {
    "held_out": Collection(held_out),
    "small_images": Collection(small_images, "Moudgil et al. 2025 (Celo), with other data"),
    "taskset": Collection(taskset, "in the manner of TaskSet (Metz et al. 2020)"),
    "wichrowska2017": Collection(wichrowska2017, "Wichrowska et al. 2017"),
    "wichrowska2017_full": Collection(wichrowska2017_full, "Wichrowska et al. 2017"),
}


def find_corpus(name: str) -> Corpus:
    """The corpus of this name: a key of `CORPORA`.

    Raises:
        InputError: for an unknown name, with the nearest ones.

    Examples:
        >>> import lopt
        >>> list(lopt.tasks.find_corpus("small_images").train)
        ['digits_32', 'fashion_8_32', 'fashion_8_crops_32', 'fashion_8_edges_32']
    """
    if name not in CORPORA:
        raise InputError(unknown("corpus", name, CORPORA))
    return CORPORA[name].build()


def find_member(name: str) -> TaskName:
    """What a corpus's member, of any split, named `corpus/member`, is: the task before it is normalised.

    Raises:
        InputError: for an unknown corpus or member, with the nearest ones.

    Examples:
        >>> import lopt
        >>> str(lopt.tasks.find_member("wichrowska2017/quadratic_25"))
        'least_squares{"dim":25}'
    """
    corpus, _, member = name.partition("/")
    members = _members(corpus)
    if member not in members:
        raise InputError(unknown(f"member of {corpus}", member, members, most=20))
    return members[member]


@functools.cache
def _members(corpus: str) -> Members:
    """Those of all splits."""
    return {name: task for split in find_corpus(corpus) for name, task in split.items()}


def corpora_with(member: str) -> list[str]:
    """The full names of the members that are called so, as `wichrowska2017/ackley`."""
    return [f"{name}/{member}" for name in CORPORA for split in find_corpus(name) if member in split]
