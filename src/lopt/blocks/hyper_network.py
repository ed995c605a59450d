"""A network that sees whole tensors and steers their per-parameter networks, as in VeLO and Celo."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.blocks.adafactor_mlp import AdafactorMLP, Signals
from lopt.blocks.nets import MLP
from lopt.blocks.readout import direction_magnitude
from lopt.blocks.tensor_lstm import Linear, LSTMState, TensorLSTM
from lopt.blocks.tensors import map_tensors


class Controller(eqx.Module):
    r"""From features of the tensors to what steers their per-parameter networks (VeLO, Celo).

    $$x' = A x + \max_{\text{tensors}} \mathrm{relu}(B y), \qquad h = \mathrm{LSTM}(x'), \qquad \text{controls} = C h, \qquad \text{step} = D h$$

    with $y = \mathrm{relu}(M x)$ if `stacked_mixing`. In the released code $y = x$, and $M$ is a layer without effect.

    Args:
        inputs: features of a tensor.
        size: of the LSTM.
        controls: how many.
        stacked_mixing: whether the two layers that mix tensors stand on each other.
        key: draws the initial weights.
    """

    mix: tuple[Linear, Linear, Linear]  # M, B, A
    lstm: TensorLSTM
    controls: Linear
    step: Linear
    stacked_mixing: bool = eqx.field(static=True)

    def __init__(self, inputs: int, size: int, controls: int, *, stacked_mixing: bool = False, key: PRNGKeyArray):
        first, second, skip, lstm, control, step = jax.random.split(key, 6)
        self.mix = (
            Linear(inputs, size, key=first),
            Linear(size if stacked_mixing else inputs, size, key=second),
            Linear(inputs, size, key=skip),
        )
        self.lstm = TensorLSTM(size, size, key=lstm)
        self.controls, self.step = Linear(size, controls, key=control), Linear(size, 1, key=step)
        self.stacked_mixing = stacked_mixing

    def __call__(
        self, x: Float[Array, "rows inputs"], state: LSTMState
    ) -> tuple[Float[Array, "rows controls"], Float[Array, " rows"], LSTMState]:
        """Controls, step and the next state of every tensor."""
        first, second, skip = self.mix
        mixed = second(jax.nn.relu(first(x)) if self.stacked_mixing else x)
        x = skip(x) + jnp.max(jax.nn.relu(mixed), axis=0, keepdims=True, initial=0.0)
        state = self.lstm(x, state)
        return self.controls(state.hidden), self.step(state.hidden)[:, 0], state


def interpolate(bank: MLP, control: Float[Array, " bank"]) -> MLP:
    r"""The network with weights $\frac1K \sum_k c_k \Theta_k$.

    Args:
        bank: networks $\Theta_k$, every leaf with a leading axis of $K$.
        control: $c$.
    """
    return jax.tree.map(lambda w: jnp.tensordot(control, w, axes=1) / len(control), bank)


def bank_rule(
    hidden: Sequence[int],
    momentum_decays: Sequence[float],
    second_decay: float,
    factored_decays: Sequence[float],
    *,
    bank: int,
    key: PRNGKeyArray,
) -> AdafactorMLP:
    """The extended `AdafactorMLP` of VeLO, its decays fixed, with a bank of networks: every leaf of `net` has a leading axis.

    Args:
        hidden: widths of the hidden layers.
        momentum_decays: decays of $m$.
        second_decay: decay of $v$.
        factored_decays: decays of $r, c$.
        bank: how many networks.
        key: draws the initial weights.
    """

    def one(key: PRNGKeyArray) -> AdafactorMLP:
        return AdafactorMLP(
            hidden,
            3,
            momentum_decays,
            second_decay,
            factored_decays,
            extended=True,
            learn_decays=False,
            diagonal_floor=0.0,
            key=key,
        )

    return jax.vmap(one)(jax.random.split(key, bank))


def steered_update(
    rule: AdafactorMLP,
    controls: Float[Array, "tensors bank"],
    steps: Float[Array, " tensors"],
    updates: PyTree[Array],
    states: PyTree,
    params: PyTree[Array],
    *,
    step_mult: float,
    exp_mult: float,
    gradient_clip: float,
) -> tuple[PyTree[Array], PyTree]:
    r"""One step of every tensor, scaled to the size of its weights.

    $$u = -\lambda_1\, s\, \mathrm{RMS}(w)\, d\, e^{\lambda_2 m}, \qquad (d, m, \cdot) = \mathrm{MLP}\Big(\text{features}; \frac1K \sum_k c_k \Theta_k\Big)$$

    Args:
        rule: accumulators and features, and a bank of networks $\Theta$; see `bank_rule`.
        controls: $c$, a row for each tensor that is not empty.
        steps: $s$.
        updates: gradients, clipped here to $\pm$ `gradient_clip`.
        states: an `adafactor_mlp.TensorState` of trees like the parameters.
        params: parameters.
        step_mult: $\lambda_1$.
        exp_mult: $\lambda_2$.
        gradient_clip: the largest gradient.
    """
    leaves, treedef = jax.tree.flatten(params)
    rows = iter(range(len(steps)))
    numbers = treedef.unflatten([jnp.asarray(next(rows) if p.size else -1, jnp.int32) for p in leaves])

    def one(gradient: Array, state: PyTree, param: Array) -> tuple[Array, PyTree]:
        tensor, row = state
        net = interpolate(rule.net, controls[row])
        scale = steps[row] * jnp.sqrt(jnp.mean(jnp.square(param)) + 1e-9)

        def readout(outputs: list[Array], signals: Signals) -> Array:
            del signals
            return -scale * direction_magnitude(outputs[0], outputs[1], step_mult, exp_mult)

        steered = eqx.tree_at(lambda r: r.net, rule, net)
        gradient = jnp.clip(gradient, -gradient_clip, gradient_clip)
        update, new = steered.update(gradient, tensor, param, jnp.zeros(0, jnp.float32), readout)
        return update, (new, row)

    updates, (states, _) = map_tensors(one, updates, (states, numbers), params)
    return updates, states
