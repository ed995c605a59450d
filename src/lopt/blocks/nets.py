"""Networks that act on every parameter alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class MLP(eqx.Module):
    r"""A per-parameter ReLU network, written as sums over feature arrays.

    $$h^{(k+1)} = \mathrm{relu}(h^{(k)} W_k + b_k)$$

    The last layer is linear.

    Features are separate arrays rather than a trailing axis, so XLA fuses them and the network into one elementwise loop and
    no `[parameters, features]` matrix exists. Weights start truncated normal with deviation $1/\sqrt{\text{fan in}}$.
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

    def first_layer(self, rows: Sequence[int], features: Sequence[Array], scales: Array) -> list[Array]:
        """The share that some features have in the first layer before its bias.

        Args:
            rows: the row of the first weight matrix that each feature meets.
            features: arrays that broadcast against one another.
            scales: a factor for each feature, shape `[len(features)]`; normalisers fold into the weights here.
        """
        return weighted_sums(features, self.weights[0][jnp.asarray(rows)] * scales[:, None])

    def rest(self, hidden: Sequence[Array]) -> list[Array]:
        """The outputs, given the first layer before its non-linearity."""
        hidden = list(hidden)
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            sums = weighted_sums([jax.nn.relu(h) for h in hidden], weight)
            hidden = [s + b for s, b in zip(sums, bias, strict=True)]
        return hidden


def weighted_sums(inputs: Sequence[Array], weight: Float[Array, "inputs outputs"]) -> list[Array]:
    r"""$\sum_i x_i W_{ij}$ for every $j$, each an array of the shape to which the inputs broadcast."""
    outputs = []
    for j in range(weight.shape[1]):
        total = inputs[0] * weight[0, j]
        for i in range(1, len(inputs)):
            total = total + inputs[i] * weight[i, j]
        outputs.append(total)
    return outputs
