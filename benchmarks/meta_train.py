"""Inner steps per second and time to the first meta-step of `lopt.meta_train`, with the cores used in three ways.

Run: `python benchmarks/meta_train.py`, about fifteen minutes. Writes `benchmarks/results/meta_train.json`.

Layouts, each in fresh processes:
- `threads`: one process, one device, as many threads as cores;
- `devices`: one process, a device a core, pairs spread over them with `shard_map` (what the `lopt` command does);
- `processes`: a single-threaded process pinned to each core, all at the same time, each with all its pairs; their throughput is added.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from common import RESULTS, cores, header, machine, show, spread, text, write

LAYOUTS = ("threads", "devices", "processes")
TASKS: dict[str, dict[str, Any]] = {"digits_mlp": {}, "quadratic": {"dim": 100}}


class Case(NamedTuple):
    """What is meta-trained."""

    task: str
    estimator: str
    optimizer: str
    pairs: int
    truncation: int


def work(case: Case, devices: int, core: int) -> None:
    """Meta-train in this process. Says when the first meta-step is done, then takes as many more as each line of its input asks for."""
    if core >= 0:
        os.sched_setaffinity(0, {core})
    import jax
    import optax

    jax.config.update("jax_num_cpu_devices", devices)
    import lopt

    task = lopt.tasks.create(case.task, **TASKS.get(case.task, {}))
    estimator = lopt.estimators.ESTIMATORS[case.estimator](
        task, pairs=case.pairs, truncation=case.truncation, horizon=(2 * case.truncation, 10 * case.truncation)
    )
    optimizer = lopt.create(case.optimizer, key=jax.random.key(0))
    outer = optax.chain(optax.clip(0.1), optax.adam(1e-3))
    times: list[float] = []
    wanted, mark = 1, time.perf_counter()

    def on_step(progress: Any) -> None:
        """Runs between two meta-steps: what it takes itself is not counted."""
        nonlocal wanted, mark
        times.append(time.perf_counter() - mark)
        if len(times) == wanted:
            report = {"times": times, "at": time.time(), "inner_steps": estimator.inner_steps}
            print(json.dumps(report), flush=True)
            times.clear()
            wanted = int(sys.stdin.readline() or 0)
            if wanted == 0:
                sys.exit()
        mark = time.perf_counter()

    lopt.meta_train(optimizer, estimator, outer, steps=10**9, key=jax.random.key(1), on_step=on_step)


class Layout:
    """The processes of one layout, ready to take meta-steps."""

    def __init__(self, name: str, case: Case):
        workers = [(1, core) for core in cores()] if name == "processes" else [(1, -1)]
        if name == "devices":
            workers = [(len(cores()), -1)]
        began = time.time()
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", json.dumps([case, *worker])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for worker in workers
        ]
        first = self.read()
        self.inner_steps = first[0]["inner_steps"]
        self.first_seconds = max(f["at"] for f in first) - began
        self.compile_seconds = max(f["times"][0] for f in first)
        self.times: list[list[float]] = [[] for _ in workers]

    def read(self) -> list[dict[str, Any]]:
        """A line of each process."""
        lines = [p.stdout.readline() if p.stdout else "" for p in self.processes]
        if not all(lines):
            self.close()
            sys.exit("A worker failed; its message is above.")
        return [json.loads(line) for line in lines]

    def take(self, steps: int) -> None:
        """Meta-steps in all processes at the same time."""
        self.tell(f"{steps}\n")
        for times, answer in zip(self.times, self.read(), strict=True):
            times += answer["times"]

    def tell(self, line: str) -> None:
        for p in self.processes:
            if p.stdin:
                p.stdin.write(line)
                p.stdin.flush()

    def close(self) -> None:
        for p in self.processes:
            p.communicate()

    def result(self) -> dict[str, Any]:
        rates = [self.inner_steps / spread(times, 8)["median"] for times in self.times]
        return {
            "inner_steps_per_second": round(sum(rates)),
            "meta_step_ms": spread([1e3 * t for times in self.times for t in times]),
            "first_meta_step_seconds": round(self.first_seconds, 2),
            "compile_seconds": round(self.compile_seconds, 2),
            "meta_steps": len(self.times[0]),
        }


def main(
    tasks: tuple[str, ...] = tuple(TASKS),
    estimators: tuple[str, ...] = ("pes", "es_single"),
    optimizers: tuple[str, ...] = ("small_fc", "star"),
    pairs: tuple[int, ...] = (8, 32),
    layouts: tuple[str, ...] = LAYOUTS,
    truncation: int = 50,
    turns: int = 10,
    seconds: float = 0.4,
    out: Path = RESULTS / "meta_train.json",
) -> None:
    """Measure the throughput of meta-training.

    Args:
        tasks: names from `lopt list`.
        estimators: names from `lopt list`.
        optimizers: names from `lopt list`.
        pairs: antithetic pairs a meta-step.
        layouts: how the cores are used: threads, devices, processes.
        truncation: inner steps a meta-step.
        turns: how often each layout has its turn.
        seconds: how long a turn lasts, about.
        out: the JSON file to write.
    """
    facts = machine()
    results: list[dict[str, Any]] = []
    header("task", "estimator", "optimizer", "pairs", "layout", "inner steps/s", "meta-step ms", "first s", "compile s")
    for task, estimator, optimizer, n in product(tasks, estimators, optimizers, pairs):
        case = Case(task, estimator, optimizer, n, truncation)
        running: dict[str, Layout] = {}
        for name in layouts:  # one after the other: the time to the first meta-step is each layout's own
            running[name] = Layout(name, case)
            running[name].take(3)  # warm
            running[name].times = [[] for _ in running[name].processes]
        steps: dict[str, int] = {}
        for turn, (name, layout) in product(range(turns), running.items()):
            if turn == 0:
                layout.take(1)
                steps[name] = max(1, round(seconds / layout.times[0][0]))
                layout.times = [[] for _ in layout.processes]
            layout.take(steps[name])
        for name, layout in running.items():
            layout.close()
            row = {**case._asdict(), "layout": name, **layout.result()}
            results.append(row)
            seconds_shown = (round(row[k], 1) for k in ("first_meta_step_seconds", "compile_seconds"))
            show(*case[:4], name, row["inner_steps_per_second"], text(row["meta_step_ms"]), *seconds_shown)
        write(out, facts, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        fields, n_devices, pinned_core = json.loads(sys.argv[2])
        work(Case(*fields), n_devices, pinned_core)
    else:
        tyro.cli(main)
