"""`ControlledMuon`: Muon with averaged iterates, whose rates a small recurrent network sets tensor by tensor; lopt's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from lopt.blocks.accumulators import ema
from lopt.blocks.features import root
from lopt.blocks.nets import GRU, Affine
from lopt.blocks.orthogonal import orthogonalize
from lopt.blocks.progress import require_horizon
from lopt.blocks.tensors import init_tensors, map_tensors
from lopt.checks import at_least, positive, shares
from lopt.optimizer import Optimizer, Params, Updates

LAST = 0.01  # of the rate, at the end of a training whose horizon is known
FEATURES = 14


class ControlledMuonState(NamedTuple):
    """State of `ControlledMuon`: trees like the parameters, and what it keeps for each tensor that is not empty, along the last axis."""

    step: Int[Array, ""]
    horizon: Float[Array, ""]  # infinity where it is not known
    momentum: PyTree
    second: PyTree
    iterate: PyTree  # z; not read where the horizon is known
    start: Float[Array, " tensors"]  # root mean square of the parameters at the start
    weights: Float[
        Array, "two tensors"
    ]  # sums of the weights of the gradients in the momentum, of the iterates in their average
    hidden: Float[Array, "hidden tensors"]
    global_hidden: Float[Array, " hidden"]


class _Tensor(NamedTuple):
    """What the rule sees of one tensor."""

    momentum: Array
    second: Array
    iterate: Array
    controls: Float[Array, " controls"]


class _Controls(NamedTuple):
    """The numbers by which one tensor takes its step."""

    rate: Array
    decay: Array  # of the momentum
    weight: Array  # of the gradients in the momentum after this step, and after the next
    next_weight: Array
    shrinkage: Array
    adam_share: Array
    average: Array  # share of the new iterate in the average
    scale: Array  # of gradient and momentum
    noise: Array  # floor of the root of the second moment
    bound: Array


class ControlledMuon(Optimizer):
    r"""A fixed rule, and a recurrent network of a few units that sets its rates tensor by tensor.

    $$z \leftarrow z - \mathrm{clip}(\eta\, \ell_t\, e^{3 o_1} d,\ \pm b \max(\mathrm{RMS}(w), s_0)) - \eta\, \ell_t\, e^{3 o_1} \lambda\, [o_3]_+ w, \qquad
      x \leftarrow x + c_t (z - x), \qquad w \leftarrow (1 - \gamma)\, z + \gamma\, x$$

    The training holds the parameters $w$, at which gradients are taken. $z$ are the iterates and $x$ is their average, which `eval_params` returns.
    This is schedule-free averaging. Where the horizon $T$ is known, $x = z = w$.
    Then the rate falls linearly to a hundredth, $\ell_t = 1 - 0.99 \min(t/T, 1)$; otherwise $\ell_t = 1$.

    $$\hat m = \frac{\beta m}{1 - \beta^{t+1}} + \frac{(1 - \beta)\, g}{1 - \beta^t}, \qquad \hat n = \frac{\hat m}{\sqrt{\hat v}}$$

    $$d = \begin{cases} k\, \big[(1 - [o_4]_+)\, \mathrm{orthogonalize}(\hat m) + [o_4]_+\, \hat n / \sqrt{\max(p, q)}\big] & \text{of a matrix} \\
      \hat n & \text{of all else} \end{cases}$$

    with $k = \sqrt{\max(1, q/p)}$ for $p$ rows and $q$ columns. So matrices take the direction of Muon, and all other tensors that of Adam.
    A tensor of more than two axes is a matrix too. It is cut after its first or before its last axis, whichever is longer.

    The decay of the momentum is $\beta = 1 - (1 - \beta_0) e^{2 o_2}$, at least 0. Where iterates are averaged, $\beta_0 = 0$ for tensors that are no matrices,
    because averaging takes the place of momentum. The average weighs an iterate by $e^{2 o_5}$.

    $$o = \tanh(W [y, h, H] + b_o)$$

    are five controls of a tensor. $y$ are 14 numbers, $h$ is the state of a GRU that all tensors share, and $H$ that of a GRU that sees
    the mean of $h$ over tensors.
    The numbers do not change with the scale of the loss:

    - the cosines of the gradient with the momentum and with $z - w$;
    - logarithms of $\overline{m^2} / \overline{g^2}$, of $\overline{g^2} / \overline{v}$, of $\mathrm{RMS}(w)$, of that over its start, and of
      $\mathrm{RMS}(z - w) / \mathrm{RMS}(w)$;
    - logarithms of the number of parameters, of the ratio of the sides, of the longer side, and of the time;
    - whether the tensor is a matrix, whether the horizon is known, and the part of it that is over.

    $W$ and $b_o$ start at zero. Untrained, the rule is `optax.contrib.muon`, within `optax.contrib.schedule_free` or on that schedule.
    Three things differ: the iterations are the three of `blocks.orthogonal`, elements of a step are bounded, and epsilon is relative.

    No network acts on single parameters, so the learned part costs the same whatever their number.
    1,115 meta-parameters at the defaults. State: three floats a parameter.

    Args:
        learning_rate: $\eta$.
        momentum_decay: $\beta_0$.
        second_decay: decay of $v$.
        averaging: $\gamma$, positive.
        weight_decay: $\lambda$, the most that the network can ask for.
        bound: $b$.
        least_size: $s_0$.
        orthogonalize_up_to: the longest shorter side of a matrix that is orthogonalised; a longer one, as a side of 1, is no matrix.
        hidden: units of each GRU.
        key: draws the GRUs' weights.

    Raises:
        InputError: for a learning rate, bound or least size that is not positive, or an averaging outside of $(0, 1)$;
            for a decay outside of $[0, 1)$, or fewer than one unit.

    Source: lopt's own. Muon: Jordan et al. 2024. Schedule-free averaging: Defazio et al. 2024.
        Controllers of tensors and of the whole: Wichrowska et al. 2017.
    """

    tensor_rnn: GRU
    global_rnn: GRU
    readout: Affine
    learning_rate: float = eqx.field(static=True)
    momentum_decay: float = eqx.field(static=True)
    second_decay: float = eqx.field(static=True)
    averaging: float = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)
    bound: float = eqx.field(static=True)
    least_size: float = eqx.field(static=True)
    orthogonalize_up_to: int = eqx.field(static=True)
    hidden: int = eqx.field(static=True)

    def __init__(
        self,
        *,
        learning_rate: float = 0.03,
        momentum_decay: float = 0.9,
        second_decay: float = 0.999,
        averaging: float = 0.9,
        weight_decay: float = 0.1,
        bound: float = 0.5,
        least_size: float = 0.2,
        orthogonalize_up_to: int = 1_024,
        hidden: int = 8,
        key: PRNGKeyArray,
    ):
        at_least(1, hidden=hidden)
        positive(learning_rate=learning_rate, bound=bound, least_size=least_size, averaging=averaging)
        shares(momentum_decay=momentum_decay, second_decay=second_decay, averaging=averaging)
        self.learning_rate, self.momentum_decay, self.second_decay = learning_rate, momentum_decay, second_decay
        self.averaging, self.weight_decay, self.bound, self.least_size = averaging, weight_decay, bound, least_size
        self.orthogonalize_up_to, self.hidden = orthogonalize_up_to, hidden
        tensor_key, global_key = jax.random.split(key)
        self.tensor_rnn = GRU(FEATURES, hidden, gate_bias=1.0, key=tensor_key)
        self.global_rnn = GRU(hidden, hidden, gate_bias=1.0, key=global_key)
        self.readout = Affine(FEATURES + 2 * hidden, 5, scale=0.0, key=key)

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> ControlledMuonState:
        """Accumulators and the network's state at zero; the horizon may be left open."""
        del key
        steps = jnp.asarray(jnp.inf, jnp.float32) if horizon is None else require_horizon("ControlledMuon", horizon)

        def begin(param: Array) -> tuple[Array, Array, Array]:
            return _zeros(*param.shape), _zeros(*param.shape), jnp.array(param, jnp.float32)

        full = _full(params)
        sizes = [root(jnp.mean(jnp.square(p.astype(jnp.float32)))) for p in full]
        momentum, second, iterate = init_tensors(begin, params)
        return ControlledMuonState(
            jnp.zeros((), jnp.int32),
            steps,
            momentum,
            second,
            iterate,
            _row(sizes),
            _zeros(2, len(full)),
            _zeros(self.hidden, len(full)),
            _zeros(self.hidden),
        )

    def eval_params(self, state: ControlledMuonState, params: Params) -> Params:
        r"""$x$."""

        def average(param: Array, iterate: Array) -> Array:
            x = self._average(param.astype(jnp.float32), iterate)
            return jnp.where(jnp.isfinite(state.horizon), param, x.astype(param.dtype))

        return jax.tree.map(average, params, state.iterate)

    def update(
        self, updates: Updates, state: ControlledMuonState, params: Params, **extra: Any
    ) -> tuple[Updates, ControlledMuonState]:
        """One step; see the class."""
        del extra
        told = jnp.isfinite(state.horizon)
        leaves, treedef = jax.tree.flatten(params)
        full = [i for i, p in enumerate(leaves) if p.size]
        trees = [treedef.flatten_up_to(t) for t in (updates, params, state.momentum, state.second, state.iterate)]
        columns = [_numbers(told, *(t[i].astype(jnp.float32) for t in trees)) for i in full]
        numbers = jnp.stack(columns, -1) if full else None
        controls, weights = _zeros(len(_Controls._fields), 0), state.weights
        hidden, global_hidden = state.hidden, state.global_hidden
        if numbers is not None:
            matrices = jnp.asarray([self._matrix(leaves[i].shape) is not None for i in full])
            features = self._features(state, numbers, [leaves[i].shape for i in full], matrices)
            hidden = self.tensor_rnn(features, hidden)
            global_hidden = self.global_rnn(jnp.mean(hidden, -1), global_hidden)
            spread = jnp.broadcast_to(global_hidden[:, None], hidden.shape)
            found = jnp.tanh(self.readout(jnp.concatenate([features, hidden, spread])))
            controls, weights = self._controls(state, found, numbers, matrices)
        given = {i: controls[:, k] for k, i in enumerate(full)}
        nothing = _zeros(len(_Controls._fields))

        def step(gradient: Array, tensor: _Tensor, param: Array) -> tuple[Array, _Tensor]:
            return self._step(gradient, tensor, param, state.step + 1, told)

        of_tensors = treedef.unflatten([given.get(i, nothing) for i in range(len(leaves))])
        tensors = _Tensor(state.momentum, state.second, state.iterate, of_tensors)
        updates, tensors = map_tensors(step, updates, tensors, params)
        kept = tensors.momentum, tensors.second, tensors.iterate
        return updates, ControlledMuonState(
            state.step + 1, state.horizon, *kept, state.start, weights, hidden, global_hidden
        )

    def _step(
        self, gradient: Array, tensor: _Tensor, param: Array, step: Int[Array, ""], told: Bool[Array, ""]
    ) -> tuple[Array, _Tensor]:
        c = _Controls(*tensor.controls)
        momentum = ema(tensor.momentum, gradient, c.decay)
        second = ema(tensor.second, jnp.square(gradient), self.second_decay)
        ahead = ema(momentum / c.next_weight, gradient / c.weight, c.decay)
        corrected = second / (1.0 - jnp.power(self.second_decay, step.astype(jnp.float32)))
        direction = ahead / (root(corrected) + c.noise)
        matrix = self._matrix(param.shape)
        if matrix is not None:
            rows, columns = matrix
            axes = (0, 1) if rows <= columns else (1, 0)
            factor = orthogonalize((ahead / c.scale).reshape(matrix), axes).reshape(param.shape)
            adam = c.adam_share / math.sqrt(max(matrix))
            direction = math.sqrt(max(1.0, columns / rows)) * ((1.0 - c.adam_share) * factor + adam * direction)
        base = jnp.where(told, param, tensor.iterate)
        iterate = base - jnp.clip(c.rate * direction, -c.bound, c.bound) - c.shrinkage * param
        average = self._average(param, base)
        average = average + c.average * (iterate - average)
        new = jnp.where(told, iterate, iterate + self.averaging * (average - iterate))
        return new - param, _Tensor(momentum, second, iterate, tensor.controls)

    def _average(self, param: Array, iterate: Array) -> Array:
        r"""$x$, given $w$ and $z$."""
        return param + (1.0 - self.averaging) / self.averaging * (param - iterate)

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Rows and columns of the matrix that a tensor is, `None` if it is none."""
        if len(shape) < 2:
            return None
        rows = math.prod(shape[:-1]) if shape[-1] >= shape[0] else shape[0]
        columns = math.prod(shape) // rows
        return (rows, columns) if 1 < min(rows, columns) <= self.orthogonalize_up_to else None

    def _features(
        self,
        state: ControlledMuonState,
        numbers: Float[Array, "numbers tensors"],
        shapes: Sequence[tuple[int, ...]],
        matrices: Bool[Array, " tensors"],
    ) -> Float[Array, "features tensors"]:
        """What the network sees; all of about unit size."""
        g, m, v, w, moved, along_m, along_moved = numbers
        step, told = state.step.astype(jnp.float32), jnp.isfinite(state.horizon)
        over = jnp.where(told, jnp.minimum(step / jnp.where(told, state.horizon, 1.0), 2.0), 0.0)
        sides = [self._matrix(s) or (1, 1) for s in shapes]
        same = jnp.ones(len(shapes), jnp.float32)
        rows = [
            along_m / (root(g) * root(m)),
            along_moved / (root(g) * root(moved)),
            _log_ratio(m / jnp.square(jnp.maximum(state.weights[0], 0.01)), g),
            _log_ratio(g, v),
            _log_ratio(w, jnp.ones_like(w)),
            _log_ratio(w, jnp.square(state.start)),
            _log_ratio(moved, w),
            jnp.asarray([math.log10(math.prod(s)) / 3.0 - 1.0 for s in shapes], jnp.float32),
            jnp.asarray([math.log(q / p) / 3.0 for p, q in sides], jnp.float32),
            jnp.asarray([math.log(max(s)) / 3.0 - 1.0 for s in sides], jnp.float32),
            matrices.astype(jnp.float32),
            same * (jnp.log1p(step) / 3.0 - 1.5),
            same * told.astype(jnp.float32),
            same * over,
        ]
        return jnp.stack(rows)

    def _controls(
        self,
        state: ControlledMuonState,
        found: Float[Array, "5 tensors"],
        numbers: Float[Array, "numbers tensors"],
        matrices: Bool[Array, " tensors"],
    ) -> tuple[Float[Array, "controls tensors"], Float[Array, "two tensors"]]:
        """What each tensor takes its step by, and the new sums of weights."""
        g, m, v, w, *_ = numbers
        told, step = jnp.isfinite(state.horizon), state.step.astype(jnp.float32)
        left = 1.0 - (1.0 - LAST) * jnp.minimum(step / jnp.where(told, state.horizon, 1.0), 1.0)
        rate = self.learning_rate * jnp.where(told, left, 1.0) * jnp.exp(3.0 * found[0])
        gap = jnp.where(matrices | told, 1.0 - self.momentum_decay, 1.0)
        gap = jnp.minimum(gap * jnp.exp(2.0 * found[1]), 1.0)
        weight = ema(state.weights[0], jnp.ones_like(gap), 1.0 - gap)
        worth = jnp.exp(2.0 * found[4])
        worth_of_all = state.weights[1] + worth
        controls = _Controls(
            rate=rate,
            decay=1.0 - gap,
            weight=weight,
            next_weight=ema(weight, jnp.ones_like(gap), 1.0 - gap),
            shrinkage=jnp.minimum(rate * self.weight_decay * jnp.maximum(found[2], 0.0), 0.5),
            adam_share=jnp.maximum(found[3], 0.0),
            average=worth / worth_of_all,
            scale=root(g) + root(m),
            noise=1e-8 * root(v),
            bound=self.bound * jnp.maximum(root(w), self.least_size),
        )
        return jnp.stack(controls), jnp.stack([weight, worth_of_all])


def _zeros(*shape: int) -> Array:
    return jnp.zeros(shape, jnp.float32)


def _full(params: Params) -> list[Array]:
    """Tensors that are not empty."""
    return [p for p in jax.tree.leaves(params) if p.size]


def _row(values: Sequence[Array]) -> Float[Array, " values"]:
    return jnp.stack(values) if values else _zeros(0)


def _numbers(
    told: Bool[Array, ""], gradient: Array, param: Array, momentum: Array, second: Array, iterate: Array
) -> Float[Array, " numbers"]:
    r"""Means over a tensor of $g^2, m^2, v, w^2, (z - w)^2, g m, g (z - w)$; those of $z - w$ are 0 where the horizon is known."""
    moved = jnp.where(told, 0.0, iterate - param)  # rounding alone is no feature
    squares = [jnp.square(gradient), jnp.square(momentum), second, jnp.square(param), jnp.square(moved)]
    return jnp.stack([jnp.mean(x) for x in (*squares, gradient * momentum, gradient * moved)])


def _log_ratio(over: Array, under: Array) -> Array:
    """A third of the logarithm of the root of a ratio, within plus and minus 3; 0 where either is 0."""
    known = (over > 0) & (under > 0)
    logs = jnp.log(jnp.where(known, over, 1.0)) - jnp.log(jnp.where(known, under, 1.0))
    return jnp.clip(logs / 6.0, -3.0, 3.0)
