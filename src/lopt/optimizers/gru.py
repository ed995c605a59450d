"""`GRUOptimizer`: the component-wise GRU of Maheswaranathan et al. 2020."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.blocks.nets import GRU, product
from lopt.blocks.tensors import chunk_for, chunked, init_tensors, map_tensors, tile
from lopt.checks import at_least
from lopt.optimizer import Optimizer, Params, Updates

Arrays = tuple[Array, ...]


class GRUState(NamedTuple):
    """State of `GRUOptimizer`: a tree like the parameters, with `[hidden, *shape]` for each tensor."""

    hidden: PyTree


class GRUOptimizer(Optimizer):
    r"""One small recurrent network on every parameter alone: gradient in, step out.

    $$h_{k+1} = F(h_k, s_\text{in}\, g_k), \qquad u_k = s_\text{out}\, (w^\top h_{k+1} + b)$$

    with $F$ a GRU, `blocks.nets.GRU`. It has no features and no normalisation, so everything that it does is in the map $F$ and the readout
    $w$, which is what makes it the subject of reverse engineering. $w$ and $b$ start at zero: before meta-training it does not move.
    12,801 meta-parameters at the defaults. State: `hidden` floats a parameter.

    Args:
        hidden: units; the paper's model of the quadratic task has 256.
        log_sign: whether the input is $[\log(1 + |s_\text{in} g|), \mathrm{sign}\, g]$ instead of $s_\text{in} g$.
        input_scale: $s_\text{in}$.
        output_scale: $s_\text{out}$.
        key: draws the initial weights.

    Raises:
        InputError: for fewer than one unit.

    Source: Maheswaranathan et al. 2020, *Reverse engineering learned optimizers reveals known and novel mechanisms*. How the weights of the GRU
    start is ours: normal with deviation $1/\sqrt{\text{fan in}}$.
    """

    cell: GRU
    readout: Float[Array, "hidden 1"]
    bias: Float[Array, ""]
    start: Float[Array, " hidden"]
    hidden: int = eqx.field(static=True)
    log_sign: bool = eqx.field(static=True)
    input_scale: float = eqx.field(static=True)
    output_scale: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: int = 64,
        log_sign: bool = False,
        input_scale: float = 1.0,
        output_scale: float = 1.0,
        key: PRNGKeyArray,
    ):
        at_least(1, hidden=hidden)
        self.hidden, self.log_sign = hidden, log_sign
        self.input_scale, self.output_scale = input_scale, output_scale
        self.cell = GRU(2 if log_sign else 1, hidden, key=key)
        self.readout, self.bias = jnp.zeros((hidden, 1), jnp.float32), jnp.zeros((), jnp.float32)
        self.start = jnp.zeros(hidden, jnp.float32)

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> GRUState:
        """The learned initial state for every parameter."""
        del key, horizon
        return GRUState(init_tensors(partial(tile, self.start), params))

    def update(self, updates: Updates, state: GRUState, params: Params, **extra: Any) -> tuple[Updates, GRUState]:
        """One step; see the class."""
        del extra

        def chunk(overwrite: Arrays, _: Arrays) -> tuple[Arrays, tuple[()]]:
            gradient, hidden = overwrite
            hidden = self.next_hidden(hidden, gradient)
            return (self.step(hidden), hidden), ()

        def tensor(gradient: Array, hidden: Array, _: Array) -> tuple[Array, Array]:
            (update, hidden), () = chunked(chunk, (gradient, hidden), (), chunk=chunk_for(self.hidden), staged=True)
            return update, hidden

        updates, hidden = map_tensors(tensor, updates, state.hidden, params)
        return updates, GRUState(hidden)

    def next_hidden(self, hidden: Float[Array, "hidden ..."], gradient: Array) -> Float[Array, "hidden ..."]:
        """$F(h, g)$ for gradients of any shape."""
        scaled = self.input_scale * gradient
        inputs = [jnp.log1p(jnp.abs(scaled)), jnp.sign(scaled)] if self.log_sign else [scaled]
        return self.cell(jnp.stack(inputs), hidden)

    def step(self, hidden: Float[Array, "hidden ..."]) -> Array:
        """The update that a state puts out."""
        return self.output_scale * (product(hidden, self.readout)[0] + self.bias)
