"""Optimizers as their users have them: with the guard of lopt."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, PRNGKeyArray

from lopt.optimizer import Optimizer, Params, State, Updates, update_if_finite


class Guarded(Optimizer):
    """An optimizer with the guard of `to_optax`.

    Args:
        rule: the optimizer.
    """

    rule: Optimizer

    @property
    def validation_every(self) -> int:
        """Of the optimizer."""
        return self.rule.validation_every

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> State:
        """State of the optimizer."""
        return self.rule.init(params, key=key, horizon=horizon)

    def update(self, updates: Updates, state: State, params: Params, **extra: Any) -> tuple[Updates, State]:
        """`update_if_finite`."""
        return update_if_finite(self.rule, updates, state, params, **extra)

    def eval_params(self, state: State, params: Params) -> Params:
        """Of the optimizer."""
        return self.rule.eval_params(state, params)
