"""Classify real images with a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import one_of, shares, sizes
from lopt.tasks.data import images as sets
from lopt.tasks.networks.layers import BATCH, Activation, Function, Norm, function_of, mlp
from lopt.tasks.networks.learning import ClassificationTask, Loss


class ImageMLP(ClassificationTask):
    r"""An MLP on an image classification data set.

    $$f(w; B) = -\frac{1}{|B|} \sum_{(x, y) \in B} \log \mathrm{softmax}(\mathrm{MLP}_w(x))_y$$

    `LearningTask` has everything else.

    Args:
        images: the data set.
        widths: widths of the hidden layers; none for softmax regression.
        activation: `relu`, `tanh`, `gelu`, `silu` or `sigmoid`.
        norm: `none`, `batch` or `layer`, before each activation; see `BatchNorm`.
        dropout: share of hidden units that is dropped in training.
        objective: `cross_entropy`, or `squared_error` against one-hot targets.
        batch_size: examples a minibatch.
        eval_size: examples that `metrics` looks at; a split that is smaller is taken whole.
    """

    brightest: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)
    norm: Norm = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        images: sets.Images,
        *,
        widths: Sequence[int] = (32,),
        activation: Activation = "relu",
        norm: Norm = "none",
        dropout: float = 0.0,
        objective: Loss = "cross_entropy",
        batch_size: int = 64,
        eval_size: int = 2_000,
    ):
        sizes(batch_size=batch_size, eval_size=eval_size, widths=widths)
        one_of("activation", activation, Activation)
        one_of("norm", norm, Norm)
        one_of("objective", objective, Loss)
        shares(dropout=dropout)
        super().__init__(images[:3], batch_size, eval_size, images.classes, objective)
        self.brightest, self.widths, self.activation = images.brightest, tuple(widths), activation
        self.norm, self.dropout = norm, dropout

    def network(self, key: PRNGKeyArray, activation: Function | None = None) -> eqx.nn.Sequential:
        """The MLP."""
        sizes = (self.train[0].shape[1], *self.widths, self.classes)
        return mlp(sizes, activation or function_of(self.activation), norm=self.norm, dropout=self.dropout, key=key)

    def logits(self, network: Any, inputs: Array, key: PRNGKeyArray, training: bool) -> Float[Array, "batch classes"]:
        """The logits of images whose brightest pixel is 1."""
        dtype = jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array))[0].dtype
        inputs = inputs.astype(dtype) / self.brightest
        if not self.dropout:
            return jax.vmap(network, axis_name=BATCH)(inputs)
        network = eqx.nn.inference_mode(network, not training)
        return jax.vmap(lambda x, k: network(x, key=k), axis_name=BATCH)(inputs, jax.random.split(key, len(inputs)))


def digits_mlp(
    *,
    widths: Sequence[int] = (32,),
    activation: Activation = "relu",
    norm: Norm = "none",
    dropout: float = 0.0,
    objective: Loss = "cross_entropy",
    batch_size: int = 64,
    eval_size: int = 2_000,
) -> ImageMLP:
    """MLP on scikit-learn's digits: 64 inputs, 10 classes. Arguments as for `ImageMLP`.

    Data: digits.

    Source: lopt's own.
    """
    return ImageMLP(
        sets.digits(),
        widths=widths,
        activation=activation,
        norm=norm,
        dropout=dropout,
        objective=objective,
        batch_size=batch_size,
        eval_size=eval_size,
    )


def fashion_mlp(
    *,
    size: int = 28,
    view: str = "whole",
    widths: Sequence[int] = (32,),
    activation: Activation = "relu",
    norm: Norm = "none",
    dropout: float = 0.0,
    objective: Loss = "cross_entropy",
    batch_size: int = 64,
    eval_size: int = 2_000,
) -> ImageMLP:
    """MLP on Fashion-MNIST. Arguments as for `ImageMLP`, and:

    Args:
        size: pixels a side: 28, 14, 8 or 7.
        view: `whole`, or at 8 pixels a side `crops`, the middle of each image, or `edges`.

    Data: Fashion-MNIST.

    Source: lopt's own; the images are those of Xiao et al. 2017.
    """
    return ImageMLP(
        sets.fashion_mnist(size) if view == "whole" else sets.images(f"fashion_{size}_{view}"),
        widths=widths,
        activation=activation,
        norm=norm,
        dropout=dropout,
        objective=objective,
        batch_size=batch_size,
        eval_size=eval_size,
    )
