"""`LSTMOptimizer`: the coordinate-wise LSTM of Andrychowicz et al. 2016."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from lopt.blocks.nets import LSTM, Affine
from lopt.blocks.tensors import chunk_for, chunked, init_tensors, map_tensors
from lopt.checks import at_least, positive
from lopt.optimizer import Optimizer, Params, Updates

Arrays = tuple[Array, ...]


class LSTMState(NamedTuple):
    """State of `LSTMOptimizer`: a tuple of `h` and `c` of each layer, each a tree like the parameters with `[hidden, *shape]` for each tensor."""

    layers: tuple[PyTree, ...]


class LSTMOptimizer(Optimizer):
    r"""A deep LSTM on every parameter alone, the optimizer of *Learning to learn by gradient descent by gradient descent*.

    $$u = s\,(w^\top h + b), \qquad h, \text{state} = \mathrm{LSTM}(x, \text{state}), \qquad
    x = \begin{cases} (\log|g|/p,\ \mathrm{sign}\, g) & |g| \ge e^{-p} \\ (-1,\ e^p g) & \text{otherwise} \end{cases}$$

    The baseline that later papers compare with. It is known to go astray when it runs much longer than it was meta-trained.
    5,141 meta-parameters at the defaults. State: `2 * layers * hidden` floats a parameter, 80 at the defaults.

    The two layers of 20 units and the preprocessing are the paper's as recalled: every constant is a field, the set of defaults a
    **reconstruction**, and so are the initial weights, normal with deviation $1/\sqrt{\text{fan in}}$, a tenth of that in $w$.

    Args:
        hidden: units of a layer.
        layers: how many.
        p: where the logarithm of the gradient ends.
        output_scale: $s$.
        key: draws the initial weights.

    Raises:
        InputError: for fewer than one unit or layer, or a $p$ that is not positive.

    Source: Andrychowicz et al. 2016, *Learning to learn by gradient descent by gradient descent*, §2.1 and appendix A.
    """

    cells: tuple[LSTM, ...]
    readout: Affine
    hidden: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    p: float = eqx.field(static=True)
    output_scale: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: int = 20,
        layers: int = 2,
        p: float = 10.0,
        output_scale: float = 0.1,
        key: PRNGKeyArray,
    ):
        at_least(1, hidden=hidden, layers=layers)
        positive(p=p)
        self.hidden, self.layers, self.p, self.output_scale = hidden, layers, p, output_scale
        *keys, last = jax.random.split(key, layers + 1)
        self.cells = tuple(LSTM(2 if i == 0 else hidden, hidden, key=k) for i, k in enumerate(keys))
        self.readout = Affine(hidden, 1, scale=0.1, key=last)

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> LSTMState:
        """All states at zero."""
        del key, horizon

        def zeros(param: Array) -> Arrays:
            return tuple(jnp.zeros((self.hidden, *param.shape), jnp.float32) for _ in range(2 * self.layers))

        return LSTMState(init_tensors(zeros, params))

    def update(self, updates: Updates, state: LSTMState, params: Params, **extra: Any) -> tuple[Updates, LSTMState]:
        """One step; see the class."""
        del extra

        def chunk(overwrite: Arrays, _: Arrays) -> tuple[Arrays, tuple[()]]:
            gradient, *layers = overwrite
            x, new = self.preprocess(gradient), []
            for cell, h, c in zip(self.cells, layers[::2], layers[1::2], strict=True):
                x, c = cell(x, h, c)
                new += [x, c]
            return (self.output_scale * self.readout(x)[0], *new), ()

        def tensor(gradient: Array, layers: Arrays, _: Array) -> tuple[Array, Arrays]:
            (update, *new), () = chunked(chunk, (gradient, *layers), (), chunk=chunk_for(2 * self.hidden), staged=True)
            return update, tuple(new)

        updates, layers = map_tensors(tensor, updates, state.layers, params)
        return updates, LSTMState(layers)

    def preprocess(self, gradient: Array) -> Array:
        """Logarithm and sign of a gradient, `[2, *shape]`."""
        size, edge = jnp.abs(gradient), math.exp(-self.p)
        is_large = size >= edge
        log = jnp.log(jnp.maximum(size, edge)) / self.p
        return jnp.stack([jnp.where(is_large, log, -1.0), jnp.where(is_large, jnp.sign(gradient), gradient / edge)])
