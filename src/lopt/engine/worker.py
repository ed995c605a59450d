"""What a worker process does: it holds estimators with their inner states and estimates meta-gradients."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import time
from collections.abc import Callable, Sequence
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
    gradient: Any = None  # its leaves
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


@dataclasses.dataclass
class _Unit:
    """An estimator and its inner problems in flight, as leaves: to flatten the trees anew takes milliseconds a meta-step."""

    estimator: Any
    leaves: list[Any]  # of the estimator
    state: list[Any] | None = None  # leaves
    structure: Any = None  # of the state
    program: Callable[..., tuple[list[Any], list[Any], dict[str, Any]]] | None = None


class Worker:
    """A process with units: each is an estimator and its inner problems in flight.

    Args:
        variables: of the environment, as `lopt.machine.one_thread` has them.
        cache: where compiled programs are kept, or `None`.
        optimizer: of the meta-training at its start, packed; calls send leaves alone.
    """

    def __init__(self, variables: dict[str, str], cache: str | None, optimizer: Any):
        os.environ.update(variables)  # JAX reads them at the first computation
        jax.config.update("jax_compilation_cache_dir", cache)
        self.optimizer = unpack(optimizer)
        self.units: dict[int, _Unit] = {}
        self.init = jax.jit(lambda e, o, k: e.init(o, k))

    def hello(self) -> tuple[dict[str, str], int, str]:
        """Versions, process id, host."""
        return versions(), os.getpid(), platform.node()

    def load(self, unit: int, estimator: Any, state: Any) -> None:
        """Take a unit over; its state may follow by `begin`."""
        found = unpack(estimator)
        self.units[unit] = _Unit(found, jax.tree.leaves(found))
        if state is not None:
            self._hold(unit, unpack(state))

    def _hold(self, unit: int, state: Any) -> None:
        own = self.units[unit]
        own.state, own.structure = jax.tree.flatten(state)
        own.program = _program(jax.tree.structure(own.estimator), jax.tree.structure(self.optimizer), own.structure)

    def alive(self) -> None:
        """A sign of life, from a thread that does nothing else."""

    def begin(self, units: Sequence[int], keys: Sequence[Keys]) -> list[Answer]:
        """Start the inner problems of units."""
        for unit, key in zip(units, keys, strict=True):
            own = self.units[unit]
            self._hold(unit, self.init(own.estimator, self.optimizer, unpack(key)))
        return self.state(units)

    def state(self, units: Sequence[int]) -> list[Answer]:
        """The states of units."""
        return [Answer(self._packed(self.units[unit])) for unit in units]

    def _packed(self, unit: _Unit) -> Any:
        return None if unit.state is None else pack(jax.tree.unflatten(unit.structure, unit.state))

    def forget(self, units: Sequence[int]) -> list[Answer]:
        """Give units away, with their states."""
        answers = self.state(units)
        for unit in units:
            del self.units[unit]
        return answers

    def estimates(
        self, units: Sequence[int], meta_params: Sequence[np.ndarray], keys: Sequence[Keys], due: Sequence[bool]
    ) -> list[Answer]:
        """One estimate of each unit, with its state afterwards where that is due.

        Args:
            units: their numbers; all have states.
            meta_params: leaves of the optimizer.
            keys: one for each.
            due: whether to send the state.
        """
        began, leaves, found = time.perf_counter(), jax.device_put(list(meta_params)), []
        for unit, key in zip(units, keys, strict=True):
            own = self.units[unit]
            assert own.program is not None
            gradient, own.state, metrics = own.program(own.leaves, leaves, own.state, key.data)
            found.append((gradient, metrics))
        states = [self._packed(self.units[unit]) if is_due else None for unit, is_due in zip(units, due, strict=True)]
        answers = [Answer(state, *jax.device_get(given)) for state, given in zip(states, found, strict=True)]
        seconds = (time.perf_counter() - began) / len(units)
        return [answer._replace(seconds=seconds) for answer in answers]


@functools.lru_cache(maxsize=64)
def _program(estimator: Any, optimizer: Any, state: Any) -> Callable[..., tuple[list[Any], list[Any], dict[str, Any]]]:
    """An estimate of leaves in place of trees, compiled, for trees of these structures."""

    @jax.jit
    def estimate(e: list[Any], o: list[Any], s: list[Any], numbers: Any) -> tuple[list[Any], list[Any], dict[str, Any]]:
        trees = (jax.tree.unflatten(structure, x) for structure, x in ((estimator, e), (optimizer, o), (state, s)))
        own, meta_params, before = trees
        gradient, after, metrics = own.estimate(meta_params, before, jax.random.wrap_key_data(numbers))
        return jax.tree.leaves(gradient), jax.tree.leaves(after), metrics

    return estimate
