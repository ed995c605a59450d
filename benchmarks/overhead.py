"""Time of a whole training step, gradient and update, over that of SGD, against the size of the batch.

What a learned update costs does not depend on the batch; what the gradient costs does. So the ratio falls towards one: the shape of
Wichrowska et al. 2017, figure 7, whose network and hardware were others. The network: six 3x3 convolutions and a linear layer on random
32x32 images in three channels.

Run: `python benchmarks/overhead.py`. Writes `benchmarks/results/overhead.json` and draws `docs/images/overhead.png`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import tyro

import lopt
from common import RESULTS, header, machine, show, spread, text, write

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "overhead.png"
CHANNELS = (16, 16, 32, 32, 64, 64)  # every second layer halves the image
CLASSES = 10
OPTIMIZERS = ("sgd", "adam", "small_fc", "hierarchical_rnn")


def network(key: jax.Array) -> eqx.nn.Sequential:
    """82,330 parameters."""
    keys = jax.random.split(key, len(CHANNELS) + 1)
    layers: list[Any] = []
    for i, (before, after) in enumerate(zip((3, *CHANNELS[:-1]), CHANNELS, strict=True)):
        layers += [
            eqx.nn.Conv2d(before, after, 3, stride=1 + i % 2, padding=1, key=keys[i]),
            eqx.nn.Lambda(jax.nn.relu),
        ]
    side = 32 // 2 ** (len(CHANNELS) // 2)
    layers += [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(CHANNELS[-1] * side * side, CLASSES, key=keys[-1])]
    return eqx.nn.Sequential(layers)


class Step:
    """A compiled training step that keeps what it trains."""

    def __init__(self, name: str, batch: int):
        net = network(jax.random.key(0))
        self.params, static = eqx.partition(net, eqx.is_array)
        tx = optax.sgd(1e-3) if name == "sgd" else lopt.create(name).to_optax()
        self.state = jax.tree.map(lambda x: jnp.array(x, copy=True), tx.init(self.params))
        images, labels = jax.random.split(jax.random.key(1))
        self.examples = (
            jax.random.normal(images, (batch, 3, 32, 32)),
            jax.random.randint(labels, (batch,), 0, CLASSES),
        )

        def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
            logits = jax.vmap(eqx.combine(params, static))(images)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

        def step(state: Any, params: Any, images: jax.Array, labels: jax.Array) -> Any:
            value, grads = jax.value_and_grad(loss)(params, images, labels)
            updates, state = tx.update(grads, state, params, value=value) if name != "sgd" else tx.update(grads, state)
            return state, optax.apply_updates(params, updates)

        self.program = jax.jit(step, donate_argnums=(0, 1)).lower(self.state, self.params, *self.examples).compile()

    def __call__(self) -> float:
        """Take one step; milliseconds."""
        began = time.perf_counter()
        self.state, self.params = self.program(self.state, self.params, *self.examples)
        jax.block_until_ready((self.state, self.params))
        return 1e3 * (time.perf_counter() - began)


def draw(out: Path, figure: Path) -> None:
    """The picture of the docs."""
    import matplotlib.pyplot as plt

    results = json.loads(out.read_text())["results"]
    fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    styles = zip(OPTIMIZERS, ("black", "#0072B2", "#D55E00", "#009E73"), "o^sD", strict=True)  # told apart by all eyes
    for name, colour, marker in styles:
        rows = [r for r in results if r["optimizer"] == name]
        if not rows:
            continue
        batches, ratios = [r["batch"] for r in rows], [r["ratio_to_sgd"] for r in rows]
        ax.plot(batches, [r["median"] for r in ratios], marker=marker, color=colour, label=name)
        ax.fill_between(batches, [r["q1"] for r in ratios], [r["q3"] for r in ratios], color=colour, alpha=0.2, lw=0)
    ax.set(xscale="log", yscale="log", xlabel="examples a batch", ylabel="time of a step / that of SGD")
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.grid(alpha=0.3)
    ax.legend()
    fig.savefig(figure, dpi=130)


def main(
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
    optimizers: tuple[str, ...] = OPTIMIZERS,
    seconds: float = 6.0,
    out: Path = RESULTS / "overhead.json",
    figure: Path = FIGURE,
) -> None:
    """Time steps.

    Args:
        batches: examples a batch.
        optimizers: names from `lopt list`; `sgd` is optax's.
        seconds: about how long to measure each batch size.
        out: the JSON file to write.
        figure: the picture to draw.
    """
    facts = machine()
    results: list[dict[str, Any]] = []
    header("batch", "optimizer", "ms", "ratio to SGD")
    for batch in batches:
        sgd = Step("sgd", batch)
        others = {name: Step(name, batch) for name in optimizers}
        round_ms = sgd() + sum(step() for step in others.values())
        round_ms = sgd() + sum(step() for step in others.values())  # warm
        times: dict[str, list[float]] = {name: [] for name in others}
        ratios: dict[str, list[float]] = {name: [] for name in others}
        for _ in range(max(9, min(200, int(1e3 * seconds / round_ms)))):
            for name, step in others.items():  # in turns, so that whatever else the machine does falls on all
                reference, own = sgd(), step()
                times[name].append(own)
                ratios[name].append(own / reference)
        for name in others:
            row = {
                "batch": batch,
                "optimizer": name,
                "parameters": sum(p.size for p in jax.tree.leaves(sgd.params)),
                "step_ms": spread(times[name]),
                "ratio_to_sgd": spread(ratios[name]),
                "repeats": len(times[name]),
            }
            results.append(row)
            show(batch, name, text(row["step_ms"]), text(row["ratio_to_sgd"]))
        write(out, facts, results)
    draw(out, figure)


if __name__ == "__main__":
    tyro.cli(main)
