"""`STAR`: a per-parameter MLP stabilised by a nominal term, of Harrison et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from lopt.blocks.adafactor_mlp import AdafactorMLP, Signals, TensorState
from lopt.blocks.features import time_embedding
from lopt.blocks.readout import direction_magnitude
from lopt.blocks.tensors import init_tensors, map_tensors
from lopt.errors import InputError
from lopt.optimizer import Optimizer, Params, Updates

Nominal = Literal["sgd", "momentum", "aggmo", "adam", "adam_aggmo"]


class STARState(NamedTuple):
    """State of `STAR`: steps taken, and an `adafactor_mlp.TensorState` of trees like the parameters."""

    step: Int[Array, ""]
    tensors: TensorState


class STAR(Optimizer):
    r"""A black-box step plus a nominal step that is stable on its own.

    $$u = -\underbrace{\lambda_1\, d\, e^{\lambda_2 m}\, P}_{\text{black box}}
          - \underbrace{\alpha\, e^{\mu\, m_n}\, \hat g}_{\text{nominal}}
          - \underbrace{\gamma\, e^{\rho\, m_r}\, w}_{\text{shrinkage}}$$

    with $(d, m, m_n, m_r)$ the outputs of the 39-feature MLP that `SmallFC` uses, $P = 1/\sqrt{v + 10^{-6}}$ if `precondition` and 1
    otherwise, and the nominal direction $\hat g$

    | `nominal` | $\hat g$ |
    |---|---|
    | `sgd` | $g$ |
    | `momentum` | $m_{0.999}$, the slowest momentum |
    | `aggmo` | mean of the momenta |
    | `adam` | $m_{0.999}/\sqrt{v + 10^{-6}}$ |
    | `adam_aggmo` | mean over the momenta of $m_i/\sqrt{v + 10^{-6}}$ |

    without bias correction. 207 meta-parameters at the defaults.

    The form of the rule follows the released code of its authors, and $\alpha = \lambda_1 = 10^{-3}$ the names of the weights released with it.
    The decay of the paper, 0.1 to 1, is AdamW's of the *meta-parameters* and belongs to the outer optimizer; as `shrinkage` it would erase
    a network at once. The other defaults are a **reconstruction**, and every one is a field.

    Args:
        hidden: widths of the hidden layers.
        step_mult: $\lambda_1$.
        exp_mult: $\lambda_2, \mu, \rho$.
        precondition: divide the black-box step by the root of the second moment.
        nominal: direction of the nominal term.
        nominal_step: $\alpha$, its step size.
        nominal_controller: whether the network scales the nominal step; if not, $m_n = 1$ as in the released code.
        shrinkage: $\gamma$, decay of the parameters towards zero.
        shrinkage_controller: whether the network scales the shrinkage; if not, $m_r = 0$.
        aggregate_magnitude: average $m$ over each tensor.
        aggregate_nominal: average $m_n$ over each tensor.
        momentum_decays: initial decays of the momenta.
        second_decay: initial decay of the second moment.
        factored_decays: initial decays of the row and column moments.
        key: draws the initial weights.

    Source: Harrison, Metz, Sohl-Dickstein 2022, *A Closer Look at Learned Optimization: Stability, Robustness, and Inductive Biases*.
    """

    rule: AdafactorMLP
    hidden: tuple[int, ...] = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: tuple[float, float, float] = eqx.field(static=True)
    precondition: bool = eqx.field(static=True)
    nominal: Nominal = eqx.field(static=True)
    nominal_step: float = eqx.field(static=True)
    nominal_controller: bool = eqx.field(static=True)
    shrinkage: float = eqx.field(static=True)
    shrinkage_controller: bool = eqx.field(static=True)
    aggregate_magnitude: bool = eqx.field(static=True)
    aggregate_nominal: bool = eqx.field(static=True)
    momentum_decays: tuple[float, ...] = eqx.field(static=True)
    second_decay: float = eqx.field(static=True)
    factored_decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (4, 4),
        step_mult: float = 1e-3,
        exp_mult: Sequence[float] = (1e-3, 1e-3, 1e-3),
        precondition: bool = True,
        nominal: Nominal = "adam_aggmo",
        nominal_step: float = 1e-3,
        nominal_controller: bool = True,
        shrinkage: float = 0.0,
        shrinkage_controller: bool = False,
        aggregate_magnitude: bool = False,
        aggregate_nominal: bool = False,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        key: PRNGKeyArray,
    ):
        if nominal not in get_args(Nominal):
            raise InputError(f"nominal is {nominal!r}; it must be one of {', '.join(get_args(Nominal))}.")
        if len(exp_mult) != 3:
            raise InputError(f"exp_mult is {list(exp_mult)}; it must be three numbers.")
        first, second, third = exp_mult
        self.hidden, self.step_mult, self.exp_mult = tuple(hidden), step_mult, (first, second, third)
        self.precondition = precondition
        self.nominal, self.nominal_step, self.nominal_controller = nominal, nominal_step, nominal_controller
        self.shrinkage, self.shrinkage_controller = shrinkage, shrinkage_controller
        self.aggregate_magnitude, self.aggregate_nominal = aggregate_magnitude, aggregate_nominal
        self.momentum_decays, self.second_decay = tuple(momentum_decays), second_decay
        self.factored_decays = tuple(factored_decays)
        self.rule = AdafactorMLP(hidden, 4, momentum_decays, second_decay, factored_decays, key=key)

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> STARState:
        """Accumulators at zero."""
        del key, horizon
        return STARState(jnp.zeros((), jnp.int32), init_tensors(self.rule.init, params))

    def update(self, updates: Updates, state: STARState, params: Params, **extra: Any) -> tuple[Updates, STARState]:
        """One step; see the class."""
        del extra
        time = time_embedding(state.step)
        average = [1] * self.aggregate_magnitude + [2] * self.aggregate_nominal
        updates, tensors = map_tensors(
            lambda g, s, p: self.rule.update(g, s, p, time, self._readout, average),
            updates,
            state.tensors,
            params,
        )
        return updates, STARState(state.step + 1, tensors)

    def _readout(self, outputs: list[Array], signals: Signals) -> Array:
        direction, magnitude, nominal, shrinkage = outputs
        rsqrt = jax.lax.rsqrt(signals.second + 1e-6)
        black_box = direction_magnitude(direction, magnitude, self.step_mult, self.exp_mult[0])
        if self.precondition:
            black_box = black_box * rsqrt
        control = nominal if self.nominal_controller else jnp.ones_like(nominal)
        update = -black_box - direction_magnitude(
            self._nominal_direction(signals, rsqrt), control, self.nominal_step, self.exp_mult[1]
        )
        if self.shrinkage:
            control = shrinkage if self.shrinkage_controller else jnp.zeros_like(shrinkage)
            update = update - direction_magnitude(signals.param, control, self.shrinkage, self.exp_mult[2])
        return update

    def _nominal_direction(self, signals: Signals, rsqrt: Array) -> Array:
        momentum = signals.momentum
        match self.nominal:
            case "sgd":
                return signals.gradient
            case "momentum":
                return momentum[-1]
            case "aggmo":
                return sum(momentum[1:], momentum[0]) / len(momentum)
            case "adam":
                return momentum[-1] * rsqrt
            case "adam_aggmo":
                return sum(momentum[1:], momentum[0]) / len(momentum) * rsqrt
