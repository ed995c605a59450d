"""What a learned optimizer takes in PyTorch, and what its rule needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from lopt.errors import InputError, needs_extra
from lopt.optimizer import Optimizer
from lopt.torch import _trace as trace

with needs_extra("torch"):
    import torch
    from torch import Tensor


def check_parameters(params: Sequence[Tensor], backend: str) -> None:
    """Refuse parameters that no rule can take, or not together.

    Args:
        params: the parameters.
        backend: what computes the update.

    Raises:
        InputError: for one that is sparse, or not real floating-point, or on another device than the first, or not on the CPU for JAX.
    """
    for p in params:
        if p.layout != torch.strided:
            raise InputError(f"A parameter is sparse ({p.layout}); LearnedOptimizer takes dense ones.")
        if not p.is_floating_point():
            raise InputError(f"A parameter is {p.dtype}; LearnedOptimizer takes real floating-point ones.")
        if p.device != params[0].device:
            raise InputError(
                f"Parameters are on {params[0].device} and {p.device}; LearnedOptimizer takes those of one device."
            )
        if backend == "jax" and p.device.type != "cpu":
            raise InputError(f'A parameter is on {p.device}; backend="jax" is for the CPU.')


def dense(gradient: Any) -> Tensor:
    """A gradient that is not sparse.

    Raises:
        InputError: for one that is.
    """
    if gradient.layout != torch.strided:
        raise InputError("A gradient is sparse; build the embedding with sparse=False.")
    return gradient


def known(number: float | Tensor) -> float | None:
    """A number, where reading it waits for no device and breaks no graph."""
    if isinstance(number, Tensor):
        return None if number.device.type != "cpu" or torch.compiler.is_compiling() else float(number)
    return number


@torch.compiler.disable  # JAX traces the rule, which is no part of a graph
def evaluates_elsewhere(rule: Optimizer) -> bool:
    """Whether the parameters to deploy, `eval_params`, may be others than those that a training holds."""
    found: list[bool] = []

    def look(x: jax.Array) -> jax.Array:
        params = {"x": x}
        state = rule.init(params, horizon=1, key=jax.random.key(0))
        found.append(rule.eval_params(state, params) is not params)
        return x

    jax.eval_shape(look, jax.ShapeDtypeStruct((2, 2), "float32"))
    return found[0]


@torch.compiler.disable  # JAX traces the rule, which is no part of a graph
def needs_loss(rule: Optimizer, horizon: int | None) -> bool:
    """Whether the rule needs the loss.

    Raises:
        InputError: where it needs the horizon and has none.
    """
    trace.layout(rule, [(1,)], horizon)

    def step(x: jax.Array) -> Any:
        params = {"x": x}
        return rule.update(params, rule.init(params, horizon=horizon, key=jax.random.key(0)), params)

    try:
        jax.eval_shape(step, jax.ShapeDtypeStruct((1,), "float32"))
    except InputError:
        return True
    return False
