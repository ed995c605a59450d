"""Time of lopt's convolution over that of `equinox.nn.Conv2d`, with the gradient, inside a compiled training.

Run: `python benchmarks/conv.py`, about two minutes. Writes `benchmarks/results/conv.json`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro

from common import RESULTS, header, machine, show, spread, text, write
from lopt.tasks.networks.image_conv import convolve

LAYERS = {  # channels in, channels out, kernel, stride, side of the image
    "first of conv_net, digits": (1, 8, 3, 2, 8),
    "second of conv_net, digits": (8, 16, 3, 2, 4),
    "residual_net, digits": (12, 12, 3, 1, 4),
    "first of conv_net, Fashion-MNIST": (1, 8, 3, 2, 28),
    "second of Wichrowska's, Fashion-MNIST": (8, 8, 5, 2, 14),
}


def training(
    apply: Callable[[eqx.nn.Conv2d, jax.Array], jax.Array], layers: eqx.nn.Conv2d, images: jax.Array, steps: int
) -> Callable[[], float]:
    """A compiled scan of gradient steps of one layer for each run, and of its images, as other layers want that gradient too; seconds of a call."""

    def train(layer: eqx.nn.Conv2d) -> tuple[eqx.nn.Conv2d, jax.Array]:
        def step(both: tuple[eqx.nn.Conv2d, jax.Array], _: None) -> tuple[tuple[eqx.nn.Conv2d, jax.Array], None]:
            grads = jax.grad(lambda both: jnp.mean(jnp.square(apply(*both))))(both)
            return jax.tree.map(lambda p, g: p - 0.01 * g, both, grads), None

        return jax.lax.scan(step, (layer, images), length=steps)[0]

    program = jax.jit(jax.vmap(train)).lower(layers).compile()

    def call() -> float:
        began = time.perf_counter()
        jax.block_until_ready(program(layers))
        return time.perf_counter() - began

    return call


def main(
    runs: tuple[int, ...] = (1, 15),
    batch: int = 64,
    steps: int = 20,
    repeats: int = 20,
    out: Path = RESULTS / "conv.json",
) -> None:
    """Time layers.

    Args:
        runs: trainings that run together, as in a grid of learning rates.
        batch: images of a minibatch.
        steps: of one compiled scan.
        repeats: pairs of scans, in turns.
        out: the JSON file to write.
    """
    facts, results = machine(), []
    header("layer", "runs", "ms a step and run", "ratio to equinox")
    for name, (ins, outs, kernel, stride, side) in LAYERS.items():
        for count in runs:

            def make(key: jax.Array, ins=ins, outs=outs, kernel=kernel, stride=stride) -> eqx.nn.Conv2d:
                return eqx.nn.Conv2d(ins, outs, kernel, stride=stride, padding="SAME", key=key)

            layers = jax.vmap(make)(jax.random.split(jax.random.key(0), count))
            images = jax.random.normal(jax.random.key(1), (batch, ins, side, side))
            ours = training(convolve, layers, jnp.moveaxis(images, 0, -1), steps)
            peer = training(lambda layer, x: jax.vmap(layer)(x), layers, images, steps)
            _ = ours(), peer()  # warm
            pairs = [(ours(), peer()) for _ in range(repeats)]
            times, ratios = [1e3 * a / steps / count for a, _ in pairs], [a / b for a, b in pairs]
            results.append({"layer": name, "runs": count, "batch": batch, "steps": steps, "repeats": repeats})
            results[-1] |= {"ms": spread(times), "ratio_to_equinox": spread(ratios)}
            show(name, count, text(spread(times)), text(spread(ratios)))
            write(out, facts, results)


if __name__ == "__main__":
    tyro.cli(main)
