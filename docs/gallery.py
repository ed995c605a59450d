"""Draws the landscapes of `docs/tasks.md` and the paths that optimizers take on them: `python docs/gallery.py`.

SGD, momentum and Adam have the best of the 15 learning rates of `lopt.evaluate` for every landscape and start: the one with the least
mean logarithm of the height above the minimum, over all steps. Celo has the weights that its authors publish, as they are; they come
with the tests of this repository, not with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.figure import Figure

from lopt.analyze import Scene, descend
from lopt.convert import from_learned_optimization, read_flax
from lopt.tasks import SURFACES, landscape

ROOT = Path(__file__).parents[1]
CELO = ROOT / "tests" / "golden" / "celo" / "theta.state"
STEPS = 100
# Okabe and Ito's colours, told apart by all kinds of sight, and by marker in black and white.
STYLES = {"SGD": ("#D55E00", "o"), "momentum": ("#CC79A7", "s"), "Adam": ("#0072B2", "^"), "Celo": ("#009E73", "D")}
# Where the paths start.
STARTS = {
    "ackley": (-13.0, 9.0),
    "beale": (-2.5, -2.0),
    "booth": (-8.0, 2.0),
    "branin": (3.0, 13.0),
    "log_sum_exp": (2.4, 1.2),
    "matyas": (-9.0, 3.0),
    "michalewicz": (1.5, 2.4),
    "rosenbrock": (-1.5, 4.0),
    "styblinski_tang": (-0.5, 0.0),
}


def paths(names: Sequence[str], steps: int) -> dict[str, dict[str, np.ndarray]]:
    """The path of every optimizer on every landscape, `[steps + 1, 2]`, by landscape and label."""
    scenes = {name: _scene(name) for name in names}
    celo = {"Celo": from_learned_optimization("celo", read_flax(CELO))}
    key = jax.random.key(0)
    found = descend([label.lower() for label in STYLES if label != "Celo"], scenes, steps=steps, key=key)
    found += descend(celo, scenes, steps=steps, key=key)
    labels = {label.lower(): label for label in STYLES}
    return {n: {labels[d.optimizer.lower()]: d.points[0] for d in found if d.landscape == n} for n in names}


def _scene(name: str) -> Scene:
    surface = SURFACES[name]
    return Scene(f'landscape{{"function":"{name}"}}', "", surface.frame, (STARTS[name],), surface.minima, surface.least)


def draw(names: Sequence[str], cells: int, steps: int) -> Figure:
    """Contours on logarithmic levels of the height above the minimum, with the paths."""
    rows, found = -(-len(names) // 3), paths(names, steps)
    figure = Figure(figsize=(10, 3.4 * rows), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, 3, i + 1)
        x, y, values = landscape(name, cells)
        height = np.log10(np.maximum(values - SURFACES[name].least, 1e-3))
        axes.contourf(x, y, height, levels=24, cmap="Greys_r", alpha=0.75)
        for label, points in found[name].items():
            color, marker = STYLES[label]
            style = {"color": color, "marker": marker, "markevery": max(1, steps // 10), "label": label}
            axes.plot(*points.T, lw=1.3, ms=3.5, markeredgecolor="white", markeredgewidth=0.4, **style)
        axes.plot(
            *np.asarray(SURFACES[name].minima).T, "*", color="#F0E442", mec="black", ms=11, ls="", label="minimum"
        )
        axes.plot(*STARTS[name], "X", color="white", mec="black", ms=8, ls="", label="start")
        left, right, bottom, top = SURFACES[name].frame
        axes.set(xlim=(left, right), ylim=(bottom, top), title=name)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def main(
    out: Path = ROOT / "docs" / "images" / "landscapes.png",
    names: tuple[str, ...] = tuple(SURFACES),
    cells: int = 160,
    steps: int = STEPS,
) -> None:
    """Draw.

    Args:
        out: where the picture goes.
        names: of landscapes.
        cells: points a side of the contours.
        steps: of each path.
    """
    with mpl.rc_context({"font.size": 9}):
        draw(names, cells, steps).savefig(out, dpi=90, metadata={"Software": ""})


if __name__ == "__main__":
    tyro.cli(main)
