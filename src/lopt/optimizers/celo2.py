"""`Celo2`: a learned direction of unit root mean square, of Celo2 (2026)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from lopt.blocks.accumulators import factored_axes
from lopt.blocks.adafactor_mlp import AdafactorMLP, Signals, TensorState
from lopt.blocks.features import rms_scale
from lopt.blocks.orthogonal import JORDAN, orthogonalize
from lopt.blocks.readout import direction_magnitude
from lopt.blocks.tensors import init_tensors, map_tensors
from lopt.checks import at_least
from lopt.optimizer import Optimizer, Params, Updates


class Celo2State(NamedTuple):
    """State of `Celo2`: an `adafactor_mlp.TensorState` of trees like the parameters."""

    tensors: TensorState


class Celo2(Optimizer):
    r"""A per-parameter MLP that gives directions only; the step size is the user's.

    $$u = -\eta\, \frac{d\, e^{\lambda_2 m}}{\sqrt{10^{-5} + \overline{(d\, e^{\lambda_2 m})^2}}}, \qquad
      (d, m, \cdot) = \mathrm{MLP}_{30 \to 8 \to 8 \to 3}(\text{features}; \theta)$$

    with the mean over each matrix: the two largest axes of a tensor, the whole of it below rank two. $\lambda_2 = 0$: the magnitude is not
    used. The per-parameter features are those of `VeLO`. There is neither a horizon nor a loss to give, nor a schedule: chain it with
    `optax.scale_by_schedule` and `optax.add_decayed_weights`. Its authors hand biases and other vectors to Adam, as
    `optax.multi_transform` can.

    347 meta-parameters at the defaults; the 18 of the two unused outputs have no effect. State: four floats a parameter, plus rows and columns.

    A **reconstruction**: no trajectory of the authors' code was there to check it against. Features are normalised over the whole
    tensor, which for a matrix is the same as theirs; every constant is a field.

    Args:
        hidden: widths of the hidden layers.
        learning_rate: $\eta$, the root mean square of an update.
        exp_mult: $\lambda_2$.
        normalize: whether outputs are normalised; if not, the step is $\eta\, d\, e^{\lambda_2 m}$.
        orthogonalize_steps: Newton-Schulz iterations that turn the output towards an orthogonal matrix before it is normalised, for
            tensors of rank two and more; 5 in their larger variant, 0 for none.
        orthogonalize_coefficients: of the iteration $X \leftarrow a X + (b A + c A^2) X$, $A = X X^\top$.
        gradient_clip: gradients are clipped to plus and minus this.
        second_floor: what is added to $v$ before its root.
        momentum_decays: decays of $m$.
        second_decay: decay of $v$.
        factored_decays: decays of $r, c$.
        key: draws the initial weights.

    Raises:
        InputError: for no hidden layer, a width below 1, a negative number of iterations, another number of momentum or factored decays than three, or a decay
            outside of $[0, 1)$.

    Source: Celo2, ICLR 2026, from a description of its released code.
    """

    rule: AdafactorMLP
    hidden: tuple[int, ...] = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)
    orthogonalize_steps: int = eqx.field(static=True)
    orthogonalize_coefficients: tuple[float, float, float] = eqx.field(static=True)
    gradient_clip: float = eqx.field(static=True)
    second_floor: float = eqx.field(static=True)
    momentum_decays: tuple[float, ...] = eqx.field(static=True)
    second_decay: float = eqx.field(static=True)
    factored_decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (8, 8),
        learning_rate: float = 1e-3,
        exp_mult: float = 0.0,
        normalize: bool = True,
        orthogonalize_steps: int = 0,
        orthogonalize_coefficients: Sequence[float] = JORDAN,
        gradient_clip: float = 1e3,
        second_floor: float = 1e-8,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_decay: float = 0.95,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        key: PRNGKeyArray,
    ):
        at_least(0, orthogonalize_steps=orthogonalize_steps)
        first, second, third = orthogonalize_coefficients
        self.hidden, self.learning_rate, self.exp_mult, self.normalize = (
            tuple(hidden),
            learning_rate,
            exp_mult,
            normalize,
        )
        self.orthogonalize_steps, self.orthogonalize_coefficients = orthogonalize_steps, (first, second, third)
        self.gradient_clip, self.second_floor = gradient_clip, second_floor
        self.momentum_decays, self.second_decay = tuple(momentum_decays), second_decay
        self.factored_decays = tuple(factored_decays)
        self.rule = AdafactorMLP(
            hidden,
            3,
            momentum_decays,
            second_decay,
            factored_decays,
            extended=True,
            learn_decays=False,
            second_floor=second_floor,
            diagonal_floor=0.0,
            key=key,
        )

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> Celo2State:
        """Accumulators at zero."""
        del key, horizon
        return Celo2State(init_tensors(self.rule.init, params))

    def update(self, updates: Updates, state: Celo2State, params: Params, **extra: Any) -> tuple[Updates, Celo2State]:
        """One step; see the class."""
        del extra
        updates, tensors = map_tensors(self._tensor, updates, state.tensors, params)
        return updates, Celo2State(tensors)

    def _tensor(self, gradient: Array, state: PyTree, param: Array) -> tuple[Array, PyTree]:
        gradient = jnp.clip(gradient, -self.gradient_clip, self.gradient_clip)
        direction, state = self.rule.update(gradient, state, param, jnp.zeros(0, jnp.float32), self._readout)
        axes = factored_axes(param.shape)
        if axes is not None and self.orthogonalize_steps:
            direction = orthogonalize(direction, axes, self.orthogonalize_steps * (self.orthogonalize_coefficients,))
        if self.normalize:
            direction = direction * rms_scale(jnp.mean(jnp.square(direction), axes, keepdims=True))
        return -self.learning_rate * direction, state

    def _readout(self, outputs: list[Array], signals: Signals) -> Array:
        del signals
        return direction_magnitude(outputs[0], outputs[1], 1.0, self.exp_mult) if self.exp_mult else outputs[0]
