"""`RelativeMLP`: a per-parameter MLP around a nominal step, both relative to the size of the tensor; lopt's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.blocks.accumulators import ema, factored_axes
from lopt.blocks.adafactor_mlp import AdafactorMLP, Signals, TensorState
from lopt.blocks.features import TIME_SCALES, time_embedding
from lopt.blocks.orthogonal import orthogonalize
from lopt.blocks.progress import FRACTIONS, fraction_embedding, require_horizon
from lopt.blocks.readout import direction_magnitude
from lopt.blocks.tensors import map_tensors
from lopt.errors import InputError
from lopt.optimizer import Optimizer, Params, Updates

LAST = 0.01  # of the first step, at the end of the schedule
SMALL, LOG_SIZE = 1e-3, 3.0  # logarithms of ratios are floored at the first and divided by the second


class RelativeMLPState(NamedTuple):
    """State of `RelativeMLP`: steps taken and to be taken, infinity where that is not known, and a `TensorState` in the place of each tensor."""

    step: Int[Array, ""]
    horizon: Float[Array, ""]
    tensors: PyTree


class RelativeMLP(Optimizer):
    r"""A nominal step and a black-box step, relative to the size of the tensor, on a schedule, and bounded.

    $$u = -s\, c_t\, \mathrm{clip}\big(\alpha\, [(1 - \rho)\, e^{\mu m_n}\, \hat n + \rho\, e^{\mu m_o}\, \hat o] + \lambda_1\, d\, e^{\lambda_2 m},
      \ \pm b\big), \qquad s = \min(\max(\mathrm{RMS}(w), s_0), s_1)$$

    $$\hat n = \frac{\bar m}{\sqrt{\hat v} + 10^{-8}}, \qquad \bar m = \frac13 \sum_i \hat m_i, \qquad
      \hat o = \frac{\mathrm{RMS}(\hat n)}{\mathrm{RMS}(O)}\, O, \quad O = \mathrm{orthogonalize}(\bar m)$$

    $$c_t = \begin{cases} \max(1 - t/T,\ 0.01) & \text{if the horizon } T \text{ is known} \\ 1/\sqrt{1 + t/\tau} & \text{otherwise} \end{cases}$$

    with $(d, m, m_n, m_o)$ the outputs of the MLP of `SmallFC`, and $\hat m_i, \hat v$ the bias-corrected moments. Where there is nothing to
    orthogonalise, below rank two, or too much, $\rho = 0$. The network also sees how much of the training is over (10 features, all 0 if that is
    not known) and, of the tensor, what tells too small steps from too large ones (8 features): the cosine of the gradient and each momentum before
    it, the logarithm of each momentum's length over that of $\sqrt{\hat v}$, the logarithm of $\mathrm{RMS}(w) / s_0$, and whether it is orthogonalised.

    An untrained network leaves the nominal step almost alone, which is a usable optimizer already. No step moves a parameter by more than $b\,s\,c_t$,
    whatever the gradient, and beyond the horizon $c_t$ stays at a hundredth.

    The nominal term is that of `STAR` (Harrison et al. 2022), with bias correction, and for matrices that of Muon (Jordan et al. 2024) with the size of Adam's
    step, which is called grafting (Agarwal et al. 2020); that steps are relative to the parameters is as in `VeLO` and `Celo`.

    Args:
        hidden: widths of the hidden layers.
        nominal_step: $\alpha$; 0 leaves the nominal term out.
        orthogonal_share: $\rho$ for tensors of rank two and more, whose matrices lie along the two longest axes; between 0 and 1, 0 leaves $\hat o$ out.
        orthogonalize_up_to: the longest shorter side of a matrix that is orthogonalised: $n$ by $n$ takes $18 n^3$ operations a step.
        step_mult: $\lambda_1$.
        exp_mult: $\lambda_2$ and $\mu$.
        relative: whether $s$ is that; if not, $s = s_0$.
        least_size: $s_0$.
        greatest_size: $s_1$, without which a tensor whose size the loss does not see would grow exponentially; infinity for none.
        scheduled: whether $c_t$ is that; if not, $c_t = 1$.
        decay_time: $\tau$, steps.
        progress: whether the network sees how much of the training is over.
        agreement: whether the network sees the eight features of the tensor.
        bound: $b$.
        momentum_decays: initial decays of the momenta.
        second_decay: initial decay of the second moment.
        factored_decays: initial decays of the row and column moments.
        key: draws the initial weights.

    Raises:
        InputError: for no hidden layer, a width below 1, a number that must be positive and is not, a greatest size below the least, or a share
            outside of 0 to 1.

    Source: lopt's own, of parts that are in the literature.
    """

    rule: AdafactorMLP
    hidden: tuple[int, ...] = eqx.field(static=True)
    nominal_step: float = eqx.field(static=True)
    orthogonal_share: float = eqx.field(static=True)
    orthogonalize_up_to: int = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    relative: bool = eqx.field(static=True)
    least_size: float = eqx.field(static=True)
    greatest_size: float = eqx.field(static=True)
    scheduled: bool = eqx.field(static=True)
    decay_time: float = eqx.field(static=True)
    progress: bool = eqx.field(static=True)
    agreement: bool = eqx.field(static=True)
    bound: float = eqx.field(static=True)
    momentum_decays: tuple[float, ...] = eqx.field(static=True)
    second_decay: float = eqx.field(static=True)
    factored_decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (8, 8),
        nominal_step: float = 0.1,
        orthogonal_share: float = 0.7,
        orthogonalize_up_to: int = 256,
        step_mult: float = 1e-2,
        exp_mult: float = 0.5,
        relative: bool = True,
        least_size: float = 0.1,
        greatest_size: float = 1.0,
        scheduled: bool = True,
        decay_time: float = 100.0,
        progress: bool = True,
        agreement: bool = True,
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
        if not greatest_size >= least_size:
            raise InputError(f"greatest_size is {greatest_size}; it must be at least least_size, {least_size}.")
        if not 0 <= orthogonal_share <= 1:
            raise InputError(f"orthogonal_share is {orthogonal_share}; it must be between 0 and 1.")
        self.orthogonal_share, self.orthogonalize_up_to = orthogonal_share, orthogonalize_up_to
        self.relative, self.least_size, self.greatest_size, self.bound = relative, least_size, greatest_size, bound
        self.scheduled, self.decay_time, self.progress, self.agreement = scheduled, decay_time, progress, agreement
        self.momentum_decays, self.second_decay = tuple(momentum_decays), second_decay
        self.factored_decays = tuple(factored_decays)
        of_progress, of_tensor = len(FRACTIONS) + 1, 2 * len(self.momentum_decays) + 2
        self.rule = AdafactorMLP(
            hidden,
            4 if orthogonal_share else 3,
            momentum_decays,
            second_decay,
            factored_decays,
            time_features=len(TIME_SCALES) + progress * of_progress + agreement * of_tensor,
            key=key,
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
        momentum_decay, (second_decay,), _ = self.rule.current_decays()

        def step(gradient: Array, tensor: TensorState, param: Array) -> tuple[Array, TensorState]:
            size = jnp.sqrt(jnp.mean(jnp.square(param)))
            scale = schedule * (
                jnp.clip(size, self.least_size, self.greatest_size) if self.relative else self.least_size
            )
            axes = factored_axes(param.shape)
            if axes is not None and not 1 < param.shape[axes[0]] <= self.orthogonalize_up_to:
                axes = None
            share = 0.0 if axes is None else self.orthogonal_share

            def corrected_mean(momentum: Sequence[Array]) -> Array:
                shares = _share(momentum_decay, steps)
                return sum((m / shares[i] for i, m in enumerate(momentum)), start=jnp.zeros(())) / len(momentum)

            def adam(momentum: Sequence[Array], second: Array) -> Array:
                return corrected_mean(momentum) / (jnp.sqrt(second / _share(second_decay, steps)) + 1e-8)

            given: tuple[Array, ...] = ()
            if share:
                assert axes is not None
                momentum = [ema(m, gradient, b) for m, b in zip(tensor.momentum, momentum_decay, strict=True)]
                turned = orthogonalize(corrected_mean(momentum), axes)
                nominal_size = jnp.mean(
                    jnp.square(adam(momentum, ema(tensor.second, jnp.square(gradient), second_decay)))
                )
                given = (turned * jnp.sqrt(nominal_size / (jnp.mean(jnp.square(turned)) + 1e-12)),)

            def readout(outputs: list[Array], signals: Signals) -> Array:
                direction, magnitude, nominal, *orthogonal = outputs
                found = direction_magnitude(direction, magnitude, self.step_mult, self.exp_mult)
                if self.nominal_step and share < 1:
                    own = adam(signals.momentum, signals.second)
                    found = found + direction_magnitude(own, nominal, (1 - share) * self.nominal_step, self.exp_mult)
                if self.nominal_step and share:
                    found = found + direction_magnitude(
                        signals.given[0], orthogonal[0], share * self.nominal_step, self.exp_mult
                    )
                return -scale * jnp.clip(found, -self.bound, self.bound)

            seen = [time]
            if self.agreement:
                # The state before this step: its momenta do not hold the gradient yet.
                shares = _share(momentum_decay, steps - 1.0), _share(second_decay, steps - 1.0)
                of_size = jnp.log(size / self.least_size + SMALL) / LOG_SIZE
                seen += [_agreement(gradient, tensor, *shares), of_size[None], jnp.full(1, float(axes is not None))]
            return self.rule.update(gradient, tensor, param, jnp.concatenate(seen), readout, given=given)

        updates, tensors = map_tensors(step, updates, state.tensors, params)
        return updates, RelativeMLPState(state.step + 1, state.horizon, tensors)


def _share(decay: Float[Array, "*decays"], steps: Array) -> Float[Array, "*decays"]:
    """What an accumulator from zero holds after so many steps, of all; 1 before the first one, where it holds nothing."""
    return jnp.where(steps > 0, jnp.maximum(1.0 - jnp.power(decay, steps), 1e-8), 1.0)


def _agreement(
    gradient: Array, tensor: TensorState, momentum_share: Float[Array, " decays"], second_share: Float[Array, ""]
) -> Float[Array, " features"]:
    """Cosines of the gradient and each momentum, and logarithms of each momentum's length over that of the root of the second moment, both bias-corrected."""

    def length(squares: Array) -> Array:
        return jnp.sqrt(jnp.sum(squares) + 1e-30)

    own, noise = length(jnp.square(gradient)), length(tensor.second / second_share)
    lengths = jnp.stack([length(jnp.square(m)) for m in tensor.momentum])
    cosines = jnp.stack([jnp.sum(gradient * m) for m in tensor.momentum]) / (own * lengths)
    return jnp.concatenate([cosines, jnp.log(lengths / momentum_share / noise + SMALL) / LOG_SIZE])
