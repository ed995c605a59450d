"""Meta-train the six arms of `lopt reproduce stability` and write their weights, as the package ships them. Resumes."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import numpy as np
import tyro

from common import header, show
from lopt.reproduce._curves import last_tenth
from lopt.reproduce.stability._arms import ARMS, home_task, train_arms
from lopt.reproduce.stability._runs import write_arms


def main(
    folder: Path,
    arms: tuple[str, ...] = tuple(ARMS),
    meta_steps: int = 3000,
    seeds: int = 3,
    learning_rate: float = 3e-3,
    out: Path = Path("runs/arms"),
) -> None:
    """Meta-train, write, print where each arm ended.

    Args:
        folder: keeps the state of the meta-trainings, to go on after a stop.
        arms: of `lopt.reproduce.stability._arms.ARMS`.
        meta_steps: of every meta-training.
        seeds: of every arm.
        learning_rate: of the outer optimizer, at the start.
        out: where the weights, their cards and `meta_loss.csv` go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    def note(names: str, step: int, meta_loss: float) -> None:
        if step % 50 == 0:
            print(f"{names}: {step} of {meta_steps}, meta-loss {meta_loss:.3f}, {time.perf_counter() - began:.0f} s")

    keys = jax.random.split(jax.random.key(0), seeds)
    found = train_arms(
        arms,
        home_task()[1],
        keys,
        meta_steps=meta_steps,
        learning_rate=learning_rate,
        folder=folder,
        on_step=note,
    )
    given = f"--meta-steps {meta_steps} --seeds {seeds} --learning-rate {learning_rate:g}"
    command = f"python benchmarks/arms.py --folder runs/arms-state {given}"
    write_arms(found, out, command=command)
    header("arm", "meta-loss of the last tenth, by seed")
    for name, trained in found.items():
        show(name, np.array2string(last_tenth(trained.meta_loss), precision=3))


if __name__ == "__main__":
    tyro.cli(main)
