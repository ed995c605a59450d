"""Classify real images with a small vision transformer."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import one_of, sizes
from lopt.errors import InputError
from lopt.tasks.data import images as sets
from lopt.tasks.networks.layers import Activation, Block, Function, Positions, function_of
from lopt.tasks.networks.learning import ClassificationTask


class VisionNet(eqx.Module):
    """A linear map of every patch, positions, transformer blocks, the mean over patches, a norm, a linear layer."""

    embedding: eqx.nn.Linear
    positions: Positions
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __call__(self, patches: Float[Array, "patches pixels"]) -> Float[Array, " classes"]:
        """One image."""
        x = self.positions(jax.vmap(self.embedding)(patches))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(jnp.mean(x, axis=0)))


class VisionTransformer(ClassificationTask):
    """A small vision transformer on an image classification data set, softmax cross-entropy.

    Args:
        images: the data set; its images are square.
        patch: pixels a side of a patch; must divide the image.
        width: numbers that stand for a patch.
        depth: blocks.
        heads: of the attention; must divide the width.
        activation: of the MLPs: `relu`, `tanh`, `gelu`, `silu` or `sigmoid`.
        batch_size: examples a minibatch.
        eval_size: examples that `metrics` looks at; a split that is smaller is taken whole.

    Source: Dosovitskiy et al. 2021, with the mean over patches in place of a class token.
    """

    brightest: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        images: sets.Images,
        *,
        patch: int = 2,
        width: int = 16,
        depth: int = 2,
        heads: int = 2,
        activation: Activation = "gelu",
        batch_size: int = 32,
        eval_size: int = 500,
    ):
        sizes(batch_size=batch_size, eval_size=eval_size, patch=patch, width=width, depth=depth, heads=heads)
        one_of("activation", activation, Activation)
        side = math.isqrt(images.train.images.shape[1])
        if width % heads:
            raise InputError(f"heads is {heads} and width {width}; heads must divide width.")
        if side % patch:
            raise InputError(f"patch is {patch} and images have {side} pixels a side; patch must divide that.")
        super().__init__(images[:3], batch_size, eval_size, images.classes)
        self.brightest, self.patch, self.width = images.brightest, patch, width
        self.depth, self.heads, self.activation = depth, heads, activation

    @property
    def patches(self) -> int:
        """Patches a side."""
        return math.isqrt(self.train[0].shape[1]) // self.patch

    def network(self, key: PRNGKeyArray, activation: Function | None = None) -> VisionNet:
        """The transformer."""
        function = activation or function_of(self.activation)
        blocks = [Block(self.width, self.heads, activation=function, causal=False, key=key) for _ in range(self.depth)]
        return VisionNet(
            eqx.nn.Linear(self.patch**2, self.width, key=key),
            Positions(self.patches**2, self.width),
            tuple(blocks),
            eqx.nn.LayerNorm(self.width),
            eqx.nn.Linear(self.width, self.classes, key=key),
        )

    def logits(self, network: Any, inputs: Array, key: PRNGKeyArray, training: bool) -> Float[Array, "batch classes"]:
        """The logits of images whose brightest pixel is 1."""
        del key, training
        n, p = self.patches, self.patch
        x = inputs.astype(network.head.weight.dtype) / self.brightest
        patches = x.reshape(-1, n, p, n, p).swapaxes(2, 3).reshape(-1, n * n, p * p)
        return jax.vmap(network)(patches)


def image_vit(
    *,
    images: str = "digits",
    patch: int = 2,
    width: int = 16,
    depth: int = 2,
    heads: int = 2,
    activation: Activation = "gelu",
    batch_size: int = 32,
    eval_size: int = 500,
) -> VisionTransformer:
    """Vision transformer. `images` is a name of `data.images.IMAGES`; other arguments as for `VisionTransformer`."""
    return VisionTransformer(
        sets.images(images),
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        activation=activation,
        batch_size=batch_size,
        eval_size=eval_size,
    )
