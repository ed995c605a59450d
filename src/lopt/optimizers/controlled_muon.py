"""`ControlledMuon`: Muon with averaged iterates, whose rates a small recurrent network sets tensor by tensor; lopt's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.blocks.accumulators import ema
from lopt.blocks.features import root
from lopt.blocks.nets import GRU, Affine
from lopt.blocks.orthogonal import orthogonalize
from lopt.blocks.progress import require_horizon
from lopt.blocks.tensors import init_tensors, map_tensors
from lopt.checks import at_least, positive, shares, state_of
from lopt.errors import InputError
from lopt.optimizer import Optimizer, Params, State, Updates

WARM = 10  # steps over which the rate rises
USUAL = 300  # steps of a training, or taken so far, at which the rate is the usual one
FASTEST = 1.4  # times the usual rate is the rate of the shortest training
HIGHER = 1.25  # times as high is the rate at the start where the horizon is known
LAST = 0.3  # of that, at the end
USUAL_SCALE = 4.0  # scales between one over this and this make no difference
NEGLIGIBLE = 1_000.0  # times smaller than the largest is a scale that does not count
ZERO = 0.04  # the scale of parameters that are all zero
CLIP = 5.0  # times the usual size of a gradient, to which a larger one is shortened
NORMED = 0.6  # power of the number of matrices that counts as the depth of a network with normalisation layers
ROUNDING = 1e-5  # of the size of a tensor
FEATURES = 13
CONTROLS = 4


class ControlledMuonState(NamedTuple):
    """State of `ControlledMuon`: trees like the parameters, and arrays whose last axis is that of the tensors that are not empty."""

    step: Int[Array, ""]
    horizon: Float[Array, ""]  # infinity where it is not known
    depth: Float[Array, ""]
    momentum: PyTree
    second: PyTree  # of a matrix one number
    iterate: PyTree  # z
    average: PyTree  # x; a zero for each tensor with `low_memory`
    squared_sizes: Float[Array, " tensors"]  # of the start
    units: Float[Array, " tensors"]  # of steps
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
    average: Array
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

    $$z \leftarrow z - \eta_i d - \rho_i \min(4 R, 1)\, \lambda\, e^{2 o_3} w, \qquad x \leftarrow x + c_t (z - x), \qquad
      w \leftarrow (1 - \gamma)\, z + \gamma\, x$$

    The training holds the parameters $w$, at which gradients are taken. $z$ are the iterates and $x$ is their average, which `eval_params` returns.
    This is schedule-free averaging. A tensor that has seen no gradient does not decay, nor does such an entry of a vector.

    **The rate** of a tensor $i$ follows from shapes and sizes. $L$ is the number of matrices, and $t$ counts steps from 1.
    One matrix alone counts as two: at the rate for one, logistic regressions oscillate. Without any matrix $L$ is 1.
    With normalisation layers $L$ is that number to the power 0.6. A vector of ones at the start, as their gains are, tells that there are some.
    So trained gains, and gains that are stacked or begin at zero, are not recognised.

    $$\rho_i = \frac{\eta}{L}\, \ell_t\, e^{2 o_1}, \qquad
      \eta_i = \rho_i\, a_i \max\left(\frac{r_i}{4},\ \frac{R}{4},\ 1\right) \min(4 R,\ 1), \qquad
      a_i = \begin{cases} \sqrt{2 n / (n + l)} & \text{of a matrix} \\ \kappa & \text{of all else} \end{cases}$$

    for a matrix with the sides $n \leq l$: the size of Glorot's initialisation. The size of a tensor is $\sqrt{n}\, \mathrm{RMS}(w)$ for a matrix, else
    $\mathrm{RMS}(w)$. The scale $r_i$ of a matrix is its size at the start over $a_i$; that of all else is 0, without matrices its size.
    $R$ is the geometric mean of the scales above a thousandth of the largest one, 0.04 where all scales are zero.
    Steps of parameters that begin small are small, and the decay with them: at the usual one they could not grow.
    So a rate fits deep and shallow networks. Most linear and convolution layers have scales between a quarter and four with the usual initialisations,
    which make no difference. Beyond these steps are as large as the parameters are: embeddings whose entries are normal, depthwise convolutions, and with
    He's initialisation layers with 15 times as many outputs as inputs.
    What must grow far takes as many steps as with Adam at the rate $\eta_i$ of vectors, about 0.1 over $L$.

    $$\ell_t = \min(t/10,\ 1) \cdot \begin{cases} 1.25\, h(T)\, (1 - 0.7 \min((t - 1)/T,\ 1)) & T \text{ known} \\ h(t) & \text{else} \end{cases}, \qquad
      h(n) = \min\left((300/n)^{1/4},\ 1.4\right)$$

    The longer a training is, the lower is its best rate.

    $$\hat m = \frac{\beta m}{1 - \beta^{t+1}} + \frac{(1 - \beta)\, g}{1 - \beta^t}, \qquad
      d = \begin{cases} \sqrt{l/n}\; \mathrm{orthogonalize}(\hat m) & \text{of a matrix} \\ \hat m / \sqrt{\hat v} & \text{of all else} \end{cases}$$

    where $\beta$ does not change, for a longer side $l$: a step of a matrix has a root mean square of $\eta_i / \sqrt{n}$, whichever axis is first.
    So matrices take the direction of Muon, and all other tensors that of Adam.
    A tensor of more than two axes is a matrix too. It is cut after its first or before its last axis, whichever is longer.
    A matrix whose shorter side is long is orthogonalised in blocks, so that the products do not grow with it.
    The gradient of a matrix is shortened to five times its usual size.

    The decay of the momentum is $\beta = 1 - (1 - \beta_0) e^{2 o_2}$, at least 0, and $\beta_0 = 0$ for tensors that are no matrices:
    averaging takes the place of momentum. The average weighs an iterate by $t\, e^{2 o_4}$, by $t^2 e^{2 o_4}$ where $T$ is known.

    **The network.** Four controls of a tensor are renewed at each of the first `renew_every` steps, then at every so many:

    $$o = \tanh(W [y, h, H] + b_o)$$

    $y$ are 13 numbers, $h$ is the state of a GRU that all tensors share, and $H$ that of a GRU that sees the mean of $h$ over tensors.
    The numbers do not change with the scale of the loss:

    - the cosines of the gradient with the momentum and with $z - w$;
    - logarithms of $\overline{m^2} / \overline{g^2}$, where $m$ is corrected for its start, of $\overline{g^2} / \overline{v}$, where $v$ is not,
      of the size over that of the start, and over $\eta_i / \rho_i$, and of $\mathrm{RMS}(z - w) / \mathrm{RMS}(w)$;
    - logarithms of the number of matrices and of the time;
    - whether the tensor is a matrix, whether the horizon is known, its logarithm, and the part of it that is over.

    $W$ and $b_o$ start at zero. Untrained, the rule is `optax.contrib.muon` at the rates above, within `optax.contrib.schedule_free`.
    Besides blocks, shortened gradients, and decay that waits for a gradient, two things differ: the iterations are the three of `blocks.orthogonal`, and
    epsilon is relative.

    No network acts on single parameters, so the learned part costs the same whatever their number. Under `vmap`, as in meta-training, it is paid at every step.
    State: three floats a parameter for matrices, four for all else. With `low_memory` it is one fewer: $x = w + (1 - \gamma) (w - z) / \gamma$ is not kept.
    That is the same optimizer but for rounding, which grows with $1 / \gamma$. Parameters must be float32, and nothing but its own updates may change them.

    Args:
        learning_rate: $\eta$.
        vector_rate: $\kappa$.
        momentum_decay: $\beta_0$.
        second_decay: decay of $v$.
        averaging: $\gamma$, positive.
        weight_decay: $\lambda$.
        block: the most rows of a block, along the shorter side; a matrix with a side of 1 is none.
        hidden: units of each GRU.
        renew_every: steps between two looks of the network.
        low_memory: whether the average is computed from $w$ and $z$ in place of kept.
        key: draws the GRUs' weights.

    Raises:
        InputError: for a rate that is not positive, an averaging outside of $(0, 1)$, a decay outside of $[0, 1)$,
            fewer than one unit, step or side of a block, or a `low_memory` that is neither true nor false.

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
    low_memory: bool = eqx.field(static=True)

    def __init__(
        self,
        *,
        learning_rate: float = 0.16,
        vector_rate: float = 0.6,
        momentum_decay: float = 0.9,
        second_decay: float = 0.985,
        averaging: float = 0.74,
        weight_decay: float = 0.035,
        block: int = 64,
        hidden: int = 8,
        renew_every: int = 8,
        low_memory: bool = False,
        key: PRNGKeyArray,
    ):
        at_least(1, block=block, hidden=hidden, renew_every=renew_every)
        positive(learning_rate=learning_rate, vector_rate=vector_rate, averaging=averaging)
        at_least(0, weight_decay=weight_decay)
        shares(momentum_decay=momentum_decay, second_decay=second_decay, averaging=averaging)
        self.learning_rate, self.vector_rate = learning_rate, vector_rate
        self.momentum_decay, self.second_decay = momentum_decay, second_decay
        self.averaging, self.weight_decay = averaging, weight_decay
        self.block, self.hidden, self.renew_every = block, hidden, renew_every
        if not isinstance(low_memory, bool):
            raise InputError(f"low_memory is {low_memory!r}; it must be true or false.")
        self.low_memory = low_memory
        tensor_key, global_key = jax.random.split(key)
        self.tensor_rnn = GRU(FEATURES, hidden, gate_bias=1.0, key=tensor_key)
        self.global_rnn = GRU(hidden, hidden, gate_bias=1.0, key=global_key)
        self.readout = Affine(FEATURES + 2 * hidden, CONTROLS, scale=0.0, key=key)

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> ControlledMuonState:
        """Accumulators and the network's state at zero; the horizon may be left open.

        Raises:
            InputError: with `low_memory`, for parameters that are not float32.
        """
        del key
        steps = jnp.asarray(jnp.inf, jnp.float32) if horizon is None else require_horizon("ControlledMuon", horizon)

        def begin(param: Array) -> tuple[Array, Array, Array, Array]:
            second = () if self._matrix(param.shape) else param.shape
            average = _zeros() if self.low_memory else jnp.array(param, jnp.float32)
            return _zeros(*param.shape), _zeros(*second), jnp.array(param, jnp.float32), average

        leaves = jax.tree.leaves(params)
        if self.low_memory and (other := {str(p.dtype) for p in leaves} - {"float32"}):
            raise InputError(f"A parameter is {min(other)}; ControlledMuon with low_memory takes float32 alone.")
        full = [p for p in leaves if p.size]
        squares = [jnp.mean(jnp.square(p.astype(jnp.float32))) for p in full]
        squared_sizes = self._squared_sizes(jnp.stack(squares) if full else _zeros(0), full)
        momentum, second, iterate, average = init_tensors(begin, params)
        return ControlledMuonState(
            jnp.zeros((), jnp.int32),
            steps,
            self._depth(full),
            momentum,
            second,
            iterate,
            average,
            squared_sizes,
            self._units(squared_sizes, full),
            _zeros(2, len(full)),
            _zeros(CONTROLS, len(full)),
            _zeros(self.hidden, len(full)),
            _zeros(self.hidden),
        )

    @property
    def exact_params(self) -> bool:
        """With `low_memory`."""
        return self.low_memory

    def eval_params(self, state: State, params: Params) -> Params:
        r"""$x$; what `optax.partition` or `optax.masked` keeps from this optimizer is returned as it is.

        Raises:
            InputError: for a state that is not this optimizer's, as that of a whole chain.
        """
        own = state_of(ControlledMuonState, state)

        def evaluated(param: Array, iterate: Any, average: Any) -> Array:
            if isinstance(iterate, optax.MaskedNode):
                return param
            return self._average(param, iterate, average).astype(param.dtype)

        return jax.tree.map(evaluated, params, own.iterate, own.average)

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
        tensors = _Tensor(state.momentum, state.second, state.iterate, state.average, of_tensors)
        updates, tensors = map_tensors(step, updates, tensors, params)
        return updates, state._replace(
            step=state.step + 1,
            momentum=tensors.momentum,
            second=tensors.second,
            iterate=tensors.iterate,
            average=tensors.average,
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
            most = jnp.where(tensor.second > 0, CLIP**2 * usual, squares)
            long = squares > most
            gradient = gradient * jnp.sqrt(jnp.where(long, most, 1.0) / jnp.where(long, squares, 1.0))
            squares = jnp.minimum(squares, most)
        momentum = ema(tensor.momentum, gradient, n.decay)
        second = ema(tensor.second, squares, self.second_decay)
        corrected = second / (1.0 - jnp.power(self.second_decay, counts + 1.0))
        # Of a matrix the scale does not matter, so it has no gradient; as a factor of the two shares it costs no pass over the tensor.
        scale = 1.0 if matrix is None else jax.lax.stop_gradient(1.0 / root(corrected))
        ahead = n.decay / n.next_weight * scale * momentum + (1.0 - n.decay) / n.weight * scale * gradient
        if matrix is None:
            direction = ahead / (root(corrected) + 1e-8 * root(jnp.mean(corrected)))
        else:
            spread = math.sqrt(max(matrix) / min(matrix))
            direction = spread * self._orthogonal(ahead.reshape(matrix)).reshape(param.shape)
        shrinkage = jnp.where(second > 0, n.shrinkage, 0.0)
        iterate = tensor.iterate - n.rate * direction - shrinkage * param
        average = self._average(param, tensor.iterate, tensor.average)
        average = average + n.average * (iterate - average)
        new = iterate + self.averaging * (average - iterate)
        kept = tensor.average if self.low_memory else average
        return new - param, _Tensor(momentum, second, iterate, kept, tensor.numbers)

    def _average(self, param: Array, iterate: Array, average: Array) -> Array:
        """$x$, from what is kept."""
        return param + (1.0 / self.averaging - 1.0) * (param - iterate) if self.low_memory else average

    def _orthogonal(self, x: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
        """`orthogonalize`, in blocks of equal length along the shorter side where that is longer than a block; zeros fill the last one."""
        rows, columns = x.shape
        if rows > columns:
            return self._orthogonal(x.T).T
        if rows <= self.block:
            return orthogonalize(x, (0, 1))
        count = -(-rows // self.block)
        length = -(-rows // count)
        filled = jnp.pad(x, ((0, count * length - rows), (0, 0))).reshape(count, length, columns)
        return orthogonalize(filled, (1, 2)).reshape(count * length, columns)[:rows]

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Rows and columns of the matrix that a tensor is, `None` if it is none."""
        if len(shape) < 2:
            return None
        rows = math.prod(shape[:-1]) if shape[-1] >= shape[0] else shape[0]
        columns = math.prod(shape) // max(rows, 1)
        return (rows, columns) if min(rows, columns) > 1 else None

    def _matrices(self, full: Sequence[Array]) -> list[bool]:
        return [self._matrix(p.shape) is not None for p in full]

    def _count(self, full: Sequence[Array]) -> int:
        """How many matrices there are, at least 1."""
        return max(sum(self._matrices(full)), 1)

    def _depth(self, full: Sequence[Array]) -> Float[Array, ""]:
        """$L$, of the parameters of the start."""
        gains = [jnp.all(p == 1.0) for p in full if p.ndim == 1 and p.size > 1]
        normed = jnp.any(jnp.stack(gains)) if gains else jnp.zeros((), jnp.bool_)
        matrices = sum(self._matrices(full))
        count = float(max(matrices, 2) if matrices else 1)
        return jnp.where(normed, count**NORMED, count).astype(jnp.float32)

    def _squared_sizes(self, squares: Float[Array, " tensors"], full: Sequence[Array]) -> Float[Array, " tensors"]:
        """Squares of the sizes, of the means of squares."""
        sides = [self._matrix(p.shape) or (1,) for p in full]
        return squares * jnp.asarray([min(s) for s in sides], jnp.float32)

    def _scales(
        self, squared_sizes: Float[Array, " tensors"], full: Sequence[Array]
    ) -> tuple[Float[Array, " tensors"], Float[Array, ""]]:
        """$r_i$, and $R$."""
        if not full:
            return squared_sizes, jnp.asarray(ZERO, jnp.float32)
        matrices = self._matrices(full)
        scales = jnp.sqrt(squared_sizes) / self._usual_sizes(full, 1.0)
        if any(matrices):
            scales = jnp.where(jnp.asarray(matrices, jnp.bool_), scales, 0.0)
        counts = scales > jnp.max(scales) / NEGLIGIBLE
        logs, there = jnp.log(jnp.where(counts, scales, 1.0)), jnp.sum(counts, dtype=jnp.float32)
        return scales, jnp.where(there > 0.0, jnp.exp(jnp.sum(logs) / jnp.maximum(there, 1.0)), ZERO)

    def _usual_sizes(self, full: Sequence[Array], of_vectors: float) -> Float[Array, " tensors"]:
        """Of a matrix the size of Glorot's initialisation."""
        sides = [self._matrix(p.shape) for p in full]
        return jnp.asarray([math.sqrt(2.0 * min(m) / sum(m)) if m else of_vectors for m in sides], jnp.float32)

    def _units(self, squared_sizes: Float[Array, " tensors"], full: Sequence[Array]) -> Float[Array, " tensors"]:
        r"""$\eta_i / \rho_i$"""
        scales, scale = self._scales(squared_sizes, full)
        larger = jnp.maximum(jnp.maximum(scales, scale) / USUAL_SCALE, 1.0)
        return self._usual_sizes(full, self.vector_rate) * larger * jnp.minimum(USUAL_SCALE * scale, 1.0)

    def _renewed(self, updates: Updates, state: ControlledMuonState, params: Params) -> ControlledMuonState:
        """The state with the controls that hold for this step."""
        treedef = jax.tree.structure(params)
        trees = (updates, params, state.momentum, state.second, state.iterate)
        columns = [x for x in zip(*(treedef.flatten_up_to(t) for t in trees), strict=True) if x[1].size]
        if not columns:
            return state

        def look() -> tuple[Array, Array, Array]:
            means = jnp.stack([_means(*(x.astype(jnp.float32) for x in c)) for c in columns], -1)
            features = self._features(state, means, [c[1] for c in columns])
            hidden = self.tensor_rnn(features, state.hidden)
            global_hidden = self.global_rnn(jnp.mean(hidden, -1), state.global_hidden)
            spread = jnp.broadcast_to(global_hidden[:, None], hidden.shape)
            controls = jnp.tanh(self.readout(jnp.concatenate([features, hidden, spread])))
            return controls, hidden, global_hidden

        due = (state.step < self.renew_every) | (state.step % self.renew_every == 0)
        kept = state.controls, state.hidden, state.global_hidden
        controls, hidden, global_hidden = jax.lax.cond(due, look, lambda: kept)
        return state._replace(controls=controls, hidden=hidden, global_hidden=global_hidden)

    def _features(
        self,
        state: ControlledMuonState,
        means: Float[Array, "means tensors"],
        full: Sequence[Array],
    ) -> Float[Array, "features tensors"]:
        """What the network sees; all of about unit size."""
        g, m, v, w, moved, along_m, along_moved = means
        squared_sizes = self._squared_sizes(w, full)
        step, told = state.step.astype(jnp.float32), jnp.isfinite(state.horizon)
        over = jnp.where(told, jnp.minimum(step / jnp.where(told, state.horizon, 1.0), 2.0), 0.0)
        same = jnp.ones(len(full), jnp.float32)
        rows = [
            _cosine(along_m, g, m),
            _cosine(along_moved, g, moved),
            _log_ratio(m / jnp.square(jnp.maximum(state.weights[0], 0.01)), g),
            _log_ratio(g, v),
            _log_ratio(squared_sizes, jnp.square(state.units)),
            _log_ratio(squared_sizes, state.squared_sizes),
            _log_ratio(moved, w),
            jnp.asarray(self._matrices(full), jnp.float32),
            same * (math.log(self._count(full)) / 1.5 - 1.0),
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
        horizon = jnp.where(told, state.horizon, 1.0)
        left = jnp.where(told, HIGHER * (1.0 - (1.0 - LAST) * jnp.minimum(step / horizon, 1.0)), 1.0)
        length = jnp.where(told, horizon, step + 1.0)
        schedule = jnp.minimum((step + 1.0) / WARM, 1.0) * jnp.minimum(jnp.power(USUAL / length, 1 / 4), FASTEST) * left
        relative = self.learning_rate / state.depth * schedule * jnp.exp(2.0 * state.controls[0])
        gap = jnp.where(matrices, 1.0 - self.momentum_decay, 1.0)
        gap = jnp.minimum(gap * jnp.exp(2.0 * state.controls[1]), 1.0)
        weight = ema(state.weights[0], jnp.ones_like(gap), 1.0 - gap)
        smaller = jnp.minimum(USUAL_SCALE * self._scales(state.squared_sizes, full)[1], 1.0)
        worth = jnp.power(step + 1.0, jnp.where(told, 2.0, 1.0)) * jnp.exp(2.0 * state.controls[3])
        worth_of_all = state.weights[1] + worth
        numbers = _Numbers(
            rate=relative * state.units,
            decay=1.0 - gap,
            weight=weight,
            next_weight=ema(weight, jnp.ones_like(gap), 1.0 - gap),
            shrinkage=relative * smaller * self.weight_decay * jnp.exp(2.0 * state.controls[2]),
            average=worth / worth_of_all,
        )
        return jnp.stack(numbers), jnp.stack([weight, worth_of_all])


def _zeros(*shape: int) -> Array:
    return jnp.zeros(shape, jnp.float32)


def _means(gradient: Array, param: Array, momentum: Array, second: Array, iterate: Array) -> Float[Array, " means"]:
    r"""Means over a tensor of $g^2, m^2, v, w^2, (z - w)^2, g m, g (z - w)$; the fifth and last are 0 where $z$ is $w$ but for rounding."""
    moved = iterate - param
    squares = [jnp.square(gradient), jnp.square(momentum), second, jnp.square(param), jnp.square(moved)]
    g, m, v, w, far, along_m, along_moved = (jnp.mean(x) for x in (*squares, gradient * momentum, gradient * moved))
    seen = far > ROUNDING**2 * w
    return jnp.stack([g, m, v, w, jnp.where(seen, far, 0.0), along_m, jnp.where(seen, along_moved, 0.0)])


def _cosine(along: Array, a: Array, b: Array) -> Array:
    """Of the mean product and the mean squares; 0 where either is 0."""
    known = (a > 0) & (b > 0)
    return (
        jnp.where(known, along, 0.0) * jax.lax.rsqrt(jnp.where(known, a, 1.0)) * jax.lax.rsqrt(jnp.where(known, b, 1.0))
    )


def _log_ratio(over: Array, under: Array) -> Array:
    """A third of the logarithm of the root of a ratio, within plus and minus 3; 0 where either is 0."""
    known = (over > 0) & (under > 0)
    logs = jnp.log(jnp.where(known, over, 1.0)) - jnp.log(jnp.where(known, under, 1.0))
    return jnp.clip(logs / 6.0, -3.0, 3.0)
