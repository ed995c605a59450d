r"""The per-parameter network on Adafactor-style features that `SmallFC`, `STAR`, `VeLO`, `Celo`, `Celo2` and `RelativeMLP` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.blocks.accumulators import (
    decay_to_param,
    ema,
    factored_means,
    factored_scale,
    factored_zeros,
    param_to_decay,
)
from lopt.blocks.features import TIME_SCALES, rms_scale
from lopt.blocks.nets import MLP, Units
from lopt.blocks.per_parameter import network_step
from lopt.checks import shares, widths
from lopt.errors import InputError

FEATURES = 28
# The rows of the first weight matrix that each kind of feature meets; those that all parameters share follow.
DENSE_ROWS = (*range(13), 25, 26, 27)
ROW_ROWS = (13, 14, 15, 19, 20, 21)
COL_ROWS = (16, 17, 18, 22, 23, 24)

FEATURES_EXTENDED = 30
DECAYS = 3  # of momentum, and of factored moments: the rows of features are counted for so many
GRADIENT_CLIP = 0.1  # of the second gradient feature of the extended set


class TensorState(NamedTuple):
    """Accumulators of one tensor; one array a decay. In an optimizer's state, a tree like the parameters for each array."""

    momentum: tuple[PyTree, ...]
    second: PyTree
    row: tuple[PyTree, ...]  # with the largest axis reduced to 1; the whole diagonal below rank two
    col: tuple[PyTree, ...]  # with the second-largest axis reduced to 1; without elements below rank two


class Signals(NamedTuple):
    """What a readout may use beside the network's outputs."""

    gradient: Array
    param: Array
    momentum: tuple[Array, ...]
    second: Array
    given: tuple[Array, ...] = ()


Readout = Callable[[list[Array], Signals], Array]


