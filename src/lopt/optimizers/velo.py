"""`VeLO`: an LSTM for each tensor that writes the weights of its per-parameter MLP, of Metz et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.blocks.adafactor_mlp import AdafactorMLP, TensorState
from lopt.blocks.hyper_network import Controller, bank_rule, steered_update
from lopt.blocks.progress import LossHistory, fraction_embedding, require_horizon, require_loss
from lopt.blocks.tensor_lstm import LSTMState
from lopt.blocks.tensors import chunked, init_tensors, split_tensors
from lopt.checks import at_least
from lopt.optimizer import Optimizer, Params, Updates

RANKS = 5  # length of the one-hot rank


class VeLOState(NamedTuple):
    """State of `VeLO`: steps taken and to be taken, losses, rows for all tensors, and a `TensorState` of trees like the parameters."""

    step: Int[Array, ""]
    horizon: Float[Array, ""]
    losses: LossHistory
    lstm: LSTMState
    means: Float[Array, "tensors accumulators"]  # of the momenta and the second moment
    variances: Float[Array, "tensors accumulators"]
    tensors: TensorState


class VeLO(Optimizer):
    r"""A hyper-network: an LSTM sees each tensor and blends the weights of its per-parameter MLP from a bank.

    $$u = -\lambda_1\, s\, \mathrm{RMS}(w)\, d\, e^{\lambda_2 m}, \qquad
      (d, m, \cdot) = \mathrm{MLP}_{30 \to 4 \to 4 \to 3}\Big(\text{features}; \frac{\kappa}{K} \sum_{k=1}^K c_k \Theta_k\Big), \qquad
      (c, s) = \mathrm{LSTM}(\text{tensor})$$

    The per-parameter features are the extended set of `AdafactorMLP`, with fixed decays. The LSTM sees how much of the training is
    over (9), how the loss develops (9), and of the tensor, scaled by its weights: the mean second moment (1), the rank (one-hot, 5), the
    variances of the momenta (3) and of the second moment (3), as clipped logarithms. Tensors share what they see by a maximum over all.
    Both numbers of steps and losses are needed: `init(params, horizon=steps)`, `update(..., value=loss)`.

    2,320,385 meta-parameters at the defaults, those of the run of its authors. State: four floats a parameter, plus rows and columns.

    Args:
        hidden: widths of the hidden layers of the per-parameter MLP.
        lstm_hidden: size of the LSTM.
        bank: $K$, networks in the bank.
        bank_mult: $\kappa$.
        step_mult: $\lambda_1$.
        exp_mult: $\lambda_2$.
        gradient_clip: gradients are clipped to plus and minus this.
        stacked_mixing: whether the second of the two layers that mix tensors reads the first; the released code lets it read the
            features again, so that the first has no effect.
        variance_about_momentum: whether the variance of the second moment is taken about the mean of each momentum, as in the released
            code, and not about its own mean (then 1 feature instead of 3).
        equal_half_lives: whether all half-lives of the loss features are 10 steps, as by default in the released code; its published
            weights were trained with ten from 10 steps to the horizon.
        momentum_decays: decays of $m$.
        second_decay: decay of $v$.
        factored_decays: decays of $r, c$.
        key: draws the initial weights.

    Raises:
        InputError: for no hidden layer, a size below 1, another number of momentum or factored decays than three, or a decay outside of $[0, 1)$.

    Source: Metz et al. 2022, *VeLO: Training Versatile Learned Optimizers by Scaling Up*, and its released code ("HyperV2").
    """

    rule: AdafactorMLP  # with a bank of networks
    controller: Controller
    hidden: tuple[int, ...] = eqx.field(static=True)
    lstm_hidden: int = eqx.field(static=True)
    bank: int = eqx.field(static=True)
    bank_mult: float = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    gradient_clip: float = eqx.field(static=True)
    stacked_mixing: bool = eqx.field(static=True)
    variance_about_momentum: bool = eqx.field(static=True)
    equal_half_lives: bool = eqx.field(static=True)
    momentum_decays: tuple[float, ...] = eqx.field(static=True)
    second_decay: float = eqx.field(static=True)
    factored_decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (4, 4),
        lstm_hidden: int = 512,
        bank: int = 256,
        bank_mult: float = 100.0,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        gradient_clip: float = 1e3,
        stacked_mixing: bool = False,
        variance_about_momentum: bool = True,
        equal_half_lives: bool = False,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        key: PRNGKeyArray,
    ):
        at_least(1, lstm_hidden=lstm_hidden, bank=bank)
        self.hidden, self.lstm_hidden, self.bank, self.bank_mult = tuple(hidden), lstm_hidden, bank, bank_mult
        self.step_mult, self.exp_mult, self.gradient_clip = step_mult, exp_mult, gradient_clip
        self.stacked_mixing, self.variance_about_momentum = stacked_mixing, variance_about_momentum
        self.equal_half_lives = equal_half_lives
        self.momentum_decays, self.second_decay = tuple(momentum_decays), second_decay
        self.factored_decays = tuple(factored_decays)
        rule_key, controller_key = jax.random.split(key)
        self.rule = bank_rule(hidden, momentum_decays, second_decay, factored_decays, bank=bank, key=rule_key)
        self.controller = Controller(
            self._inputs(), lstm_hidden, bank, stacked_mixing=stacked_mixing, key=controller_key
        )

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> VeLOState:
        """Accumulators at zero, the LSTM at its learned initial state.

        Raises:
            InputError: without a horizon.
        """
        del key
        steps = require_horizon("VeLO", horizon)
        longest = jnp.full((), 10.0, jnp.float32) if self.equal_half_lives else steps
        tensors = sum(p.size > 0 for p in jax.tree.leaves(params))
        shape = tensors, len(self.momentum_decays) + 1
        return VeLOState(
            jnp.zeros((), jnp.int32),
            steps,
            LossHistory.start(longest),
            self.controller.lstm.init(tensors),
            jnp.zeros(shape, jnp.float32),
            jnp.zeros(shape, jnp.float32),
            init_tensors(self.rule.init, params),
        )

    def update(
        self,
        updates: Updates,
        state: VeLOState,
        params: Params,
        *,
        value: ArrayLike | None = None,
        **extra: Any,
    ) -> tuple[Updates, VeLOState]:
        """One step; see the class.

        Raises:
            InputError: without the loss.
        """
        losses = state.losses.record(require_loss("VeLO", value, extra))
        shared = jnp.concatenate([fraction_embedding(state.step, state.horizon), losses.features])
        full = [p for p in jax.tree.leaves(params) if p.size]
        rows = [
            jnp.concatenate([shared, self._tensor_features(p, mean, variance)])
            for p, mean, variance in zip(full, state.means, state.variances, strict=True)
        ]
        features = jnp.stack(rows) if rows else jnp.zeros((0, self._inputs()), jnp.float32)
        controls, steps, lstm = self.controller(features, state.lstm)
        updates, tensors = steered_update(
            self.rule,
            self.bank_mult * controls,
            steps,
            updates,
            state.tensors,
            params,
            step_mult=self.step_mult,
            exp_mult=self.exp_mult,
            gradient_clip=self.gradient_clip,
        )
        # Taken here, where nothing is about to overwrite the accumulators: elsewhere XLA would copy them first.
        means, variances = self._moments(tensors, params)
        return updates, VeLOState(state.step + 1, state.horizon, losses, lstm, means, variances, tensors)

    def _inputs(self) -> int:
        moments = len(self.momentum_decays)
        return 9 + 9 + 1 + RANKS + moments + (moments if self.variance_about_momentum else 1)

    def _tensor_features(
        self, param: Array, mean: Float[Array, " accumulators"], variance: Float[Array, " accumulators"]
    ) -> Float[Array, " features"]:
        """Of the tensor and of its accumulators before this step."""
        scale = jax.lax.rsqrt(jnp.maximum(1e-9, jnp.mean(jnp.square(param.astype(jnp.float32)))))
        mean_m, mean_v, var_m, var_v = mean[:-1], mean[-1], variance[:-1], variance[-1]
        # The mean of (v - a)^2, without another pass.
        var_v = var_v + jnp.square(mean_v - mean_m) if self.variance_about_momentum else var_v[None]
        rank = sum(n > 1 for n in param.shape)
        return jnp.concatenate(
            [
                _clipped_log(scale * mean_v)[None],
                jax.nn.one_hot(rank, RANKS, dtype=jnp.float32),
                _clipped_log(jnp.square(scale) * var_m),
                _clipped_log(jnp.square(scale) * var_v),
            ]
        )

    def _moments(self, tensors: PyTree, params: Params) -> tuple[Array, Array]:
        """Means and variances of momenta and second moment, a row a tensor."""
        leaves, treedef = jax.tree.flatten(params)
        pairs = zip(leaves, split_tensors(tensors, treedef)[1], strict=True)
        found = [_mean_variance([*s.momentum, s.second]) for p, s in pairs if p.size]
        if not found:
            none = jnp.zeros((0, len(self.momentum_decays) + 1), jnp.float32)
            return none, none
        means, variances = zip(*found, strict=True)
        return jnp.stack(means), jnp.stack(variances)


def _mean_variance(arrays: Sequence[Array]) -> tuple[Float[Array, " arrays"], Float[Array, " arrays"]]:
    """Of each array, in one pass; about an entry of it, so that no digits cancel."""
    pilots = [a.reshape(-1)[0] for a in arrays]

    def add(overwrite: tuple[Array, ...], read: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        offsets = [a - p for a, p in zip(read, pilots, strict=True)]
        return overwrite, jnp.stack([jnp.sum(x) for x in (*offsets, *(jnp.square(o) for o in offsets))])

    _, sums = chunked(add, (), arrays)
    first, second = jnp.split(sums / arrays[0].size, 2)
    return jnp.stack(pilots) + first, jnp.maximum(second - jnp.square(first), 0.0)


def _clipped_log(x: Array) -> Array:
    return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10.0 * x)), -5.0, 5.0)
