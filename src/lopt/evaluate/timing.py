"""What an inner step of a task costs, and on what machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.machine import cores
from lopt.optimizers.hand_designed import Adam
from lopt.task import Problem, Task
from lopt.unroll import Inner, unroll
from lopt.version import __version__


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
    }


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and quartiles, to `digits` significant digits."""
    quartiles = np.quantile(np.asarray(values, np.float64), [0.5, 0.25, 0.75])
    return dict(zip(("median", "q1", "q3"), (float(f"{q:.{digits}g}") for q in quartiles), strict=True))


class Stretch:
    """A compiled stretch of inner steps of Adam that can be run again and again, for any problem of the task.

    Args:
        task: what is trained.
        steps: inner steps, one scan.
    """

    def __init__(self, task: Task, steps: int):
        self.task, self.steps, self.adam = task, steps, Adam(learning_rate=1e-3)
        self.start = jax.jit(self._start)
        self.problem = jax.jit(lambda task, key: task.sample(key))(task, jax.random.key(0))
        self.inner = self.start(task, self.problem, jax.random.key(1))
        self.parameters = sum(x.size for x in jax.tree.leaves(self.inner.params))
        began = time.perf_counter()
        run = jax.jit(lambda task, inner, key: unroll(self.adam, task, inner, key, steps)[1])
        self.program = run.lower(task, self.inner, jax.random.key(2)).compile()
        self.compile_seconds = time.perf_counter() - began

    def _start(self, task: Task, problem: Problem, key: PRNGKeyArray) -> Inner:
        params = task.init(problem, key)
        memory = task.remember(problem, params)
        return Inner(problem, params, self.adam.init(params), jnp.int32(0), jnp.int32(self.steps), memory)

    def __call__(self) -> float:
        """Milliseconds a step."""
        began = time.perf_counter()
        jax.block_until_ready(self.program(self.task, self.inner, jax.random.key(3)))
        return 1e3 * (time.perf_counter() - began) / self.steps

    def losses(self, problem: Problem, key: PRNGKeyArray) -> Float[Array, " steps"]:
        """Training losses of one problem."""
        return self.program(self.task, self.start(self.task, problem, key), key)


def in_turns(stretch: Stretch, base: Stretch, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds a step of a stretch, and their ratios to those of another, run in turns so that whatever else the machine does falls on both."""
    pairs = [(base(), stretch()) for _ in range(repeats + 1)][1:]  # warm by then
    return [t for _, t in pairs], [t / b for b, t in pairs]
