"""`Celo`: a learned per-parameter rule with a learned schedule, of Moudgil et al. 2025."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.blocks.adafactor_mlp import AdafactorMLP, TensorState
from lopt.blocks.hyper_network import Controller, bank_rule, steered_update
from lopt.blocks.progress import LossHistory, fraction_embedding, require_horizon, require_loss
from lopt.blocks.tensor_lstm import LSTMState
from lopt.blocks.tensors import init_tensors
from lopt.checks import at_least
from lopt.optimizer import Optimizer, Params, Updates

INPUTS = 9 + 9  # fraction of the training, losses


class CeloState(NamedTuple):
    """State of `Celo`: steps taken and to be taken, losses, the schedule's LSTM, and a `TensorState` of trees like the parameters."""

    step: Int[Array, ""]
    horizon: Float[Array, ""]
    losses: LossHistory
    lstm: LSTMState
    tensors: TensorState


class Celo(Optimizer):
    r"""A per-parameter MLP whose steps an LSTM schedules from the losses alone.

    $$u = -\lambda_1\, s\, \mathrm{RMS}(w)\, d\, e^{\lambda_2 m}, \qquad
      (d, m, \cdot) = \mathrm{MLP}_{30 \to 4 \to 4 \to 3}(\text{features}; \theta), \qquad
      s = \alpha \exp(\mathrm{LSTM}(t/T, \text{losses}))$$

    The per-parameter features and accumulators are those of `VeLO`. The schedule sees how much of the training is over (9 features) and
    how the loss develops (9), nothing of the tensors, and so is the same for all of them. Its authors meta-train in two phases: the MLP
    with `scheduled=False`, then the schedule with the MLP frozen.
    Both numbers of steps and losses are needed: `init(params, horizon=steps)`, `update(..., value=loss)`.

    37,089 meta-parameters at the defaults, 173 of them the MLP. State: four floats a parameter, plus rows and columns.

    Args:
        hidden: widths of the hidden layers of the per-parameter MLP.
        lstm_hidden: size of the LSTM.
        bank: networks that the LSTM blends, with the softmax of its controls over their number as weights; 1 is a fixed network.
        scheduled: whether the schedule scales the steps.
        schedule_mult: $\alpha$.
        step_mult: $\lambda_1$.
        exp_mult: $\lambda_2$.
        gradient_clip: gradients are clipped to plus and minus this.
        stacked_mixing: as in `VeLO`.
        momentum_decays: decays of $m$.
        second_decay: decay of $v$.
        factored_decays: decays of $r, c$.
        key: draws the initial weights.

    Raises:
        InputError: for no hidden layer, a size below 1, another number of momentum or factored decays than three, or a decay outside of $[0, 1)$.

    Source: Moudgil et al. 2025, *Celo: Training Versatile Learned Optimizers on a Compute Diet*, and its released code.
    """

    rule: AdafactorMLP  # with a bank of networks
    controller: Controller
    hidden: tuple[int, ...] = eqx.field(static=True)
    lstm_hidden: int = eqx.field(static=True)
    bank: int = eqx.field(static=True)
    scheduled: bool = eqx.field(static=True)
    schedule_mult: float = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    gradient_clip: float = eqx.field(static=True)
    stacked_mixing: bool = eqx.field(static=True)
    momentum_decays: tuple[float, ...] = eqx.field(static=True)
    second_decay: float = eqx.field(static=True)
    factored_decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (4, 4),
        lstm_hidden: int = 64,
        bank: int = 1,
        scheduled: bool = True,
        schedule_mult: float = 0.1,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        gradient_clip: float = 1e3,
        stacked_mixing: bool = False,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        key: PRNGKeyArray,
    ):
        at_least(1, lstm_hidden=lstm_hidden, bank=bank)
        self.hidden, self.lstm_hidden, self.bank = tuple(hidden), lstm_hidden, bank
        self.scheduled, self.schedule_mult = scheduled, schedule_mult
        self.step_mult, self.exp_mult, self.gradient_clip = step_mult, exp_mult, gradient_clip
        self.stacked_mixing = stacked_mixing
        self.momentum_decays, self.second_decay = tuple(momentum_decays), second_decay
        self.factored_decays = tuple(factored_decays)
        rule_key, controller_key = jax.random.split(key)
        self.rule = bank_rule(hidden, momentum_decays, second_decay, factored_decays, bank=bank, key=rule_key)
        self.controller = Controller(INPUTS, lstm_hidden, bank, stacked_mixing=stacked_mixing, key=controller_key)

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> CeloState:
        """Accumulators at zero, the LSTM at its learned initial state.

        Raises:
            InputError: without a horizon.
        """
        del key
        steps = require_horizon("Celo", horizon)
        return CeloState(
            jnp.zeros((), jnp.int32),
            steps,
            LossHistory.start(steps),
            self.controller.lstm.init(1),
            init_tensors(self.rule.init, params),
        )

    def update(
        self,
        updates: Updates,
        state: CeloState,
        params: Params,
        *,
        value: ArrayLike | None = None,
        **extra: Any,
    ) -> tuple[Updates, CeloState]:
        """One step; see the class.

        Raises:
            InputError: without the loss.
        """
        losses = state.losses.record(require_loss("Celo", value, extra))
        features = jnp.concatenate([fraction_embedding(state.step, state.horizon), losses.features])
        # One row serves all tensors: all would see, and so remember, the same.
        controls, exponent, lstm = self.controller(features[None], state.lstm)
        steps = self.schedule_mult * jnp.exp(exponent) if self.scheduled else jnp.ones_like(exponent)
        tensors = sum(p.size > 0 for p in jax.tree.leaves(params))
        updates, new = steered_update(
            self.rule,
            jnp.repeat(jax.nn.softmax(controls), tensors, axis=0),
            jnp.repeat(steps, tensors),
            updates,
            state.tensors,
            params,
            step_mult=self.step_mult,
            exp_mult=self.exp_mult,
            gradient_clip=self.gradient_clip,
        )
        return updates, CeloState(state.step + 1, state.horizon, losses, lstm, new)
