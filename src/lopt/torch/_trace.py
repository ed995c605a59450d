"""A rule seen from outside: what its state holds, how it starts, and its step as a program of PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, keystr

from lopt.blocks.nets import all_products
from lopt.blocks.tensors import for_all_platforms
from lopt.errors import InputError, needs_extra
from lopt.optimizer import Optimizer
from lopt.torch._program import Program, convert

with needs_extra("torch"):
    import torch
    from torch import Tensor

Shape = tuple[int, ...]


class Leaf(NamedTuple):
    """A leaf of the state of a rule.

    Attributes:
        name: its path, without the tensor.
        tensor: the number of the tensor it belongs to; `None` for what belongs to all.
        axis: along which it has one entry for every tensor that is not empty; `None` for what has no such axis.
        shape: of the leaf.
        dtype: of the leaf, in JAX.
    """

    name: str
    tensor: int | None
    axis: int | None
    shape: Shape
    dtype: Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """The leaves of the state of a rule for tensors of some shapes."""

    leaves: tuple[Leaf, ...]
    treedef: Any


def _key(i: int) -> str:
    return f"tensor {i:08d}"  # in the order of their numbers


def as_tree(tensors: Sequence[Any]) -> dict[str, Any]:
    """Tensors as the tree that a rule sees, whose leaves have their order."""
    return {_key(i): x for i, x in enumerate(tensors)}


def _params(shapes: Sequence[Shape]) -> dict[str, Any]:
    return as_tree([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])


def _start(rule: Optimizer, horizon: int | None, params: Any) -> Any:
    return rule.init(params, horizon=horizon, key=jax.random.key(0))


def layout(rule: Optimizer, shapes: Sequence[Shape], horizon: int | None) -> Layout:
    """The leaves of the state of `rule`, found by starting it for these tensors and for one more.

    Args:
        rule: the optimizer.
        shapes: of the tensors.
        horizon: steps of the training.

    Raises:
        InputError: where the rule needs the horizon and has none, and for a state that is not as `Leaf` describes it.
    """

    def leaves(shapes: Sequence[Shape]) -> tuple[list[tuple[Any, Any]], Any]:
        try:
            state = jax.eval_shape(lambda p: _start(rule, horizon, p), _params(shapes))
        except InputError as error:
            if horizon is not None:
                raise
            jax.eval_shape(lambda p: _start(rule, 1, p), _params(shapes))  # raises where it was not the horizon
            raise InputError(
                f"{type(rule).__name__} needs the length of the training in steps: LearnedOptimizer(..., horizon=steps)."
            ) from error
        return jax.tree_util.tree_leaves_with_path(state), jax.tree.structure(state)

    own, treedef = leaves(shapes)
    more = {keystr(path): leaf.shape for path, leaf in leaves([*shapes, (1,)])[0]}
    numbers, found = {_key(i): i for i in range(len(shapes))}, []
    for path, leaf in own:
        tensor = next((numbers[k.key] for k in path if isinstance(k, DictKey) and k.key in numbers), None)
        rest = [k for k in path if not (isinstance(k, DictKey) and k.key in numbers)]
        name = keystr(tuple(rest), simple=True, separator=".")
        if keystr(path) not in more:
            raise InputError(
                f"The state has {name}, and not for one tensor more; lopt.torch takes states whose names do not depend on the tensors."
            )
        axis = None if tensor is not None else _axis(name, leaf.shape, more[keystr(path)])
        found.append(Leaf(name, tensor, axis, leaf.shape, leaf.dtype))
    return Layout(tuple(found), treedef)


def _axis(name: str, shape: Shape, more: Shape) -> int | None:
    """The axis along which an array has one entry more for one tensor more."""
    differing = [i for i, (a, b) in enumerate(zip(shape, more, strict=False)) if a != b]
    if shape == more:
        return None
    if len(shape) == len(more) and len(differing) == 1 and more[differing[0]] == shape[differing[0]] + 1:
        return differing[0]
    raise InputError(
        f"The state's {name} has shape {shape}, and {more} for one tensor more; lopt.torch takes one entry more along one axis."
    )


def start(rule: Optimizer, params: Sequence[Tensor], horizon: int | None) -> list[Tensor]:
    """The leaves of the state of `rule` at its start, which JAX computes on the CPU, once.

    Args:
        rule: the optimizer.
        params: the parameters.
        horizon: steps of the training.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        arrays = as_tree([jnp.asarray(p.numpy(force=True)) for p in params])
        leaves = jax.tree.leaves(_start(rule, horizon, arrays))
    return [torch.from_numpy(np.array(x)).to(params[0].device) for x in leaves]


def step_program(
    rule: Optimizer,
    shapes: Sequence[Shape],
    state: Layout,
    device: torch.device,
    losses: Sequence[str],
) -> Program:
    """The function from gradients, parameters, leaves of the state and losses to updates and the next leaves.

    Args:
        rule: the optimizer.
        shapes: of the parameters.
        state: the leaves of its state.
        device: where it runs.
        losses: the keyword arguments of `Optimizer.update` that are losses.

    Raises:
        InputError: for what the rule refuses, such as no loss, and what PyTorch has no operation for.
    """
    params = _params(shapes)
    kinds = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in state.leaves]
    scalar = jax.ShapeDtypeStruct((), jnp.float32)

    def step(grads: Any, params: Any, leaves: Any, values: Sequence[Any]) -> Any:
        named = dict(zip(losses, values, strict=True))
        updates, new = rule.update(grads, state.treedef.unflatten(leaves), params, **named)
        return jax.tree.leaves(updates), jax.tree.leaves(new)

    with all_products(), for_all_platforms():
        closed = jax.make_jaxpr(step)(params, params, kinds, [scalar] * len(losses))
    return convert(closed, device)
