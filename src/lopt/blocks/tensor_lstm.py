"""Recurrent networks with a row for each tensor."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.blocks.nets import MLP, lstm_gates


class Linear(eqx.Module):
    r"""$y = x W + b$ for rows $x$. Weights start truncated normal with deviation $1/\sqrt{\text{fan in}}$."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray):
        net = MLP([inputs, outputs], key=key)
        (self.weight,), (self.bias,) = net.weights, net.biases

    def __call__(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows outputs"]:
        """Apply it to every row."""
        return x @ self.weight + self.bias[None]


class LSTMState(NamedTuple):
    """Hidden and cell values, a row a tensor."""

    hidden: Float[Array, "rows size"]
    cell: Float[Array, "rows size"]


class TensorLSTM(eqx.Module):
    r"""An LSTM that runs on all tensors at once, its initial state learned.

    $$(i, z, f, o) = [x, h]\, W + b, \qquad c \leftarrow \sigma(f + 1)\, c + \sigma(i) \tanh z, \qquad h \leftarrow \sigma(o) \tanh c$$
    """

    gates: Linear
    hidden: Float[Array, "1 size"]  # initial
    cell: Float[Array, "1 size"]

    def __init__(self, inputs: int, size: int, *, key: PRNGKeyArray):
        self.gates = Linear(inputs + size, 4 * size, key=key)
        self.hidden = self.cell = jnp.zeros((1, size), jnp.float32)

    def init(self, rows: int) -> LSTMState:
        """The learned initial state for every tensor."""
        # In memory of its own, so that a state that is donated does not take the optimizer along.
        return LSTMState(*(jnp.array(jnp.repeat(x, rows, axis=0)) for x in (self.hidden, self.cell)))

    def __call__(self, x: Float[Array, "rows inputs"], state: LSTMState) -> LSTMState:
        """One step; `hidden` of the result is the output."""
        gates = self.gates(jnp.concatenate([x, state.hidden], axis=1))
        return LSTMState(*lstm_gates(jnp.split(gates, 4, axis=1), state.cell))
