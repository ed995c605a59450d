"""Trainings of networks of 1e6 and 1e7 parameters beside tuned Adam: losses, milliseconds of a whole step, memory.

Run: `python benchmarks/large.py`, a quarter of an hour. Writes `benchmarks/results/large.json`, row by row.
"""

from __future__ import annotations

import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import lopt
from common import RESULTS, header, machine, show, spread, write
from lopt.evaluate.timing import Stretch, in_turns
from lopt.evaluate.training import default_key, train
from lopt.optimizer import Optimizer
from lopt.tasks import TaskName, create

NETWORKS = {  # the task, and steps of a training
    "MLP 784-1024-256-10": (TaskName("fashion_mlp", {"size": 28, "widths": (1024, 256)}), 500),
    "transformer, width 144, depth 4": (
        TaskName("char_transformer", {"width": 144, "depth": 4, "length": 32, "batch_size": 8}),
        300,
    ),
    "MLP 784-4096-1536-10": (TaskName("fashion_mlp", {"size": 28, "widths": (4096, 1536)}), 200),
}
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of Adam


def optimizer(name: str) -> Optimizer:
    """One of `lopt list` with fields as `adam:0.001`, or a saved one."""
    rule, _, rate = name.partition(":")
    if rule not in lopt.optimizers.OPTIMIZERS:
        return lopt.load(name)
    fields: dict[str, Any] = {"learning_rate": float(rate)} if rate else {}
    return lopt.create(rule, **fields)


def trained(network: str, name: str, told: bool) -> dict[str, float]:
    """One training in a process of its own, for its peak of memory."""
    task, steps = NETWORKS[network]
    found = train(optimizer(name), create(task), steps=steps, key=default_key(0), evals=4, tell_horizon=told)
    return {
        "train_loss": float(found.train_loss[0, -1]),
        "test_loss": float(found.test_loss[0, -1]),
        "highest_over_first": float(np.max(found.minibatch_loss[0]) / found.minibatch_loss[0, 0]),
        "megabytes": _peak(),
    }


def _peak() -> float:
    """Megabytes of this process at most; `resource` would give those of the process that started it where they are more."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found.group(1)) / 1024 if found else float("nan")


def alone(*arguments: Any) -> dict[str, float]:
    """`trained` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(trained, *arguments).result()


def main(
    optimizers: tuple[str, ...] = ("general-2", "general-1"),
    turns: int = 5,
    out: Path = RESULTS / "large.json",
) -> None:
    """Train, time, print.

    Args:
        optimizers: names of the zoo, paths, or names from `lopt list` with a rate, as `momentum:0.1`; each trains told the horizon and untold.
        turns: of timing; in a turn each optimizer takes a stretch of steps.
        out: the JSON file to write.
    """
    facts, results = machine(), []
    columns = ("network", "parameters", "optimizer", "train loss", "test loss", "highest loss / first")
    header(*columns, "MB at the peak", "ms a step", "ratio to Adam", "bytes of state a parameter")
    for network, (name, steps) in NETWORKS.items():
        task = create(name)
        sweep = {f"adam:{rate:g}": alone(network, f"adam:{rate:g}", True) for rate in RATES}
        best = min(sweep, key=lambda n: sweep[n]["train_loss"] if np.isfinite(sweep[n]["train_loss"]) else np.inf)
        rows = {best: sweep[best]}
        for n in optimizers:
            rows |= {f"{n}{'' if told else ', untold'}": alone(network, n, told) for told in (True, False)}
        stretches = {n: Stretch(optimizer(n), task, steps, default_key(0)) for n in (best, *optimizers)}
        seconds = in_turns(stretches, turns)
        params = jax.eval_shape(lambda key, task=task: task.init(task.sample(key), key), jax.random.key(0))
        count = sum(x.size for x in jax.tree.leaves(params))
        for label, losses in rows.items():
            who = label.removesuffix(", untold")
            state = jax.eval_shape(lambda p, who=who: optimizer(who).init(p, key=jax.random.key(0), horizon=1), params)
            state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / count
            times = {"ms": spread(1e3 * seconds[who]), "ratio_to_adam": spread(seconds[who] / seconds[best])}
            row = {"network": network, "parameters": count, "steps": steps, "optimizer": label, **losses, **times}
            results.append({**row, "state_bytes_per_parameter": state_bytes})
            shown = (f"{losses[k]:.3g}" for k in ("train_loss", "test_loss", "highest_over_first"))
            ms, ratio = f"{times['ms']['median']:.3g}", f"{times['ratio_to_adam']['median']:.3g}"
            show(network, f"{count:,}", label, *shown, f"{losses['megabytes']:.0f}", ms, ratio, f"{state_bytes:.1f}")
            write(out, facts, results)


if __name__ == "__main__":
    tyro.cli(main)
