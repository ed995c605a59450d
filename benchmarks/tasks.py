"""Time of a step of Adam on every named task, against one on `digits_mlp`, and on sampled tasks, with the number of compiled programs.

Run: `python benchmarks/tasks.py`, about five minutes. Writes `benchmarks/results/tasks.json`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

import lopt
from common import RESULTS, header, machine, show, spread, text, write
from lopt.evaluate.bench.measure import stretch
from lopt.evaluate.timing import Stretch, in_turns


def named(task: str, base: Stretch, steps: int, repeats: int) -> dict[str, Any]:
    """Times of a task and of `digits_mlp`, in turns."""
    this = stretch(lopt.tasks.create(task), steps)
    seconds = in_turns({"this": this, "base": base}, repeats)
    return {
        "task": task,
        "parameters": this.parameters,
        "step_ms": spread(1e3 * seconds["this"]),
        "ratio_to_digits_mlp": spread(seconds["this"] / seconds["base"]),
        "compile_seconds": round(this.compile_seconds, 3),
        "repeats": repeats,
    }


@partial(jax.jit, static_argnums=4)
def losses(optimizer: lopt.Optimizer, task: lopt.Task, problems: Any, keys: Any, steps: int) -> Any:
    """Training losses of every problem, `[problems, steps]`."""

    def one(problem: Any, key: Any) -> Any:
        params = task.init(problem, key)
        zero, memory = jnp.zeros((), jnp.int32), task.remember(problem, params)
        inner = lopt.Inner(problem, params, optimizer.init(params), zero, zero + steps, memory)
        return lopt.unroll(optimizer, task, inner, key, steps)[1]

    return jax.vmap(one)(problems, keys)


def sampled(count: int, steps: int) -> dict[str, Any]:
    """Seeds 0 to `count`: each takes `steps` steps of Adam; the times are weighted as the seeds are."""
    times, failures, compiles, seconds = [], 0, 0, 0.0
    for task in lopt.tasks.sample_tasks(range(count)).values():
        this = stretch(task, steps)
        this.prepare()
        compiles, seconds = compiles + 1, seconds + this.compile_seconds
        took = 1e3 * min(this() for _ in range(3))
        problems = len(task.variations.share)
        found = losses(this.optimizer, task, task.variations, jax.random.split(jax.random.key(0), problems), steps)
        failures += problems - int(jnp.isfinite(found).all(axis=1).sum())
        times += [took] * problems
    return {
        "task": f"{count} sampled tasks",
        "programs": compiles,
        "compile_seconds": round(seconds, 3),
        "steps": steps,
        "not_finite": failures,
        "step_ms": spread(times),
        "slowest_step_ms": round(max(times), 4),
    }


def main(
    tasks: tuple[str, ...] = tuple(sorted(lopt.tasks.TASKS)),
    seeds: int = 200,
    steps: int = 20,
    repeats: int = 20,
    out: Path = RESULTS / "tasks.json",
) -> None:
    """Time tasks.

    Args:
        tasks: names from `lopt list`, at their defaults.
        seeds: sampled tasks, from seed 0.
        steps: inner steps of each timed stretch, one compiled scan.
        repeats: pairs of stretches that are timed.
        out: the JSON file to write.
    """
    facts = machine()
    results: list[dict[str, Any]] = []
    base = stretch(lopt.tasks.create("digits_mlp"), steps)
    header("task", "parameters", "ms a step", "ratio to digits_mlp", "compile s")
    for task in tasks:
        results.append(row := named(task, base, steps, repeats))
        times = text(row["step_ms"]), text(row["ratio_to_digits_mlp"])
        show(task, row["parameters"], *times, row["compile_seconds"])
        write(out, facts, results)
    if seeds:
        results.append(row := sampled(seeds, steps))
        write(out, facts, results)
        print(f"\n{row['task']}: {row['programs']} programs, compiled in {row['compile_seconds']} s; ", end="")
        print(f"{text(row['step_ms'])} ms a step, slowest {row['slowest_step_ms']}; {row['not_finite']} not finite")


if __name__ == "__main__":
    tyro.cli(main)
