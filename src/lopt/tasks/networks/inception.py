"""Classify real images with a network of inception blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import one_of, sizes
from lopt.tasks.data import images as sets
from lopt.tasks.networks.image_conv import convolve, squares
from lopt.tasks.networks.layers import Activation, Function, function_of
from lopt.tasks.networks.learning import ClassificationTask, Loss


class Branches(NamedTuple):
    """The convolutions of one block; each branch ends in as many channels."""

    one: eqx.nn.Conv2d
    three: tuple[eqx.nn.Conv2d, eqx.nn.Conv2d]  # 1x1, 3x3
    five: tuple[eqx.nn.Conv2d, eqx.nn.Conv2d]  # 1x1, 5x5
    pooled: eqx.nn.Conv2d  # 1x1, after the greatest of 3x3 pixels


class InceptionNet(eqx.Module):
    """A first convolution with stride 2, then blocks whose branches are joined along channels, then the mean over space."""

    stem: eqx.nn.Conv2d
    blocks: tuple[Branches, ...]
    head: eqx.nn.Linear
    activation: Function  # a leaf, so that another may take its place

    def __call__(self, x: Float[Array, "1 side side batch"]) -> Float[Array, "batch classes"]:
        """A batch of images."""
        x = self.activation(convolve(self.stem, x))
        for block in self.blocks:
            pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
            branches = [convolve(block.one, x)]
            branches += [
                convolve(last, self.activation(convolve(first, x))) for first, last in (block.three, block.five)
            ]
            branches.append(convolve(block.pooled, pooled))
            x = self.activation(jnp.concatenate(branches))
        return jax.vmap(self.head, in_axes=-1)(jnp.mean(x, axis=(1, 2)))


class ImageInception(ClassificationTask):
    r"""A network of inception blocks on an image classification data set.

    A block joins four branches along channels: a 1x1 convolution, a 1x1 and a 3x3 one, a 1x1 and a 5x5 one, and a 1x1 one of the greatest of 3x3 pixels.
    The first convolution is 3x3 with stride 2 and has as many channels as a block, four times those of a branch. There is no normalisation.

    Args:
        images: the data set; its images are square.
        channels: of a branch.
        blocks: how many.
        activation: `relu`, `tanh`, `gelu`, `silu` or `sigmoid`.
        objective: `cross_entropy`, or `squared_error` against one-hot targets.
        batch_size: examples a minibatch.
        eval_size: examples that `metrics` looks at; a split that is smaller is taken whole.

    Source: Szegedy et al. 2015, *Going deeper with convolutions*, its block; the network around it is ours.
    """

    brightest: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    blocks: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        images: sets.Images,
        *,
        channels: int = 8,
        blocks: int = 2,
        activation: Activation = "relu",
        objective: Loss = "cross_entropy",
        batch_size: int = 64,
        eval_size: int = 1_000,
    ):
        sizes(channels=channels, blocks=blocks, batch_size=batch_size, eval_size=eval_size)
        one_of("activation", activation, Activation)
        one_of("objective", objective, Loss)
        super().__init__(images[:3], batch_size, eval_size, images.classes, objective)
        self.brightest, self.channels, self.blocks, self.activation = images.brightest, channels, blocks, activation

    def network(self, key: PRNGKeyArray, activation: Function | None = None) -> InceptionNet:
        """The network."""
        branch, joined = self.channels, 4 * self.channels
        stem_key, head_key, *keys = jax.random.split(key, 2 + 6 * self.blocks)
        draw = iter(keys)

        def convolution(span: int, ins: int) -> eqx.nn.Conv2d:
            return eqx.nn.Conv2d(ins, branch, span, padding="SAME", key=next(draw))

        blocks = tuple(
            Branches(
                convolution(1, joined),
                (convolution(1, joined), convolution(3, branch)),
                (convolution(1, joined), convolution(5, branch)),
                convolution(1, joined),
            )
            for _ in range(self.blocks)
        )
        stem = eqx.nn.Conv2d(1, joined, 3, stride=2, padding="SAME", key=stem_key)
        head = eqx.nn.Linear(joined, self.classes, key=head_key)
        return InceptionNet(stem, blocks, head, activation or function_of(self.activation))

    def logits(self, network: Any, inputs: Array, key: PRNGKeyArray, training: bool) -> Float[Array, "batch classes"]:
        """The logits of images whose brightest pixel is 1."""
        del key, training
        return network(squares(inputs.astype(network.head.weight.dtype), self.brightest))


def inception_net(
    *,
    images: str = "digits",
    channels: int = 8,
    blocks: int = 2,
    activation: Activation = "relu",
    objective: Loss = "cross_entropy",
    batch_size: int = 64,
    eval_size: int = 1_000,
) -> ImageInception:
    """Network of inception blocks. `images` is a name of `data.images.IMAGES`; other arguments as for `ImageInception`.

    Source: as there.
    """
    return ImageInception(
        sets.images(images),
        channels=channels,
        blocks=blocks,
        activation=activation,
        objective=objective,
        batch_size=batch_size,
        eval_size=eval_size,
    )
