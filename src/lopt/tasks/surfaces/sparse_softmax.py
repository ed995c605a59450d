"""Classify bags of symbols through an embedding."""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.checks import at_least
from lopt.task import Split, Task
from lopt.tasks.data.points import batch_of


class Bags(NamedTuple):
    """Bags of symbols and their labels."""

    symbols: Int[Array, "examples places"]
    labels: Int[Array, " examples"]


class EmbeddingParams(NamedTuple):
    """An embedding and a readout."""

    embedding: Float[Array, "classes features"]
    weight: Float[Array, "features classes"]
    bias: Float[Array, " classes"]


class SparseSoftmax(Task):
    r"""Noisy parity of five symbols, through the sum of their embeddings.

    $$z = V^\top \sum_{j=1}^{5} E_{s_j} + b, \qquad f = \overline{\mathrm{CE}(\sigma(z_0), y)} + 10^{-3}\, \overline{\lVert \cdot \rVert^2}$$

    $$y = \Big( \sum_j s_j + \eta \Big) \bmod 2$$

    with $\eta \sim \mathrm{Bernoulli}(0.25)$ and the mean of the penalty over the three tensors. Gradients of the embedding are sparse where it is read by
    index, and the same where by one-hot products: two ways of computing one loss.

    Args:
        features: width of the embedding.
        examples: number of bags; the release has five, so that every step sees them all.
        batch_size: bags a minibatch; all of them where it exceeds their number.
        one_hot: read the embedding by one-hot products.

    Source: Wichrowska et al. 2017, the released problem generator, off by default.
    """

    features: int = eqx.field(static=True)
    examples: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    one_hot: bool = eqx.field(static=True)

    def __init__(self, *, features: int = 5, examples: int = 5, batch_size: int = 23, one_hot: bool = False):
        at_least(1, features=features, examples=examples, batch_size=batch_size)
        self.features, self.examples, self.batch_size, self.one_hot = features, examples, batch_size, one_hot

    def sample(self, key: PRNGKeyArray) -> Bags:
        """Draw the bags."""
        bits_key, noise_key = jax.random.split(key)
        symbols = jax.random.bernoulli(bits_key, 0.5, (self.examples, 5)).astype(jnp.int32)
        noise = jax.random.bernoulli(noise_key, 0.25, (self.examples,)).astype(jnp.int32)
        return Bags(symbols, (jnp.sum(symbols, axis=1) + noise) % 2)

    def init(self, problem: Bags, key: PRNGKeyArray) -> EmbeddingParams:
        """Normal numbers times 1.2 over the root of the length of the first axis."""
        del problem
        n = self.features
        numbers = 1.2 * jax.random.normal(key, (4 * n + 2,))
        return EmbeddingParams(
            numbers[: 2 * n].reshape(2, n) / math.sqrt(2.0),
            numbers[2 * n : 4 * n].reshape(n, 2) / math.sqrt(n),
            numbers[4 * n :] / math.sqrt(2.0),
        )

    def loss(
        self, problem: Bags, params: EmbeddingParams, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f$ on a minibatch; on all bags for the other splits."""
        bags = batch_of(problem, key, self.batch_size) if split == "train" else problem
        table = params.embedding
        vectors = jax.nn.one_hot(bags.symbols, 2, dtype=table.dtype) @ table if self.one_hot else table[bags.symbols]
        outputs = jnp.sum(vectors, axis=1) @ params.weight + params.bias[None]
        entropy = optax.sigmoid_binary_cross_entropy(outputs[:, 0], bags.labels.astype(outputs.dtype))
        return jnp.mean(entropy) + 1e-3 * jnp.mean(jnp.stack([jnp.sum(jnp.square(x)) for x in params]))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by about the cross-entropy at the start."""
        return loss / (2.0 * math.log(2.0))
