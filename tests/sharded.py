"""A program for `test_sharding.py`: three steps of every optimizer on sharded and on whole parameters, in a process with two devices."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

import lopt
from registry import OPTIMIZERS

# Chunks with a remainder, cut along the second axis, as the first does not divide; then small tensors of every rank.
SHAPES = {"w": (401, 170), "b": (170,), "conv": (4, 3, 2, 2), "scalar": (), "twin": (4, 3, 2, 2)}


def random(seed: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {name: jax.random.normal(k, s) for k, (name, s) in zip(keys, SHAPES.items(), strict=True)}


def shard(tree: PyTree) -> PyTree:
    """Every array cut over the devices along its first axis of even length, if it has one."""
    mesh = jax.make_mesh((2,), ("shard",), axis_types=(AxisType.Auto,))

    def cut(x: jax.Array) -> jax.Array:
        even = next((i for i, n in enumerate(x.shape) if n % 2 == 0), None)
        spec = PartitionSpec() if even is None else PartitionSpec(*[None] * even, "shard")
        return jax.device_put(x, NamedSharding(mesh, spec))

    return jax.tree.map(cut, tree)


def steps(optimizer: lopt.Optimizer, place: Callable[[PyTree], PyTree]) -> dict[str, np.ndarray]:
    """Of three, the third update."""

    @jax.jit
    def update(grads: Any, state: Any, params: Any, loss: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, value=loss)
        return updates, optax.apply_updates(params, updates), state

    params = updates = place(random(0))
    state = place(optimizer.init(params, horizon=10))
    for seed in (1, 2, 3):
        updates, params, state = update(place(random(seed)), state, params, jnp.float32(3.0 / seed))
    devices = {name: len(x.sharding.device_set) for name, x in updates.items()}
    assert set(devices.values()) == ({2} if place is shard else {1}), devices
    return {name: np.asarray(x, np.float64) for name, x in updates.items()}


def main() -> None:
    assert jax.device_count() == 2
    errors = {}
    for row in OPTIMIZERS:
        optimizer = row.create(**row.converging)
        leaves, treedef = jax.tree.flatten(optimizer)
        noise = jax.random.normal(jax.random.key(4), (sum(x.size for x in leaves),))
        noise = jnp.split(noise, list(itertools.accumulate(x.size for x in leaves))[:-1])
        # So that none puts out zero.
        optimizer = treedef.unflatten([x + 0.01 * n.reshape(x.shape) for x, n in zip(leaves, noise, strict=True)])
        whole, sharded = steps(optimizer, lambda tree: tree), steps(optimizer, shard)
        errors[row.name] = {n: float(np.abs(sharded[n] - u).max() / np.abs(u).max()) for n, u in whole.items()}
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
