"""Two workers against one, and one worker against this process: inner steps per second of meta-training on Ray.

Run: `python benchmarks/workers.py`, on a quiet machine of two cores or more. Writes `benchmarks/results/workers.json`.

The ways take turns within one call, a block of meta-steps each; ratios are of blocks of the same turn. One and two workers are measured synchronous
and asynchronous, and every process computes on one thread. What the machine itself gives two processes stands beside them: two meta-trainings that
know nothing of each other, at once, over one alone.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lopt.machine import one_thread

os.environ.update(one_thread())  # before JAX reads them

import jax
import numpy as np
import ray
import tyro

from common import RESULTS, header, machine, show, spread, text, write
from lopt.engine import Engine, Local, RayEngine
from lopt.engine.connection import connect
from lopt.meta_train import as_outer, meta_init, meta_step
from lopt.recipes import recipe

MIXTURES = {
    "demo": 1,
    "conv_net": 2,
}  # recipe, and how often its estimators are taken, so that two workers have one each
KINDS = {"synchronous": None, "asynchronous": 5}  # the staleness of each


class Way:
    """A meta-training that goes on a block at a time."""

    def __init__(self, name: str, engine: Engine):
        optimizer, estimators, outer = recipe(name, curriculum=0).build(jax.random.key(0), 1_000)
        self.estimators, self.engine = estimators * MIXTURES[name], engine
        self.outer = as_outer(outer)
        self.state = meta_init(optimizer, self.estimators, self.outer, jax.random.key(1), engine=engine)
        step: Any = meta_step
        if engine.traceable:
            step = jax.jit(meta_step, static_argnames=("engine", "average"))
        self.step = step
        self.block(3)

    def block(self, steps: int) -> tuple[float, float]:
        """So many meta-steps: inner steps per second of time, and processor seconds of this process.

        The workers of an asynchronous engine have two estimates under way at the end. The block waits for them, so that they do not disturb the next
        way. Each block begins with meta-steps that are not counted: they use such estimates up.
        """
        self._go(3)
        began, processor = time.perf_counter(), time.process_time()
        inner = self._go(steps)
        found = inner / (time.perf_counter() - began), time.process_time() - processor
        if isinstance(self.engine, RayEngine) and self.engine.pool is not None and self.engine.pool.under_way:
            ray.wait([*self.engine.pool.under_way], num_returns=len(self.engine.pool.under_way))
        return found

    def _go(self, steps: int) -> float:
        """Inner steps of so many meta-steps."""
        inner = 0.0
        for _ in range(steps):
            self.state, metrics = self.step(self.estimators, self.outer, self.state, engine=self.engine)
            inner += float(metrics["inner_steps"])
        return inner


class Apart:
    """A meta-training in a process of its own, which inherits the variables of this one."""

    def __init__(self, name: str):
        self.way = Way(name, Local(devices=1))

    def block(self, steps: int) -> float:
        """Inner steps per second."""
        return self.way.block(steps)[0]


def apart(name: str, turns: int, steps: int) -> np.ndarray:
    """Inner steps per second of two processes together, over those of one while the other rests."""
    kind: Any = ray.remote(Apart).options(num_cpus=1)
    first, second = pair = [kind.remote(name) for _ in range(2)]
    found = []
    ray.get([each.block.remote(1) for each in pair])  # compiled
    for _ in range(turns):
        alone, *both = (ray.get([x.block.remote(steps) for x in some]) for some in ([first], pair))
        found.append(np.sum(both) / np.sum(alone))
    for each in (first, second):
        ray.kill(each)
    return np.array(found)


def main(
    mixtures: tuple[str, ...] = tuple(MIXTURES),
    turns: int = 9,
    steps: int = 15,
    out: Path = RESULTS / "workers.json",
) -> None:
    """Measure in turns.

    Args:
        mixtures: recipes.
        turns: how many.
        steps: meta-steps of a block.
        out: where the figures go.
    """
    facts = machine()
    connect(cpus=6)  # a place for the workers of all engines, which take turns
    results = []
    header(
        "mixture",
        "",
        "one worker over this process",
        "two workers over this process",
        "two workers over one",
        "two processes apart over one",
        "load",
    )
    for name in mixtures:
        engines: dict[str, Engine] = {"local": Local(devices=1)}
        for kind, staleness in KINDS.items():
            engines |= {
                f"one, {kind}": RayEngine(1, staleness=staleness),
                f"two, {kind}": RayEngine(2, staleness=staleness),
            }
        ways = {way: Way(name, engine) for way, engine in engines.items()}
        turned = [{way: one.block(steps) for way, one in ways.items()} for _ in range(turns)]
        for engine in engines.values():
            if isinstance(engine, RayEngine):
                engine.stop()
        speed, driver = ({way: np.array([turn[way][i] for turn in turned]) for way in ways} for i in (0, 1))
        row = {
            "mixture": name,
            "inner_steps_per_second": {way: spread(x) for way, x in speed.items()},
            "one_over_local": {kind: spread(speed[f"one, {kind}"] / speed["local"]) for kind in KINDS},
            "two_over_one": {kind: spread(speed[f"two, {kind}"] / speed[f"one, {kind}"]) for kind in KINDS},
            "two_over_local": {kind: spread(speed[f"two, {kind}"] / speed["local"]) for kind in KINDS},
            "apart_over_one": spread(apart(name, turns, steps)),
            "driver_processor_seconds": {way: spread(x) for way, x in driver.items()},
            "load": os.getloadavg()[0],
        }
        results.append(row)
        for kind in KINDS:
            show(
                name,
                kind,
                text(row["one_over_local"][kind]),
                text(row["two_over_local"][kind]),
                text(row["two_over_one"][kind]),
                text(row["apart_over_one"]),
                f"{row['load']:.1f}",
            )
        write(out, facts, results)


if __name__ == "__main__":
    tyro.cli(main)
