"""What the first jitted step takes over that of `optax.adam`, in new processes: with nothing compiled before, and from the compilation cache.

Run: `python benchmarks/compile.py`, three minutes on a quiet machine. Writes `benchmarks/results/compile.json`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro

from common import RESULTS, header, machine, show, write

PEER = "optax.adam"
PARTS = ("import", "build", "trace", "compile", "step")
STARTS = ("cold", "cached")


def child(model: str, optimizer: str) -> None:
    """Take one step, and print what each part took, in seconds by the clock and of processors."""
    began = time.perf_counter(), 0.0  # of processors, since the process began
    import jax
    import jax.numpy as jnp
    import optax

    import lopt
    from accelerator import transformer

    def now() -> tuple[float, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), used.ru_utime + used.ru_stime

    times = [began, now()]
    name, *width = model.split()
    digits = {"w0": (64, 32), "b0": (32,), "w1": (32, 10), "b1": (10,)}
    shapes = transformer(int(width[0])) if name == "transformer" else digits
    params = {key: jnp.full(shape, 0.1) for key, shape in shapes.items()}
    if optimizer == PEER:
        tx = optax.adam(1e-3)
    elif optimizer in lopt.optimizers.OPTIMIZERS:
        tx = lopt.create(optimizer).to_optax()
    else:
        tx = lopt.load(optimizer).to_optax()
    state = jax.block_until_ready(tx.init(params))
    times.append(now())
    lowered = jax.jit(tx.update).lower(params, state, params)
    times.append(now())
    program = lowered.compile()
    times.append(now())
    jax.block_until_ready(program(params, state, params))
    times.append(now())
    wall, processor = (
        {part: round(b[clock] - a[clock], 3) for part, (a, b) in zip(PARTS, pairwise(times), strict=True)}
        for clock in (0, 1)
    )
    del wall["import"]  # the clock starts here, after what this file itself imports
    operations = lowered.as_text().count(" = ")
    print(json.dumps({"tensors": len(shapes), "operations": operations, "wall": wall, "processor": processor}))


def start(model: str, optimizer: str, cache: str) -> dict[str, Any]:
    """What a new process says."""
    settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, __file__, "--child", model, optimizer]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main(
    models: tuple[str, ...] = ("mlp", "transformer 64"),
    optimizers: tuple[str, ...] = ("small_fc", "general-1"),
    out: Path = RESULTS / "compile.json",
) -> None:
    """Start `optax.adam` and every optimizer twice on every model; the cache is empty the first time.

    Args:
        models: `mlp`, for images of 8 by 8 pixels, or `transformer` and its width.
        optimizers: names from `lopt list`.
        out: the JSON file to write.
    """
    facts = machine()
    results: list[dict[str, Any]] = []
    header(
        "model",
        "optimizer",
        "start",
        "operations",
        *(f"{part} s" for part in PARTS),
        "whole s",
        "trace and compile / adam",
    )
    for model in models:
        peer: dict[str, float] = {}
        for optimizer in (PEER, *optimizers):
            with tempfile.TemporaryDirectory() as cache:
                for kind in STARTS:
                    found = start(model, optimizer, cache)
                    used = found["processor"]
                    program = used["trace"] + used["compile"]
                    peer.setdefault(kind, program)
                    row = {
                        "model": model,
                        "optimizer": optimizer,
                        "start": kind,
                        **found,
                        "whole_processor_seconds": round(sum(used.values()), 3),
                        "program_ratio_to_adam": round(program / peer[kind], 2),
                    }
                    results.append(row)
                    parts = (f"{used[part]:.2f}" for part in PARTS)
                    whole = f"{row['whole_processor_seconds']:.1f}"
                    show(model, optimizer, kind, row["operations"], *parts, whole, row["program_ratio_to_adam"])
                    write(out, facts, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        tyro.cli(main)
