"""What each ingredient of `general-1` is worth: every variant meta-trained by the same small recipe, then compared on tasks to choose by.

The recipe is `general_longer` from random weights on six tasks of `general`, with their training losses. A run directory each, so the same command
resumes; the comparison is the suite `meta_valid`, in one archive. Nothing here looks at the tasks that are reported on. A variant is one meta-training from
one seed: intervals are over inner seeds, and say nothing about another meta-training. Perturbation, learning rate and clipping are those found good for the
whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import tyro

from common import RESULTS, header, machine, show, write
from lopt import zoo
from lopt.evaluate.baselines import BASELINES
from lopt.evaluate.bench.archive import Archive
from lopt.evaluate.bench.run import run_bench as bench
from lopt.evaluate.bench.suites import find_suite
from lopt.evaluate.scores.resampling import Estimate
from lopt.evaluate.scores.selection import select
from lopt.evaluate.scores.summary import Summary, score
from lopt.optimizers import create
from lopt.recipes import RECIPES, SCALED, Recipe, TaskSpec, run


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a variant has in place of the whole's."""

    optimizer: str = "relative_mlp"
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the optimizer
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # to the recipe, or to its tasks


WHOLE, UNTRAINED = "whole", "whole-untrained"
# Steps of a fixed size, and a black-box step on its own, begin at sizes that train without a network's help.
VARIANTS = {
    WHOLE: Variant(),
    "without-orthogonal-step": Variant(fields={"orthogonal_share": 0.0}),
    "without-agreement": Variant(fields={"agreement": False}),
    "without-progress": Variant(fields={"progress": False}),
    "without-schedule": Variant(fields={"scheduled": False}),
    "without-inverse-root": Variant(fields={"told_power": 0.0}),
    "without-relative-steps": Variant(fields={"relative": False, "nominal_step": 0.03}),
    "without-nominal-term": Variant(fields={"nominal_step": 0.0, "step_mult": 0.1}),
    "star": Variant("star"),
    "small_fc": Variant("small_fc"),
    "mlp": Variant("mlp"),
    "pes": Variant(changes={"estimator": "pes"}),
    "every-step-counts-alike": Variant(changes={"objective": "mean_log"}),
    "log-uniform-horizons": Variant(changes={"even": "problems"}),
    "norm-of-each-estimate": Variant(changes={"task_norm": "estimate"}),
    "horizon-always-told": Variant(changes={"tell_horizon": True}),
    "validation-losses": Variant(changes={"split": "valid"}),
    "in-random-coordinates": Variant(changes={"wrappers": SCALED}),
}
TASKS = (
    "small_images/digits_32",
    "small_images/fashion_8_32",
    "taskset/sampled_2",
    "taskset/sampled_5",
    "taskset/sampled_29",
    "wichrowska2017/quadratic_20_noisy",
)


