"""Tasks, one file a family. `create` builds any of them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lopt.names import build
from lopt.task import Task
from lopt.tasks.augment import Reparametrized
from lopt.tasks.autoencoder import Autoencoder, plain_autoencoder, variational_autoencoder
from lopt.tasks.corpus import CORPORA, Corpus, find_corpus
from lopt.tasks.data import MissingDataError
from lopt.tasks.image_conv import ImageConv, conv_net, residual_net
from lopt.tasks.image_mlp import ImageMLP, digits_mlp, fashion_mlp
from lopt.tasks.language import CharRNN, CharTransformer, char_rnn, char_transformer
from lopt.tasks.quadratic import Quadratic
from lopt.tasks.sampled import SampledTask, sample_task, sample_tasks
from lopt.tasks.sampling import task_recipe
from lopt.tasks.tabular import Tabular, table_mlp
from lopt.tasks.vision_transformer import VisionTransformer, image_vit

TASKS: dict[str, Callable[..., Task]] = {
    "digits_mlp": digits_mlp,
    "fashion_mlp": fashion_mlp,
    "quadratic": Quadratic,
    # Learning from real data.
    "char_rnn": char_rnn,
    "char_transformer": char_transformer,
    "conv_net": conv_net,
    "image_vit": image_vit,
    "plain_autoencoder": plain_autoencoder,
    "residual_net": residual_net,
    "sampled": sample_task,
    "table_mlp": table_mlp,
    "variational_autoencoder": variational_autoencoder,
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
    "CORPORA",
    "TASKS",
    "Autoencoder",
    "CharRNN",
    "CharTransformer",
    "Corpus",
    "ImageConv",
    "ImageMLP",
    "MissingDataError",
    "Quadratic",
    "Reparametrized",
    "SampledTask",
    "Tabular",
    "VisionTransformer",
    "char_rnn",
    "char_transformer",
    "conv_net",
    "create",
    "digits_mlp",
    "fashion_mlp",
    "find_corpus",
    "image_vit",
    "plain_autoencoder",
    "residual_net",
    "sample_task",
    "sample_tasks",
    "table_mlp",
    "task_recipe",
    "variational_autoencoder",
]
