"""The second half of the demo: train networks that meta-training never saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lopt import checkpoint, tasks, zoo
from lopt.evaluate import report
from lopt.evaluate.compare import Comparison, compare, default_key
from lopt.tasks.data.images import fashion_mnist_folder
from lopt.zoo import RELEASED

STEPS = 200  # inner steps of every evaluation
LEARNED = "meta-trained here"
NETWORKS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("digits 64-32-10 (home)", "digits_mlp", {}),
    ("digits 64-128-10 (wider)", "digits_mlp", {"widths": (128,)}),
    ("digits 64-32-32-32-32-10 (deeper)", "digits_mlp", {"widths": (32, 32, 32, 32)}),
    ("digits 64-32-10, gelu", "digits_mlp", {"activation": "gelu"}),
)
FASHION = ("Fashion-MNIST 784-32-10", "fashion_mlp", {})


class Demo(NamedTuple):
    """What the demo found and where it wrote it."""

    comparisons: list[Comparison]
    weights: Path
    figure: Path
    page: Path


def evaluate(
    weights: Path, run_dir: Path, *, seed: int, seeds: int, on_progress: Callable[[str], None] | None = None
) -> Demo:
    """Train the home network and unseen ones with the saved optimizer, with `general-1` and with a tuned Adam; write figure and page.

    Args:
        weights: the saved optimizer.
        run_dir: where `curves.png` and `report.html` go.
        seed: draws starts and minibatches.
        seeds: trainings of each network.
        on_progress: told what is being done.
    """
    optimizer, card = zoo.load(weights), zoo.read_card(weights)
    networks = NETWORKS if fashion_mnist_folder() is None else (*NETWORKS, FASHION)
    comparisons = [
        compare(
            {LEARNED: optimizer, RELEASED: zoo.load(RELEASED)},
            tasks.create(task, **fields),
            name=label,
            steps=STEPS,
            key=default_key(seed),
            seeds=seeds,
            on_progress=on_progress,
        )
        for label, task, fields in networks
    ]
    png = report.figure(comparisons)
    notes = [
        f"The optimizer: {card.optimizer}, {card.meta_parameters} meta-parameters, meta-trained for {card.meta_steps:,} meta-steps "
        f"({card.inner_steps:,} inner steps, {card.seconds:.0f} s on {card.cores} cores) on {', '.join(card.tasks)}.",
        f"Reproduce: {card.command}",
        f"{RELEASED} comes with lopt, for general use. In its meta-training it has seen the home network, and other networks on both data sets.",
    ]
    if len(networks) == len(NETWORKS):
        notes.append("Fashion-MNIST is not installed on this machine, so it was left out.")
    figure, page = run_dir / "curves.png", run_dir / "report.html"
    checkpoint.write_bytes(figure, png)
    title = "A learned optimizer against a tuned Adam"
    checkpoint.write_text(page, report.page(title, comparisons, notes, png))
    return Demo(comparisons, weights, figure, page)
