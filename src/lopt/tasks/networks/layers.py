"""Layers of the tasks' networks beyond `equinox.nn`, and one draw for all their weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Activation = Literal["relu", "tanh", "gelu", "silu", "sigmoid"]
Norm = Literal["none", "batch", "layer"]
Function = Callable[[Array], Array]

BATCH = "batch"  # the axis over which `BatchNorm` takes its statistics


class BatchNorm(eqx.Module):
    r"""$\gamma \odot (x - \bar x) / \sqrt{\mathrm{var}(x) + 10^{-5}} + \beta$, with mean and variance over the batch and over space.

    The statistics are those of the batch at hand in training and evaluation alike, so a loss stays a pure function of its parameters:
    there are no running averages to carry. Channels are the first axis; must run under `jax.vmap(..., axis_name=BATCH)`.

    Source: Ioffe & Szegedy 2015.
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]

    def __init__(self, channels: int):
        self.weight, self.bias = jnp.ones(channels), jnp.zeros(channels)

    def __call__(self, x: Float[Array, "channels ..."], *, key: PRNGKeyArray | None = None) -> Float[Array, ...]:
        """Normalise one example of the batch."""
        del key

        def mean(values: Array) -> Array:
            return jax.lax.pmean(jnp.mean(values.reshape(len(values), -1), axis=1), BATCH)

        shape = (-1, *[1] * (x.ndim - 1))
        centred = x - mean(x).reshape(shape)
        scale = self.weight * jax.lax.rsqrt(mean(jnp.square(centred)) + 1e-5)
        return centred * scale.reshape(shape) + self.bias.reshape(shape)


class Positions(eqx.Module):
    """A learned vector for each place of a sequence, added to the input there."""

    weight: Float[Array, "length width"]

    def __init__(self, length: int, width: int):
        self.weight = jnp.zeros((length, width))

    def __call__(self, x: Float[Array, "length width"]) -> Float[Array, "length width"]:
        """Add them."""
        return x + self.weight


class Block(eqx.Module):
    r"""A transformer block: $x \leftarrow x + \mathrm{attention}(\mathrm{norm}(x))$, then $x \leftarrow x + \mathrm{MLP}(\mathrm{norm}(x))$.

    The MLP has one hidden layer of four times the width. Source: Vaswani et al. 2017, norms first as in Xiong et al. 2020.
    """

    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    activation: Function  # a leaf, so that another may take its place
    causal: bool = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, activation: Function, causal: bool, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        self.norms = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(heads, width, key=keys[0])
        self.up = eqx.nn.Linear(width, 4 * width, key=keys[1])
        self.down = eqx.nn.Linear(4 * width, width, key=keys[2])
        self.activation, self.causal = activation, causal

    def __call__(self, x: Float[Array, "length width"]) -> Float[Array, "length width"]:
        """One sequence."""
        normed = jax.vmap(self.norms[0])(x)
        mask = jnp.tril(jnp.ones((len(x), len(x)), bool)) if self.causal else None
        x = x + self.attention(normed, normed, normed, mask)
        hidden = jax.vmap(self.up)(jax.vmap(self.norms[1])(x))
        return x + jax.vmap(self.down)(self.activation(hidden))


def mlp(
    sizes: tuple[int, ...],
    activation: Function,
    *,
    norm: Norm = "none",
    dropout: float = 0.0,
    key: PRNGKeyArray,
) -> eqx.nn.Sequential:
    """Linear layers; between two of them normalisation, the activation and dropout, in this order."""
    layers: list[Any] = []
    for i, k in enumerate(jax.random.split(key, len(sizes) - 1)):
        layers.append(eqx.nn.Linear(sizes[i], sizes[i + 1], key=k))
        if i < len(sizes) - 2:
            layers += [BatchNorm(sizes[i + 1])] if norm == "batch" else []
            layers += [eqx.nn.LayerNorm(sizes[i + 1])] if norm == "layer" else []
            layers.append(eqx.nn.Lambda(activation))
            layers += [eqx.nn.Dropout(dropout)] if dropout else []
    return eqx.nn.Sequential(layers)


