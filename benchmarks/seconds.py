"""Time of whole training steps, gradient and update, over those of Adam, on networks of the benches.

Run: `python benchmarks/seconds.py`. Writes `benchmarks/results/seconds.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import lopt
from common import RESULTS, header, machine, show, spread, text, write
from lopt.evaluate.timing import TURNS, Stretch, in_turns
from lopt.optimizer import Optimizer
from lopt.tasks import TaskName, create

HORIZON = 10_000
ADAM = "adam"
BATCHES = {
    "MLP 64-32-10, digits": ("digits_mlp", {"widths": (32,)}, (16, 64, 256)),
    "MLP 784-128-64-10, Fashion-MNIST": ("fashion_mlp", {"size": 28, "widths": (128, 64)}, (16, 64, 256)),
    "conv net, 28x28 Fashion-MNIST": ("conv_net", {"images": "fashion_28"}, (16, 64)),
    "transformer, text": ("char_transformer", {"width": 64}, (4, 16)),
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
    header("network", "parameters", "batch", "optimizer", "ms a step", "ratio to Adam", "compile s", "over Adam's")
    for network, (name, fields, batches) in BATCHES.items():
        for batch in batches:
            task = create(TaskName(name, {**fields, "batch_size": batch}))
            stretches = {o: Stretch(optimizer(o), task, HORIZON, jax.random.key(0)) for o in (ADAM, *optimizers)}
            seconds = in_turns(stretches, turns)
            for o in optimizers:
                row = {
                    "network": network,
                    "parameters": stretches[o].parameters,
                    "batch": batch,
                    "optimizer": o,
                    "step_ms": spread(1e3 * seconds[o]),
                    "ratio_to_adam": spread(np.asarray(seconds[o] / seconds[ADAM])),
                    "compile_seconds": round(stretches[o].compile_seconds, 2),
                    "compile_over_adam": round(stretches[o].compile_seconds / stretches[ADAM].compile_seconds, 2),
                }
                results.append(row)
                timed = (
                    text(row["step_ms"]),
                    text(row["ratio_to_adam"]),
                    row["compile_seconds"],
                    row["compile_over_adam"],
                )
                show(network, f"{row['parameters']:,}", batch, o, *timed)
            write(out, facts, results)


if __name__ == "__main__":
    tyro.cli(main)
