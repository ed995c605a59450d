"""Inner steps per second, time to the first meta-step and memory of `lopt.meta_train`, for every estimator, with the cores used in three ways.

Run: `python benchmarks/meta_train.py`, about an hour; `--estimators pes --optimizers small_fc` is a part of it. Writes `benchmarks/results/meta_train.json`.

Layouts, each in fresh processes:
- `threads`: one process, one device, as many threads as cores;
- `devices`: one process, a device a core, pairs spread over them with `shard_map` (what the `lopt` command does);
- `processes`: a single-threaded process pinned to each core, all at the same time, each with all its pairs; their throughput is added.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from common import RESULTS, cores, header, machine, show, spread, text, write

ESTIMATORS = ("pes", "es_single", "noise_reuse_es", "truncated_es", "full_es", "backprop", "merged")
WHOLE = ("full_es", "merged")  # their unrolls are whole problems, of the length of the truncation
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

    estimator, optimizer = build(case)
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


def build(case: Case) -> tuple[Any, Any]:
    """The estimator and the optimizer. Backpropagation alone has as many particles as the others have pairs, as in the reference's figures."""
    import jax

    import lopt

    task, kind = lopt.tasks.create(case.task, **TASKS.get(case.task, {})), lopt.estimators.ESTIMATORS[case.estimator]
    whole = case.estimator in WHOLE
    fields: dict[str, Any] = {"particles" if case.estimator == "backprop" else "pairs": case.pairs}
    fields["horizon"] = case.truncation if whole else (2 * case.truncation, 10 * case.truncation)
    if not whole:
        fields["truncation"] = case.truncation
    return kind(task, **fields), lopt.create(case.optimizer, key=jax.random.key(0))


def memory(case: Case) -> None:
    """Print the temporary bytes of one estimate."""
    import jax

    estimator, optimizer = build(case)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda e, o, k: e.init(o, k), estimator, optimizer, key)
    step = jax.jit(lambda e, o, s, k: e.estimate(o, s, k), donate_argnums=2)
    found = step.lower(estimator, optimizer, state, key).compile().memory_analysis()
    print(json.dumps(found.temp_size_in_bytes if found else None))


def once(case: Case) -> dict[str, Any]:
    """What needs no turns: temporary memory, and the time to the first meta-step with a warm compilation cache."""
    command = [sys.executable, __file__, "--memory", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    with tempfile.TemporaryDirectory() as cache:
        settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        starts = []
        for _ in range(2):
            layout = Layout("threads", case, settings)
            layout.close()
            starts.append(layout.first_seconds)
    return {"temp_megabytes": round(json.loads(done.stdout) / 1e6, 2), "second_start_seconds": round(starts[1], 2)}


class Layout:
    """The processes of one layout, ready to take meta-steps."""

    def __init__(self, name: str, case: Case, settings: dict[str, str] | None = None):
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
                env={**os.environ, **(settings or {})},
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
    estimators: tuple[str, ...] = ESTIMATORS,
    optimizers: tuple[str, ...] = ("small_fc", "star"),
    pairs: tuple[int, ...] = (8, 32),
    layouts: tuple[str, ...] = LAYOUTS,
    truncations: tuple[int, ...] = (50,),
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
        truncations: inner steps a meta-step.
        turns: how often each layout has its turn.
        seconds: how long a turn lasts, about.
        out: the JSON file to write.
    """
    facts = machine()
    results: list[dict[str, Any]] = []
    case_columns = ("task", "estimator", "optimizer", "pairs", "truncation", "layout")
    header(*case_columns, "inner steps/s", "meta-step ms", "first s", "compile s", "again s", "MB")
    for case in itertools.starmap(Case, product(tasks, estimators, optimizers, pairs, truncations)):
        shared = once(case)
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
            row = {**case._asdict(), "layout": name, **layout.result(), **shared}
            results.append(row)
            seconds_shown = (round(row[k], 1) for k in ("first_meta_step_seconds", "compile_seconds"))
            rest = (row["second_start_seconds"], row["temp_megabytes"])
            show(*case, name, row["inner_steps_per_second"], text(row["meta_step_ms"]), *seconds_shown, *rest)
        write(out, facts, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        fields, n_devices, pinned_core = json.loads(sys.argv[2])
        work(Case(*fields), n_devices, pinned_core)
    elif sys.argv[1:2] == ["--memory"]:
        memory(Case(*json.loads(sys.argv[2])))
    else:
        tyro.cli(main)
