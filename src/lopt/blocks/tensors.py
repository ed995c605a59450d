"""Apply a rule tensor by tensor, in chunks that stay in cache."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.extend
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

CHUNK = 32_768  # elements; a few float32 arrays of this size fit the level-2 cache
STACKED = 8 * CHUNK  # numbers of a tensor, its gradient and its state, up to which a copy costs little

Chunks = tuple[Array, ...]
TreeDef = Any  # jax.tree_util.PyTreeDef, which is no type to a type checker
Sums = TypeVar("Sums")  # a tree of arrays
Result = TypeVar("Result")

_ALL_PLATFORMS = contextvars.ContextVar("_ALL_PLATFORMS", default=False)


@contextlib.contextmanager
def for_all_platforms() -> Iterator[None]:
    """Within it, programs are traced for platforms that this machine lacks too: around `jax.export` for a GPU on a machine with nothing but CPUs."""
    token = _ALL_PLATFORMS.set(True)
    try:
        yield
    finally:
        _ALL_PLATFORMS.reset(token)


def per_platform(*operands: Any, cpu: Callable[..., Result], default: Callable[..., Result]) -> Result:
    """`cpu(*operands)` in programs for CPUs, `default(*operands)` in others.

    On a machine with nothing but CPUs the second is not traced, which is half of the tracing of a step; see `for_all_platforms`.

    Args:
        *operands: trees of arrays.
        cpu: gives what `default` gives.
        default: for every other platform.
    """
    if _ALL_PLATFORMS.get() or jax.extend.backend.backends().keys() != {"cpu"}:
        return jax.lax.platform_dependent(*operands, cpu=cpu, default=default)
    return cpu(*operands)


def init_tensors(fn: Callable[[Array], Any], params: PyTree) -> PyTree:
    """The start of a state: `fn(parameter)` of every tensor, as one tree of the structure of `params` for each array that `fn` gives.

    Optax and Flax take such a state for what it is: quantities of parameters. What `fn` gives has one structure, whatever the shape.

    Args:
        fn: the start of one tensor: a tree of arrays.
        params: parameters.
    """
    leaves, treedef = jax.tree.flatten(params)
    tensors = [fn(p) for p in leaves]
    # Without tensors the structure is still that of one.
    kind = jax.tree.structure(tensors[0] if tensors else jax.eval_shape(fn, jnp.zeros((), jnp.float32)))
    return kind.unflatten([treedef.unflatten(field) for field in _transposed(kind, tensors)])


def split_tensors(states: PyTree, treedef: TreeDef) -> tuple[TreeDef, list[Any]]:
    """The structure of the state of one tensor and the states of all, of a state from `init_tensors`.

    Args:
        states: trees of the structure of the parameters, in any tree.
        treedef: the structure of the parameters.
    """
    fields, kind = jax.tree.flatten(states, is_leaf=lambda x: jax.tree.structure(x) == treedef)
    columns = [treedef.flatten_up_to(field) for field in fields]
    return kind, [kind.unflatten([column[i] for column in columns]) for i in range(treedef.num_leaves)]


def join_tensors(kind: TreeDef, tensors: Sequence[Any], treedef: TreeDef) -> PyTree:
    """The reverse of `split_tensors`."""
    return kind.unflatten([treedef.unflatten(field) for field in _transposed(kind, tensors)])


def _transposed(kind: TreeDef, tensors: Sequence[Any]) -> list[list[Any]]:
    rows = [kind.flatten_up_to(t) for t in tensors]
    return [[row[i] for row in rows] for i in range(kind.num_leaves)]


def map_tensors(
    fn: Callable[[Array, Any, Array], tuple[Array, Any]], updates: PyTree, states: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """`fn(gradient, tensor_state, parameter) -> (update, tensor_state)` on every tensor of a tree.

    Gradients and parameters are handed over in float32 and the update is cast back to the dtype of the parameter.
    Empty tensors pass through; `None` leaves are no tensors. Under `jit`, small tensors of one shape are stacked, and the rule is compiled once for all of
    them, for compilation is most of what a short training takes: on a CPU they take turns in one loop, elsewhere they are one batch. Large ones are not
    stacked, for stacking copies them.

    Args:
        fn: the per-tensor rule.
        updates: gradients.
        states: trees of the same structure, in any tree, as from `init_tensors`; the rule sees that tree with an array of its tensor for each.
        params: parameters.
    """
    param_leaves, treedef = jax.tree.flatten(params)
    kind, tensor_states = split_tensors(states, treedef)
    leaves = list(zip(treedef.flatten_up_to(updates), tensor_states, param_leaves, strict=True))

    def step(leaf: tuple[Array, Any, Array]) -> tuple[Array, Any]:
        g, s, p = leaf
        update, state = fn(g.astype(jnp.float32), s, p.astype(jnp.float32))
        return update.astype(p.dtype), state

    once = jax.jit(step)  # traced once for tensors that are alike, however they are run

    def stack(*arrays: Array) -> Array:
        return jnp.stack(arrays)

    found: dict[int, tuple[Array, Any]] = {}
    for alike in _alike(leaves):
        first = leaves[alike[0]]
        if first[2].size == 0:
            found |= {i: (jnp.zeros_like(leaves[i][2]), leaves[i][1]) for i in alike}
        elif not isinstance(first[2], Tracer):
            found |= {i: step(leaves[i]) for i in alike}
        elif len(alike) == 1 or _numbers(first) > STACKED:
            found |= {i: once(leaves[i]) for i in alike}
        else:
            stacked = jax.tree.map(stack, *(leaves[i] for i in alike))
            stacked = per_platform(stacked, cpu=partial(jax.lax.map, once), default=jax.vmap(once))
            found |= {i: jax.tree.map(lambda x, k=k: x[k], stacked) for k, i in enumerate(alike)}
    new_updates = [found[i][0] for i in range(len(leaves))]
    new_states = join_tensors(kind, [found[i][1] for i in range(len(leaves))], treedef)
    return treedef.unflatten(new_updates), new_states


def _alike(leaves: Sequence[PyTree]) -> list[list[int]]:
    """Indices of trees that have the same structure, shapes, dtypes and shardings. One with a leaf that is no array is like no other."""
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        arrays, treedef = jax.tree.flatten(leaf)
        kinds = (jax.typeof(x) if isinstance(x, Array) else i for x in arrays)
        groups.setdefault((treedef, *kinds), []).append(i)
    return list(groups.values())


def _numbers(leaf: PyTree) -> int:
    return sum(x.size for x in jax.tree.leaves(leaf))


def tile(vector: Float[Array, " units"], param: Array) -> Float[Array, "units ..."]:
    """A vector for every element of a parameter, in memory of its own, so that a state that is donated does not take its start along."""
    return jnp.array(jnp.broadcast_to(vector.reshape(-1, *[1] * param.ndim), (len(vector), *param.shape)))


def chunk_for(width: int) -> int:
    """Elements a chunk for a rule that keeps about `width` numbers for each."""
    return max(256, 4 * CHUNK // max(4, width))


def chunked(
    fn: Callable[[Chunks, Chunks], tuple[Chunks, Sums]],
    overwrite: Sequence[Array],
    read: Sequence[Array],
    *,
    chunk: int = CHUNK,
    staged: bool = False,
) -> tuple[Chunks, Sums]:
    """Run an elementwise rule over a tensor, on a CPU a chunk at a time, so that its temporaries never leave the cache.

    `fn(overwrite, read) -> (overwrite, sums)` sees matching chunks. Small tensors are one chunk without a loop. So are all where the program is not
    compiled for a CPU: a loop would keep an accelerator waiting.

    Args:
        fn: the rule; its first result has the shapes of its first argument, its second is any tree of arrays, summed over chunks.
        overwrite: arrays replaced in place by the first result. The first has the shape of the tensor; others may have one more
            axis in front, such as hidden units.
        read: arrays that broadcast against that shape, with the same number of axes or one more in front.
        chunk: elements a chunk.
        staged: copy every chunk out before the rule and back after it. For rules with matrix products: they are several loops, and XLA,
            which lets each of them read the whole array, would copy all of it for every chunk.
    """
    overwrite, read = tuple(overwrite), tuple(read)
    if math.prod((*overwrite, *read)[0].shape) <= chunk:
        return fn(overwrite, read)
    return per_platform(overwrite, read, cpu=partial(_in_chunks, fn, chunk=chunk, staged=staged), default=fn)


def _in_chunks(
    fn: Callable[[Chunks, Chunks], tuple[Chunks, Sums]], overwrite: Chunks, read: Chunks, *, chunk: int, staged: bool
) -> tuple[Chunks, Sums]:
    """`chunked` of more than a chunk, in a loop."""
    shape = (*overwrite, *read)[0].shape
    # Counted from the end, so that an axis in front does not matter.
    axis, rows, row_size = -len(shape), shape[0], math.prod(shape[1:])
    most = max(1, chunk // row_size)
    # A divisor leaves no remainder to compile; where the nearest is small, take the remainder.
    per = next((p for p in range(most, most // 2, -1) if rows % p == 0), most)

    def run(arrays: Chunks, begin: Array | int, length: int) -> tuple[Chunks, Sums]:
        def cut(a: Array) -> Array:
            return a if a.shape[axis] == 1 else jax.lax.dynamic_slice_in_dim(a, begin, length, axis)

        ow, rd = tuple(cut(a) for a in arrays), tuple(cut(a) for a in read)
        if length == 1 and row_size > chunk:  # a single row is still too large: descend into it
            within = tuple(tuple(a.squeeze(axis) for a in arrays) for arrays in (ow, rd))
            inner, sums = _in_chunks(fn, *within, chunk=chunk, staged=staged)
            new = tuple(jnp.expand_dims(a, axis) for a in inner)
        elif staged:
            # Always true, which XLA does not know; what enters and leaves a branch is held in memory.
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, ow, rd))
            new, sums = jax.lax.cond(jnp.asarray(begin) >= 0, lambda: fn(ow, rd), lambda: nothing)
        else:
            new, sums = fn(ow, rd)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(a, n, begin, axis) for a, n in zip(arrays, new, strict=True)
        ), sums

    def body(i: Array, carry: tuple[Chunks, Sums]) -> tuple[Chunks, Sums]:
        arrays, total = carry
        arrays, sums = run(arrays, i * per, per)
        return arrays, jax.tree.map(jnp.add, total, sums)

    sums_shape = jax.eval_shape(lambda a: run(a, 0, per)[1], overwrite)
    carry = (overwrite, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums_shape))
    arrays, total = jax.lax.fori_loop(0, rows // per, body, carry)
    if rows % per:
        arrays, sums = run(arrays, rows - rows % per, rows % per)
        total = jax.tree.map(jnp.add, total, sums)
    return arrays, total