class AdafactorMLP(eqx.Module):
    r"""Accumulators, 39 features by default and a per-parameter MLP (Metz et al. 2022; Harrison et al. 2022).

    Accumulators of the gradient $g$: momentum $m$ at three decays, second moment $v$ at one, Adafactor's row and column
    second moments $r, c$ at three. Features, each divided by its root mean square over the tensor:
    $g$; $w$; $m$ (3); $v$; $m/\sqrt{v}$ (3); $1/\sqrt{v}$; $g\,\rho\,\gamma$ (3); $r$ (3); $c$ (3); $1/\sqrt r$ (3); $1/\sqrt c$ (3);
    $m\,\rho\,\gamma$ (3), with $\rho, \gamma$ of `factored_scale`; then those that all parameters share, by default eleven of the time.
    The extended set of VeLO (Metz et al. 2022b) has $g$ clipped to $\pm 0.1$ after $g$, $g/\sqrt{v}$ after $g\,\rho\,\gamma$, and no time: 30 features.

    The seven decays are meta-learned as offsets $\theta_\beta$, $\beta = 1 - \exp(10(p_0 + \theta_\beta))$, or fixed.

    Args:
        hidden: widths of the hidden layers.
        outputs: of the network.
        momentum_decays: initial decays of $m$.
        second_decay: initial decay of $v$.
        factored_decays: initial decays of $r, c$.
        extended: whether the features are the extended set.
        shared_features: how many features all parameters of a tensor share, such as those of the time, where the features are not the extended set.
        learn_decays: whether decays are meta-learned.
        second_floor: what is added to $v$ before its root.
        diagonal_floor: what is added to the diagonal that stands in for $\rho\,\gamma$ in the features of $m$ below rank two.
        key: draws the initial weights.

    Raises:
        InputError: for no hidden layer, a width below 1, another number of momentum or factored decays than three, or a decay outside of $[0, 1)$.
    """

    net: MLP
    momentum_decay: Float[Array, 3] | None  # offsets
    second_decay: Float[Array, 1] | None
    factored_decay: Float[Array, 3] | None
    decays: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    extended: bool = eqx.field(static=True)
    second_floor: float = eqx.field(static=True)
    diagonal_floor: float = eqx.field(static=True)

    def __init__(
        self,
        hidden: Sequence[int],
        outputs: int,
        momentum_decays: Sequence[float],
        second_decay: float,
        factored_decays: Sequence[float],
        *,
        extended: bool = False,
        shared_features: int = len(TIME_SCALES),
        learn_decays: bool = True,
        second_floor: float = 1e-6,
        diagonal_floor: float = 1e-6,
        key: PRNGKeyArray,
    ):
        widths(hidden=hidden)
        shares(momentum_decays=momentum_decays, second_decay=second_decay, factored_decays=factored_decays)
        for name, given in (("momentum_decays", momentum_decays), ("factored_decays", factored_decays)):
            if len(given) != DECAYS:
                raise InputError(f"{name} is {tuple(given)}; it must hold three.")
        inputs = FEATURES_EXTENDED if extended else FEATURES + shared_features
        self.net = MLP([inputs, *hidden, outputs], key=key)
        self.decays = (tuple(momentum_decays), (second_decay,), tuple(factored_decays))
        self.momentum_decay, self.second_decay, self.factored_decay = (
            jnp.zeros(len(d), jnp.float32) if learn_decays else None for d in self.decays
        )
        self.extended, self.second_floor, self.diagonal_floor = extended, second_floor, diagonal_floor

    def init(self, param: Array) -> TensorState:
        """Accumulators of one tensor at zero."""
        nothing = jnp.zeros(0, jnp.float32)  # and not `None`: an array a tensor, whatever its rank
        factored = [factored_zeros(param.shape) for _ in self.decays[2]]
        # Each in memory of its own, or the state could not be donated.
        return TensorState(
            tuple(jnp.zeros(param.shape, jnp.float32) for _ in self.decays[0]),
            jnp.zeros(param.shape, jnp.float32),
            tuple(row for row, _ in factored),
            tuple(nothing.copy() if col is None else col for _, col in factored),
        )

    def current_decays(self) -> list[Float[Array, " decays"]]:
        """The decays of momenta, second moment and factored moments, with what has been learned."""
        return [
            jnp.asarray(d, jnp.float32) if offset is None else param_to_decay(decay_to_param(d) + offset)
            for d, offset in zip(
                self.decays, (self.momentum_decay, self.second_decay, self.factored_decay), strict=True
            )
        ]

    def update(
        self,
        gradient: Array,
        state: TensorState,
        param: Array,
        shared: Float[Array, " shared"],
        readout: Readout,
        average: Sequence[int] = (),
        given: Callable[[tuple[Array, ...], Array], tuple[Array, ...]] = lambda momentum, second: (),
    ) -> tuple[Array, TensorState]:
        """One step of one tensor.

        Args:
            gradient: of the loss, float32.
            state: its accumulators.
            param: the parameter, float32.
            shared: features that all parameters of the tensor share, such as `time_embedding` of the step; empty for the extended features.
            readout: `(network outputs, Signals) -> update`, elementwise.
            average: network outputs to replace by their mean over the tensor.
            given: `(momentum, second) -> arrays` of the shape of the tensor, for the readout's signals, from the accumulators of this step.
        """
        momentum_decay, second_decay, factored_decay = self.current_decays()
        # Row and column statistics: vectors, or the diagonal below rank two.
        row_mean, col_mean = factored_means(gradient)
        row = tuple(ema(r, row_mean, b) for r, b in zip(state.row, factored_decay, strict=True))
        col = tuple(
            None if col_mean is None else ema(c, col_mean, b) for c, b in zip(state.col, factored_decay, strict=True)
        )
        scales = [factored_scale(r, c) for r, c in zip(row, col, strict=True)]
        is_factored = col_mean is not None
        factors = (
            *(r for r, _ in scales),
            # Below rank two the reference floors the momentum's factor at another value than the gradient's.
            *(
                jax.lax.rsqrt(r + self.diagonal_floor) if c is None else c
                for r, (_, c) in zip(row, scales, strict=True)
            ),
        )

        def dense_features(g: Array, w: Array, m: Sequence[Array], v: Array, factors: Sequence[Array]) -> list[Array]:
            rsqrt = jax.lax.rsqrt(v + self.second_floor)
            for_gradient, for_momentum = factors[: len(row)], factors[len(row) :]
            if is_factored:
                for_gradient = for_momentum = [r * c for r, c in zip(for_gradient, for_momentum, strict=True)]
            return [
                g,
                *([jnp.clip(g, -GRADIENT_CLIP, GRADIENT_CLIP)] if self.extended else []),
                w,
                *m,
                v,
                *(x * rsqrt for x in m),
                rsqrt,
                *(g * f for f in for_gradient),
                *([g * rsqrt] if self.extended else []),
                *(x * f for x, f in zip(m, for_momentum, strict=True)),
            ]

        # The vectors' share of the first layer is computed on the vectors and broadcast.
        def vector_share(vectors: Sequence[Array], rows: Sequence[int]) -> Units:
            features = [*vectors, *(jax.lax.rsqrt(x + 1e-8) for x in vectors)]
            normalisers = rms_scale(jnp.stack([jnp.mean(jnp.square(f)) for f in features]))
            return self.net.first_layer(rows, features, normalisers)

        dense_rows, row_rows, col_rows = DENSE_ROWS, ROW_ROWS, COL_ROWS
        if self.extended:  # two more before the rows
            dense_rows = (*range(15), *(i + 2 for i in dense_rows[13:]))
            row_rows, col_rows = (tuple(i + 2 for i in rows) for rows in (row_rows, col_rows))
        # Below rank two the diagonal stands in for both row and column.
        shares = [
            vector_share(row, row_rows),
            vector_share([r if c is None else c for r, c in zip(row, col, strict=True)], col_rows),
        ]
        constant = shared @ self.net.weights[0][FEATURES_EXTENDED if self.extended else FEATURES :] + self.net.biases[0]

        def accumulate(g: Array, old: tuple[Array, ...]) -> tuple[Array, ...]:
            *m, v = old
            return *(ema(x, g, b) for x, b in zip(m, momentum_decay, strict=True)), ema(
                v, jnp.square(g), second_decay[0]
            )

        update, (*momentum, second) = network_step(
            self.net,
            dense_rows,
            gradient,
            param,
            (*state.momentum, state.second),
            accumulate=accumulate,
            features=lambda g, w, seen, factors: dense_features(g, w, seen[:-1], seen[-1], factors),
            readout=lambda out, g, w, seen: readout(
                out, Signals(g, w, seen[:DECAYS], seen[DECAYS], seen[DECAYS + 1 :])
            ),
            constant=constant,
            factors=factors,
            shares=shares,
            given=lambda accumulators: given(accumulators[:DECAYS], accumulators[DECAYS]),
            average=average,
        )
        return update, TensorState(tuple(momentum), second, row, col if is_factored else state.col)
