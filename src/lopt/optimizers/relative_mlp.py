"""`RelativeMLP`: a per-parameter MLP around a nominal step, both relative to the size of the tensor; lopt's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lopt.blocks.accumulators import factored_axes
from lopt.blocks.adafactor_mlp import AdafactorMLP, Signals, TensorState
from lopt.blocks.features import TIME_SCALES, root, time_embedding
from lopt.blocks.orthogonal import orthogonalize
from lopt.blocks.progress import FRACTIONS, fraction_embedding, require_horizon
from lopt.blocks.tensors import init_tensors, map_tensors
from lopt.checks import at_least, positive
from lopt.errors import InputError
from lopt.optimizer import Optimizer, Params, Updates

LAST = 0.01  # of the first step, at the end of the schedule
GREATEST_EXPONENT = 20.0
SMALL, LOG_SIZE = 1e-3, 3.0  # logarithms of ratios are floored at the first and divided by the second


class RelativeMLPState(NamedTuple):
    """State of `RelativeMLP`: steps taken and to be taken, infinity where that is not known, and a `TensorState` of trees like the parameters."""

    step: Int[Array, ""]
    horizon: Float[Array, ""]
    tensors: TensorState


class RelativeMLP(Optimizer):
    r"""A nominal step and a black-box step, relative to the size of the tensor, on a schedule, and bounded.

    $$u = -s\, c_t\, \mathrm{clip}\big(\alpha\, [(1 - \rho)\, e^{\mu m_n}\, \hat n + \rho\, e^{\mu m_o}\, \hat o] + \lambda_1\, d\, e^{\lambda_2 m},
      \ \pm b\big), \qquad s = \min(\max(\mathrm{RMS}(w), s_0), s_1)$$

    $$\hat n = \frac{\bar m}{\sqrt{\hat v} + 10^{-8}}, \qquad \bar m = \frac13 \sum_i \hat m_i, \qquad
      \hat o = \frac{\mathrm{RMS}(\hat n)}{\mathrm{RMS}(O)}\, O, \quad O = \mathrm{orthogonalize}(\bar m)$$

    $$c_t = \ell_t\, (1 + t/\tau)^{-\pi}, \qquad
      \ell_t = \begin{cases} \max(1 - t/T,\ 0.01) & \text{if the horizon } T \text{ is known} \\ 1 & \text{otherwise} \end{cases} \qquad
      \pi = \begin{cases} p & \text{if } T \leq T_1 \\ q & \text{if it is longer or not known} \end{cases}$$

    with $(d, m, m_n, m_o)$ the outputs of the MLP of `SmallFC`, and $\hat m_i, \hat v$ the bias-corrected moments. Where there is nothing to
    orthogonalise, below rank two, or too much, $\rho = 0$. The network also sees how much of the training is over (10 features, all 0 if $T$ is
    longer than $T_1$ or not known) and, of the tensor, what tells too small steps from too large ones (8 features): the cosine of the gradient and
    each momentum before it, the logarithm of each momentum's length over that of $\sqrt{\hat v}$, the logarithm of $\mathrm{RMS}(w) / s_0$, and
    whether it is a matrix that could be orthogonalised.

    An untrained network leaves the nominal step almost alone, which is a usable optimizer already. No step moves a parameter by more than $b\,s\,c_t$;
    exponents are held to $\pm 20$, so that no gradient up to 1e15, beyond which `to_optax` skips the step, overflows; and beyond the horizon $\ell_t$ stays
    at a hundredth. The power keeps steps from staying large for most of a training that is longer than any in meta-training.

    The nominal term is that of `STAR` (Harrison et al. 2022), with bias correction, and for matrices that of Muon (Jordan et al. 2024) with the size of Adam's
    step, which is called grafting (Agarwal et al. 2020). Steps are relative to the size of the parameters in Adafactor (Shazeer & Stern 2018, section 8),
    `VeLO` and `Celo` too.

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
        told_power: $p$; 0 leaves that factor out.
        told_up_to: $T_1$, steps, not much longer than the longest horizon of meta-training. Told of 30,000 steps, weights that had seen 3,000 undid what a deep
            network had learned by then.
        untold_power: $q$.
        progress: whether the network sees how much of the training is over.
        agreement: whether the network sees the eight features of the tensor.
        bound: $b$.
        momentum_decays: initial decays of the momenta.
        second_decay: initial decay of the second moment.
        factored_decays: initial decays of the row and column moments.
        key: draws the initial weights.

    Raises:
        InputError: for no hidden layer, a width below 1, a least size, decay time or bound that is not positive, a negative power, a greatest size below the
            least, or a share outside of 0 to 1.

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
    told_power: float = eqx.field(static=True)
    told_up_to: float = eqx.field(static=True)
    untold_power: float = eqx.field(static=True)
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
        told_power: float = 0.5,
        told_up_to: float = 5_000.0,
        untold_power: float = 0.75,
        progress: bool = True,
        agreement: bool = True,
        bound: float = 0.5,
        momentum_decays: Sequence[float] = (0.8, 0.95, 0.98),
        second_decay: float = 0.99,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        key: PRNGKeyArray,
    ):
        self.hidden, self.nominal_step, self.step_mult, self.exp_mult = tuple(hidden), nominal_step, step_mult, exp_mult
        positive(least_size=least_size, decay_time=decay_time, bound=bound)
        at_least(0, told_power=told_power, untold_power=untold_power, told_up_to=told_up_to)
        if relative and not greatest_size >= least_size:
            raise InputError(f"greatest_size is {greatest_size}; it must be at least least_size, {least_size}.")
        if not 0 <= orthogonal_share <= 1:
            raise InputError(f"orthogonal_share is {orthogonal_share}; it must be between 0 and 1.")
        self.orthogonal_share, self.orthogonalize_up_to = orthogonal_share, orthogonalize_up_to
        self.relative, self.least_size, self.greatest_size, self.bound = relative, least_size, greatest_size, bound
        self.scheduled, self.decay_time = scheduled, decay_time
        self.told_power, self.told_up_to, self.untold_power = told_power, told_up_to, untold_power
        self.progress, self.agreement = progress, agreement
        self.momentum_decays, self.second_decay = tuple(momentum_decays), second_decay
        self.factored_decays = tuple(factored_decays)
        of_progress, of_tensor = len(FRACTIONS) + 1, 2 * len(self.momentum_decays) + 2
        self.rule = AdafactorMLP(
            hidden,
            4 if orthogonal_share else 3,
            momentum_decays,
            second_decay,
            factored_decays,
            shared_features=len(TIME_SCALES) + progress * of_progress + agreement * of_tensor,
            key=key,
        )

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> RelativeMLPState:
        """Accumulators at zero; the horizon may be left open. It is kept in the state."""
        del key
        steps = jnp.asarray(jnp.inf, jnp.float32) if horizon is None else require_horizon("RelativeMLP", horizon)
        return RelativeMLPState(jnp.zeros((), jnp.int32), steps, init_tensors(self.rule.init, params))

    def update(
        self, updates: Updates, state: RelativeMLPState, params: Params, **extra: Any
    ) -> tuple[Updates, RelativeMLPState]:
        """One step; see the class."""
        del extra
        time, schedule = self._time(state), self._schedule(state)
        before, now = self._corrections(state.step), self._corrections(state.step + 1)

        def step(gradient: Array, tensor: TensorState, param: Array) -> tuple[Array, TensorState]:
            size = root(jnp.mean(jnp.square(param)))
            scale = schedule * (
                jnp.clip(size, self.least_size, self.greatest_size) if self.relative else self.least_size
            )
            axes = factored_axes(param.shape)
            if axes is not None and not 1 < param.shape[axes[0]] <= self.orthogonalize_up_to:
                axes = None
            shared = [time]
            if self.agreement:
                # The state before this step: its momenta do not hold the gradient yet.
                of_size = jnp.log(size / self.least_size + SMALL) / LOG_SIZE
                of_kind = jnp.full(1, float(axes is not None), jnp.float32)
                shared += [_agreement(gradient, tensor, before), of_size[None], of_kind]

            def orthogonal(momentum: Sequence[Array], second: Array) -> tuple[Array, ...]:
                if axes is None or not self.orthogonal_share or not self.nominal_step:
                    return ()
                factor = orthogonalize(_mean(momentum, now), axes)
                grafted = jnp.mean(jnp.square(_adam(momentum, second, now))) / (jnp.mean(jnp.square(factor)) + 1e-12)
                return (factor * root(grafted),)

            def readout(outputs: list[Array], signals: Signals) -> Array:
                direction, magnitude, nominal, *controllers = outputs
                found = self._controlled(self.step_mult * direction, magnitude)
                share = self.orthogonal_share if signals.given else 0.0
                if self.nominal_step and share < 1:
                    adam = _adam(signals.momentum, signals.second, now)
                    found = found + self._controlled((1 - share) * self.nominal_step * adam, nominal)
                for factor, controller in zip(signals.given, controllers, strict=False):
                    found = found + self._controlled(share * self.nominal_step * factor, controller)
                return -scale * jnp.clip(found, -self.bound, self.bound)

            return self.rule.update(gradient, tensor, param, jnp.concatenate(shared), readout, given=orthogonal)

        updates, tensors = map_tensors(step, updates, state.tensors, params)
        return updates, RelativeMLPState(state.step + 1, state.horizon, tensors)

    def _time(self, state: RelativeMLPState) -> Float[Array, " features"]:
        """The features of `small_fc` about the time, and how much of the training is over, all 0 if its horizon is too long or not known."""
        time = time_embedding(state.step)
        if not self.progress:
            return time
        known = self._is_told(state)
        over = jnp.where(known, fraction_embedding(state.step, jnp.where(known, state.horizon, 1.0)), 0.0)
        return jnp.concatenate([time, over, known.astype(jnp.float32)[None]])

    def _schedule(self, state: RelativeMLPState) -> Float[Array, ""]:
        """$c_t$."""
        if not self.scheduled:
            return jnp.ones((), jnp.float32)
        step, known = state.step.astype(jnp.float32), jnp.isfinite(state.horizon)
        left = jnp.maximum(1.0 - step / jnp.where(known, state.horizon, 1.0), LAST)
        power = jnp.where(self._is_told(state), self.told_power, self.untold_power)
        return jnp.where(known, left, 1.0) * jnp.power(1.0 + step / self.decay_time, -power)

    def _is_told(self, state: RelativeMLPState) -> Bool[Array, ""]:
        """Whether the horizon is known, and no longer than $T_1$."""
        return jnp.isfinite(state.horizon) & (state.horizon <= self.told_up_to)

    def _corrections(self, steps: Int[Array, ""]) -> _Corrections:
        """The bias corrections after so many steps."""
        momentum, (second,), _ = self.rule.current_decays()
        return _Corrections(_correction(momentum, steps), _correction(second, steps))

    def _controlled(self, direction: Array, controller: Array) -> Array:
        r"""$e^{\mu m}$ times a direction; the exponent is held to $\pm 20$, so that no product overflows."""
        return direction * jnp.exp(jnp.clip(self.exp_mult * controller, -GREATEST_EXPONENT, GREATEST_EXPONENT))


