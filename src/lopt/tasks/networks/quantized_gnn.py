"""Search for the bit widths of a quantised graph network while training it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.checks import at_least, sizes
from lopt.errors import InputError
from lopt.task import Split, Task

QUANTISED = 2  # of each layer: weights and activations


class GraphProblem(NamedTuple):
    """One graph. Labels are independent; the first half trains, the next quarter validates, the last tests."""

    adjacency: Float[Array, "nodes nodes"]  # normalised, with self-loops
    features: Float[Array, "nodes features"]
    labels: Int[Array, " nodes"]


class QuantizedParams(NamedTuple):
    """A network and the choice of its bit widths."""

    layers: tuple[eqx.nn.Linear, eqx.nn.Linear]
    choice: Float[Array, "2 2 widths"]  # logits: layer, then weights or activations, then bit width


class QuantizedGNN(Task):
    r"""Node classification by a two-layer graph convolution that chooses its bit widths (differentiable architecture search).

    $$H_1 = \mathrm{relu}(\hat A\, \tilde X \tilde W_1^\top + b_1), \qquad Z = \hat A\, \tilde H_1 \tilde W_2^\top + b_2,
    \qquad \tilde x = \sum_k p_k\, Q_{b_k}(x), \quad p = \mathrm{softmax}(\gamma)$$

    with $\hat A = D^{-1/2}(A + I)D^{-1/2}$ and the symmetric uniform quantiser $Q_b(x) = s\, \mathrm{round}(x/s)$, $s = \max|x| / (2^{b-1} - 1)$.
    Every weight matrix and every input of a layer has logits $\gamma$ of its own. The gradient passes straight through $Q_b$, as if it were the identity.
    So it is not the gradient of the loss, which is zero in almost every weight. In $\gamma$ of the second layer it is exact, because nothing is
    rounded after it. The loss is

    $$f = -\frac{1}{|V|} \sum_{i \in V} \log \mathrm{softmax}(Z_i)_{y_i} + \lambda\, \frac{\bar b}{b_\mathrm{max}}$$

    with $V$ the nodes of the split and $\bar b$ the bits expected under $p$, averaged over the four quantised tensors.

    A problem is a graph of a stochastic block model, with uniform labels, edges with probability `inside` within a
    class and `between` across, and features $x_i = \mu_{y_i} + \text{noise}\, n_i$ with $\mu$ and $n$ standard normal. The whole graph is the batch;
    labels of other splits are never read.

    Args:
        nodes: of the graph.
        classes: of nodes.
        features: of a node.
        hidden: units.
        bits: the bit widths to choose from, at least 2 each.
        bit_cost: $\lambda$.
        inside: probability of an edge within a class.
        between: probability of an edge across.
        noise: of the features.

    Source: graph convolution of Kipf & Welling 2017; straight-through of Bengio et al. 2013; relaxed choice of bit widths of Wu et al. 2018
    (mixed-precision DNAS), with softmax in place of Gumbel softmax. All recalled; sizes and rates are ours.
    """

    nodes: int = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    features: int = eqx.field(static=True)
    hidden: int = eqx.field(static=True)
    bits: tuple[int, ...] = eqx.field(static=True)
    bit_cost: float = eqx.field(static=True)
    inside: float = eqx.field(static=True)
    between: float = eqx.field(static=True)
    noise: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        nodes: int = 96,
        classes: int = 4,
        features: int = 16,
        hidden: int = 16,
        bits: Sequence[int] = (2, 4, 8),
        bit_cost: float = 0.1,
        inside: float = 0.2,
        between: float = 0.03,
        noise: float = 2.0,
    ):
        sizes(nodes=nodes, classes=classes, features=features, hidden=hidden)
        at_least(4, nodes=nodes)
        at_least(2, classes=classes)
        if not bits or any(not isinstance(b, int) or not 2 <= b <= 16 for b in bits):
            raise InputError(f"bits is {list(bits)}; it must be of whole numbers from 2 to 16.")
        for name, value in (("inside", inside), ("between", between)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; it must lie between 0 and 1.")
        at_least(0, bit_cost=bit_cost, noise=noise)
        self.nodes, self.classes, self.features, self.hidden = nodes, classes, features, hidden
        self.bits, self.bit_cost = tuple(bits), bit_cost
        self.inside, self.between, self.noise = inside, between, noise

    def sample(self, key: PRNGKeyArray) -> GraphProblem:
        """Draw labels, edges and features."""
        label_key, edge_key, mean_key, noise_key = jax.random.split(key, 4)
        labels = jax.random.randint(label_key, (self.nodes,), 0, self.classes)
        probability = jnp.where(labels[:, None] == labels[None], self.inside, self.between)
        drawn = jax.random.uniform(edge_key, probability.shape) < probability
        upper = jnp.triu(drawn, 1)
        connected = (upper | upper.T | jnp.eye(self.nodes, dtype=bool)).astype(jnp.float32)
        root = jax.lax.rsqrt(jnp.sum(connected, axis=1))
        means = jax.random.normal(mean_key, (self.classes, self.features))
        features = means[labels] + self.noise * jax.random.normal(noise_key, (self.nodes, self.features))
        return GraphProblem(root[:, None] * connected * root[None], features, labels)

    def init(self, problem: GraphProblem, key: PRNGKeyArray) -> QuantizedParams:
        """Weights as `eqx.nn.Linear` starts them, and choices near indifference: $N(0, 0.01^2)$."""
        del problem
        first, second, choice = jax.random.split(key, 3)
        layers = (
            eqx.nn.Linear(self.features, self.hidden, key=first),
            eqx.nn.Linear(self.hidden, self.classes, key=second),
        )
        return QuantizedParams(layers, 0.01 * jax.random.normal(choice, (2, QUANTISED, len(self.bits))))

    def loss(
        self, problem: GraphProblem, params: QuantizedParams, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """Mean cross-entropy of the split's nodes, nats, and the cost of the expected bits; see the class."""
        return self.metrics(problem, params, key, split)["loss"]

    def metrics(
        self, problem: GraphProblem, params: QuantizedParams, key: PRNGKeyArray, split: Split
    ) -> dict[str, Float[Array, ""]]:
        """`loss`, `accuracy` on the split's nodes, and `bits`: $\\bar b$, the same on all splits."""
        del key
        nodes = self.nodes_of(split)
        logits, labels = self._logits(problem, params)[nodes], problem.labels[nodes]
        bits = jnp.mean(jax.nn.softmax(params.choice) @ jnp.asarray(self.bits, params.choice.dtype))
        entropy = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
        return {"loss": entropy + self.bit_cost * bits / max(self.bits), "accuracy": accuracy, "bits": bits}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the loss of a uniform guess with indifferent bits."""
        mean = sum(self.bits) / len(self.bits) / max(self.bits)
        return loss / (math.log(self.classes) + self.bit_cost * mean)

    def nodes_of(self, split: Split) -> slice:
        """The nodes whose labels a split reads."""
        first, second = self.nodes // 2, self.nodes // 2 + self.nodes // 4
        return {"train": slice(0, first), "valid": slice(first, second), "test": slice(second, None)}[split]

    def _logits(self, problem: GraphProblem, params: QuantizedParams) -> Float[Array, "nodes classes"]:
        hidden = problem.features
        for i, (layer, choice) in enumerate(zip(params.layers, params.choice, strict=True)):
            chosen = eqx.tree_at(lambda m: m.weight, layer, mixed_precision(layer.weight, choice[0], self.bits))
            hidden = jax.nn.relu(hidden) if i else hidden
            messages = problem.adjacency @ mixed_precision(hidden, choice[1], self.bits)
            hidden = jax.vmap(chosen)(messages)
        return hidden


def quantize(x: Float[Array, ...], bits: int) -> Float[Array, ...]:
    r"""$s\,\mathrm{round}(x/s)$ with $s = \max|x| / (2^{b-1} - 1)$, symmetric; the gradient passes straight through.

    Args:
        x: a tensor.
        bits: $b$, at least 2.
    """
    step = jnp.max(jnp.abs(x)) / (2 ** (bits - 1) - 1)
    step = jnp.where(step == 0, jnp.ones_like(step), step)
    return x + jax.lax.stop_gradient(step * jnp.round(x / step) - x)


def mixed_precision(x: Float[Array, ...], choice: Float[Array, " widths"], bits: Sequence[int]) -> Float[Array, ...]:
    """A tensor quantised to each of the bit widths, averaged with the softmax of the choice."""
    shares = jax.nn.softmax(choice)
    return sum((shares[k] * quantize(x, b) for k, b in enumerate(bits)), jnp.zeros_like(x))
