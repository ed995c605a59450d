"""`RelativeMLP`: a per-parameter MLP around a nominal step, both relative to the size of the tensor; lopt's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.blocks.adafactor_mlp import AdafactorMLP, Signals
from lopt.blocks.features import TIME_SCALES, time_embedding
from lopt.blocks.progress import FRACTIONS, fraction_embedding, require_horizon
from lopt.blocks.readout import direction_magnitude
from lopt.blocks.tensors import map_tensors
from lopt.errors import InputError
from lopt.optimizer import Optimizer, Params, Updates

LAST = 0.01  # of the first step, at the end of the schedule


class RelativeMLPState(NamedTuple):
    """State of `RelativeMLP`: steps taken and to be taken, infinity where that is not known, and a `TensorState` in the place of each tensor."""

    step: Int[Array, ""]
    horizon: Float[Array, ""]
    tensors: PyTree


class RelativeMLP(Optimizer):
    r"""A nominal step and a black-box step, relative to the size of the tensor, on a schedule, and bounded.

    $$u = -s\, c_t\, \mathrm{clip}\big(\alpha\, e^{\mu m_n}\, \hat n + \lambda_1\, d\, e^{\lambda_2 m},\ \pm b\big), \qquad
      s = \max(\mathrm{RMS}(w), s_0)$$

    $$\hat n = \frac13 \sum_i \frac{\hat m_i}{\sqrt{\hat v} + 10^{-8}}, \qquad
      c_t = \begin{cases} \max(1 - t/T,\ 0.01) & \text{if the horizon } T \text{ is known} \\ 1/\sqrt{1 + t/\tau} & \text{otherwise} \end{cases}$$

    with $(d, m, m_n)$ the outputs of the MLP of `SmallFC`, which here also sees how much of the training is over (10 features, all 0 if that is not
    known), and $\hat m_i, \hat v$ the bias-corrected moments. An untrained network leaves the nominal step almost alone, which is a usable optimizer
    already. No step moves a parameter by more than $b\,s\,c_t$, whatever the gradient, and beyond the horizon $c_t$ stays at a hundredth.

    The nominal term is that of `STAR` (Harrison et al. 2022), with bias correction; that steps are relative to the parameters is as in `VeLO` and `Celo`.

    Args:
        hidden: widths of the hidden layers.
        nominal_step: $\alpha$; 0 leaves the nominal term out.
        step_mult: $\lambda_1$.
        exp_mult: $\lambda_2$ and $\mu$.
        relative: whether $s$ is that; if not, $s = s_0$.
        least_size: $s_0$.
        scheduled: whether $c_t$ is that; if not, $c_t = 1$.
        decay_time: $\tau$, steps.
        progress: whether the network sees how much of the training is over.
        bound: $b$.
        momentum_decays: initial decays of the momenta.
        second_decay: initial decay of the second moment.
        factored_decays: initial decays of the row and column moments.
        key: draws the initial weights.

    Raises:
        InputError: for no hidden layer, a width below 1, or a number that must be positive and is not.

    Source: lopt's own, of parts that are in the literature.
    """

    rule: AdafactorMLP
    hidden: tuple[int, ...] = eqx.field(static=True)
    nominal_step: float = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    relative: bool = eqx.field(static=True)
    least_size: float = eqx.field(static=True)
    scheduled: bool = eqx.field(static=True)
    decay_time: float = eqx.field(static=True)
    progress: bool = eqx.field(static=True)
    bound: float = eqx.field(static=True)
    momentum_decays: tuple[float, ...] = eqx.field(static=True)
    second_decay: float = eqx.field(static=True)
    factored_decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (8, 8),
        nominal_step: float = 0.1,
        step_mult: float = 1e-2,
        exp_mult: float = 0.1,
        relative: bool = True,
        least_size: float = 0.1,
        scheduled: bool = True,
        decay_time: float = 100.0,
        progress: bool = True,
        bound: float = 0.5,
        momentum_decays: Sequence[float] = (0.8, 0.95, 0.98),
        second_decay: float = 0.99,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        key: PRNGKeyArray,
    ):
        self.hidden, self.nominal_step, self.step_mult, self.exp_mult = tuple(hidden), nominal_step, step_mult, exp_mult
        for name, number in (("least_size", least_size), ("decay_time", decay_time), ("bound", bound)):
            if not number > 0:
                raise InputError(f"{name} is {number}; it must be positive.")
        self.relative, self.least_size, self.bound = relative, least_size, bound
        self.scheduled, self.decay_time, self.progress = scheduled, decay_time, progress
        self.momentum_decays, self.second_decay = tuple(momentum_decays), second_decay
        self.factored_decays = tuple(factored_decays)
        time_features = len(TIME_SCALES) + (len(FRACTIONS) + 1 if progress else 0)
        self.rule = AdafactorMLP(
            hidden, 3, momentum_decays, second_decay, factored_decays, time_features=time_features, key=key
        )

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> RelativeMLPState:
        """Accumulators at zero; the horizon may be left open. It is kept in the state."""
        del key
        steps = jnp.asarray(jnp.inf, jnp.float32) if horizon is None else require_horizon("RelativeMLP", horizon)
        return RelativeMLPState(jnp.zeros((), jnp.int32), steps, jax.tree.map(self.rule.init, params))

    def update(
        self, updates: Updates, state: RelativeMLPState, params: Params, **extra: Any
    ) -> tuple[Updates, RelativeMLPState]:
        """One step; see the class."""
        del extra
        steps = state.step.astype(jnp.float32) + 1.0
        known = jnp.isfinite(state.horizon)
        horizon = jnp.where(known, state.horizon, 1.0)
        time = time_embedding(state.step)
        if self.progress:
            over = jnp.where(known, fraction_embedding(state.step, horizon), 0.0)
            time = jnp.concatenate([time, over, known.astype(jnp.float32)[None]])
        schedule = jnp.ones(())
        if self.scheduled:
            open_end = jax.lax.rsqrt(1.0 + state.step.astype(jnp.float32) / self.decay_time)
            left = 1.0 - state.step.astype(jnp.float32) / horizon
            schedule = jnp.where(known, jnp.maximum(left, LAST), open_end)
        momentum_decay, second_decay, _ = self.rule.current_decays()
        momentum_share, second_share = (
            jnp.maximum(1.0 - jnp.power(decay, steps), 1e-8) for decay in (momentum_decay, second_decay)
        )

        def step(gradient: Array, tensor: Any, param: Array) -> tuple[Array, Any]:
            size = jnp.asarray(self.least_size)
            if self.relative:
                size = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(param))), self.least_size)
            scale = size * schedule

            def readout(outputs: list[Array], signals: Signals) -> Array:
                direction, magnitude, nominal = outputs
                found = direction_magnitude(direction, magnitude, self.step_mult, self.exp_mult)
                if self.nominal_step:
                    root = jnp.sqrt(signals.second / second_share[0]) + 1e-8
                    momentum = [m / share for m, share in zip(signals.momentum, momentum_share, strict=True)]
                    mean = sum(momentum[1:], momentum[0]) / len(momentum)
                    found = found + direction_magnitude(mean / root, nominal, self.nominal_step, self.exp_mult)
                return -scale * jnp.clip(found, -self.bound, self.bound)

            return self.rule.update(gradient, tensor, param, time, readout)

        updates, tensors = map_tensors(step, updates, state.tensors, params)
        return updates, RelativeMLPState(state.step + 1, state.horizon, tensors)
