"""`ControlledMuon`: Muon with averaged iterates, whose rates a small recurrent network sets tensor by tensor; lopt's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.blocks.accumulators import ema
from lopt.blocks.features import root
from lopt.blocks.nets import GRU, Affine
from lopt.blocks.orthogonal import orthogonalize
from lopt.blocks.progress import require_horizon
from lopt.blocks.tensors import init_tensors, map_tensors
from lopt.checks import at_least, positive, shares
from lopt.optimizer import Optimizer, Params, Updates

LAST = 0.01  # of the rate, at the end of a training whose horizon is known
WARM = 10  # steps over which the rate rises
HIGHER = 1.35  # times as high is the rate where the horizon is known
LEAST = 0.2  # of the size of the largest tensor, which a smaller one counts as
FLOOR = 1e-36  # of the square of a gradient's norm, near the least that float32 has
CLIP = 5.0  # times the usual size of a gradient, to which a larger one is shortened
ROUNDING = 1e-5  # of the size of a tensor
FEATURES = 13
CONTROLS = 4


class ControlledMuonState(NamedTuple):
    """State of `ControlledMuon`: trees like the parameters, and what it keeps for each tensor that is not empty, along the last axis."""

    step: Int[Array, ""]
    horizon: Float[Array, ""]  # infinity where it is not known
    momentum: PyTree
    second: PyTree  # of a matrix one number
    iterate: PyTree  # z
    sizes: Float[Array, "two tensors"]  # relative ones, at the start and when controls were last renewed
    weights: Float[
        Array, "two tensors"
    ]  # sums of the weights of the gradients in the momentum, of the iterates in their average
    controls: Float[Array, "controls tensors"]
    hidden: Float[Array, "hidden tensors"]
    global_hidden: Float[Array, " hidden"]


class _Tensor(NamedTuple):
    """What the rule sees of one tensor."""

    momentum: Array
    second: Array
    iterate: Array
    numbers: Float[Array, " numbers"]


class _Numbers(NamedTuple):
    """By which one tensor takes its step."""

    rate: Array
    decay: Array  # of the momentum
    weight: Array  # of the gradients in the momentum after this step, and after the next
    next_weight: Array
    shrinkage: Array
    average: Array  # share of the new iterate in the average


class ControlledMuon(Optimizer):
    r"""A fixed rule, and a recurrent network of a few units that sets its rates tensor by tensor.

    $$z \leftarrow z - \eta_i d - \rho_i \lambda\, [o_3]_+ w, \qquad x \leftarrow x + c_t (z - x), \qquad w \leftarrow (1 - \gamma)\, z + \gamma\, x$$

    The training holds the parameters $w$, at which gradients are taken. $z$ are the iterates and $x$ is their average, which `eval_params` returns.
    This is schedule-free averaging.

    **The rate** of a tensor $i$ among $L$ matrices is known from shapes and sizes before a step is taken:

    $$\rho_i = \frac{\eta}{L}\, \ell_t\, e^{2 o_1}, \qquad \eta_i = \rho_i\, \kappa_i\, S^{1/4} \max(s_i, S/5)^{3/4}$$

    with $\kappa_i = 1$ for a matrix and $\kappa$ for all else.
    The size $s_i$ is $\mathrm{RMS}(w)$, of a matrix with $n$ inputs $\sqrt{n}\, \mathrm{RMS}(w)$.
    $S$ is the largest $s_i$ of the start, or 1 where all are zero.
    So a rate fits deep and shallow networks, and parameters of any scale. The schedule $\ell_t$ rises to 1 over ten steps.
    Where the horizon is known it rises to 1.35, and then falls linearly to a hundredth of it.

    $$\hat m = \frac{\beta m}{1 - \beta^{t+1}} + \frac{(1 - \beta)\, g}{1 - \beta^t}, \qquad
      d = \begin{cases} \sqrt{m/n}\; \mathrm{orthogonalize}(\hat m) & \text{of a matrix} \\ \hat m / \sqrt{\hat v} & \text{of all else} \end{cases}$$

    for a matrix whose longer side is $m$: its step has a root mean square of $\eta_i / \sqrt{n}$.
    So matrices take the direction of Muon, and all other tensors that of Adam.
    Two axes are inputs and outputs. A tensor of more is a matrix too: its first or its last axis, whichever is longer, are the outputs.
    A matrix whose shorter side is long is orthogonalised in blocks, so that a step costs no more than a few passes over it.
    The gradient of a matrix is shortened to five times its usual size.

    The decay of the momentum is $\beta = 1 - (1 - \beta_0) e^{2 o_2}$, at least 0, and $\beta_0 = 0$ for tensors that are no matrices:
    averaging takes the place of momentum. The average weighs an iterate by $t\, e^{2 o_4}$.

    **The network.** Four controls of a tensor are renewed at each of the first eight steps, then at every eighth:

    $$o = \tanh(W [y, h, H] + b_o)$$

    $y$ are 13 numbers, $h$ is the state of a GRU that all tensors share, and $H$ that of a GRU that sees the mean of $h$ over tensors.
    The numbers change neither with the scale of the loss nor with that of all parameters:

    - the cosines of the gradient with the momentum and with $z - w$;
    - logarithms of $\overline{m^2} / \overline{g^2}$, of $\overline{g^2} / \overline{v}$, of $s_i / S$, of $s_i$ over its start, and of
      $\mathrm{RMS}(z - w) / \mathrm{RMS}(w)$;
    - logarithms of $L$ and of the time;
    - whether the tensor is a matrix, whether the horizon is known, its logarithm, and the part of it that is over.

    $W$ and $b_o$ start at zero. Untrained, the rule is `optax.contrib.muon` at the rates above, within `optax.contrib.schedule_free`.
    Besides blocks two things differ: the iterations are the three of `blocks.orthogonal`, and epsilon is relative.

    No network acts on single parameters, so the learned part costs the same whatever their number.
    State: two floats a parameter for matrices, three for all else.

    Args:
        learning_rate: $\eta$.
        vector_rate: $\kappa$.
        momentum_decay: $\beta_0$.
        second_decay: decay of $v$.
        averaging: $\gamma$, positive.
        weight_decay: $\lambda$, the most that the network can ask for.
        block: the longest side of a block; a matrix with a side of 1 is none.
        hidden: units of each GRU.
        renew_every: steps between two looks of the network.
        key: draws the GRUs' weights.

    Raises:
        InputError: for a rate that is not positive, an averaging outside of $(0, 1)$, a decay outside of $[0, 1)$,
            or fewer than one unit, step or side of a block.

    Source: lopt's own. Muon: Jordan et al. 2024. Schedule-free averaging: Defazio et al. 2024. Rates by depth: Large et al. 2024.
        Controllers of tensors and of the whole: Wichrowska et al. 2017.
    """

    tensor_rnn: GRU
    global_rnn: GRU
    readout: Affine
    learning_rate: float = eqx.field(static=True)
    vector_rate: float = eqx.field(static=True)
    momentum_decay: float = eqx.field(static=True)
    second_decay: float = eqx.field(static=True)
    averaging: float = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)
    block: int = eqx.field(static=True)
    hidden: int = eqx.field(static=True)
    renew_every: int = eqx.field(static=True)

    def __init__(
        self,
        *,
        learning_rate: float = 0.09,
        vector_rate: float = 2.8,
        momentum_decay: float = 0.9,
        second_decay: float = 0.985,
        averaging: float = 0.74,
        weight_decay: float = 0.3,
        block: int = 64,
        hidden: int = 8,
        renew_every: int = 8,
        key: PRNGKeyArray,
    ):
        at_least(1, block=block, hidden=hidden, renew_every=renew_every)
        positive(learning_rate=learning_rate, vector_rate=vector_rate, averaging=averaging)
        shares(momentum_decay=momentum_decay, second_decay=second_decay, averaging=averaging)
        self.learning_rate, self.vector_rate = learning_rate, vector_rate
        self.momentum_decay, self.second_decay = momentum_decay, second_decay
        self.averaging, self.weight_decay = averaging, weight_decay
        self.block, self.hidden, self.renew_every = block, hidden, renew_every
        tensor_key, global_key = jax.random.split(key)
        self.tensor_rnn = GRU(FEATURES, hidden, gate_bias=1.0, key=tensor_key)
        self.global_rnn = GRU(hidden, hidden, gate_bias=1.0, key=global_key)
        self.readout = Affine(FEATURES + 2 * hidden, CONTROLS, scale=0.0, key=key)

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> ControlledMuonState:
        """Accumulators and the network's state at zero; the horizon may be left open."""
        del key
        steps = jnp.asarray(jnp.inf, jnp.float32) if horizon is None else require_horizon("ControlledMuon", horizon)

        def begin(param: Array) -> tuple[Array, Array, Array]:
            second = () if self._matrix(param.shape) else param.shape
            return _zeros(*param.shape), _zeros(*second), jnp.array(param, jnp.float32)

        full = _full(params)
        squares = _row([jnp.mean(jnp.square(p.astype(jnp.float32))) for p in full])
        sizes = self._sizes(squares, full)
        momentum, second, iterate = init_tensors(begin, params)
        return ControlledMuonState(
            jnp.zeros((), jnp.int32),
            steps,
            momentum,
            second,
            iterate,
            jnp.stack([sizes, sizes]),
            _zeros(2, len(full)),
            _zeros(CONTROLS, len(full)),
            _zeros(self.hidden, len(full)),
            _zeros(self.hidden),
        )

    def eval_params(self, state: ControlledMuonState, params: Params) -> Params:
        r"""$x$."""
        return jax.tree.map(lambda p, z: self._average(p.astype(jnp.float32), z).astype(p.dtype), params, state.iterate)

    def update(
        self, updates: Updates, state: ControlledMuonState, params: Params, **extra: Any
    ) -> tuple[Updates, ControlledMuonState]:
        """One step; see the class."""
        del extra
        leaves, treedef = jax.tree.flatten(params)
        full = [i for i, p in enumerate(leaves) if p.size]
        state = self._renewed(updates, state, params)
        numbers, weights = self._numbers(state, [leaves[i] for i in full])
        given = {i: numbers[:, k] for k, i in enumerate(full)}
        nothing = _zeros(len(_Numbers._fields))

        def step(gradient: Array, tensor: _Tensor, param: Array) -> tuple[Array, _Tensor]:
            return self._step(gradient, tensor, param, state.step)

        of_tensors = treedef.unflatten([given.get(i, nothing) for i in range(len(leaves))])
        tensors = _Tensor(state.momentum, state.second, state.iterate, of_tensors)
        updates, tensors = map_tensors(step, updates, tensors, params)
        return updates, state._replace(
            step=state.step + 1,
            momentum=tensors.momentum,
            second=tensors.second,
            iterate=tensors.iterate,
            weights=weights,
        )

    def _step(self, gradient: Array, tensor: _Tensor, param: Array, step: Int[Array, ""]) -> tuple[Array, _Tensor]:
        n = _Numbers(*tensor.numbers)
        matrix = self._matrix(param.shape)
        counts = step.astype(jnp.float32)
        squares = jnp.square(gradient)
        if matrix is not None:
            squares = jnp.mean(squares)
            usual = tensor.second / (1.0 - jnp.power(self.second_decay, jnp.maximum(counts, 1.0)))
            most = jnp.where(tensor.second > 0, CLIP**2 * usual, jnp.inf)
            gradient = gradient * jnp.where(squares > most, root(most / jnp.maximum(squares, 1e-37)), 1.0)
            squares = jnp.minimum(squares, most)
        momentum = ema(tensor.momentum, gradient, n.decay)
        second = ema(tensor.second, squares, self.second_decay)
        ahead = ema(momentum / n.next_weight, gradient / n.weight, n.decay)
        if matrix is None:
            corrected = second / (1.0 - jnp.power(self.second_decay, counts + 1.0))
            direction = ahead / (root(corrected) + 1e-8 * root(jnp.mean(corrected)))
        else:
            spread = math.sqrt(max(matrix) / self._inputs(param.shape))
            direction = spread * self._orthogonal(ahead.reshape(matrix)).reshape(param.shape)
        iterate = tensor.iterate - n.rate * direction - n.shrinkage * param
        average = self._average(param, tensor.iterate)
        average = average + n.average * (iterate - average)
        new = iterate + self.averaging * (average - iterate)
        return new - param, _Tensor(momentum, second, iterate, tensor.numbers)

    def _orthogonal(self, x: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
        """`orthogonalize`, in blocks of equal length along the shorter side where that is longer than a block; zeros fill the last one."""
        rows, columns = x.shape
        if rows > columns:
            return self._orthogonal(x.T).T
        if rows <= self.block:
            return orthogonalize(x, (0, 1), floor=FLOOR)
        count = -(-rows // self.block)
        length = -(-rows // count)
        filled = jnp.pad(x, ((0, count * length - rows), (0, 0))).reshape(count, length, columns)
        axes = (1, 2) if length <= columns else (2, 1)
        return orthogonalize(filled, axes, floor=FLOOR).reshape(count * length, columns)[:rows]

    def _average(self, param: Array, iterate: Array) -> Array:
        r"""$x$, given $w$ and $z$."""
        return param + (1.0 - self.averaging) / self.averaging * (param - iterate)

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Rows and columns of the matrix that a tensor is, `None` if it is none."""
        if len(shape) < 2:
            return None
        rows = math.prod(shape[:-1]) if shape[-1] >= shape[0] or len(shape) == 2 else shape[0]
        columns = math.prod(shape) // max(rows, 1)
        return (rows, columns) if min(rows, columns) > 1 else None

    def _inputs(self, shape: tuple[int, ...]) -> int:
        """Of a matrix; 1 of all else."""
        matrix = self._matrix(shape)
        if matrix is None:
            return 1
        return matrix[1] if len(shape) > 2 and matrix[0] == shape[0] else matrix[0]

    def _matrices(self, full: Sequence[Array]) -> list[bool]:
        return [self._matrix(p.shape) is not None for p in full]

    def _depth(self, full: Sequence[Array]) -> int:
        """$L$; 1 without matrices."""
        return max(sum(self._matrices(full)), 1)

    def _sizes(self, squares: Float[Array, " tensors"], full: Sequence[Array]) -> Float[Array, " tensors"]:
        """$s$, of the means of squares."""
        return root(squares * jnp.asarray([self._inputs(p.shape) for p in full], jnp.float32))

    def _renewed(self, updates: Updates, state: ControlledMuonState, params: Params) -> ControlledMuonState:
        """The state with the sizes and controls that hold for this step."""
        treedef = jax.tree.structure(params)
        trees = (updates, params, state.momentum, state.second, state.iterate)
        columns = [x for x in zip(*(treedef.flatten_up_to(t) for t in trees), strict=True) if x[1].size]
        if not columns:
            return state

        def look() -> tuple[Array, Array, Array, Array]:
            means = jnp.stack([_means(*(x.astype(jnp.float32) for x in c)) for c in columns], -1)
            full = [c[1] for c in columns]
            sizes = self._sizes(means[3], full)
            features = self._features(state, means, sizes, full)
            hidden = self.tensor_rnn(features, state.hidden)
            global_hidden = self.global_rnn(jnp.mean(hidden, -1), state.global_hidden)
            spread = jnp.broadcast_to(global_hidden[:, None], hidden.shape)
            controls = jnp.tanh(self.readout(jnp.concatenate([features, hidden, spread])))
            return sizes, controls, hidden, global_hidden

        due = (state.step < self.renew_every) | (state.step % self.renew_every == 0)
        kept = state.sizes[1], state.controls, state.hidden, state.global_hidden
        sizes, controls, hidden, global_hidden = jax.lax.cond(due, look, lambda: kept)
        return state._replace(
            sizes=jnp.stack([state.sizes[0], sizes]), controls=controls, hidden=hidden, global_hidden=global_hidden
        )

    def _features(
        self,
        state: ControlledMuonState,
        means: Float[Array, "means tensors"],
        sizes: Float[Array, " tensors"],
        full: Sequence[Array],
    ) -> Float[Array, "features tensors"]:
        """What the network sees; all of about unit size."""
        g, m, v, w, moved, along_m, along_moved = means
        step, told = state.step.astype(jnp.float32), jnp.isfinite(state.horizon)
        over = jnp.where(told, jnp.minimum(step / jnp.where(told, state.horizon, 1.0), 2.0), 0.0)
        same = jnp.ones(len(full), jnp.float32)
        rows = [
            along_m / (root(g) * root(m)),
            along_moved / (root(g) * root(moved)),
            _log_ratio(m / jnp.square(jnp.maximum(state.weights[0], 0.01)), g),
            _log_ratio(g, v),
            _log_ratio(jnp.square(sizes), jnp.square(_largest(state.sizes[0]))),
            _log_ratio(sizes**2, jnp.square(state.sizes[0])),
            _log_ratio(moved, w),
            jnp.asarray(self._matrices(full), jnp.float32),
            same * (math.log(self._depth(full)) / 1.5 - 1.0),
            same * (jnp.log1p(step) / 3.0 - 1.5),
            same * told.astype(jnp.float32),
            same * jnp.where(told, jnp.log(jnp.where(told, state.horizon, 1.0)) / 3.0 - 2.0, 0.0),
            same * over,
        ]
        return jnp.stack(rows)

    def _numbers(
        self, state: ControlledMuonState, full: Sequence[Array]
    ) -> tuple[Float[Array, "numbers tensors"], Float[Array, "two tensors"]]:
        """What each tensor takes its step by, and the new sums of weights."""
        matrices = jnp.asarray(self._matrices(full), jnp.bool_)
        told, step = jnp.isfinite(state.horizon), state.step.astype(jnp.float32)
        left = HIGHER * (1.0 - (1.0 - LAST) * jnp.minimum(step / jnp.where(told, state.horizon, 1.0), 1.0))
        schedule = jnp.minimum((step + 1.0) / WARM, 1.0) * jnp.where(told, left, 1.0)
        largest = _largest(state.sizes[0])
        sizes = jnp.power(largest, 0.25) * jnp.power(jnp.maximum(state.sizes[1], LEAST * largest), 0.75)
        relative = self.learning_rate / self._depth(full) * schedule * jnp.exp(2.0 * state.controls[0])
        gap = jnp.where(matrices, 1.0 - self.momentum_decay, 1.0)
        gap = jnp.minimum(gap * jnp.exp(2.0 * state.controls[1]), 1.0)
        weight = ema(state.weights[0], jnp.ones_like(gap), 1.0 - gap)
        worth = (step + 1.0) * jnp.exp(2.0 * state.controls[3])
        worth_of_all = state.weights[1] + worth
        numbers = _Numbers(
            rate=relative * sizes * jnp.where(matrices, 1.0, self.vector_rate),
            decay=1.0 - gap,
            weight=weight,
            next_weight=ema(weight, jnp.ones_like(gap), 1.0 - gap),
            shrinkage=jnp.minimum(relative * self.weight_decay * jnp.maximum(state.controls[2], 0.0), 0.5),
            average=worth / worth_of_all,
        )
        return jnp.stack(numbers), jnp.stack([weight, worth_of_all])


def _zeros(*shape: int) -> Array:
    return jnp.zeros(shape, jnp.float32)


def _full(params: Params) -> list[Array]:
    """Tensors that are not empty."""
    return [p for p in jax.tree.leaves(params) if p.size]


def _row(values: Sequence[Array]) -> Float[Array, " values"]:
    return jnp.stack(values) if values else _zeros(0)


def _largest(sizes: Float[Array, " tensors"]) -> Float[Array, ""]:
    r"""$S$."""
    largest = jnp.max(sizes, initial=0.0)
    return jnp.where(largest > 1e-12, largest, 1.0)


def _means(gradient: Array, param: Array, momentum: Array, second: Array, iterate: Array) -> Float[Array, " means"]:
    r"""Means over a tensor of $g^2, m^2, v, w^2, (z - w)^2, g m, g (z - w)$; the fifth and last are 0 where $z$ is $w$ but for rounding."""
    moved = iterate - param
    squares = [jnp.square(gradient), jnp.square(momentum), second, jnp.square(param), jnp.square(moved)]
    g, m, v, w, far, along_m, along_moved = (jnp.mean(x) for x in (*squares, gradient * momentum, gradient * moved))
    seen = far > ROUNDING**2 * w
    return jnp.stack([g, m, v, w, jnp.where(seen, far, 0.0), along_m, jnp.where(seen, along_moved, 0.0)])


def _log_ratio(over: Array, under: Array) -> Array:
    """A third of the logarithm of the root of a ratio, within plus and minus 3; 0 where either is 0."""
    known = (over > 0) & (under > 0)
    logs = jnp.log(jnp.where(known, over, 1.0)) - jnp.log(jnp.where(known, under, 1.0))
    return jnp.clip(logs / 6.0, -3.0, 3.0)
