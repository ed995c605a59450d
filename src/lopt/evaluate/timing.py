"""The stopwatch: what inner steps cost, in turns, and on what machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.machine import cores
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.unroll import Inner, start, step
from lopt.version import __version__

TURNS = 10  # of a timing
STRETCH_SECONDS = 0.03  # about what each stretch takes in a turn


def machine() -> dict[str, Any]:
    """What a figure depends on. `load_before` is the number of runnable processes a minute before: well below 1 if the machine is quiet.

    Windows does not count them: `load_before` is None there.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {
        "cpu": next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
        ),
        "cores": len(cores()),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "lopt": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **{name: os.environ[name] for name in ("PJRT_NPROC",) if name in os.environ},  # threads of JAX on the CPU
    }


class Spread(NamedTuple):
    """Median and quartiles of what was measured several times; NaN where nothing was."""

    median: float
    low: float
    high: float

    def as_json(self, digits: int = 4) -> dict[str, float]:
        """To so many significant digits, as results are written."""
        return {name: float(f"{x:.{digits}g}") for name, x in zip(("median", "q1", "q3"), self, strict=True)}


def spread(values: Sequence[float] | Float[np.ndarray, " turns"]) -> Spread:
    """Median and quartiles; NaN of nothing."""
    if not len(values):
        return Spread(float("nan"), float("nan"), float("nan"))
    low, median, high = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])
    return Spread(float(median), float(low), float(high))


class Stretch:
    """Inner steps of one training, which can be timed again and again. Steps are guarded, as those of `train` are.

    Args:
        optimizer: what trains.
        task: what is trained.
        horizon: inner steps of the whole training, which the optimizer is told.
        key: draws problem, start and minibatches.
        length: inner steps of a call; by default as many as take about `STRETCH_SECONDS`, which `prepare` finds out.
    """

    def __init__(self, optimizer: Optimizer, task: Task, horizon: int, key: PRNGKeyArray, length: int | None = None):
        self.optimizer, self.task, self.horizon, self.key = optimizer, task, horizon, key
        self.length, self.fixed = length or 1, length is not None
        self.inner: Any = None
        self.program: Callable[..., Inner] | None = None
        self.compile_seconds = 0.0

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(x.size for x in jax.tree.leaves(self.inner.params))

    def compile(self) -> None:
        """Start the training and compile its steps, once. This may be done beside other work."""
        if self.program is None:
            self.inner = jax.jit(start, static_argnums=3)(self.optimizer, self.task, self.key, self.horizon)
            began = time.perf_counter()
            self.program = jax.jit(_steps).lower(self.optimizer, self.task, self.inner, self.key, 1).compile()
            self.compile_seconds = time.perf_counter() - began

    def prepare(self) -> None:
        """Warm up and, where it is not given, find the length."""
        self()
        if not self.fixed:
            self.length = 4
            self.length = int(np.clip(STRETCH_SECONDS / self(), 1, self.horizon))

    def __call__(self) -> float:
        """Seconds a step."""
        self.compile()
        assert self.program is not None
        began = time.perf_counter()
        jax.block_until_ready(self.program(self.optimizer, self.task, self.inner, self.key, self.length))
        return (time.perf_counter() - began) / self.length


def _steps(optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, length: Int[Array, ""]) -> Inner:
    """Steps whose number is an argument: one program for all lengths."""

    def one(i: Int[Array, ""], inner: Inner) -> Inner:
        return step(optimizer, task, inner, jax.random.fold_in(key, i), guarded=True)[0]

    return jax.lax.fori_loop(0, length, one, inner)


def in_turns(stretches: Mapping[str, Stretch], turns: int = TURNS) -> dict[str, Float[np.ndarray, " turns"]]:
    """Seconds a step of every stretch, all of them in every turn, so that whatever else the machine does falls on all.

    Each turn begins with the next stretch, so that none always follows the same one.

    Args:
        stretches: by label.
        turns: how many.
    """
    with ThreadPoolExecutor(len(cores())) as pool:
        list(pool.map(Stretch.compile, stretches.values()))
    for stretch in stretches.values():
        stretch.prepare()
    labels = list(stretches)
    found = {label: np.zeros(turns) for label in labels}
    for turn in range(turns):
        for i in range(len(labels)):
            label = labels[(turn + i) % len(labels)]
            found[label][turn] = stretches[label]()
    return found


__all__ = ["Spread", "Stretch", "in_turns", "machine", "spread"]
