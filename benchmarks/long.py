"""Trainings ten times as long as any in an optimizer's meta-training: does any diverge, and where does the loss end?

Every task of the suite, the horizon told and untold. The file is written after every task, and the same command goes on with those that are missing.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool, Float

from common import RESULTS, header, machine, show, write
from lopt import zoo
from lopt.evaluate.bench.suites import find_suite
from lopt.evaluate.bench.units import fewer_examples
from lopt.evaluate.training import default_key, train
from lopt.tasks import create


def diverged(
    train_loss: Float[np.ndarray, "seeds evals"], minibatch_loss: Float[np.ndarray, "seeds steps"]
) -> Bool[np.ndarray, " seeds"]:
    """Whether a loss is not finite, or the last evaluation is not below the first, or has risen from the lowest by more than half of the fall to it."""
    finite = np.isfinite(train_loss).all(axis=1) & np.isfinite(minibatch_loss).all(axis=1)
    first, lowest, last = train_loss[:, 0], train_loss.min(axis=1), train_loss[:, -1]
    return ~(finite & (last < first) & (last - lowest <= (first - lowest) / 2))


def main(
    optimizer: str = "general-1",
    multiple: int = 10,
    suite: str = "held_out",
    tasks: tuple[str, ...] = (),
    seeds: int = 1,
    evals: int = 20,
    out: Path = RESULTS / "long.json",
) -> None:
    """Train, print the table.

    Args:
        optimizer: a saved one, by name or path.
        multiple: of its longest horizon.
        suite: whose tasks.
        tasks: these instead.
        seeds: trainings of each.
        evals: of each training.
        out: JSON file for the figures.
    """
    saved, card, chosen = zoo.load(optimizer), zoo.read_card(optimizer), find_suite(suite)
    if card.horizon is None:
        raise SystemExit(f"The card of {optimizer} names no horizon.")
    steps, facts = multiple * card.horizon[1], machine()
    same = {"fingerprint": card.fingerprint, "steps": steps, "seeds": seeds, "evals": evals}
    results = json.loads(out.read_text())["results"] if out.exists() else []
    done = {(r["task"], r["told"]) for r in results if same.items() <= r.items()}
    header("task", "horizon", "loss at the start", "lowest", "at the end", "diverged")
    for name in tasks or chosen.tasks:
        task = fewer_examples(create(name), chosen.protocol_of(name).eval_size)
        for told in (True, False):
            if (name, told) in done:
                continue
            record = train(saved, task, steps=steps, key=default_key(0), seeds=seeds, evals=evals, tell_horizon=told)
            loss, bad = record.train_loss, diverged(record.train_loss, record.minibatch_loss)
            curve = np.where(np.isfinite(loss).all(axis=0), loss.mean(axis=0), np.inf)
            numbers = {"start": curve[0], "lowest": curve.min(), "end": curve[-1]}
            losses = {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()}
            results.append({"task": name, "told": told, **same, **losses, "diverged": int(bad.sum())})
            shown = ("–" if v is None else f"{v:.4g}" for v in losses.values())
            show(name, "told" if told else "untold", *shown, f"{bad.sum()} of {seeds}")
            write(out, facts, results)


if __name__ == "__main__":
    tyro.cli(main)
