"""Trees of arrays on disk: safetensors, by write-then-rename."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from lopt.errors import InputError

Tree = TypeVar("Tree")


class CheckpointError(InputError):
    """A file is not what it should be; the message says in what way."""


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one or the new one, never half of either."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """`write_text` for bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def names(tree: PyTree) -> list[str]:
    """The path of every leaf, as `rule.net.weights.0`."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]


def to_bytes(tree: PyTree, metadata: dict[str, Any] | None = None) -> bytes:
    """A tree of arrays as one safetensors file; typed PRNG keys are stored as their data."""
    arrays = {
        name: np.asarray(jax.device_get(_plain(leaf)), order="C")
        for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True)
    }
    return safetensors.numpy.save(arrays, {k: json.dumps(v) for k, v in (metadata or {}).items()})


def from_bytes(content: bytes, like: Tree, source: str) -> Tree:
    """The tree that `to_bytes` wrote.

    Args:
        content: the file.
        like: a tree of the same structure, of arrays or `ShapeDtypeStruct`s.
        source: what to call the file in an error.

    Raises:
        CheckpointError: if the file is damaged, or its names, shapes or dtypes are not those of `like`.
    """
    try:
        arrays = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source} is damaged or truncated: {error}.") from error
    leaves, treedef = jax.tree.flatten(like)
    expected = names(like)
    if set(arrays) != set(expected):
        odd = sorted(set(arrays) ^ set(expected))
        raise CheckpointError(
            f"{source} belongs to another architecture: it and this one differ in {', '.join(odd[:3])}"
            f"{' and more' if len(odd) > 3 else ''}."
        )
    loaded = []
    for name, leaf in zip(expected, leaves, strict=True):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        shape = jax.eval_shape(_plain, leaf) if is_key else leaf
        found = arrays[name]
        if found.shape != shape.shape or found.dtype != shape.dtype:
            raise CheckpointError(
                f"{source} belongs to another architecture: {name} is {found.dtype}{list(found.shape)}, "
                f"expected {shape.dtype}{list(shape.shape)}."
            )
        array = jax.device_put(found)  # not `asarray`, which compiles a program for every shape
        loaded.append(jax.random.wrap_key_data(array) if is_key else array)
    return treedef.unflatten(loaded)


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
