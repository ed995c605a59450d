"""Apply a rule tensor by tensor, in chunks that stay in cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

CHUNK = 32_768  # elements; a few float32 arrays of this size fit the level-2 cache

Chunks = tuple[Array, ...]


def map_tensors(
    fn: Callable[[Array, Any, Array], tuple[Array, Any]], updates: PyTree, states: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """`fn(gradient, tensor_state, parameter) -> (update, tensor_state)` on every tensor of a tree.

    Gradients and parameters are handed over in float32 and the update is cast back to the dtype of the parameter.
    Empty tensors pass through; `None` leaves are no tensors.

    Args:
        fn: the per-tensor rule.
        updates: gradients.
        states: a tree of the same structure with any state in the place of each tensor.
        params: parameters.
    """
    param_leaves, treedef = jax.tree.flatten(params)
    gradients, tensor_states = treedef.flatten_up_to(updates), treedef.flatten_up_to(states)
    new_updates, new_states = [], []
    for g, s, p in zip(gradients, tensor_states, param_leaves, strict=True):
        if p.size == 0:
            update, state = jnp.zeros_like(p), s
        else:
            update, state = fn(g.astype(jnp.float32), s, p.astype(jnp.float32))
        new_updates.append(update.astype(p.dtype))
        new_states.append(state)
    return treedef.unflatten(new_updates), treedef.unflatten(new_states)


def chunked(
    fn: Callable[[Chunks, Chunks], tuple[Chunks, Array]],
    overwrite: Sequence[Array],
    read: Sequence[Array],
    *,
    chunk: int = CHUNK,
) -> tuple[Chunks, Array]:
    """Run an elementwise rule over a tensor a chunk at a time, so that its temporaries never leave the cache.

    `fn(overwrite, read) -> (overwrite, sums)` sees matching chunks. Small tensors are one chunk without a loop.

    Args:
        fn: the rule; its first result has the shapes of its first argument, its second is any array, summed over chunks.
        overwrite: arrays of one shape, replaced in place by the first result; may be none, where only the sums are of interest.
        read: arrays that broadcast against that shape, with the same number of axes; without `overwrite`, the first has that shape.
        chunk: elements a chunk.
    """
    overwrite, read = tuple(overwrite), tuple(read)
    shape = (*overwrite, *read)[0].shape
    if math.prod(shape) <= chunk:
        return fn(overwrite, read)
    rows, row_size = shape[0], math.prod(shape[1:])
    most = max(1, chunk // row_size)
    # A divisor leaves no remainder to compile; where the nearest is small, take the remainder.
    per = next((p for p in range(most, most // 2, -1) if rows % p == 0), most)

    def run(arrays: Chunks, begin: Array | int, length: int) -> tuple[Chunks, Array]:
        def cut(a: Array) -> Array:
            return a if a.shape[0] == 1 else jax.lax.dynamic_slice_in_dim(a, begin, length, 0)

        ow, rd = tuple(cut(a) for a in arrays), tuple(cut(a) for a in read)
        if length == 1 and row_size > chunk:  # a single row is still too large: descend into it
            inner, sums = chunked(fn, [a[0] for a in ow], [a[0] for a in rd], chunk=chunk)
            new = tuple(a[None] for a in inner)
        else:
            new, sums = fn(ow, rd)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(a, n, begin, 0) for a, n in zip(arrays, new, strict=True)
        ), sums

    def body(i: Array, carry: tuple[Chunks, Array]) -> tuple[Chunks, Array]:
        arrays, total = carry
        arrays, sums = run(arrays, i * per, per)
        return arrays, total + sums

    sums_shape = jax.eval_shape(lambda a: run(a, 0, per)[1], overwrite)
    carry = (overwrite, jnp.zeros(sums_shape.shape, sums_shape.dtype))
    arrays, total = jax.lax.fori_loop(0, rows // per, body, carry)
    if rows % per:
        arrays, sums = run(arrays, rows - rows % per, rows % per)
        total = total + sums
    return arrays, total
