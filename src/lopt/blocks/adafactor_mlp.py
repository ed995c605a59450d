r"""The 39-feature per-parameter network that `SmallFC` and `STAR` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

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

FEATURES = 28
# The rows of the first weight matrix that each kind of feature meets; the time features follow.
DENSE_ROWS = (*range(13), 25, 26, 27)
ROW_ROWS = (13, 14, 15, 19, 20, 21)
COL_ROWS = (16, 17, 18, 22, 23, 24)


class TensorState(NamedTuple):
    """Accumulators of one tensor; one array a decay."""

    momentum: tuple[Array, ...]
    second: Array
    row: tuple[Array, ...]  # with the largest axis reduced to 1; the whole diagonal below rank two
    col: tuple[Array | None, ...]  # with the second-largest axis reduced to 1


class Signals(NamedTuple):
    """What a readout may use beside the network's outputs."""

    gradient: Array
    param: Array
    momentum: tuple[Array, ...]
    second: Array


Readout = Callable[[list[Array], Signals], Array]


class AdafactorMLP(eqx.Module):
    r"""Accumulators, 39 features and a per-parameter MLP (Metz et al. 2022; Harrison et al. 2022).

    Accumulators of the gradient $g$: momentum $m$ at three decays, second moment $v$ at one, Adafactor's row and column
    second moments $r, c$ at three. Features, each divided by its root mean square over the tensor:
    $g$; $w$; $m$ (3); $v$; $m/\sqrt{v}$ (3); $1/\sqrt{v}$; $g\,\rho\,\gamma$ (3); $r$ (3); $c$ (3); $1/\sqrt r$ (3); $1/\sqrt c$ (3);
    $m\,\rho\,\gamma$ (3), with $\rho, \gamma$ of `factored_scale`; then eleven time features.

    The seven decays are meta-learned as offsets $\theta_\beta$: $\beta = 1 - \exp(10(p_0 + \theta_\beta))$.
    """

    net: MLP
    momentum_decay: Float[Array, 3]  # offsets
    second_decay: Float[Array, 1]
    factored_decay: Float[Array, 3]
    decays: tuple[tuple[float, ...], ...] = eqx.field(static=True)

    def __init__(
        self,
        hidden: Sequence[int],
        outputs: int,
        momentum_decays: Sequence[float],
        second_decay: float,
        factored_decays: Sequence[float],
        *,
        key: PRNGKeyArray,
    ):
        self.net = MLP([FEATURES + len(TIME_SCALES), *hidden, outputs], key=key)
        self.decays = (tuple(momentum_decays), (second_decay,), tuple(factored_decays))
        self.momentum_decay, self.second_decay, self.factored_decay = (
            jnp.zeros(len(d), jnp.float32) for d in self.decays
        )

    def init(self, param: Array) -> TensorState:
        """Accumulators of one tensor at zero."""
        zeros = jnp.zeros(param.shape, jnp.float32)
        factored = [factored_zeros(param.shape) for _ in self.decays[2]]
        return TensorState(
            tuple(zeros for _ in self.decays[0]),
            zeros,
            tuple(row for row, _ in factored),
            tuple(col for _, col in factored),
        )

    def update(
        self,
        gradient: Array,
        state: TensorState,
        param: Array,
        time: Float[Array, 11],
        readout: Readout,
        average: Sequence[int] = (),
    ) -> tuple[Array, TensorState]:
        """One step of one tensor.

        Args:
            gradient: of the loss, float32.
            state: its accumulators.
            param: the parameter, float32.
            time: `time_embedding` of the step.
            readout: `(network outputs, Signals) -> update`, elementwise.
            average: network outputs to replace by their mean over the tensor.
        """
        momentum_decay, second_decay, factored_decay = (
            param_to_decay(decay_to_param(d) + offset)
            for d, offset in zip(
                self.decays, (self.momentum_decay, self.second_decay, self.factored_decay), strict=True
            )
        )
        # Row and column statistics: vectors, or the diagonal below rank two.
        row_mean, col_mean = factored_means(gradient)
        row = tuple(ema(r, row_mean, b) for r, b in zip(state.row, factored_decay, strict=True))
        col = tuple(
            c if c is None or col_mean is None else ema(c, col_mean, b)
            for c, b in zip(state.col, factored_decay, strict=True)
        )
        scales = [factored_scale(r, c) for r, c in zip(row, col, strict=True)]
        is_factored = col_mean is not None
        factors = (
            *(r for r, _ in scales),
            # Below rank two the reference floors the momentum's factor at another value than the gradient's.
            *(jax.lax.rsqrt(r + 1e-6) if c is None else c for r, (_, c) in zip(row, scales, strict=True)),
        )

        def dense_features(g: Array, w: Array, m: Sequence[Array], v: Array, factors: Sequence[Array]) -> list[Array]:
            rsqrt = jax.lax.rsqrt(v + 1e-6)
            for_gradient, for_momentum = factors[: len(row)], factors[len(row) :]
            if is_factored:
                for_gradient = for_momentum = [r * c for r, c in zip(for_gradient, for_momentum, strict=True)]
            return [
                g,
                w,
                *m,
                v,
                *(x * rsqrt for x in m),
                rsqrt,
                *(g * f for f in for_gradient),
                *(x * f for x, f in zip(m, for_momentum, strict=True)),
            ]

        # The vectors' share of the first layer is computed on the vectors and broadcast.
        def vector_share(vectors: Sequence[Array], rows: Sequence[int]) -> Units:
            features = [*vectors, *(jax.lax.rsqrt(x + 1e-8) for x in vectors)]
            normalisers = rms_scale(jnp.stack([jnp.mean(jnp.square(f)) for f in features]))
            return self.net.first_layer(rows, features, normalisers)

        # Below rank two the diagonal stands in for both row and column.
        shares = [
            vector_share(row, ROW_ROWS),
            vector_share([r if c is None else c for r, c in zip(row, col, strict=True)], COL_ROWS),
        ]
        constant = time @ self.net.weights[0][FEATURES:] + self.net.biases[0]

        def accumulate(g: Array, old: tuple[Array, ...]) -> tuple[Array, ...]:
            *m, v = old
            return *(ema(x, g, b) for x, b in zip(m, momentum_decay, strict=True)), ema(
                v, jnp.square(g), second_decay[0]
            )

        update, (*momentum, second) = network_step(
            self.net,
            DENSE_ROWS,
            gradient,
            param,
            (*state.momentum, state.second),
            accumulate=accumulate,
            features=lambda g, w, seen, factors: dense_features(g, w, seen[:-1], seen[-1], factors),
            readout=lambda out, g, w, seen: readout(out, Signals(g, w, seen[:-1], seen[-1])),
            constant=constant,
            factors=factors,
            shares=shares,
            average=average,
        )
        return update, TensorState(tuple(momentum), second, row, col)
