"""Classify real images with a convolutional or a residual network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least, one_of, sizes
from lopt.errors import InputError
from lopt.tasks.data import images as sets
from lopt.tasks.networks.layers import BATCH, Activation, BatchNorm, Function, Norm, function_of
from lopt.tasks.networks.learning import ClassificationTask, Loss

Filter = tuple[int, int, int]  # height, width, channels


def convolve(layer: eqx.nn.Conv2d, x: Float[Array, "ins rows columns batch"]) -> Float[Array, "outs r c batch"]:
    """Apply `layer` to every image of a batch, as one matrix product on shifted copies. `layer` pads zeros by `SAME`, with one stride for both axes.

    The batch is the last axis, so that memory is read in long rows and one product serves the whole batch. `benchmarks/conv.py` measures the gain.
    """
    assert (layer.padding, layer.padding_mode, layer.groups) == ("SAME", "ZEROS", 1)
    assert layer.stride == layer.stride[:1] * 2
    assert layer.dilation == (1, 1)
    stride, (height, width) = layer.stride[0], layer.kernel_size
    rows, columns = (-(-n // stride) for n in x.shape[1:3])

    def padding(size: int, outs: int, span: int) -> tuple[int, int]:
        total = max((outs - 1) * stride + span - size, 0)
        return total // 2, total - total // 2

    x = jnp.pad(x, ((0, 0), padding(x.shape[1], rows, height), padding(x.shape[2], columns, width), (0, 0)))
    last_row, last_column = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    copies = [
        x[:, i : i + last_row : stride, j : j + last_column : stride] for i in range(height) for j in range(width)
    ]
    weight = jnp.moveaxis(layer.weight, 1, -1).reshape(len(layer.weight), -1)
    product = weight @ jnp.concatenate(copies).reshape(weight.shape[1], -1)
    product = product.reshape(-1, rows, columns, x.shape[-1])
    return product if layer.bias is None else product + layer.bias[..., None]


def squares(images: Float[Array, "batch pixels"], brightest: int) -> Float[Array, "1 side side batch"]:
    """Square images whose brightest pixel is 1, the batch last, as `convolve` takes them."""
    side = math.isqrt(images.shape[1])
    return images.T.reshape(1, side, side, -1) / brightest


def _normalise(norm: Any, x: Float[Array, "channels r c batch"]) -> Float[Array, "channels r c batch"]:
    """`norm`, written for one image, on a batch that is the last axis; mapped over it, a step of a residual net takes two to three times as long."""
    if isinstance(norm, BatchNorm):  # to which the batch is only more space
        return jax.vmap(norm, axis_name=BATCH)(x[None])[0]
    if isinstance(norm, eqx.nn.GroupNorm):  # of one group
        assert norm.groups == 1
        assert norm.weight is not None
        assert norm.bias is not None
        image, channels = (0, 1, 2), (-1, 1, 1, 1)
        variance = jnp.var(x, image, keepdims=True)
        standard = jax.nn.standardize(x, image, variance=variance, epsilon=norm.eps)
        return standard * norm.weight.reshape(channels) + norm.bias.reshape(channels)
    return x


class ConvNet(eqx.Module):
    """Convolutions with stride 2 and their activations, then one linear layer on all that is left."""

    layers: tuple[Any, ...]
    norms: tuple[Any, ...]
    head: eqx.nn.Linear
    activation: Function  # a leaf, so that another may take its place

    def __call__(self, x: Float[Array, "1 side side batch"]) -> Float[Array, "batch classes"]:
        """A batch of images."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.activation(_normalise(norm, convolve(layer, x)))
        return jax.vmap(self.head, in_axes=-1)(x.reshape(-1, x.shape[-1]))


class ResidualNet(eqx.Module):
    r"""A first convolution, then blocks $x \leftarrow x + \mathrm{conv}(\phi(\mathrm{norm}(\mathrm{conv}(\phi(\mathrm{norm}(x))))))$, then the mean over space.

    Source: He et al. 2016, norm and activation before each convolution.
    """

    stem: eqx.nn.Conv2d
    layers: tuple[Any, ...]
    norms: tuple[Any, ...]
    head: eqx.nn.Linear
    activation: Function  # a leaf, so that another may take its place

    def __call__(self, x: Float[Array, "1 side side batch"]) -> Float[Array, "batch classes"]:
        """A batch of images."""
        x = convolve(self.stem, x)
        for i in range(0, len(self.layers), 2):
            y = x
            for layer, norm in zip(self.layers[i : i + 2], self.norms[i : i + 2], strict=True):
                y = convolve(layer, self.activation(_normalise(norm, y)))
            x = x + y
        return jax.vmap(self.head, in_axes=-1)(jnp.mean(self.activation(x), axis=(1, 2)))


