"""Does staleness hurt? The demo's mixture is meta-trained with meta-gradients that are a fixed number of meta-steps old.

Run: `python benchmarks/staleness.py`. Writes `benchmarks/results/staleness.json`; what a stopped run has done is kept there and not done again.

Every seed has the same initial meta-parameters, inner problems and noise at all delays, so differences are paired. The final meta-loss of a run
is the mean over its last hundred meta-steps.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import numpy as np
import tyro

from common import RESULTS, header, machine, show, write
from lopt.engine import Engine, Gradients, gradients
from lopt.estimators import Estimator
from lopt.evaluate.scores.statistics import mean_interval
from lopt.meta_train import Progress, meta_train
from lopt.optimizer import Optimizer
from lopt.recipes import recipe

LAST = 100  # meta-steps whose mean is the final meta-loss

_gradients, _begin = jax.jit(gradients), jax.jit(lambda e, o, k: tuple(x.init(o, jax.random.fold_in(k, i)) for i, x in enumerate(e)))  # fmt: skip


class Delayed(Engine):
    r"""In this process; every meta-gradient is taken at the meta-parameters of `delay` meta-steps ago: $\hat g_t = \hat g(\theta_{t-d})$."""

    def __init__(self, delay: int):
        self.delay = delay
        self.past: deque[Optimizer] = deque(maxlen=delay + 1)

    @property
    def traceable(self) -> bool:
        return False

    def begin(self, optimizer: Optimizer, estimators: Sequence[Estimator], key: Any) -> tuple[Any, ...]:
        return _begin(tuple(estimators), optimizer, key)

    def gradients(
        self, optimizer: Optimizer, estimators: Sequence[Estimator], states: tuple[Any, ...], key: Any
    ) -> Gradients:
        self.past.append(optimizer)
        return _gradients(self.past[0], tuple(estimators), states, key)

    def gather(self, states: tuple[Any, ...]) -> tuple[Any, ...]:
        return states

    def describe(self, estimators: Sequence[Estimator]) -> dict[str, Any]:
        del estimators
        return {"engine": "delayed", "delay": self.delay}


def measure(delay: int, seed: int, steps: int) -> dict[str, Any]:
    """One meta-training."""
    init_key, key = jax.random.split(jax.random.key(seed))
    optimizer, estimators, outer = recipe("demo").build(init_key, steps)
    losses: list[float] = []

    def keep(p: Progress) -> None:
        losses.append(p.meta_loss)

    meta_train(optimizer, estimators, outer, steps=steps, key=key, engine=Delayed(delay), on_step=keep)
    last = float(np.mean(losses[-LAST:]))
    return {"delay": delay, "seed": seed, "steps": steps, "first": float(np.mean(losses[:LAST])), "final": last}


def main(
    delays: tuple[int, ...] = (0, 1, 5, 20, 50),
    seeds: int = 5,
    steps: int = 1_000,
    out: Path = RESULTS / "staleness.json",
) -> None:
    """Meta-train at every delay with every seed, then print means with 95 % intervals over seeds.

    Args:
        delays: in meta-steps.
        seeds: meta-trainings at each delay.
        steps: meta-steps of each.
        out: where the figures go.
    """
    done = json.loads(out.read_bytes())["results"] if out.exists() else []
    for seed in range(seeds):
        for delay in delays:
            if not any((r["delay"], r["seed"], r["steps"]) == (delay, seed, steps) for r in done):
                began = time.process_time()
                found = measure(delay, seed, steps)
                done.append(found | {"cpu_seconds": round(time.process_time() - began, 1)})
                write(out, machine(), done)
    header("delay, meta-steps", "final meta-loss", "worse than without delay, paired")
    fresh = _finals(done, delays[0], steps)
    for delay in delays:
        finals = _finals(done, delay, steps)
        common = sorted(set(finals) & set(fresh))
        values = np.array([finals[s] for s in common])
        more = values - np.array([fresh[s] for s in common])
        show(delay, mean_interval(values), "–" if delay == delays[0] else mean_interval(more))


def _finals(done: list[dict[str, Any]], delay: int, steps: int) -> dict[int, float]:
    return {r["seed"]: r["final"] for r in done if (r["delay"], r["steps"]) == (delay, steps)}


if __name__ == "__main__":
    tyro.cli(main)
