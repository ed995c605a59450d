"""`MLPOptimizer`: the per-parameter MLP of Metz et al. 2019."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from lopt.blocks.accumulators import ema
from lopt.blocks.features import TIME_SCALES, time_embedding
from lopt.blocks.nets import MLP
from lopt.blocks.per_parameter import network_step
from lopt.blocks.readout import direction_magnitude
from lopt.blocks.tensors import init_tensors, map_tensors
from lopt.checks import shares, widths
from lopt.optimizer import Optimizer, Params, Updates


class MLPState(NamedTuple):
    """State of `MLPOptimizer`: steps taken, and momenta, a tree like the parameters for each decay."""

    step: Int[Array, ""]
    momentum: tuple[PyTree, ...]


class MLPOptimizer(Optimizer):
    r"""A per-parameter MLP on gradient, parameter, momenta and time.

    $$u = -\lambda_1\, d\, \exp(\lambda_2 m), \qquad (d, m) = \mathrm{MLP}_{19 \to 32 \to 32 \to 2}(\text{features}; \theta)$$

    with the features $g$; $w$; momenta $m_\beta \leftarrow \beta m_\beta + (1 - \beta)\, g$ at six fixed decays, each divided by its root mean square
    over the tensor; and the eleven time features $\tanh(t/\tau - 1)$. 1,762 meta-parameters at the defaults. State: a float a parameter and decay.

    The default is the released successor of the paper's network. The paper's own had one hidden layer, `hidden=(32,)` (706 meta-parameters), and
    five decays, `decays=(0.5, 0.9, 0.99, 0.999, 0.9999)`; both of these are recalled, not read: a **reconstruction**.

    Args:
        hidden: widths of the hidden layers.
        step_mult: $\lambda_1$.
        exp_mult: $\lambda_2$.
        decays: $\beta$ of the momenta.
        key: draws the initial weights.

    Raises:
        InputError: for no hidden layer, a width below 1 or a decay outside of $[0, 1)$.

    Source: Metz et al. 2019, *Understanding and correcting pathologies in the training of learned optimizers*, §3.
    """

    net: MLP
    hidden: tuple[int, ...] = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (32, 32),
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        decays: Sequence[float] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999),
        key: PRNGKeyArray,
    ):
        self.hidden, self.step_mult, self.exp_mult, self.decays = tuple(hidden), step_mult, exp_mult, tuple(decays)
        widths(hidden=self.hidden)
        shares(decays=self.decays)
        self.net = MLP([2 + len(self.decays) + len(TIME_SCALES), *self.hidden, 2], key=key)

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> MLPState:
        """Momenta at zero."""
        del key, horizon
        return MLPState(
            jnp.zeros((), jnp.int32),
            init_tensors(lambda p: tuple(jnp.zeros(p.shape, jnp.float32) for _ in self.decays), params),
        )

    def update(self, updates: Updates, state: MLPState, params: Params, **extra: Any) -> tuple[Updates, MLPState]:
        """One step; see the class."""
        del extra
        rows = range(2 + len(self.decays))
        # In float32, as the reference: 1 - 0.9999 is not 1e-4 there, and its weights were learned with that.
        decays = jnp.asarray(self.decays, jnp.float32)
        constant = time_embedding(state.step) @ self.net.weights[0][len(rows) :] + self.net.biases[0]

        def step(gradient: Array, momentum: tuple[Array, ...], param: Array) -> tuple[Array, tuple[Array, ...]]:
            return network_step(
                self.net,
                rows,
                gradient,
                param,
                momentum,
                accumulate=lambda g, old: tuple(ema(m, g, d) for m, d in zip(old, decays, strict=True)),
                features=lambda g, w, m, _: [g, w, *m],
                readout=lambda out, *_: -direction_magnitude(out[0], out[1], self.step_mult, self.exp_mult),
                constant=constant,
            )

        updates, momentum = map_tensors(step, updates, state.momentum, params)
        return updates, MLPState(state.step + 1, momentum)
