"""A step that JAX runs on the CPU, on memory that PyTorch shares with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.blocks.tensors import STACKED
from lopt.errors import needs_extra
from lopt.optimizer import Optimizer, are_finite, step_if
from lopt.torch._trace import Layout, Shape, as_tree

with needs_extra("torch"):
    import torch
    from torch import Tensor

Arrays = list[jax.Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How tensors are handed over: those of one shape as one stack, for a hand-over costs tens of microseconds.

    Attributes:
        stacks: the numbers of the tensors of each stack; a tensor that is large or like no other is one of its own.
        layout: of the state.
        losses: the keyword arguments of `Optimizer.update` that are losses.
    """

    stacks: tuple[tuple[int, ...], ...]
    layout: Layout
    losses: tuple[str, ...]

    @property
    def fields(self) -> list[list[int]]:
        """The leaves of the state that are one array: of a stack of tensors, or of all tensors."""
        at = {i: s for s, stack in enumerate(self.stacks) for i in stack}
        found: dict[Any, list[int]] = {}
        for k, leaf in enumerate(self.layout.leaves):
            found.setdefault(k if leaf.tensor is None else (leaf.name, at[leaf.tensor]), []).append(k)
        return list(found.values())


def plan(shapes: Sequence[Shape], layout: Layout, losses: Sequence[str]) -> Plan:
    """Stack the small tensors of one shape.

    Args:
        shapes: of the tensors.
        layout: of the state.
        losses: the keyword arguments that are losses.
    """
    alike: dict[Any, list[int]] = {}
    for i, shape in enumerate(shapes):
        size = int(np.prod(shape))
        alike.setdefault(shape if 0 < size <= STACKED else i, []).append(i)
    return Plan(tuple(map(tuple, alike.values())), layout, tuple(losses))


class Bridge:
    """The step of a rule for some tensors, with its state, which JAX holds and overwrites in place.

    Args:
        rule: the optimizer.
        shapes: of the tensors.
        layout: of the state.
        leaves: of the state; they are copied.
        losses: the keyword arguments of `Optimizer.update` that are losses.
    """

    def __init__(
        self,
        rule: Optimizer,
        shapes: Sequence[Shape],
        layout: Layout,
        leaves: Sequence[Tensor],
        losses: Sequence[str],
    ):
        self._cpu = jax.devices("cpu")[0]
        self._rule, self._plan = jax.device_put(rule, self._cpu), plan(shapes, layout, losses)
        self._state = [
            jax.device_put(_stacked([leaves[k].numpy(force=True) for k in field]), self._cpu)
            for field in self._plan.fields
        ]
        # One buffer for each stack of several, and its rows, for gradients and for parameters.
        self._buffers = [
            [torch.empty(len(stack), *shapes[stack[0]]) if len(stack) > 1 else None for stack in self._plan.stacks]
            for _ in range(2)
        ]
        self._rows = [[row for b in buffers if b is not None for row in b.unbind()] for buffers in self._buffers]
        self._order = [i for stack in self._plan.stacks if len(stack) > 1 for i in stack]

    @torch.compiler.disable  # what JAX runs is no part of a graph
    def __call__(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], losses: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """The updates, zero where a number is not finite, and whether all were finite. The state moves on."""
        values = [np.float32(x.item()) for x in losses]
        given = [self._handed(xs, i) for i, xs in enumerate((grads, params))]
        updates, finite, self._state = jax.block_until_ready(
            _step(self._plan, self._rule, given[0], self._state, given[1], values)
        )
        found: list[Any] = [None] * len(grads)
        for stack, array in zip(self._plan.stacks, updates, strict=True):
            for i, row in zip(stack, _unstacked(_to_torch(array), len(stack)), strict=True):
                found[i] = row
        return found, _to_torch(finite)

    def leaves(self) -> list[Tensor]:
        """The leaves of the state as it is now, in memory of their own."""
        found: list[Any] = [None] * len(self._plan.layout.leaves)
        for field, array in zip(self._plan.fields, self._state, strict=True):
            for k, row in zip(field, _unstacked(np.array(array), len(field)), strict=True):
                found[k] = torch.from_numpy(np.array(row))
        return found

    def _handed(self, tensors: Sequence[Tensor], which: int) -> Arrays:
        """Tensors as JAX sees them, without a copy but for the small ones that are stacked."""
        if self._order:
            torch._foreach_copy_(self._rows[which], [tensors[i] for i in self._order])  # pyright: ignore[reportPrivateImportUsage]
        pairs = zip(self._plan.stacks, self._buffers[which], strict=True)
        return [self._to_jax(tensors[stack[0]] if buffer is None else buffer) for stack, buffer in pairs]

    def _to_jax(self, x: Tensor) -> jax.Array:
        return jnp.from_dlpack(x.contiguous()) if x.numel() else jnp.zeros(x.shape, jnp.float32, device=self._cpu)


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _step(
    plan: Plan, rule: Optimizer, grads: Arrays, state: Arrays, params: Arrays, losses: Sequence[Any]
) -> tuple[Arrays, jax.Array, Arrays]:
    """One step on stacks. The guard is around them: within it, what is taken apart here and what a rule stacks of it again is the same to XLA."""

    def take(given: tuple[Any, ...], state: Arrays) -> tuple[Arrays, Arrays]:
        rule, grads, params, losses = given
        tree = plan.layout.treedef.unflatten(_rows(plan.fields, state))
        updates, new = rule.update(
            as_tree(_rows(plan.stacks, grads)), tree, as_tree(_rows(plan.stacks, params)), **losses
        )
        return _stacks(plan.stacks, jax.tree.leaves(updates)), _stacks(plan.fields, jax.tree.leaves(new))

    finite = are_finite(grads, params)
    extra = dict(zip(plan.losses, losses, strict=True))
    updates, new = step_if(finite, take, (rule, grads, params, extra), state, params)
    return updates, finite, new


def _rows(stacks: Sequence[Sequence[int]], arrays: Arrays) -> Arrays:
    """The rows of stacks, each at its number."""
    rows: dict[int, jax.Array] = {}
    for stack, array in zip(stacks, arrays, strict=True):
        rows |= dict(zip(stack, _unstacked(array, len(stack)), strict=True))
    return [rows[i] for i in range(len(rows))]


def _stacks(stacks: Sequence[Sequence[int]], rows: Arrays) -> Arrays:
    """The reverse of `_rows`."""
    return [_stacked([rows[i] for i in stack]) for stack in stacks]


def _stacked(rows: Sequence[Any]) -> Any:
    """A stack of several, or the one that there is."""
    if len(rows) == 1:
        return rows[0]
    return np.stack(rows) if isinstance(rows[0], np.ndarray) else jnp.stack(rows)


def _unstacked(stack: Any, count: int) -> Sequence[Any]:
    """The reverse of `_stacked`."""
    return [stack[i] for i in range(count)] if count > 1 else [stack]


def _to_torch(x: jax.Array) -> Tensor:
    return torch.from_dlpack(x) if x.size else torch.zeros(x.shape)