class ImageConv(ClassificationTask):
    r"""A convolutional network on an image classification data set.

    Plain: a convolution with stride 2 for each of `filters`, then a linear layer. Residual: all blocks have the first filter's shape;
    the first convolution has stride 2, the others 1. Pixels divided by the brightest are the input. Padding keeps $\lceil n/\text{stride}\rceil$ pixels.

    Args:
        images: the data set; its images are square.
        filters: height, width and channels of each convolution.
        blocks: residual blocks of two convolutions each; 0 for the plain network.
        activation: `relu`, `tanh`, `gelu`, `silu` or `sigmoid`.
        norm: `none`, `batch` (see `BatchNorm`) or `layer` (over channels and space, with a scale for each channel).
        objective: `cross_entropy`, or `squared_error` against one-hot targets.
        batch_size: examples a minibatch.
        eval_size: examples that `metrics` looks at; a split that is smaller is taken whole.
    """

    brightest: int = eqx.field(static=True)
    filters: tuple[Filter, ...] = eqx.field(static=True)
    blocks: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)
    norm: Norm = eqx.field(static=True)

    def __init__(
        self,
        images: sets.Images,
        *,
        filters: Sequence[Sequence[int]] = ((3, 3, 8), (3, 3, 16)),
        blocks: int = 0,
        activation: Activation = "relu",
        norm: Norm = "none",
        objective: Loss = "cross_entropy",
        batch_size: int = 64,
        eval_size: int = 1_000,
    ):
        if not filters or any(len(f) != 3 for f in filters) or (blocks and len(filters) != 1):
            one = "one, for a residual network" if blocks else "at least one"
            raise InputError(f"filters is {filters}; it must be {one}, each of height, width and channels.")
        at_least(0, blocks=blocks)
        sizes(batch_size=batch_size, eval_size=eval_size, filters=[n for f in filters for n in f])
        one_of("activation", activation, Activation)
        one_of("norm", norm, Norm)
        one_of("objective", objective, Loss)
        super().__init__(images[:3], batch_size, eval_size, images.classes, objective)
        self.brightest, self.blocks = images.brightest, blocks
        self.filters = tuple((h, w, c) for h, w, c in filters)
        self.activation, self.norm = activation, norm

    @property
    def side(self) -> int:
        """Pixels a side."""
        return math.isqrt(self.train[0].shape[1])

    def network(self, key: PRNGKeyArray, activation: Function | None = None) -> ConvNet | ResidualNet:
        """The network."""
        function = activation or function_of(self.activation)
        if self.blocks:
            channels = self.filters[0][2]
            layers = [_convolution(channels, self.filters[0], 1, key) for _ in range(2 * self.blocks)]
            norms = tuple(self._norm(channels) for _ in layers)
            head = eqx.nn.Linear(channels, self.classes, key=key)
            return ResidualNet(_convolution(1, self.filters[0], 2, key), tuple(layers), norms, head, function)
        ins = (1, *(f[2] for f in self.filters[:-1]))
        layers = [_convolution(i, f, 2, key) for i, f in zip(ins, self.filters, strict=True)]
        norms = tuple(self._norm(f[2]) for f in self.filters)
        left = self.side
        for _ in layers:
            left = -(-left // 2)
        head = eqx.nn.Linear(left * left * self.filters[-1][2], self.classes, key=key)
        return ConvNet(tuple(layers), norms, head, function)

    def _norm(self, channels: int) -> Any:
        makers = {"batch": BatchNorm, "layer": lambda n: eqx.nn.GroupNorm(1, n), "none": lambda _: eqx.nn.Identity()}
        return makers[self.norm](channels)

    def logits(self, network: Any, inputs: Array, key: PRNGKeyArray, training: bool) -> Float[Array, "batch classes"]:
        """The logits of images whose brightest pixel is 1."""
        del key, training
        return network(squares(inputs.astype(network.head.weight.dtype), self.brightest))


def _convolution(channels: int, shape: Filter, stride: int, key: PRNGKeyArray) -> eqx.nn.Conv2d:
    height, width, outs = shape
    return eqx.nn.Conv2d(channels, outs, (height, width), stride=stride, padding="SAME", key=key)


def conv_net(
    *,
    images: str = "digits",
    classes: Sequence[int] | None = None,
    filters: Sequence[Sequence[int]] = ((3, 3, 8), (3, 3, 16)),
    activation: Activation = "relu",
    norm: Norm = "none",
    objective: Loss = "cross_entropy",
    batch_size: int = 64,
    eval_size: int = 1_000,
) -> ImageConv:
    """Convolutional network; `filters=((3, 3, 8), (5, 5, 8))`, sigmoid and relu, are the held-out ones of Wichrowska et al. 2017.

    There on MNIST; strides are a reconstruction. `images` is a name of `data.images.IMAGES`;
    `classes` are the classes of it to tell apart, all by default;
    other arguments as for `ImageConv`.

    Source: Wichrowska et al. 2017 for those; the default is lopt's own.
    """
    found = sets.images(images)
    return ImageConv(
        found if classes is None else sets.only_classes(found, classes),
        filters=filters,
        activation=activation,
        norm=norm,
        objective=objective,
        batch_size=batch_size,
        eval_size=eval_size,
    )


def residual_net(
    *,
    images: str = "digits",
    channels: int = 12,
    blocks: int = 2,
    activation: Activation = "relu",
    norm: Norm = "batch",
    objective: Loss = "cross_entropy",
    batch_size: int = 64,
    eval_size: int = 1_000,
) -> ImageConv:
    """Residual network of `blocks` blocks with 3x3 filters. `images` is a name of `data.images.IMAGES`; other arguments as for `ImageConv`.

    Source: He et al. 2016, in small.
    """
    sizes(blocks=blocks)
    return ImageConv(
        sets.images(images),
        filters=((3, 3, channels),),
        blocks=blocks,
        activation=activation,
        norm=norm,
        objective=objective,
        batch_size=batch_size,
        eval_size=eval_size,
    )
