"""`SmallFC`: the small per-parameter MLP of Metz et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from lopt.blocks.adafactor_mlp import AdafactorMLP, Signals, TensorState
from lopt.blocks.features import time_embedding
from lopt.blocks.readout import direction_magnitude
from lopt.blocks.tensors import init_tensors, map_tensors
from lopt.optimizer import Optimizer, Params, Updates


class SmallFCState(NamedTuple):
    """State of `SmallFC`: steps taken, and an `adafactor_mlp.TensorState` of trees like the parameters."""

    step: Int[Array, ""]
    tensors: TensorState


class SmallFC(Optimizer):
    r"""A per-parameter MLP on 39 features with Adafactor-style accumulators.

    $$u = -\lambda_1\, d\, \exp(\lambda_2 m), \qquad (d, m) = \mathrm{MLP}_{39 \to 4 \to 4 \to 2}(\text{features}; \theta)$$

    197 meta-parameters at the defaults: 190 weights and seven decays. State: four floats a parameter, plus rows and columns.

    Args:
        hidden: widths of the hidden layers.
        step_mult: $\lambda_1$.
        exp_mult: $\lambda_2$.
        momentum_decays: initial decays of $m$.
        second_decay: initial decay of $v$.
        factored_decays: initial decays of $r, c$.
        key: draws the initial weights.

    Source: Metz et al. 2022, *Practical tradeoffs between memory, compute, and performance in learned optimizers*, "small_fc_lopt".
    """

    rule: AdafactorMLP
    hidden: tuple[int, ...] = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    momentum_decays: tuple[float, ...] = eqx.field(static=True)
    second_decay: float = eqx.field(static=True)
    factored_decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (4, 4),
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        key: PRNGKeyArray,
    ):
        self.hidden, self.step_mult, self.exp_mult = tuple(hidden), step_mult, exp_mult
        self.momentum_decays, self.second_decay = tuple(momentum_decays), second_decay
        self.factored_decays = tuple(factored_decays)
        self.rule = AdafactorMLP(hidden, 2, momentum_decays, second_decay, factored_decays, key=key)

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> SmallFCState:
        """Accumulators at zero."""
        del key, horizon
        return SmallFCState(jnp.zeros((), jnp.int32), init_tensors(self.rule.init, params))

    def update(
        self, updates: Updates, state: SmallFCState, params: Params, **extra: Any
    ) -> tuple[Updates, SmallFCState]:
        """One step; see the class."""
        del extra
        time = time_embedding(state.step)

        def readout(outputs: list[Array], signals: Signals) -> Array:
            del signals
            return -direction_magnitude(outputs[0], outputs[1], self.step_mult, self.exp_mult)

        updates, tensors = map_tensors(
            lambda g, s, p: self.rule.update(g, s, p, time, readout), updates, state.tensors, params
        )
        return updates, SmallFCState(state.step + 1, tensors)
