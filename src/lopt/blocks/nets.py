"""Networks that act on every parameter alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.blocks.tensors import chunk_for

NARROW = 8  # units of the widest layer that is written as sums

Units = list[Array] | Array  # an array a unit, or all units of a wide layer along a first axis


class MLP(eqx.Module):
    r"""A per-parameter ReLU network on separate feature arrays.

    $$h^{(k+1)} = \mathrm{relu}(h^{(k)} W_k + b_k)$$

    The last layer is linear.

    Features are separate arrays rather than a trailing axis. A narrow network is written as sums over them, so XLA fuses features and
    network into one elementwise loop and no `[parameters, features]` matrix exists. Beyond `NARROW` units a fused loop would compute
    every unit anew for each of its readers: a wide network is matrix products on stacks, and belongs in `tensors.chunked` with
    chunks of `chunk` elements. Weights start truncated normal with deviation $1/\sqrt{\text{fan in}}$.
    """

    weights: tuple[Float[Array, "inputs outputs"], ...]
    biases: tuple[Float[Array, " outputs"], ...]

    def __init__(self, sizes: Sequence[int], *, key: PRNGKeyArray):
        keys = jax.random.split(key, len(sizes) - 1)
        self.weights = tuple(
            jax.random.truncated_normal(k, -2.0, 2.0, (i, o), jnp.float32) / jnp.sqrt(jnp.float32(i))
            for k, (i, o) in zip(keys, pairwise(sizes), strict=True)
        )
        self.biases = tuple(jnp.zeros(o, jnp.float32) for o in sizes[1:])

    @property
    def chunk(self) -> int:
        """Elements a chunk at which hidden layers stay in cache."""
        return chunk_for(max(w.shape[1] for w in self.weights))

    def first_layer(self, rows: Sequence[int], features: Sequence[Array], scales: Array) -> Units:
        """The share that some features have in the first layer before its bias.

        Args:
            rows: the row of the first weight matrix that each feature meets.
            features: arrays that broadcast against one another.
            scales: a factor for each feature, shape `[len(features)]`; normalisers fold into the weights here.
        """
        return weighted_sums(list(features), self.weights[0][jnp.asarray(rows)] * scales[:, None])

    def rest(self, hidden: Units) -> Units:
        """The outputs, given the first layer before its non-linearity."""
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            hidden = add_vector(weighted_sums(jax.tree.map(jax.nn.relu, hidden), weight), bias)
        return hidden


def weighted_sums(inputs: Units, weight: Float[Array, "inputs outputs"]) -> Units:
    r"""$\sum_i x_i W_{ij}$ for every $j$, each of the shape to which the inputs broadcast."""
    if isinstance(inputs, Array) or weight.shape[1] > NARROW:
        shape = jnp.broadcast_shapes(*(x.shape for x in inputs)) if isinstance(inputs, list) else inputs.shape[1:]
        if isinstance(inputs, list):
            inputs = jnp.stack([jnp.broadcast_to(x, shape) for x in inputs])
        return (weight.T @ inputs.reshape(len(weight), -1)).reshape(-1, *shape)
    outputs = []
    for j in range(weight.shape[1]):
        total = inputs[0] * weight[0, j]
        for i in range(1, len(inputs)):
            total = total + inputs[i] * weight[i, j]
        outputs.append(total)
    return outputs


def add_vector(units: Units, vector: Float[Array, " units"]) -> Units:
    """Add to every unit its number."""
    if isinstance(units, list):
        return [u + vector[j] for j, u in enumerate(units)]
    return units + vector.reshape(-1, *[1] * (units.ndim - 1))
