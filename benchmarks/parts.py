"""What the parts of `general-2` are worth: the same rule without one of them, on tasks to choose by.

Run: `python benchmarks/parts.py`, a quarter of an hour of one core. Writes `benchmarks/results/parts.json`.
A figure is the mean over the tasks of `meta_valid` of the logarithm of a final training loss over that of the whole, with an interval over tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import lopt
from common import RESULTS, header, machine, show, write
from lopt.evaluate.bench.suites import find_suite
from lopt.evaluate.bench.units import fewer_examples
from lopt.evaluate.scores.statistics import mean_interval
from lopt.evaluate.training import default_key, train
from lopt.optimizer import Optimizer
from lopt.tasks import create

WHOLE = "general-2"
SMALL = 1e-4  # of the loss at the start, which is added: below it a loss says nothing
PARTS: Mapping[str, tuple[bool, Mapping[str, Any]]] = {  # whether with the weights, and other fields
    WHOLE: (True, {}),
    "untrained": (False, {}),
    "network at every step": (True, {"renew_every": 1}),
    "whole matrices in place of blocks": (True, {"block": 10**9}),
    "gradients at the iterate": (True, {"averaging": 0.01}),
    "no momentum that the network does not ask for": (True, {"momentum_decay": 0.0}),
    "vectors at the rate of square matrices": (True, {"vector_rate": 1.0}),
    "no weight decay": (True, {"weight_decay": 0.0}),
}


def optimizer(trained: bool, fields: Mapping[str, Any]) -> Optimizer:
    """`general-2` with other fields, with its weights or random ones whose readout is zero."""
    card = lopt.zoo.read_card(WHOLE)
    return lopt.load(WHOLE, **fields) if trained else lopt.create(card.optimizer, **{**card.fields, **fields})


def main(
    steps: int = 1_000,
    seeds: int = 2,
    parts: tuple[str, ...] = tuple(PARTS),
    out: Path = RESULTS / "parts.json",
) -> None:
    """Train, compare, print the table.

    Args:
        steps: of a training.
        seeds: trainings of each.
        parts: of those above; the whole is always there.
        out: JSON file for the figures.
    """
    if wrong := [name for name in parts if name not in PARTS]:
        raise SystemExit(f"There is no {wrong[0]} among {', '.join(PARTS)}.")
    facts, suite = machine(), find_suite("meta_valid")
    names = tuple(dict.fromkeys((WHOLE, *parts)))
    rules = {name: optimizer(*PARTS[name]) for name in names}
    logs: dict[tuple[str, bool], list[float]] = {(name, told): [] for name in names for told in (True, False)}
    for task_name in suite.tasks:
        task = fewer_examples(create(task_name), suite.protocol_of(task_name).eval_size)
        for name, told in logs:
            record = train(rules[name], task, steps=steps, key=default_key(0), seeds=seeds, evals=1, tell_horizon=told)
            first, last = record.train_loss.astype(np.float64).T
            logs[name, told].append(float(np.mean(np.log((last + SMALL * first) / first))))
        jax.clear_caches()
    header("", "horizon", "log of the final loss over that of the whole", "tasks lower", "tasks higher")
    results = []
    for (name, told), found in logs.items():
        if name == WHOLE:
            continue
        ratios = np.array(found) - np.array(logs[WHOLE, told])
        interval, lower = mean_interval(ratios), int((ratios < 0).sum())
        higher = int((~(ratios <= 0)).sum())  # where it diverged, too
        row = {"part": name, "told": told, "steps": steps, "seeds": seeds, "log_ratio": list(interval)}
        results.append({**row, "lower": lower, "higher": higher, "ratios": [round(float(r), 4) for r in ratios]})
        show(name, "told" if told else "untold", interval, lower, higher)
    write(out, facts, results)


if __name__ == "__main__":
    tyro.cli(main)
