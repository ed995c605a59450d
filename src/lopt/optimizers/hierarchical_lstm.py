"""`HierarchicalLSTM`: a per-tensor LSTM above a per-parameter MLP that sees the validation loss, of Metz et al. 2020.

Longer than its neighbours: two networks with 52 and 54 inputs that tell each other things, and nobody else uses either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.blocks.accumulators import ema
from lopt.blocks.features import TIME_SCALES, rms_scale, root
from lopt.blocks.nets import MLP, drawn, truncated_normal
from lopt.blocks.progress import LossMoments, require_loss
from lopt.blocks.readout import direction_magnitude
from lopt.blocks.tensor_lstm import Linear, LSTMState, TensorLSTM
from lopt.blocks.tensors import chunked, init_tensors, join_tensors, split_tensors
from lopt.checks import at_least, shares, widths
from lopt.optimizer import Optimizer, Params, Updates

CHUNK = 8_192  # parameters whose hidden units fit the level-2 cache
SUMS_CHUNK = 131_072  # parameters; every one of 34 sums costs a little for each chunk
SHAPE_AXES = 4  # axes of a tensor that the LSTM sees
TENSOR_FEATURES = 14 + SHAPE_AXES


class TensorState(NamedTuple):
    """Accumulators of one tensor, one array a decay, and what its MLP said last. In the state of all, a tree like the parameters for each array."""

    momentum: tuple[PyTree, ...]
    second: tuple[PyTree, ...]
    from_mlp: PyTree  # [from_mlp]


class _Sums(NamedTuple):
    """Over one tensor."""

    squares: Float[Array, " inputs"]  # of the MLP's features
    momentum: Float[Array, " decays"]
    second: Float[Array, " decays"]
    param: Float[Array, ""]


class HierarchicalLSTMState(NamedTuple):
    """State of `HierarchicalLSTM`: a `TensorState` of trees like the parameters, and what the LSTM sees and remembers."""

    step: Int[Array, ""]
    tensors: TensorState
    lstm: LSTMState  # a row a tensor
    from_lstm: Float[Array, " from_lstm"]
    train: LossMoments
    valid: LossMoments
    gradient_scale: Float[Array, ""]  # moving average, not bias corrected


class HierarchicalLSTM(Optimizer):
    r"""A per-parameter MLP that an LSTM for each tensor advises; both see how training and validation loss develop.

    $$u = -\lambda_1\, d\, e^{\lambda_2 m}, \qquad (d, m, f) = \mathrm{MLP}_{54 \to 32 \to 32 \to 18}(\text{features}, A h), \qquad
      h = \mathrm{LSTM}(\text{tensor}, \bar f, \bar h)$$

    Gradients are first clipped to $\pm k\, a$, with $a$ a moving average of their root mean square over all tensors.

    | input | of the MLP, for each parameter |
    |---|---|
    | 23, normalised over the tensor | $g$, $w$, $\log\lvert w\rvert$; momenta $m$, second moments $v$, $m/\sqrt v$, $1/\sqrt v$ at five decays |
    | 11 | $\sin(t/\pi\tau)$ for eleven $\tau$ from 1 to 100,000 steps |
    | 3 | logarithms of the number of tensors, of $\lVert w\rVert$, of the number of parameters |
    | 17 | $A h$ |

    | input | of the LSTM, for each tensor |
    |---|---|
    | 18 | clipped logarithms of means and variances of $m$, $v$, $w$, signs of the means, norms of $w$ and $g$, the shape, both losses |
    | 16 | $\bar f$: outputs of the MLP, averaged over the tensor, one step ago |
    | 18 | $\bar h$: a linear map of $h$, averaged over all tensors, one step ago |

    The losses are standardised with moving moments of the *training* loss, so that the distance of the validation loss from them shows
    overfitting. It is given as `update(..., value=loss, valid_value=validation_loss)` where there is one, every ten steps in the paper and by lopt's own loops;
    NaN is as good as `None`, which is of use inside a `scan`. 35,799 meta-parameters at the defaults. State: ten floats a parameter.

    This is the later release in JAX. The paper's rule also clips normalised features, sees the parameters of 100 steps ago and meta-learns
    the constants of the gradient clipping.

    Args:
        hidden: widths of the hidden layers of the MLP.
        lstm_hidden: size of the LSTM.
        from_mlp: outputs of the MLP that go back to the LSTM.
        from_lstm: what the LSTMs tell one another.
        to_mlp: what an LSTM tells its MLP.
        step_mult: $\lambda_1$.
        exp_mult: $\lambda_2$.
        decays: of $m$ and $v$.
        train_decay: of the moments of the training loss.
        valid_decay: of those of the validation loss.
        clip_mult: $k$.
        clip_decay: of $a$.
        count_validation: whether a step with a validation loss counts twice, as in the released code.
        key: draws the initial weights.

    Raises:
        InputError: for no hidden layer, a size below 1, no decay, or one outside of $[0, 1)$.

    Source: Metz et al. 2020, *Tasks, stability, architecture, and compute*, appendix C, and its released code.
    """

    net: MLP
    lstm: TensorLSTM
    lstm_to_mlp: Linear
    lstm_to_lstm: Linear
    initial_from_mlp: Float[Array, " from_mlp"]
    initial_from_lstm: Float[Array, " from_lstm"]
    hidden: tuple[int, ...] = eqx.field(static=True)
    lstm_hidden: int = eqx.field(static=True)
    from_mlp: int = eqx.field(static=True)
    from_lstm: int = eqx.field(static=True)
    to_mlp: int = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    decays: tuple[float, ...] = eqx.field(static=True)
    train_decay: float = eqx.field(static=True)
    valid_decay: float = eqx.field(static=True)
    clip_mult: float = eqx.field(static=True)
    clip_decay: float = eqx.field(static=True)
    count_validation: bool = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (32, 32),
        lstm_hidden: int = 64,
        from_mlp: int = 16,
        from_lstm: int = 18,
        to_mlp: int = 17,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        decays: Sequence[float] = (0.5, 0.9, 0.99, 0.999, 0.9999),
        train_decay: float = 0.9,
        valid_decay: float = 0.95,
        clip_mult: float = 10.0,
        clip_decay: float = 0.99,
        count_validation: bool = True,
        key: PRNGKeyArray,
    ):
        widths(hidden=hidden)
        at_least(1, lstm_hidden=lstm_hidden, from_mlp=from_mlp, from_lstm=from_lstm, to_mlp=to_mlp)
        shares(decays=decays, train_decay=train_decay, valid_decay=valid_decay, clip_decay=clip_decay)
        self.hidden, self.lstm_hidden = tuple(hidden), lstm_hidden
        self.from_mlp, self.from_lstm, self.to_mlp = from_mlp, from_lstm, to_mlp
        self.step_mult, self.exp_mult, self.decays = step_mult, exp_mult, tuple(decays)
        self.train_decay, self.valid_decay = train_decay, valid_decay
        self.clip_mult, self.clip_decay, self.count_validation = clip_mult, clip_decay, count_validation
        keys = jax.random.split(key, 6)
        constant = len(TIME_SCALES) + 3 + to_mlp
        self.net = MLP([3 + 4 * len(self.decays) + constant, *hidden, 2 + from_mlp], key=keys[0])
        self.lstm = TensorLSTM(TENSOR_FEATURES + from_lstm + from_mlp, lstm_hidden, key=keys[1])
        self.lstm_to_mlp = Linear(lstm_hidden, to_mlp, key=keys[2])
        self.lstm_to_lstm = Linear(lstm_hidden, from_lstm, key=keys[3])
        self.initial_from_mlp, self.initial_from_lstm = (
            drawn(truncated_normal, k, (n,)) / math.sqrt(n) for k, n in ((keys[4], from_mlp), (keys[5], from_lstm))
        )

    @property
    def validation_every(self) -> int:
        """Ten steps, as in the paper."""
        return 10

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> HierarchicalLSTMState:
        """Accumulators at zero, the LSTM and what it hears at their learned initial values."""
        del key, horizon
        tensors = sum(p.size > 0 for p in jax.tree.leaves(params))

        def zeros(p: Array) -> tuple[Array, ...]:
            return tuple(jnp.zeros(p.shape, jnp.float32) for _ in self.decays)

        return HierarchicalLSTMState(
            jnp.zeros((), jnp.int32),
            init_tensors(lambda p: TensorState(zeros(p), zeros(p), jnp.array(self.initial_from_mlp)), params),
            self.lstm.init(tensors),
            jnp.array(self.initial_from_lstm),
            LossMoments.start(),
            LossMoments.start(),
            jnp.full((), 1.0 - self.clip_decay, jnp.float32),
        )

    def update(
        self,
        updates: Updates,
        state: HierarchicalLSTMState,
        params: Params,
        *,
        value: ArrayLike | None = None,
        valid_value: ArrayLike | None = None,
        **extra: Any,
    ) -> tuple[Updates, HierarchicalLSTMState]:
        """One step; see the class.

        Raises:
            InputError: without the loss.
        """
        loss = require_loss("HierarchicalLSTM", value, extra)
        train, valid, step = state.train.record(loss, self.train_decay), state.valid, state.step
        if valid_value is not None:
            valid = valid.record(jnp.asarray(valid_value).astype(jnp.float32), self.valid_decay)
            if self.count_validation:
                step = step + valid.recorded - state.valid.recorded
        losses = [train.standardize(x, self.train_decay) for x in (loss, valid.corrected_mean(self.valid_decay))]

        leaves, treedef = jax.tree.flatten(params)
        kind, states = split_tensors(state.tensors, treedef)
        full = [i for i, p in enumerate(leaves) if p.size]
        if not full:
            return jax.tree.map(jnp.zeros_like, params), state._replace(step=step + 1, train=train, valid=valid)

        # First pass: accumulators, and sums over each tensor.
        steps_clipped = 1.0 + state.train.recorded.astype(jnp.float32)
        limit = self.clip_mult * state.gradient_scale / (1.0 - self.clip_decay**steps_clipped)
        gradients = [jnp.clip(g.astype(jnp.float32), -limit, limit) for g in treedef.flatten_up_to(updates)]
        sums = {}
        for i in full:
            states[i], sums[i] = self._accumulate(gradients[i], states[i], leaves[i].astype(jnp.float32))
        scale = jnp.sqrt(1e-8 + sum(sums[i].squares[0] / leaves[i].size for i in full) / len(full))

        heard = [
            jnp.concatenate([state.from_lstm, states[i].from_mlp, self._see(sums[i], leaves[i].shape, losses)])
            for i in full
        ]
        lstm = self.lstm(jnp.stack(heard), state.lstm)
        told = self.lstm_to_mlp(lstm.hidden)

        # Second pass: the network.
        time = jnp.sin(step.astype(jnp.float32) / (math.pi * jnp.asarray(TIME_SCALES, jnp.float32)))
        for row, i in enumerate(full):
            logs = [math.log(len(full)) - 1.0, jnp.log(root(sums[i].squares[1]) + 1e-8), math.log(leaves[i].size)]
            constant = jnp.concatenate([time, jnp.stack([jnp.asarray(x, jnp.float32) for x in logs]), told[row]])
            gradients[i], states[i] = self._apply(
                gradients[i], states[i], leaves[i].astype(jnp.float32), sums[i], constant
            )
        return treedef.unflatten(
            [u.astype(p.dtype) for u, p in zip(gradients, leaves, strict=True)]
        ), HierarchicalLSTMState(
            step + 1,
            join_tensors(kind, states, treedef),
            lstm,
            jnp.mean(self.lstm_to_lstm(lstm.hidden), axis=0),
            train,
            valid,
            ema(state.gradient_scale, scale, jnp.float32(self.clip_decay)),
        )

    def _accumulate(self, gradient: Array, state: TensorState, param: Array) -> tuple[TensorState, _Sums]:
        count = len(self.decays)

        def accumulate(overwrite: tuple[Array, ...], read: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
            g, w = read
            m = [ema(x, g, jnp.float32(b)) for x, b in zip(overwrite[:count], self.decays, strict=True)]
            v = [ema(x, jnp.square(g), jnp.float32(b)) for x, b in zip(overwrite[count:], self.decays, strict=True)]
            sums = [*(jnp.sum(jnp.square(f)) for f in _features(g, w, m, v)), *(jnp.sum(x) for x in (*m, *v, w))]
            return (*m, *v), jnp.stack(sums)

        flat = [x.reshape(-1) for x in (*state.momentum, *state.second, gradient, param)]
        arrays, sums = chunked(accumulate, flat[:-2], flat[-2:], chunk=SUMS_CHUNK)
        arrays = [x.reshape(param.shape) for x in arrays]
        new = state._replace(momentum=tuple(arrays[:count]), second=tuple(arrays[count:]))
        squares, plain = sums[: 3 + 4 * count], sums[3 + 4 * count :]
        return new, _Sums(squares, plain[:count], plain[count:-1], plain[-1])

    def _see(self, sums: _Sums, shape: tuple[int, ...], losses: Sequence[Array]) -> Float[Array, " features"]:
        """What the LSTM sees of a tensor, in the order of the released code."""
        size, count = math.prod(shape), len(self.decays)
        square = sums.squares / size
        mean_m, mean_v = jnp.sum(sums.momentum) / (count * size), jnp.sum(sums.second) / (count * size)
        var_m = jnp.mean(square[3 : 3 + count]) - jnp.square(mean_m)
        var_v = jnp.mean(square[3 + count : 3 + 2 * count]) - jnp.square(mean_v)
        mean_w = sums.param / size
        var_w = square[1] - jnp.square(mean_w)
        sides = [*shape[:SHAPE_AXES], *[1] * (SHAPE_AXES - len(shape))]
        found = [
            _clipped_log(root(sums.squares[0])),
            1.0 if len(shape) == 0 else -1.0,
            _clipped_log(mean_m),
            jnp.sign(mean_m),
            _clipped_log(mean_v),
            jnp.sign(mean_v),
            _clipped_log(mean_w),
            jnp.sign(mean_w),
            _clipped_log(root(sums.squares[1])),
            *(math.log(n) - 1.0 for n in sides),
            *losses,
            *(_clipped_log(jnp.maximum(x, 0.0)) for x in (var_m, var_v, var_w)),
        ]
        return jnp.stack([jnp.asarray(x, jnp.float32) for x in found])

    def _apply(
        self, gradient: Array, state: TensorState, param: Array, sums: _Sums, constant: Float[Array, " constant"]
    ) -> tuple[Array, TensorState]:
        """The update, and the tensor's accumulators with what the network says to the LSTM."""
        count, (first, *middle, last) = len(self.decays), self.net.weights
        inputs = len(sums.squares)
        scaled = (first[:inputs] * rms_scale(sums.squares / gradient.size)[:, None]).T
        bias = constant @ first[inputs:] + self.net.biases[0]

        def run(overwrite: tuple[Array, ...], read: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
            (g,), (w, *accumulators) = overwrite, read
            x = jnp.stack(_features(g, w, accumulators[:count], accumulators[count:]))
            x = jax.nn.relu(scaled @ x + bias[:, None])
            for weight, b in zip(middle, self.net.biases[1:-1], strict=True):
                x = jax.nn.relu(weight.T @ x + b[:, None])
            direction, magnitude = last[:, :2].T @ x + self.net.biases[-1][:2, None]
            return (-direction_magnitude(direction, magnitude, self.step_mult, self.exp_mult),), jnp.sum(x, axis=1)

        read = [x.reshape(-1) for x in (param, *state.momentum, *state.second)]
        (update,), hidden = chunked(run, [gradient.reshape(-1)], read, chunk=CHUNK)
        # The last layer is linear: its mean over the tensor is its value at the mean.
        from_mlp = (hidden / gradient.size) @ last[:, 2:] + self.net.biases[-1][2:]
        return update.reshape(gradient.shape), state._replace(from_mlp=from_mlp)


def _features(g: Array, w: Array, m: Sequence[Array], v: Sequence[Array]) -> list[Array]:
    rsqrt = [jax.lax.rsqrt(x + 1e-6) for x in v]
    return [g, w, jnp.log(jnp.abs(w) + 1e-8), *m, *v, *(x * r for x, r in zip(m, rsqrt, strict=True)), *rsqrt]


def _clipped_log(x: Array) -> Array:
    return jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5.0, 5.0)
