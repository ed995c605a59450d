"""What the claims on graph networks share: a search over bit widths and neighbourhoods, fixed networks, and how both are trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PRNGKeyArray

from lopt import zoo
from lopt.optimizer import Optimizer
from lopt.optimizers import Adam
from lopt.task import Split, Task
from lopt.tasks.networks.quantized_gnn import GraphProblem, QuantizedGNN, quantize
from lopt.unroll import start, unroll

BITS = (2, 4, 8)  # to choose from
FLOAT = 32  # bits of what is not quantised
WIDTHS = (*BITS, FLOAT)
HOPS = 3  # neighbourhoods to choose from: the node itself, its neighbours, their neighbours
SHARPNESS = 5.0  # what logits are multiplied by: a step of 0.01 then counts in a search of some hundred
SURE = 50.0  # a logit that decides
RATES = (3e-3, 1e-2, 3e-2, 1e-1)  # of Adam
MARGIN = 0.01  # of accuracy
GRAPHS, STEPS = 16, 50  # below which nothing can be said
BASE = QuantizedGNN(bits=BITS)
Layers = tuple[eqx.nn.Linear, eqx.nn.Linear]


class Design(NamedTuple):
    """Shares of the widths of every tensor and of the neighbourhoods of every layer; one of each is 1 in a fixed network."""

    widths: Float[Array, "*graphs 2 2 4"]  # layer, then weights or activations, then `WIDTHS`
    hops: Float[Array, "*graphs 2 3"]

    @property
    def bits(self) -> Float[Array, " *graphs"]:
        """Mean over the four tensors of their expected bits."""
        return jnp.mean(self.widths @ jnp.asarray(WIDTHS, jnp.float32), axis=(-2, -1))


class SearchParams(NamedTuple):
    """A network and the logits of its design."""

    layers: Layers
    widths: Float[Array, "2 2 3"]
    hops: Float[Array, "2 3"]


def network(problem: GraphProblem, layers: Layers, design: Design) -> Float[Array, "nodes classes"]:
    r"""Logits of the classes: $H_{l+1} = \sum_k q_k \hat A^k \tilde H_l \tilde W_l^\top + b_l$, with a ReLU between layers.

    Args:
        problem: a graph.
        layers: weights $W_l$ and biases.
        design: shares $q$ of neighbourhoods, and of the widths to which $W$ and $H$ are quantised.
    """
    hidden = problem.features
    for i, layer in enumerate(layers):
        inputs = _mixed(jax.nn.relu(hidden) if i else hidden, design.widths[i, 1])
        messages = design.hops[i, 0] * inputs
        for k in range(1, HOPS):
            inputs = problem.adjacency @ inputs
            messages = messages + design.hops[i, k] * inputs
        weight = _mixed(layer.weight, design.widths[i, 0])
        hidden = jax.vmap(eqx.tree_at(lambda linear: linear.weight, layer, weight))(messages)
    return hidden


def _mixed(x: Float[Array, ...], shares: Float[Array, " widths"]) -> Float[Array, ...]:
    return sum((shares[k] * quantize(x, b) for k, b in enumerate(BITS)), shares[len(BITS)] * x)


class Network(Task):
    """Train a network of a fixed design; the loss is the cross-entropy."""

    base: QuantizedGNN
    design: Design

    def sample(self, key: PRNGKeyArray) -> GraphProblem:
        """A graph of `base`."""
        return self.base.sample(key)

    def init(self, problem: GraphProblem, key: PRNGKeyArray) -> Layers:
        """Weights as `base` starts them."""
        return self.base.init(problem, key).layers

    def loss(
        self, problem: GraphProblem, params: Layers, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """Mean cross-entropy of the split's nodes, nats."""
        del key
        return _entropy(self.base, problem, network(problem, params, self.design), split)


class Search(Task):
    r"""Train a network on one part of the nodes and the logits of its design on another, in the same step.

    $$f = f_\mathrm{train}(W; [\gamma]) + f_\mathrm{valid}([W]; \gamma) + \lambda\, \frac{\bar b}{8}$$

    $f$ on the right are cross-entropies, $\gamma$ the logits, whose shares are $\mathrm{softmax}(5\gamma)$, and $\bar b$ the expected bits. What stands in
    brackets counts as a constant.
    """

    base: QuantizedGNN
    cost: Float[Array, ""]  # $\lambda$
    hops: Float[Array, ""]  # 1 to choose the neighbourhoods as well, 0 for a graph convolution
    sharpness: float = eqx.field(static=True, default=SHARPNESS)

    def sample(self, key: PRNGKeyArray) -> GraphProblem:
        """A graph of `base`."""
        return self.base.sample(key)

    def init(self, problem: GraphProblem, key: PRNGKeyArray) -> SearchParams:
        """Weights as `base` starts them, and logits near indifference."""
        begun = self.base.init(problem, key)
        hops = 0.01 * jax.random.normal(jax.random.fold_in(key, 1), (2, HOPS))
        return SearchParams(begun.layers, begun.choice, hops)

    def logits(self, params: SearchParams) -> tuple[Float[Array, "2 2 4"], Float[Array, "2 3"]]:
        """Of the widths, where float cannot be chosen, and of the neighbourhoods."""
        widths = jnp.pad(self.sharpness * params.widths, ((0, 0), (0, 0), (0, 1)), constant_values=-SURE)
        fixed = (1.0 - self.hops) * SURE * jnp.eye(HOPS)[1]
        return widths, self.sharpness * params.hops + fixed[None]

    def chosen(self, params: SearchParams) -> Design:
        """The likeliest of each choice."""
        widths, hops = (jnp.argmax(logits, axis=-1) for logits in self.logits(params))
        return Design(jax.nn.one_hot(widths, len(WIDTHS)), jax.nn.one_hot(hops, HOPS))

    def loss(
        self, problem: GraphProblem, params: SearchParams, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f$ on `train`, the cross-entropy of the split's nodes on the others; nats."""
        del key
        design = Design(*map(jax.nn.softmax, self.logits(params)))
        if split != "train":
            return _entropy(self.base, problem, network(problem, params.layers, design), split)
        fixed_layers, fixed_design = jax.lax.stop_gradient((params.layers, design))
        of_layers = _entropy(self.base, problem, network(problem, params.layers, fixed_design), "train")
        of_design = _entropy(self.base, problem, network(problem, fixed_layers, design), "valid")
        return of_layers + of_design + self.cost * design.bits / max(BITS)


def _entropy(base: QuantizedGNN, problem: GraphProblem, logits: Array, split: Split) -> Float[Array, ""]:
    nodes = base.nodes_of(split)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits[nodes], problem.labels[nodes]))


