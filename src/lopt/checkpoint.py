"""Trees of arrays on disk: safetensors, by write-then-rename."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
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

CHECKSUM = "sha256"  # of the data, in the metadata of a file


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
    """The path of every leaf, as `rule.net.weights.0`.

    Raises:
        InputError: where two leaves have one name, as the leaf `a.b` and the leaf `b` of `a` have.
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    found = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    twice = sorted({name for name in found if found.count(name) > 1}) if len(set(found)) < len(found) else []
    if twice:
        raise InputError(f"Two leaves of the tree are called {twice[0]!r}; rename one of them.")
    return found


def digest(tree: PyTree) -> str:
    """SHA-256 of the names, dtypes, shapes and numbers of a tree's leaves."""
    return _digest(_arrays(tree))


def digest_of_program(function: Callable[..., Any], *args: Any) -> str:
    """What a function computes, as a digest of the program that JAX traces. Names of functions do not tell what closures hold.

    Args:
        function: of trees of arrays.
        args: arrays or `ShapeDtypeStruct`s; only shapes and dtypes matter.
    """
    traced = jax.make_jaxpr(function)(*args)
    found = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode())
    found.update(digest(traced.consts).encode())
    return found.hexdigest()


def to_bytes(tree: PyTree) -> bytes:
    """A tree of arrays as one safetensors file with a checksum of its data; typed PRNG keys are stored as their data.

    Raises:
        InputError: where two leaves have one name.
    """
    arrays = _arrays(tree)
    return safetensors.numpy.save(arrays, {CHECKSUM: _digest(arrays)})


def from_bytes(content: bytes, like: Tree, source: str, *, checked: bool = False) -> Tree:
    """The tree that `to_bytes` wrote.

    Args:
        content: the file.
        like: a tree of the same structure, of arrays or `ShapeDtypeStruct`s.
        source: what to call the file in an error.
        checked: whether the caller has compared a checksum of the whole file, so that the file need not hold one.

    Raises:
        CheckpointError: if the file is damaged, or its names, shapes or dtypes are not those of `like`.
    """
    try:
        arrays = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        known = header.get("__metadata__", {}).get(CHECKSUM)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source} is damaged or truncated: {error}.") from error
    if not checked and known != _digest(arrays):
        raise CheckpointError(f"{source} is damaged: its data do not have the checksum that it holds.")
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


def _arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves by their names, on the host."""
    leaves = jax.device_get([_plain(leaf) for leaf in jax.tree.leaves(tree)])
    return {name: np.asarray(x, order="C") for name, x in zip(names(tree), leaves, strict=True)}


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        found.update(arrays[name].tobytes())
    return found.hexdigest()


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
