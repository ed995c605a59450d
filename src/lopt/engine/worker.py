"""What a worker process does: it holds estimators with their inner states and estimates meta-gradients."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopt.version import __version__


@dataclasses.dataclass(frozen=True)
class Keys:
    """A leaf that is an array of typed PRNG keys, on its way: its numbers."""

    data: np.ndarray


class Answer(NamedTuple):
    """What a worker says of one unit, packed: its state, where it is asked for, and an estimate, where one is."""

    state: Any = None
    gradient: Any = None  # the structure of the optimizer
    metrics: Any = None  # arrays by name
    seconds: float = 0.0  # that the estimate took


def pack(tree: Any) -> Any:
    """The same tree with numpy arrays, which can be sent."""

    def leaf(x: Any) -> Any:
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return Keys(np.asarray(jax.random.key_data(x))) if is_key else np.asarray(x)

    return jax.tree.map(leaf, tree)


def unpack(tree: Any) -> Any:
    """The tree that `pack` was given."""
    return jax.tree.map(
        lambda x: jax.random.wrap_key_data(jnp.asarray(x.data)) if isinstance(x, Keys) else jax.device_put(x), tree
    )


def versions() -> dict[str, str]:
    """What must be the same in the driver and all workers."""
    return {"lopt": __version__, "jax": jax.__version__, "Python": ".".join(platform.python_version_tuple()[:2])}


class Worker:
    """A process with units: each is an estimator and its inner problems in flight.

    Args:
        variables: of the environment, as `lopt.machine.one_thread` has them.
        cache: where compiled programs are kept, or `None`.
    """

    def __init__(self, variables: dict[str, str], cache: str | None):
        os.environ.update(variables)  # JAX reads them at the first computation
        jax.config.update("jax_compilation_cache_dir", cache)
        self.estimators: dict[int, Any] = {}
        self.states: dict[int, Any] = {}
        self.init = jax.jit(lambda e, o, k: e.init(o, k))
        self.estimate = jax.jit(lambda e, o, s, numbers: e.estimate(o, s, jax.random.wrap_key_data(numbers)))

    def hello(self) -> tuple[dict[str, str], int, str]:
        """Versions, process id, host."""
        return versions(), os.getpid(), platform.node()

    def load(self, unit: int, estimator: Any, state: Any) -> None:
        """Take a unit over; its state may follow by `begin`."""
        self.estimators[unit] = unpack(estimator)
        if state is not None:
            self.states[unit] = unpack(state)

    def alive(self) -> None:
        """A sign of life, from a thread that does nothing else."""

    def begin(self, units: Sequence[int], optimizer: Any, keys: Sequence[Keys]) -> list[Answer]:
        """Start the inner problems of units."""
        meta_params = unpack(optimizer)
        for unit, key in zip(units, keys, strict=True):
            self.states[unit] = self.init(self.estimators[unit], meta_params, unpack(key))
        return self.state(units)

    def state(self, units: Sequence[int]) -> list[Answer]:
        """The states of units."""
        return [Answer(pack(self.states.get(unit))) for unit in units]

    def forget(self, units: Sequence[int]) -> list[Answer]:
        """Give units away, with their states."""
        answers = self.state(units)
        for unit in units:
            del self.estimators[unit]
            self.states.pop(unit, None)
        return answers

    def estimates(
        self, units: Sequence[int], optimizer: Any, keys: Sequence[Keys], due: Sequence[bool]
    ) -> list[Answer]:
        """One estimate of each unit, with its state afterwards where that is due."""
        began, meta_params, found = time.perf_counter(), unpack(optimizer), []
        for unit, key in zip(units, keys, strict=True):
            found.append(self.estimate(self.estimators[unit], meta_params, self.states.get(unit), key.data))
        answers = [
            Answer(pack(state) if is_due else None, pack(gradient), pack(metrics))
            for (gradient, state, metrics), is_due in zip(found, due, strict=True)
        ]
        self.states |= {unit: state for unit, (_, state, _) in zip(units, found, strict=True)}
        seconds = (time.perf_counter() - began) / len(units)
        return [answer._replace(seconds=seconds) for answer in answers]
