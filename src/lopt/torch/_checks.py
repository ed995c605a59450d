"""What a learned optimizer takes in PyTorch, and what its rule needs."""

from __future__ import annotations

from typing import Any

import jax

from lopt.errors import InputError, needs_extra
from lopt.optimizer import Optimizer
from lopt.torch import _trace as trace

with needs_extra("torch"):
    import torch
    from torch import Tensor


def check_parameter(p: Tensor, device: torch.device | None) -> None:
    """Refuse a parameter that no rule can take.

    Args:
        p: the parameter.
        device: of the other parameters.

    Raises:
        InputError: for one that is sparse, or not real floating-point, or on another device.
    """
    if p.layout != torch.strided:
        raise InputError(f"A parameter is sparse ({p.layout}); LearnedOptimizer takes dense ones.")
    if not p.is_floating_point():
        raise InputError(f"A parameter is {p.dtype}; LearnedOptimizer takes real floating-point ones.")
    if device is not None and p.device != device:
        raise InputError(f"Parameters are on {device} and {p.device}; LearnedOptimizer takes those of one device.")


def dense(gradient: Any) -> Tensor:
    """A gradient that is not sparse.

    Raises:
        InputError: for one that is.
    """
    if gradient.layout != torch.strided:
        raise InputError("A gradient is sparse; build the embedding with sparse=False.")
    return gradient


def evaluates_elsewhere(rule: Optimizer, horizon: int | None) -> bool:
    """Whether the parameters to deploy, `eval_params`, are others than those that a training holds."""
    found: list[bool] = []

    def look(x: jax.Array) -> jax.Array:
        params = {"x": x}
        state = rule.init(params, horizon=horizon, key=jax.random.key(0))
        found.append(rule.eval_params(state, params) is not params)
        return x

    jax.eval_shape(look, jax.ShapeDtypeStruct((2, 2), "float32"))
    return found[0]


def needs_loss(rule: Optimizer, horizon: int | None) -> bool:
    """Whether the rule needs the loss.

    Raises:
        InputError: where it needs the horizon and has none.
    """
    name = type(rule).__name__
    try:
        trace.layout(rule, [(1,)], horizon)
    except InputError as error:
        if horizon is not None:
            raise
        raise InputError(
            f"{name} needs the length of the training in steps: LearnedOptimizer(..., horizon=steps)."
        ) from error

    def step(x: jax.Array) -> Any:
        params = {"x": x}
        return rule.update(params, rule.init(params, horizon=horizon, key=jax.random.key(0)), params)

    try:
        jax.eval_shape(step, jax.ShapeDtypeStruct((1,), "float32"))
    except InputError:
        return True
    return False