def function_of(activation: Activation) -> Function:
    """The activation of this name."""
    return getattr(jax.nn, activation)


def skeleton_of(network: Callable[[PRNGKeyArray], PyTree]) -> tuple[PyTree, PyTree]:
    """Shapes of the parameters that a network made from a key has, and the network without them."""
    shapes = eqx.filter_eval_shape(network, jax.random.key(0))
    return eqx.partition(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))


# One draw for all weights: a draw each takes much longer to compile.


def draw(skeleton: PyTree, key: PRNGKeyArray) -> PyTree[Array]:
    r"""Parameters of the shapes in `skeleton`, from one draw: uniform around a centre for each tensor.

    Equinox's own defaults for `Linear` and `Conv`, within $1/\sqrt{\text{fan in}}$, and for recurrent cells, within $1/\sqrt{\text{hidden}}$;
    norms start as the identity. Embeddings have deviation 1 and positions 0.02, uniform where equinox's are normal.
    """
    leaves, treedef = jax.tree.flatten(skeleton)
    flat, unravel = ravel_pytree([jnp.zeros(s.shape, s.dtype) for s in leaves])
    drawn = unravel(jax.random.uniform(key, flat.shape, flat.dtype, minval=-1.0, maxval=1.0))
    bounds = jax.tree.leaves(jax.tree.map(_bounds, skeleton, is_leaf=_is_layer))
    centres = jax.tree.leaves(jax.tree.map(_centres, skeleton, is_leaf=_is_norm))
    return treedef.unflatten(
        [
            (bound * x if bound else jnp.zeros_like(x)) + (centre if centre else 0.0)
            for bound, centre, x in zip(bounds, centres, drawn, strict=True)
        ]
    )


def draw_normal(skeleton: PyTree, key: PRNGKeyArray, weight: float, bias: float | None) -> PyTree[Array]:
    r"""Normal weights of deviation `weight`$/\sqrt{\text{fan in}}$ and biases of deviation `bias`, all in one draw.

    Args:
        skeleton: shapes of the parameters, matrices for weights, rows for biases.
        key: draws them.
        weight: deviation of weights times the root of their fan in.
        bias: deviation of biases; where `None`, `weight` over the root of their number, as in the release of Wichrowska et al.
    """
    flat, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), skeleton))
    params = unravel(jax.random.normal(key, flat.shape, flat.dtype))

    def scale(x: Array) -> Array:
        alone = weight / math.sqrt(x.shape[-1])
        return x * (alone if x.ndim == 2 or bias is None else bias)

    return jax.tree.map(scale, params)


def _is_norm(part: Any) -> bool:
    return isinstance(part, BatchNorm | eqx.nn.LayerNorm | eqx.nn.GroupNorm)


def _is_layer(part: Any) -> bool:
    cells = eqx.nn.Linear | eqx.nn.Conv | eqx.nn.GRUCell | eqx.nn.LSTMCell | eqx.nn.Embedding
    return _is_norm(part) or isinstance(part, cells | Positions)


def _bounds(layer: Any) -> PyTree[float]:
    if isinstance(layer, eqx.nn.Linear):
        bound = 1.0 / math.sqrt(int(layer.in_features))
    elif isinstance(layer, eqx.nn.Conv):
        bound = 1.0 / math.sqrt(layer.in_channels * math.prod(layer.kernel_size) // layer.groups)
    elif isinstance(layer, eqx.nn.GRUCell | eqx.nn.LSTMCell):
        bound = 1.0 / math.sqrt(layer.hidden_size)
    else:
        bound = {eqx.nn.Embedding: math.sqrt(3.0), Positions: 0.02 * math.sqrt(3.0)}.get(type(layer), 0.0)
    return jax.tree.map(lambda _: bound, layer)


def _centres(part: Any) -> PyTree[float]:
    if not _is_norm(part):
        return 0.0
    return eqx.tree_at(lambda n: (n.weight, n.bias), part, (1.0, 0.0))
