"""Where the linearised step says that a training becomes unstable, beside where it really does, for optimizers and tasks of all kinds.

Each training goes on from the same step with its updates multiplied by 1/8 to 128. Predicted is the factor of the curvature at which the linearised
step overshoots; for gradient
descent that is the factor of its learning rate. Observed is the first multiple from which on all trainings leave the place: a loss is not finite or
above twice the present one; and the first
from which on all lose more than half of what had been gained: the mean loss of the last tenth of the steps is nearer to that of the start than to
the present one.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import lopt
from common import RESULTS, header, machine, show, write
from lopt.analyze import critical_factor, growth, multiplied_losses, observed_factor, overshoot
from lopt.analyze.linear import Linear
from lopt.reproduce._curves import last_tenth

TASKS = {
    "quadratic": lambda: lopt.tasks.Quadratic(dim=10),
    "digits_mlp": lambda: lopt.tasks.digits_mlp(widths=(16,), batch_size=64),
    "digits_mlp, batches of 1,024": lambda: lopt.tasks.digits_mlp(widths=(16,), activation="tanh", batch_size=1024),
}
OPTIMIZERS = {
    "sgd": lambda: lopt.create("sgd", learning_rate=0.3),
    "momentum": lambda: lopt.create("momentum", learning_rate=0.05),
    "adam": lambda: lopt.create("adam", learning_rate=0.03),
    "rmsprop": lambda: lopt.create("rmsprop", learning_rate=0.01),
    "general-1": lambda: lopt.load("general-1"),
    "star-1": lambda: lopt.load("star-1"),
    "conv-net-1": lambda: lopt.load("conv-net-1"),
    "demo-1": lambda: lopt.load("demo-1"),
}
FACTORS = 2.0 ** np.arange(-3.0, 7.01, 0.25)


def main(
    tasks: tuple[str, ...] = tuple(TASKS),
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS),
    warm_up: int = 100,
    steps: int = 100,
    seed: int = 0,
    out: Path = RESULTS / "certificates.json",
) -> None:
    """Predict, observe, print the table.

    Args:
        tasks: of those above.
        optimizers: of those above.
        warm_up: steps before the point that is looked at.
        steps: of the trainings that go on from there.
        seed: draws everything.
        out: JSON file for the figures.
    """
    facts, results = machine(), []
    header("optimizer", "task", "loss", "overshoot", "exponent", "predicted", "leaves", "loses", "predicted / leaves")
    for task_name in tasks:
        for name in optimizers:
            began = time.perf_counter()
            row = {"optimizer": name, "task": task_name, **look(name, task_name, warm_up, steps, seed)}
            row["seconds"] = round(time.perf_counter() - began, 1)
            results.append(row)
            show(*(f"{x:.3g}" if isinstance(x := row[c], float) else x for c in ("optimizer", "task", *NUMBERS)))
            write(
                out,
                facts,
                [
                    {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()}
                    for r in results
                ],
            )


NUMBERS = ("loss", "overshoot", "exponent", "predicted", "leaves", "loses", "ratio")


def look(name: str, task_name: str, warm_up: int, steps: int, seed: int) -> dict[str, float]:
    """One pair."""
    rule, task, key = OPTIMIZERS[name](), TASKS[task_name](), jax.random.key(seed)
    inner = lopt.start(rule, task, key, warm_up + steps)
    inner, early = jax.jit(lopt.unroll, static_argnums=4)(rule, task, inner, jax.random.fold_in(key, 1), warm_up)
    there = jax.random.fold_in(key, 2)
    losses = np.asarray(
        multiplied_losses(rule, task, inner, there, jnp.asarray(FACTORS, jnp.float32), steps), np.float64
    )
    present, first = float(losses[FACTORS == 1.0, :10].mean()), float(early[0])
    late = last_tenth(losses)
    leaves = observed_factor(losses.max(axis=1), FACTORS, 2.0 * present)  # a maximum with a NaN is NaN
    loses = observed_factor(late, FACTORS, 0.5 * (first + present))
    predicted = critical_factor(rule, task, inner, there)
    return {
        "initial_loss": first,
        "loss": present,
        "overshoot": overshoot(Linear(rule, task, inner, there)),
        "exponent": growth(rule, task, inner, there, steps=40).exponent(20),
        "predicted": predicted,
        "leaves": leaves,
        "loses": loses,
        "ratio": predicted / leaves,
    }


if __name__ == "__main__":
    tyro.cli(main)