def uniform(weights: int, activations: int, graphs: int) -> Design:
    """A graph convolution whose tensors all have these widths, for every graph.

    Args:
        weights: bits, of `WIDTHS`.
        activations: bits, of `WIDTHS`.
        graphs: how many.
    """
    row = jnp.stack([jnp.eye(len(WIDTHS))[WIDTHS.index(b)] for b in (weights, activations)])
    hops = jnp.eye(HOPS)[1]
    return Design(jnp.broadcast_to(row, (graphs, 2, *row.shape)), jnp.broadcast_to(hops, (graphs, 2, HOPS)))


@partial(jax.jit, static_argnums=3)
def _train(optimizer: Optimizer, tasks: Task, keys: Key[Array, " graphs"], steps: int) -> Any:
    """Graphs and final parameters; tasks and keys have an axis of graphs."""

    def one(task: Task, key: PRNGKeyArray) -> Any:
        inner, _ = unroll(optimizer, task, start(optimizer, task, key, steps), key, steps)
        return inner.problem, optimizer.eval_params(inner.opt_state, inner.params)

    return jax.vmap(one)(tasks, keys)


@jax.jit
def _correct(tasks: Network, problems: GraphProblem, layers: Layers) -> Float[Array, " graphs"]:
    def one(task: Network, problem: GraphProblem, layers: Layers) -> Float[Array, ""]:
        right = jnp.argmax(network(problem, layers, task.design), axis=-1) == problem.labels
        return jnp.mean(right[task.base.nodes_of("test")].astype(jnp.float32))

    return jax.vmap(one)(tasks, problems, layers)


def accuracy(
    optimizer: Optimizer, design: Design, keys: Key[Array, " graphs"], steps: int, base: QuantizedGNN = BASE
) -> Float[np.ndarray, " graphs"]:
    """Train a network of a design on each graph; accuracy on the test nodes, whose labels neither it nor a search has read.

    Args:
        optimizer: trains.
        design: one a graph.
        keys: draw the graphs and starts.
        steps: of a training.
        base: gives the graphs and the sizes of the network.
    """
    tasks = jax.vmap(lambda d: Network(base, d))(design)
    problems, layers = _train(optimizer, tasks, keys, steps)
    return np.asarray(_correct(tasks, problems, layers), np.float64)


def search(optimizer: Optimizer, cost: float, keys: Key[Array, " graphs"], steps: int, *, hops: bool = True) -> Design:
    r"""Search a design for each graph.

    Args:
        optimizer: trains weights and logits.
        cost: $\lambda$.
        keys: as for `accuracy`: the same keys draw the same graphs.
        steps: of a training.
        hops: whether neighbourhoods are chosen too, or bit widths alone.
    """
    tasks = jax.vmap(lambda c: Search(BASE, c, jnp.asarray(float(hops))))(jnp.full(len(keys), cost, jnp.float32))
    return jax.vmap(Search.chosen)(tasks, _train(optimizer, tasks, keys, steps)[1])


def trainers(
    weights: str,
    keys: Key[Array, " graphs"],
    steps: int,
    learning_rates: Sequence[float] = RATES,
    base: QuantizedGNN = BASE,
) -> tuple[dict[str, Optimizer], float]:
    """Adam at the rate of the highest accuracy of an 8-bit network, and a saved optimizer. Also that rate.

    Args:
        weights: name or path of the saved optimizer.
        keys: draw the graphs on which Adam is tuned.
        steps: of a training.
        learning_rates: of Adam.
        base: as for `accuracy`.
    """
    learned = zoo.load(weights)
    design = uniform(8, 8, len(keys))
    rates = list(learning_rates)
    scores = [float(accuracy(Adam(learning_rate=rate), design, keys, steps, base).mean()) for rate in rates]
    best = rates[int(np.argmax(scores))]
    return {"Adam": Adam(learning_rate=best), str(weights): learned}, best


def too_small(graphs: int, steps: int) -> str:
    """What a budget is and what it takes."""
    return f"{graphs} graphs and {steps} steps are too few; it takes {GRAPHS} and {STEPS}."
