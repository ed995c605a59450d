"""Time of one jitted update of every optimizer against `optax.adam`, and the memory it takes.

Run: `python benchmarks/step.py --repeats 30`, two minutes on a quiet machine. Writes `benchmarks/results/step.json`.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

import lopt
from common import RESULTS, header, machine, show, spread, text, write
from lopt.names import split_fields

HORIZON = 10_000  # of the training, for those that ask
EMBEDDING = 10_000  # rows from which a matrix counts as an embedding
ROWS = 256  # of an embedding with a gradient


class Update:
    """A compiled update that keeps its state, which it overwrites."""

    def __init__(self, tx: optax.GradientTransformation, params: dict[str, jax.Array], grads: dict[str, jax.Array]):
        tx = optax.with_extra_args_support(tx)
        # Gradients and parameters are arguments; the updates are an output; only the state is donated.
        # State first: jax pairs donated buffers with outputs by shape, in order, so updates in front would take the state's.
        step = jax.jit(lambda g, s, p, loss: tx.update(g, s, p, value=loss)[::-1], donate_argnums=1)
        # A copy: several leaves of a fresh state may be one array, which cannot be donated twice.
        self.state = jax.tree.map(lambda x: jnp.array(x, copy=True), tx.init(params))
        began = time.perf_counter()
        self.loss = jnp.float32(1.0)
        self.program = step.lower(grads, self.state, params, self.loss).compile()
        self.compile_seconds = time.perf_counter() - began
        self.arguments = grads, params
        count = sum(p.size for p in params.values())
        self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self.state)) / count
        memory = self.program.memory_analysis()
        self.temp_bytes = memory.temp_size_in_bytes / count if memory else float("nan")

    def __call__(self) -> float:
        """Take one step; milliseconds."""
        grads, params = self.arguments
        began = time.perf_counter()
        self.state, updates = self.program(grads, self.state, params, self.loss)
        jax.block_until_ready((updates, self.state))
        return 1e3 * (time.perf_counter() - began)


class Pair(NamedTuple):
    """Times of `optax.adam` and of a candidate, taken in turns, ms."""

    adam: list[float]
    candidate: list[float]


def in_turns(adam: Update, candidate: Update, repeats: int) -> Pair:
    """Alternate the two, so that whatever else the machine does falls on both."""
    times = Pair([], [])
    for i in range(repeats + 3):
        a, c = adam(), candidate()
        if i >= 3:  # warm by then
            times.adam.append(a)
            times.candidate.append(c)
    return times


def of_size(size: float) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Parameters and gradients: a square matrix and a bias of about so many numbers."""
    side = max(1, round(size**0.5))
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": jax.random.normal(keys[0], (side, side)) / side**0.5, "b": jnp.zeros(side)}
    return params, {"w": jax.random.normal(keys[1], (side, side)), "b": jax.random.normal(keys[2], (side,))}


def of_shape(sides: str) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """A parameter and its gradient, of sides such as `100000x64`."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
        raise SystemExit(f"The shape is {sides}; it must be sides such as 1000000 or 100000x64.")
    shape = tuple(int(side) for side in sides.split("x"))
    keys = jax.random.split(jax.random.key(0), 2)
    gradient = jax.random.normal(keys[1], shape)
    if len(shape) == 2 and shape[0] >= EMBEDDING:
        gradient = gradient.at[ROWS:].set(0.0)
    return {"w": jax.random.normal(keys[0], shape) / shape[-1] ** 0.5}, {"w": gradient}


def main(
    sizes: tuple[float, ...] = (1e4, 1e5, 1e6, 1e7),
    shapes: tuple[str, ...] = (),
    optimizers: tuple[str, ...] = tuple(lopt.optimizers.OPTIMIZERS),
    repeats: int = 100,
    out: Path = RESULTS / "step.json",
) -> None:
    """Time updates.

    Args:
        sizes: numbers of parameters, roughly: the parameters are a square matrix and a bias.
        shapes: more cases, of one tensor each, such as `1000000` or `100000x64`. Of a matrix of 10,000 rows or more, only the first 256 rows have
            a gradient, as of an embedding.
        optimizers: names from `lopt list`, with fields where they are others, as `controlled_muon{"low_memory":true}`.
        repeats: pairs of updates that are timed; a tenth of it, and at least 10, from 5 million parameters on.
        out: the JSON file to write.
    """
    facts = machine()
    results: list[dict[str, Any]] = []
    header("optimizer", "parameters", "ms", "optax.adam ms", "ratio", "compile s", "state B", "temp B")
    for params, grads in [*map(of_size, sizes), *map(of_shape, shapes)]:
        count = sum(p.size for p in params.values())
        adam = Update(optax.adam(1e-3), params, grads)
        for name in optimizers:
            kind, fields = split_fields(name)
            candidate = Update(lopt.create(kind, **fields).to_optax(horizon=HORIZON), params, grads)
            turns = repeats if count < 5e6 else max(min(repeats, 10), repeats // 10)
            times = in_turns(adam, candidate, turns)
            row = {
                "optimizer": name,
                "shapes": [list(p.shape) for p in params.values()],
                "parameters": count,
                "update_ms": spread(times.candidate),
                "adam_ms": spread(times.adam),
                "ratio_to_adam": spread([c / a for a, c in zip(*times, strict=True)]),
                "compile_seconds": round(candidate.compile_seconds, 3),
                "state_bytes_per_parameter": round(candidate.state_bytes, 3),
                "temp_bytes_per_parameter": round(candidate.temp_bytes, 3),
                "repeats": turns,
            }
            results.append(row)
            times_shown = (text(row[k]) for k in ("update_ms", "adam_ms", "ratio_to_adam"))
            memory = (f"{candidate.state_bytes:.1f}", f"{candidate.temp_bytes:.1f}")
            show(name, row["parameters"], *times_shown, f"{candidate.compile_seconds:.1f}", *memory)
            write(out, facts, results)


if __name__ == "__main__":
    tyro.cli(main)
