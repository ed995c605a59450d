"""Time of one jitted update against `optax.adam` on whatever device there is: one matrix of a size, and a transformer of 60 tensors.

Run: `python benchmarks/accelerator.py`. Writes `benchmarks/results/accelerator.json`.
"""

from __future__ import annotations

from pathlib import Path

import jax
import optax
import tyro

import lopt
from common import RESULTS, header, machine, show, spread, text, write
from step import HORIZON, Update, in_turns

LAYERS = 6  # of ten tensors each


def transformer(width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the 60 tensors of six blocks: norms, attention, and a network of four times the width."""
    block = {
        **{f"{norm}_{part}": (width,) for norm in ("norm1", "norm2") for part in ("scale", "bias")},
        "attention_in": (width, 3 * width),
        "attention_out": (width, width),
        "up": (width, 4 * width),
        "up_bias": (4 * width,),
        "down": (4 * width, width),
        "down_bias": (width,),
    }
    return {f"block{i}_{name}": shape for i in range(LAYERS) for name, shape in block.items()}


def main(
    sizes: tuple[float, ...] = (1e6, 1e7, 1e8),
    width: int = 512,
    optimizers: tuple[str, ...] = ("relative_mlp", "small_fc", "adam"),
    repeats: int = 30,
    out: Path = RESULTS / "accelerator.json",
) -> None:
    """Time updates in turns with those of `optax.adam`.

    Args:
        sizes: parameters of the square matrices.
        width: of the transformer.
        optimizers: their names.
        repeats: pairs of timed updates.
        out: where the results go.
    """
    facts = {**machine(), "device": jax.devices()[0].device_kind, "backend": jax.default_backend()}
    results = []
    sides = (max(1, round(size**0.5)) for size in sizes)
    models = {f"matrix {side}": {"w": (side, side)} for side in sides} | {f"transformer {width}": transformer(width)}
    header("model", "optimizer", "parameters", "tensors", "ms", "optax.adam ms", "ratio", "compile s")
    for model, shapes in models.items():
        keys = dict(zip(shapes, jax.random.split(jax.random.key(0), len(shapes)), strict=True))
        params = {name: jax.random.normal(keys[name], shape) / shape[0] ** 0.5 for name, shape in shapes.items()}
        grads = {name: p[::-1] for name, p in params.items()}
        adam = Update(optax.adam(1e-3), params, grads)
        for name in optimizers:
            candidate = Update(lopt.create(name).to_optax(horizon=HORIZON), params, grads)
            times = in_turns(adam, candidate, repeats)
            row = {
                "model": model,
                "optimizer": name,
                "parameters": sum(p.size for p in params.values()),
                "tensors": len(params),
                "update_ms": spread(times.candidate),
                "adam_ms": spread(times.adam),
                "ratio_to_adam": spread([c / a for a, c in zip(*times, strict=True)]),
                "compile_seconds": round(candidate.compile_seconds, 3),
                "repeats": repeats,
            }
            results.append(row)
            shown = (text(row[k]) for k in ("update_ms", "adam_ms", "ratio_to_adam"))
            show(model, name, row["parameters"], row["tensors"], *shown, row["compile_seconds"])
            write(out, facts, results)


if __name__ == "__main__":
    tyro.cli(main)