def recipe(name: str, steps: int, names: tuple[str, ...]) -> Recipe:
    """The small recipe for a variant, on so many tasks of `general`; its horizons have grown after a third of the meta-steps."""
    variant = VARIANTS[name]
    fields_of_tasks = {field.name for field in dataclasses.fields(TaskSpec)}
    of_tasks = {k: v for k, v in variant.changes.items() if k in fields_of_tasks}
    of_recipe = {k: v for k, v in variant.changes.items() if k not in fields_of_tasks}
    kept = tuple(task for task in RECIPES["general"].tasks if task.name in names)
    return dataclasses.replace(
        RECIPES["general_longer"],
        optimizer=variant.optimizer,
        optimizer_fields=dict(variant.fields),
        tasks=tuple(dataclasses.replace(task, **of_tasks) for task in kept),
        steps=steps,
        curriculum=max(1, steps // 3),
        learning_rate=RECIPES["general"].learning_rate,
        **of_recipe,
    )


def shown(found: Estimate, *, at_least: bool = False) -> str:
    """A number with its interval."""
    return f"{'at least ' if at_least else ''}{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def row(summary: Summary, beside: Summary | None, horizon: int, meta: zoo.Card | None) -> dict[str, Any]:
    """What is kept of a variant at a horizon; `beside` is the same scored against the whole in place of Adam."""
    assert summary.wins is not None
    wins = beside.wins if beside else None
    return {
        "variant": summary.optimizer,
        "horizon": horizon,
        "speedup": summary.speedup._asdict(),
        "speedup_is_lower_bound": summary.speedup_censored,
        "normalized": summary.normalized._asdict(),
        "normalized_test": summary.normalized_test._asdict(),
        "won": summary.wins.fraction.value,
        "tasks": summary.wins.tasks,
        "lower_than_whole": beside.improvement._asdict() if beside and wins else None,
        "tasks_lower_than_whole": wins.clear if wins else None,
        "tasks_higher_than_whole": wins.clear_losses if wins else None,
        "diverged": summary.diverged,
        "meta_steps": meta.meta_steps if meta else 0,
        "seconds": meta.seconds if meta else 0.0,
    }


def main(
    runs: Path,
    variants: tuple[str, ...] = tuple(VARIANTS),
    tasks: tuple[str, ...] = TASKS,
    steps: int = 1_500,
    seed: int = 0,
    suite: str = "meta_valid",
    inner_steps: int | None = None,
    multiples: tuple[int, ...] = (1,),
    processes: int = 1,
    out: Path = RESULTS / "ablation.json",
) -> None:
    """Meta-train the variants, compare them, print the table.

    Args:
        runs: where run directories and the archive are kept.
        variants: of those above.
        tasks: of `general`, to meta-train on.
        steps: meta-steps of each.
        seed: draws weights and tasks.
        suite: to compare on.
        inner_steps: of its tasks, where not its own.
        multiples: of these steps, at which to compare.
        processes: of the comparison.
        out: JSON file for the figures.
    """
    for given, known in ((variants, [*VARIANTS]), (tasks, [task.name for task in RECIPES["general"].tasks])):
        if wrong := [name for name in given if name not in known]:
            raise SystemExit(f"There is no {wrong[0]} among {', '.join(known)}.")
    facts = machine()
    weights = {name: run(recipe(name, steps, tasks), runs / name, seed=seed) for name in variants}
    untrained = create("relative_mlp", key=jax.random.split(jax.random.key(seed))[0])
    zoo.save(runs / UNTRAINED / "optimizer.safetensors", untrained, zoo.Card(seed=seed))
    paths = [str(path) for path in (*weights.values(), runs / UNTRAINED / "optimizer.safetensors")]
    chosen = find_suite(suite).changed(steps=inner_steps)
    longest = max((n for own in chosen.multiples.values() for n in own), default=1)
    chosen = dataclasses.replace(
        chosen,
        multiples=dict.fromkeys(chosen.tasks, multiples),
        reference_multiple=max(longest // min(multiples), chosen.reference_multiple),  # Adam's, for speed-ups
    )
    with Archive(runs / "ablation.sqlite") as archive:
        failed = bench(chosen, paths, archive, processes=processes, timing=False)
        everything = archive.runs()
    adam = [r for r in everything if r.optimizer == "adam"]
    header(
        "variant",
        "steps",
        "speed-up over tuned Adam",
        "normalised train loss",
        "test loss",
        "won",
        "diverged",
        "lower than the whole's",
        "tasks lower, higher",
    )
    results = []
    for multiple in multiples:
        horizons = {task: multiple * chosen.steps_of.get(task, chosen.steps) for task in chosen.tasks}
        tested = select(everything, by="valid")
        found = score(
            select(everything), baselines=BASELINES, sweep=adam, tested=tested, failed=failed, horizons=horizons
        )
        beside = {}
        if WHOLE in weights:
            compared = score(select(everything), baselines=BASELINES, reference=WHOLE, horizons=horizons)
            beside = {summary.optimizer: summary for summary in compared.summaries}
        for summary in found.summaries:
            if summary.optimizer == "adam":
                continue
            name, horizon = summary.optimizer, max(horizons.values())
            card = zoo.read_card(weights[name]) if name in weights else None
            kept = row(summary, beside.get(name), horizon, card)
            results.append(kept)
            speedup = shown(summary.speedup, at_least=summary.speedup_censored)
            scores = (speedup, shown(summary.normalized), shown(summary.normalized_test))
            lower = kept["lower_than_whole"]
            ends = f"{kept['tasks_lower_than_whole']}, {kept['tasks_higher_than_whole']}" if lower else "–"
            paired = (shown(Estimate(**lower)) if lower else "–", ends)
            show(name, horizon, *scores, f"{kept['won']:.0%}", f"{summary.diverged:.0%}", *paired)
    write(out, facts, results)


if __name__ == "__main__":
    tyro.cli(main)
