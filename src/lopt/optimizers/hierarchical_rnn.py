"""`HierarchicalRNN`: the parameter, tensor and global RNNs of Wichrowska et al. 2017."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.blocks.accumulators import ema
from lopt.blocks.nets import GRU, Affine, normal, product
from lopt.blocks.tensors import chunk_for, chunked, init_tensors, map_tensors, tile
from lopt.checks import state_of
from lopt.errors import InputError
from lopt.optimizer import Optimizer, Params, State, Updates

Arrays = tuple[Array, ...]
LOG_RATE_BOUND = 33.0


class TensorState(NamedTuple):
    """What `HierarchicalRNN` keeps for a tensor. In the state of all, a tree like the parameters for each array."""

    log_rate: PyTree  # log of the learning rate of every parameter
    hidden: PyTree  # of the parameter RNN, [hidden, *shape]
    momentum: PyTree  # [timescales, *shape]
    mean_square: PyTree  # of each momentum, [timescales, *shape]
    tensor_hidden: PyTree  # [tensor_hidden]
    param: PyTree  # the true parameters, where the user holds attended ones, otherwise None


class HierarchicalRNNState(NamedTuple):
    """State of `HierarchicalRNN`: steps taken, a `TensorState` of trees like the parameters, and the state of the global RNN."""

    step: Int[Array, ""]
    tensors: TensorState
    global_hidden: Float[Array, " global_hidden"]


class HierarchicalRNN(Optimizer):
    r"""Three levels of GRUs: one for every parameter, one for every tensor, one for all.

    $$w \leftarrow w - e^{\tilde\ell + \kappa}\, \frac{\delta}{\sqrt{\overline{\delta^2} + 10^{-16}}}, \qquad
    \delta = w_u^\top h + a^\top x, \qquad \tilde\ell = \ell + w_\ell^\top h + b_\ell, \qquad \ell \leftarrow \mu \ell + (1-\mu)\, \tilde\ell$$

    with $h$ the new state of the parameter RNN, $\ell$ the log learning rate of a parameter, clipped to $\pm 33$ with a straight-through gradient,
    and overlines means over the tensor. Inputs of the parameter RNN, at four timescales $s$:

    | | |
    |---|---|
    | momentum with learned decay | $m_s \leftarrow d_s m_s + (1 - d_s)\, g$, with $d_1 = \sigma(w_d^\top h + b_d)$ and $d_{s+1} = \sqrt{d_s}$ |
    | dynamic input scaling | $x_s = \mathrm{asinh}(m_s / \sqrt{v_s})$ with $v_s \leftarrow \gamma v_s + (1-\gamma)(m_s^2 + 10^{-12})$ |
    | gradient products | $x_s x_{s+1}$ |
    | relative log mean squares | $\log v_s$ less its mean over $s$ |
    | relative log learning rate | $\ell$ less its mean over all parameters |

    with $h$ here the state before the step, $\gamma = \sigma(w_\gamma^\top h + b_\gamma)$, and $d_1 = \gamma = 0$ at the first step.

    The tensor RNN sees the means over its tensor of $h$ and of these inputs, the global RNN the mean of the tensors' states. Down go biases: those of
    a parameter's gates hold affine maps of its tensor's and of the global state, those of a tensor's one of the global state.

    Initial learning rates are random: `init` takes a key, `jax.random.key(0)` if it is `None`. 8,349 meta-parameters at the defaults.
    State: 19 floats a parameter, 20 with attention.

    With attention the gradient is taken elsewhere than at the parameters that are evaluated, at $w - e^{\tilde\ell}\, \hat a$ with $\hat a$ another normalised
    direction and $w$ the parameters before the step. Any training loop does it without knowing: the params that it holds *are* the attended
    ones. `eval_params` returns the true ones, which the state keeps; so transformations that change updates after this one move only
    the point of attention.

    Args:
        sizes: units of the parameter, tensor and global RNN.
        timescales: of momentum.
        use_attention: see above; off, as in the release.
        last_tensor_only: whether the global RNN sees the last tensor's state alone, a quirk of the release, instead of the mean.
        initial_rates: least and greatest initial learning rate; uniform in half the logarithm for the tensor plus the same for the parameter.
        key: draws the initial weights.

    Raises:
        InputError: for fewer than one unit or timescale, or rates that are not positive and in order.

    Source: Wichrowska et al. 2017, *Learned Optimizers that Scale and Generalize*, §3, and its authors' release. How the weights of $w_d, w_\gamma$
    start is a **reconstruction**.
    """

    parameter_rnn: GRU
    tensor_rnn: GRU
    global_rnn: GRU
    tensor_to_parameter: Affine
    global_to_parameter: Affine
    global_to_tensor: Affine
    direction: Float[Array, "hidden directions"]  # w_u, and the same for attention if used
    shortcut: Float[Array, "timescales directions"]  # a
    rate: Affine  # w_l, b_l
    momentum_decay: Affine  # w_d, b_d
    scale_decay: Affine  # w_gamma, b_gamma
    log_step: Float[Array, ""]  # kappa
    rate_decay: Float[Array, ""]  # logit of mu
    starts: tuple[Float[Array, " hidden"], Float[Array, " tensor_hidden"], Float[Array, " global_hidden"]]
    sizes: tuple[int, int, int] = eqx.field(static=True)
    timescales: int = eqx.field(static=True)
    use_attention: bool = eqx.field(static=True)
    last_tensor_only: bool = eqx.field(static=True)
    initial_rates: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        *,
        sizes: tuple[int, int, int] = (10, 20, 20),
        timescales: int = 4,
        use_attention: bool = False,
        last_tensor_only: bool = False,
        initial_rates: tuple[float, float] = (1e-6, 1e-2),
        key: PRNGKeyArray,
    ):
        n, tensor, whole = sizes
        low, high = initial_rates
        if min(n, tensor, whole, timescales) < 1:
            raise InputError(f"sizes is {sizes} and timescales {timescales}; each must be at least 1.")
        if not 0 < low <= high:
            raise InputError(
                f"initial_rates is {initial_rates}; both must be positive, the first not above the second."
            )
        self.sizes, self.timescales, self.initial_rates = (n, tensor, whole), timescales, (low, high)
        self.use_attention, self.last_tensor_only = use_attention, last_tensor_only
        keys = jax.random.split(key, 13)
        inputs = 3 * timescales  # x, their products, log mean squares, and one rate
        self.parameter_rnn = GRU(inputs, n, scale=0.5, gate_bias=2.2, key=keys[0])
        self.tensor_rnn = GRU(inputs + n, tensor, scale=0.5, gate_bias=2.2, key=keys[1])
        self.global_rnn = GRU(tensor, whole, scale=0.5, gate_bias=2.2, key=keys[2])
        self.tensor_to_parameter = Affine(tensor, 3 * n, scale=0.5, key=keys[3])
        self.global_to_parameter = Affine(whole, 3 * n, scale=0.5, key=keys[4])
        self.global_to_tensor = Affine(whole, 3 * tensor, scale=0.5, key=keys[5])
        directions = 1 + use_attention
        self.direction = jnp.tile(normal(keys[6], n, 1, 0.5), directions)
        self.shortcut = 1.0 / timescales + normal(keys[11], timescales, directions, 0.1)
        self.rate = Affine(n, 1, scale=0.0, key=key)
        self.momentum_decay = Affine(n, 1, scale=0.5, bias=2.2, key=keys[7])
        self.scale_decay = Affine(n, 1, scale=0.5, bias=3.2, key=keys[8])
        self.log_step, self.rate_decay = jnp.asarray(-1.0, jnp.float32), jnp.asarray(3.2, jnp.float32)

        def start(key: PRNGKeyArray, size: int) -> Array:
            return jax.random.uniform(key, (size,), jnp.float32, -1.0, 1.0)

        self.starts = start(keys[9], n), start(keys[10], tensor), start(keys[12], whole)

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> HierarchicalRNNState:
        """Learned initial states, and random learning rates; the key is `jax.random.key(0)` if not given."""
        del horizon
        low, high = (0.5 * math.log(rate) for rate in self.initial_rates)

        count = max(1, len(jax.tree.leaves(params)))
        keys = iter(list(jax.random.split(jax.random.key(0) if key is None else key, count)))

        def begin(param: Array) -> TensorState:
            own, common = jax.random.split(next(keys))
            offset = jax.random.uniform(common, (), jnp.float32, low, high)
            return TensorState(
                jax.random.uniform(own, param.shape, jnp.float32, low, high) + offset,
                tile(self.starts[0], param),
                jnp.zeros((self.timescales, *param.shape), jnp.float32),
                jnp.zeros((self.timescales, *param.shape), jnp.float32),
                jnp.array(self.starts[1]),
                jnp.array(param, jnp.float32) if self.use_attention else None,
            )

        return HierarchicalRNNState(jnp.zeros((), jnp.int32), init_tensors(begin, params), jnp.array(self.starts[2]))

    def update(
        self, updates: Updates, state: HierarchicalRNNState, params: Params, **extra: Any
    ) -> tuple[Updates, HierarchicalRNNState]:
        """One step; see the class."""
        del extra
        rates = jax.tree.leaves(state.tensors.log_rate)
        mean_rate = sum((jnp.sum(r) for r in rates), jnp.zeros((), jnp.float32)) / max(1, sum(r.size for r in rates))
        updates, tensors = map_tensors(
            lambda g, s, p: self._tensor(g, s, p, state.step == 0, mean_rate, state.global_hidden),
            updates,
            state.tensors,
            params,
        )
        pairs = zip(jax.tree.leaves(tensors.tensor_hidden), jax.tree.leaves(params), strict=True)
        seen = [hidden for hidden, p in pairs if p.size]
        if self.last_tensor_only:
            seen = seen[-1:]
        mean = jnp.mean(jnp.stack(seen), 0) if seen else jnp.zeros(self.sizes[1], jnp.float32)
        return updates, HierarchicalRNNState(state.step + 1, tensors, self.global_rnn(mean, state.global_hidden))

    def eval_params(self, state: State, params: Params) -> Params:
        """The true parameters; with attention, `params` are where the next gradient is taken.

        Raises:
            InputError: with attention, for a state that is not this optimizer's, as that of a whole chain.
        """
        if not self.use_attention:
            return params
        return jax.tree.map(
            lambda p, true: true.astype(p.dtype), params, state_of(HierarchicalRNNState, state).tensors.param
        )

    def _tensor(
        self, gradient: Array, state: TensorState, param: Array, is_first: Array, mean_rate: Array, whole: Array
    ) -> tuple[Array, TensorState]:
        injected = self.tensor_to_parameter(state.tensor_hidden) + self.global_to_parameter(whole)
        readouts = jnp.concatenate([self.rate.weight, self.direction], 1)
        decays = jnp.concatenate([self.momentum_decay.weight, self.scale_decay.weight], 1)
        rate_decay = jax.nn.sigmoid(self.rate_decay)

        def chunk(overwrite: Arrays, _: Arrays) -> tuple[Arrays, Arrays]:
            gradient, log_rate, hidden, momentum, mean_square, *_attended = overwrite
            decay, scale_decay = product(hidden, decays)
            timescales = [jax.nn.sigmoid(decay + self.momentum_decay.bias[0])]
            while len(timescales) < self.timescales:
                timescales.append(jnp.sqrt(timescales[-1]))
            # The first step copies the gradient.
            decay = jnp.where(is_first, 0.0, jnp.stack(timescales))
            scale_decay = jnp.where(is_first, 0.0, jax.nn.sigmoid(scale_decay + self.scale_decay.bias[0]))
            momentum = ema(momentum, gradient[None], decay)
            mean_square = ema(mean_square, jnp.square(momentum) + 1e-12, scale_decay[None])
            scaled = jnp.arcsinh(momentum * jax.lax.rsqrt(mean_square + 1e-16))
            log_square = jnp.log(mean_square + 1e-16)
            inputs = jnp.concatenate(
                [
                    scaled,
                    scaled[:-1] * scaled[1:],
                    log_square - jnp.mean(log_square, 0, keepdims=True),
                    (log_rate - mean_rate)[None],
                ]
            )
            hidden = self.parameter_rnn(inputs, hidden, injected)
            outputs = product(hidden, readouts)
            directions = outputs[1:] + product(scaled, self.shortcut)
            proposal = log_rate + outputs[0] + self.rate.bias[0]
            clipped = jnp.clip(proposal, -LOG_RATE_BOUND, LOG_RATE_BOUND)
            proposal = proposal + jax.lax.stop_gradient(clipped - proposal)
            step = jnp.exp(proposal + self.log_step) * directions[0]
            look = [jnp.exp(proposal) * d for d in directions[1:]]
            new = (step, ema(log_rate, proposal, rate_decay), hidden, momentum, mean_square, *look)
            return new, tuple(_sum_of_units(x) for x in (hidden, inputs, jnp.square(directions)))

        overwrite = (gradient, state.log_rate, state.hidden, state.momentum, state.mean_square)
        chunk_size = chunk_for(4 * self.sizes[0])
        new, sums = chunked(chunk, (*overwrite, *[gradient] * self.use_attention), (), chunk=chunk_size, staged=True)
        step, log_rate, hidden, momentum, mean_square, *look = new
        seen = jnp.concatenate(sums[:2]) / gradient.size
        tensor_hidden = self.tensor_rnn(seen, state.tensor_hidden, self.global_to_tensor(whole))
        normalisers = jax.lax.rsqrt(sums[2] / gradient.size + 1e-16)
        update, true_param = -step * normalisers[0], None
        if state.param is not None:
            true_param = state.param + update
            update = state.param - look[0] * normalisers[1] - param
        return update, TensorState(log_rate, hidden, momentum, mean_square, tensor_hidden, true_param)


def _sum_of_units(x: Float[Array, "units ..."]) -> Float[Array, " units"]:
    """The sum of every unit over its tensor."""
    return jnp.sum(x.reshape(len(x), -1), 1)
