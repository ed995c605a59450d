"""The demo: a saved optimizer on two networks, a meta-training, and the result on these and on one that it has never seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lopt import checkpoint, tasks, zoo
from lopt.evaluate import report
from lopt.evaluate.baselines import Baseline
from lopt.evaluate.compare import Comparison, add, compare, default_key
from lopt.zoo import RELEASED

STEPS = 200  # inner steps of every evaluation
SECONDS = 100.0  # of the meta-training
LEARNED = "meta-trained here"
HAND_DESIGNED = "schedule-free AdamW, one setting"
ONE_SETTING = {"learning_rate": 0.03}  # for all networks: the best single one on the laptop bench
NETWORKS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("digits 64-32-10 (home)", "digits_mlp", {}),
    ("digits 64-128-10 (wider)", "digits_mlp", {"widths": (128,)}),
)
UNSEEN = ("digits 64-32-32-32-32-10 (deeper)", "digits_mlp", {"widths": (32, 32, 32, 32)})

Tell = Callable[[str], None]


class Demo(NamedTuple):
    """What the demo found and where it wrote it."""

    comparisons: list[Comparison]
    weights: Path
    figure: Path
    page: Path


def first_look(*, seed: int, seeds: int, on_table: Callable[[Comparison], None], on_progress: Tell) -> list[Comparison]:
    """Train `NETWORKS` with `general-2`, with one setting of schedule-free AdamW and with a tuned Adam.

    Args:
        seed: draws starts and minibatches.
        seeds: trainings of each network.
        on_table: given each comparison as soon as it is there.
        on_progress: told what is being done.
    """
    found = []
    for network in NETWORKS:
        found.append(_compare(network, {}, seed=seed, seeds=seeds, on_progress=on_progress))
        on_table(found[-1])
    return found


def evaluate(
    weights: Path,
    before: list[Comparison],
    run_dir: Path,
    *,
    seed: int,
    seeds: int,
    on_table: Callable[[Comparison], None],
    on_progress: Tell,
) -> Demo:
    """Add the optimizer that was meta-trained to the comparisons, compare all on `UNSEEN` too, and write figure and page.

    Args:
        weights: the saved optimizer.
        before: from `first_look`.
        run_dir: where `curves.png` and `report.html` go.
        seed: as for `first_look`.
        seeds: as for `first_look`.
        on_table: given each comparison as soon as it is there.
        on_progress: told what is being done.
    """
    learned, card = {LEARNED: zoo.load(weights)}, zoo.read_card(weights)
    comparisons = []
    for found, (_, task, fields) in zip(before, NETWORKS, strict=True):
        key = default_key(seed)
        comparisons.append(add(found, learned, tasks.create(task, **fields), key=key, on_progress=on_progress))
        on_table(comparisons[-1])
    comparisons.append(_compare(UNSEEN, learned, seed=seed, seeds=seeds, on_progress=on_progress))
    on_table(comparisons[-1])
    png = report.figure(comparisons)
    notes = [
        f"{LEARNED}: {card.optimizer}, {card.meta_parameters} meta-parameters, meta-trained for {card.meta_steps:,} meta-steps "
        f"({card.inner_steps:,} inner steps, {card.seconds:.0f} s on {card.cores} cores) on {card.mixture}.",
        f"Reproduce: {card.command}",
        f"{RELEASED} comes with lopt, for general use. Its meta-training has seen the home network, and other networks on this data set.",
        f"{HAND_DESIGNED}: optax's, at the learning rate {ONE_SETTING['learning_rate']} on every network. Adam is tuned on each network.",
    ]
    figure, page = run_dir / "curves.png", run_dir / "report.html"
    checkpoint.write_bytes(figure, png)
    title = "A learned optimizer against a tuned Adam"
    checkpoint.write_text(page, report.comparison_page(title, comparisons, notes, png))
    return Demo(comparisons, weights, figure, page)


def _compare(
    network: tuple[str, str, dict[str, Any]], learned: dict[str, Any], *, seed: int, seeds: int, on_progress: Tell
) -> Comparison:
    label, task, fields = network
    optimizers = {
        RELEASED: zoo.load(RELEASED),
        HAND_DESIGNED: Baseline("schedule_free_adamw", dict(ONE_SETTING)),
        **learned,
    }
    return compare(
        optimizers,
        tasks.create(task, **fields),
        name=label,
        steps=STEPS,
        key=default_key(seed),
        seeds=seeds,
        on_progress=on_progress,
    )
