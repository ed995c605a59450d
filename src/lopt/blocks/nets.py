"""Networks that act on every parameter alike."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.blocks.tensors import chunk_for

NARROW = 8  # units of the widest layer that is written as sums

_NARROW = contextvars.ContextVar("_NARROW", default=NARROW)
_DRAWN = contextvars.ContextVar("_DRAWN", default=True)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Within it the weights of networks are zeros: of a skeleton that is loaded into, tracing the draws would be most of the work."""
    token = _DRAWN.set(False)
    try:
        yield
    finally:
        _DRAWN.reset(token)


@contextlib.contextmanager
def all_products() -> Iterator[None]:
    """Within it every layer is matrix products: for what runs operation by operation, where sums are many operations and nothing fuses them."""
    token = _NARROW.set(0)
    try:
        yield
    finally:
        _NARROW.reset(token)


def drawn(sample: Callable[[PRNGKeyArray, tuple[int, ...]], Array], key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """`sample(key, shape)`; zeros within `shapes_only`."""
    return sample(key, shape) if _DRAWN.get() else jnp.zeros(shape, jnp.float32)


def truncated_normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    """Normal numbers within two standard deviations."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)


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
            drawn(truncated_normal, k, shape) / math.sqrt(shape[0])
            for k, shape in zip(keys, pairwise(sizes), strict=True)
        )
        self.biases = tuple(jnp.zeros(o, jnp.float32) for o in sizes[1:])

    @property
    def is_narrow(self) -> bool:
        """Whether all layers are sums."""
        return max(w.shape[1] for w in self.weights) <= _NARROW.get()

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
            hidden = add_biases(weighted_sums(jax.tree.map(jax.nn.relu, hidden), weight), bias)
        return hidden


def weighted_sums(inputs: Units, weight: Float[Array, "inputs outputs"]) -> Units:
    r"""$\sum_i x_i W_{ij}$ for every $j$, each of the shape to which the inputs broadcast."""
    if isinstance(inputs, Array) or weight.shape[1] > _NARROW.get():
        if isinstance(inputs, list):
            shape = jnp.broadcast_shapes(*(x.shape for x in inputs))
            inputs = jnp.stack([jnp.broadcast_to(x, shape) for x in inputs])
        return product(inputs, weight)
    return _sums(inputs, weight)


@jax.custom_jvp
def _sums(inputs: list[Array], weight: Array) -> list[Array]:
    """`weighted_sums`, written as sums."""
    numbers = [
        x.reshape(()) for x in jax.lax.split(weight.reshape(-1), [1] * weight.size)
    ]  # quicker to trace than to index
    outputs = []
    for j in range(weight.shape[1]):
        column = numbers[j :: weight.shape[1]]
        outputs.append(functools.reduce(jnp.add, (x * w for x, w in zip(inputs, column, strict=True))))
    return outputs


@_sums.defjvp
def _sums_tangent(
    primals: tuple[list[Array], Array], tangents: tuple[list[Array], Array]
) -> tuple[list[Array], list[Array]]:
    """All of matrix products: the derivative of sums is a reduction a weight, and stacking units that are sums would compute the network anew for each."""
    (inputs, weight), (inputs_dot, weight_dot) = primals, tangents
    shape = jnp.broadcast_shapes(*(x.shape for x in inputs))
    stacked, stacked_dot = (jnp.stack([jnp.broadcast_to(x, shape) for x in xs]) for xs in (inputs, inputs_dot))
    return list(product(stacked, weight)), list(product(stacked, weight_dot) + product(stacked_dot, weight))


def product(inputs: Float[Array, "inputs ..."], weight: Float[Array, "inputs outputs"]) -> Float[Array, "outputs ..."]:
    r"""$\sum_i x_i W_{ij}$ on stacks."""
    return (weight.T @ inputs.reshape(len(weight), -1)).reshape(-1, *inputs.shape[1:])


def add_vector(units: Float[Array, "units ..."], vector: Float[Array, " units"]) -> Float[Array, "units ..."]:
    """Add to every unit of a stack its number."""
    return units + vector.reshape(-1, *[1] * (units.ndim - 1))


def add_biases(units: Units, biases: Float[Array, " units"]) -> Units:
    """Add to every unit its number."""
    return [u + biases[j] for j, u in enumerate(units)] if isinstance(units, list) else add_vector(units, biases)


class Affine(eqx.Module):
    r"""$x W + b$ on stacks.

    Args:
        inputs: length of $x$.
        outputs: length of $b$.
        scale: $W$ starts normal with deviation $\mathrm{scale}/\sqrt{\text{fan in}}$.
        bias: what $b$ starts at.
        key: draws $W$.
    """

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, bias: float = 0.0, key: PRNGKeyArray):
        self.weight = normal(key, inputs, outputs, scale)
        self.bias = jnp.full(outputs, bias, jnp.float32)

    def __call__(self, x: Float[Array, "inputs ..."]) -> Float[Array, "outputs ..."]:
        """$x W + b$."""
        return add_vector(product(x, self.weight), self.bias)


class GRU(eqx.Module):
    r"""A gated recurrent unit on stacks, whose biases can be added to from outside.

    $$r, u = \sigma([x, h] W_g + b_g + \beta_g), \qquad c = \tanh([x, r \odot h] W_c + b_c + \beta_c), \qquad h' = u \odot h + (1 - u) \odot c$$

    A large $u$ keeps the state. Units are the first axis, whatever the cell runs over the other axes: on a processor this is up to
    twice as fast as units last.

    Args:
        inputs: length of $x$.
        hidden: length of $h$.
        scale: weights start normal with deviation $\mathrm{scale}/\sqrt{\text{fan in}}$.
        gate_bias: what $b_g$ starts at; $b_c$ starts at zero.
        key: draws the weights.

    Source: Cho et al. 2014.
    """

    gates: Float[Array, "inputs_and_hidden gates"]
    gates_bias: Float[Array, " gates"]
    candidate: Float[Array, "inputs_and_hidden hidden"]
    candidate_bias: Float[Array, " hidden"]

    def __init__(self, inputs: int, hidden: int, *, scale: float = 1.0, gate_bias: float = 0.0, key: PRNGKeyArray):
        gates_key, candidate_key = jax.random.split(key)
        self.gates = normal(gates_key, inputs + hidden, 2 * hidden, scale)
        self.gates_bias = jnp.full(2 * hidden, gate_bias, jnp.float32)
        self.candidate = normal(candidate_key, inputs + hidden, hidden, scale)
        self.candidate_bias = jnp.zeros(hidden, jnp.float32)

    def __call__(
        self,
        x: Float[Array, "inputs ..."],
        h: Float[Array, "hidden ..."],
        injected: Float[Array, " three_hidden"] | None = None,
    ) -> Float[Array, "hidden ..."]:
        r"""The next $h$; `injected` is $\beta$ for reset gates, update gates, candidates."""
        n = len(h)
        gates_bias, candidate_bias = self.gates_bias, self.candidate_bias
        if injected is not None:
            gates_bias, candidate_bias = gates_bias + injected[: 2 * n], candidate_bias + injected[2 * n :]
        # One product on joined inputs is two to three times as fast as a sum of two products.
        gates = jax.nn.sigmoid(add_vector(product(jnp.concatenate([x, h]), self.gates), gates_bias))
        reset, keep = gates[:n], gates[n:]
        candidate = product(jnp.concatenate([x, reset * h]), self.candidate)
        return keep * h + (1.0 - keep) * jnp.tanh(add_vector(candidate, candidate_bias))


class LSTM(eqx.Module):
    r"""Long short-term memory on stacks.

    $$i, \tilde c, f, o = [x, h] W + b, \qquad c' = \sigma(f + 1) \odot c + \sigma(i) \odot \tanh(\tilde c), \qquad h' = \sigma(o) \odot \tanh(c')$$

    Args:
        inputs: length of $x$.
        hidden: length of $h$ and of $c$.
        key: draws $W$, normal with deviation $1/\sqrt{\text{fan in}}$.

    Source: Hochreiter & Schmidhuber 1997; the one on the forget gate from Jozefowicz et al. 2015.
    """

    weight: Float[Array, "inputs_and_hidden gates"]
    bias: Float[Array, " gates"]

    def __init__(self, inputs: int, hidden: int, *, key: PRNGKeyArray):
        self.weight = normal(key, inputs + hidden, 4 * hidden, 1.0)
        self.bias = jnp.zeros(4 * hidden, jnp.float32)

    def __call__(
        self, x: Float[Array, "inputs ..."], h: Float[Array, "hidden ..."], c: Float[Array, "hidden ..."]
    ) -> tuple[Float[Array, "hidden ..."], Float[Array, "hidden ..."]]:
        """The next $h$ and $c$."""
        gates = add_vector(product(jnp.concatenate([x, h]), self.weight), self.bias)
        return lstm_gates(jnp.split(gates, 4), c)


def lstm_gates(gates: Sequence[Array], c: Array) -> tuple[Array, Array]:
    """The next hidden and cell values of an `LSTM`, from its four gates before their non-linearities and the cell values."""
    write, candidate, forget, read = gates
    c = jax.nn.sigmoid(forget + 1.0) * c + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return jax.nn.sigmoid(read) * jnp.tanh(c), c


def normal(key: PRNGKeyArray, inputs: int, outputs: int, scale: float) -> Float[Array, "inputs outputs"]:
    r"""Normal weights with deviation $\mathrm{scale}/\sqrt{\text{inputs}}$."""
    return scale / math.sqrt(inputs) * drawn(partial(jax.random.normal, dtype=jnp.float32), key, (inputs, outputs))
