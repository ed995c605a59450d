"""Time of whole training steps, gradient and update, over those of Adam, on networks of the benches.

Run: `python benchmarks/seconds.py`. Writes `benchmarks/results/seconds.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import tyro

import lopt
from common import RESULTS, header, machine, show, spread, text, write
from lopt.evaluate.timing import TURNS, Stretch, in_turns
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.tasks import TaskName, create

HORIZON = 10_000
ADAM = "adam"
WARM = 16  # steps before any is timed: some optimizers do more at the first ones
NETWORKS = {  # the task, sizes of a batch, steps of a stretch
    "MLP 64-32-10, digits": (TaskName("digits_mlp", {"widths": (32,)}), (16, 64, 256), 512),
    "MLP 784-128-64-10, Fashion-MNIST": (TaskName("fashion_mlp", {"size": 28, "widths": (128, 64)}), (16, 64, 256), 32),
    "conv net, 28x28 Fashion-MNIST": (TaskName("conv_net", {"images": "fashion_28"}), (16, 64), 32),
    "transformer, text": (TaskName("char_transformer", {"width": 64}), (4, 16), 8),
}


def optimizer(name: str) -> Optimizer:
    """One of `lopt list` at its defaults, or a saved one."""
    return lopt.create(name) if name in lopt.optimizers.OPTIMIZERS else lopt.load(name)


def main(
    optimizers: tuple[str, ...] = ("general-1", "controlled_muon"),
    turns: int = TURNS,
    out: Path = RESULTS / "seconds.json",
) -> None:
    """Time steps.

    Args:
        optimizers: names from `lopt list`, names of the zoo, or paths; all are told the horizon.
        turns: of each network and batch; in a turn each optimizer takes a stretch of steps.
        out: the JSON file to write.
    """
    facts = machine()
    results: list[dict[str, Any]] = []
    header("network", "parameters", "batch", "optimizer", "ms a step", "ratio to Adam")
    for network, (name, batches, length) in NETWORKS.items():
        for batch in batches:
            task = create(TaskName(name.name, {**name.fields, "batch_size": batch}))
            stretches = {o: _warm(optimizer(o), task, length) for o in (ADAM, *optimizers)}
            seconds = in_turns(stretches, turns)
            for o in optimizers:
                row = {
                    "network": network,
                    "parameters": stretches[o].parameters,
                    "batch": batch,
                    "optimizer": o,
                    "step_ms": spread(1e3 * seconds[o]),
                    "ratio_to_adam": spread(seconds[o] / seconds[ADAM]),
                }
                results.append(row)
                show(network, f"{row['parameters']:,}", batch, o, text(row["step_ms"]), text(row["ratio_to_adam"]))
            write(out, facts, results)


def _warm(optimizer: Optimizer, task: Task, length: int) -> Stretch:
    """A stretch that begins after some steps."""
    stretch = Stretch(optimizer, task, HORIZON, jax.random.key(0), length)
    stretch.compile()
    assert stretch.program is not None
    stretch.inner = stretch.program(optimizer, task, stretch.inner, stretch.key, WARM)
    return stretch


if __name__ == "__main__":
    tyro.cli(main)