class _Corrections(NamedTuple):
    """By what bias-corrected moments divide."""

    momentum: Float[Array, " decays"]
    second: Float[Array, ""]


def _correction(decay: Float[Array, "*decays"], steps: Int[Array, ""]) -> Float[Array, "*decays"]:
    r"""$1 - \beta^t$; 1 before the first step, where accumulators are zero."""
    t = steps.astype(jnp.float32)
    return jnp.where(t > 0, jnp.maximum(1.0 - jnp.power(decay, t), 1e-8), 1.0)


def _mean(momentum: Sequence[Array], corrections: _Corrections) -> Array:
    r"""$\bar m$."""
    corrected = (m / corrections.momentum[i] for i, m in enumerate(momentum))
    return sum(corrected, start=jnp.zeros((), jnp.float32)) / len(momentum)


def _adam(momentum: Sequence[Array], second: Array, corrections: _Corrections) -> Array:
    r"""$\hat n$."""
    return _mean(momentum, corrections) / (root(second / corrections.second) + 1e-8)


def _agreement(gradient: Array, tensor: TensorState, corrections: _Corrections) -> Float[Array, " features"]:
    """Cosines of the gradient and each momentum, and logarithms of each momentum's norm over that of the root of the second moment, both bias-corrected."""

    def norm(squares: Array) -> Array:
        return root(jnp.sum(squares))

    own, noise = norm(jnp.square(gradient)), norm(tensor.second / corrections.second)
    norms = jnp.stack([norm(jnp.square(m)) for m in tensor.momentum])
    cosines = jnp.stack([jnp.sum(gradient * m) for m in tensor.momentum]) / own / norms  # their product may underflow
    return jnp.concatenate([cosines, jnp.log(norms / corrections.momentum / noise + SMALL) / LOG_SIZE])
