"""A complete new learned optimizer: its equation, state, fields, `init` and `update`; then a little meta-training.

python examples/add_an_optimizer.py

To make it part of lopt, move the class to src/lopt/optimizers/momentum_mlp.py and follow CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

import lopt
from lopt.blocks.accumulators import ema
from lopt.blocks.features import rms_scale
from lopt.blocks.nets import MLP
from lopt.blocks.readout import direction_magnitude
from lopt.blocks.tensors import init_tensors, map_tensors
from lopt.optimizer import Params, Updates


class MomentumMLPState(NamedTuple):
    """State of `MomentumMLP`: a tree like the parameters for each decay."""

    momenta: PyTree


class MomentumMLP(lopt.Optimizer):
    r"""A per-parameter MLP on the gradient and on momenta at several decays.

    $$u = -\lambda\,(d\, e^{m} + \bar x), \qquad (d, m) = \mathrm{MLP}(x; \theta)$$

    with $x$ the gradient and momenta, each divided by its root mean square over the tensor, and $\bar x$ their mean, so that the rule descends
    before it has learned anything.

    Args:
        hidden: widths of the hidden layers.
        step_mult: $\lambda$.
        decays: of the momenta.
        key: draws the initial weights.
    """

    net: MLP
    hidden: tuple[int, ...] = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (8,),
        step_mult: float = 3e-2,
        decays: Sequence[float] = (0.5, 0.9),
        key: PRNGKeyArray,
    ):
        self.hidden, self.step_mult, self.decays = tuple(hidden), step_mult, tuple(decays)
        self.net = MLP([1 + len(self.decays), *self.hidden, 2], key=key)

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> MomentumMLPState:
        """Momenta at zero."""
        del key, horizon
        return MomentumMLPState(init_tensors(lambda p: (jnp.zeros(p.shape, jnp.float32),) * len(self.decays), params))

    def update(
        self, updates: Updates, state: MomentumMLPState, params: Params, **extra: Any
    ) -> tuple[Updates, MomentumMLPState]:
        """One step; see the class."""
        del extra
        updates, momenta = map_tensors(self._tensor, updates, state.momenta, params)
        return updates, MomentumMLPState(momenta)

    def _tensor(self, g: Array, momenta: tuple[Array, ...], p: Array) -> tuple[Array, tuple[Array, ...]]:
        del p
        momenta = tuple(ema(m, g, jnp.float32(b)) for m, b in zip(momenta, self.decays, strict=True))
        # Separate arrays, never a [parameters, features] matrix: XLA fuses features and network into one loop.
        x = [f * rms_scale(jnp.mean(jnp.square(f))) for f in (g, *momenta)]
        hidden = self.net.first_layer(range(len(x)), x, jnp.ones(len(x)))
        direction, magnitude = self.net.rest([h + b for h, b in zip(hidden, self.net.biases[0], strict=True)])
        nominal = sum(x[1:], x[0]) / len(x)
        return -direction_magnitude(direction, magnitude, self.step_mult, 1.0) - self.step_mult * nominal, momenta


def main() -> None:
    """Meta-train it and print what that changed."""
    parser = argparse.ArgumentParser(description="Meta-train a learned optimizer defined in this file.")
    parser.add_argument("--steps", type=int, default=500, help="meta-steps")
    args = parser.parse_args()

    task = lopt.tasks.Quadratic(dim=10)
    optimizer = MomentumMLP(key=jax.random.key(0))
    estimator = lopt.estimators.ESSingle(task, pairs=8, truncation=20, horizon=(50, 200))
    outer = optax.chain(optax.clip(0.1), optax.adam(1e-2))
    state = lopt.meta_train(optimizer, estimator, outer, steps=args.steps, key=jax.random.key(1))
    for name, rule in {"before": optimizer, "after": state.optimizer}.items():
        record = lopt.train(rule, task, steps=100, key=jax.random.key(2), seeds=8)
        print(f"{name:>6} {args.steps} meta-steps: loss {record.train_loss[:, -1].mean():.5f} after 100 steps")


if __name__ == "__main__":
    main()
