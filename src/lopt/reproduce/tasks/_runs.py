"""Meta-trained arms, shipped or made on the spot, and how they and Adam do on the held-out tasks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lopt import zoo
from lopt.checkpoint import write_text
from lopt.errors import InputError
from lopt.evaluate.scores.statistics import Estimate
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.reproduce.tasks._arms import ARMS, HORIZON, PAIRS, TRUNCATION, Trained, blinded, new_rule, train_arm
from lopt.reproduce.tasks._held_out import SPLITS, held_out_tasks
from lopt.reproduce.tasks._tasks import PROGRAMS, subset
from lopt.zoo import Card

WEIGHTS = Path(__file__).parent / "weights"  # of every arm and seed, with cards, and `meta_loss.csv`
LEAST = 50  # meta-steps that may show anything


def absent(names: Sequence[str], seeds: int, meta_steps: int | None) -> str:
    """Why a claim cannot be measured; empty where it can.

    Args:
        names: of `ARMS`.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.

    Raises:
        InputError: for the name of no arm.
    """
    for name in names:
        if name not in ARMS:
            raise InputError(unknown("arm", name, ARMS))
    if seeds < 2 or (meta_steps is not None and meta_steps < LEAST):
        steps = "the shipped meta-steps" if meta_steps is None else f"{meta_steps} meta-steps"
        return f"{steps} from {seeds} seeds cannot tell arms apart; it takes at least {LEAST} from 2."
    missing = [n for n in names for s in range(seeds) if not _weights(n, s).exists()]
    if meta_steps is None and missing:
        return f"no weights of {seeds} seeds are shipped for {', '.join(dict.fromkeys(missing))}; give meta_steps."
    return ""


def refuse_unused(meta_steps: int | None, runs: str | None, programs: Sequence[str] = tuple(PROGRAMS)) -> None:
    """Refuse what only a meta-training uses, where there is none.

    Args:
        meta_steps: of the meta-training; `None` for the shipped arms.
        runs: a folder for run directories.
        programs: of a claim in which nothing but meta-trainings has programs.

    Raises:
        InputError: for such.
    """
    if meta_steps is not None:
        return
    if runs is not None:
        raise InputError(f"runs is {runs}, but the shipped arms are not meta-trained again; give meta_steps too.")
    if tuple(programs) != tuple(PROGRAMS):
        raise InputError(
            f"programs is {tuple(programs)}, but the shipped arms were meta-trained on all; give meta_steps too."
        )


def trained_arm(
    name: str,
    seed: int,
    *,
    meta_steps: int | None = None,
    programs: Sequence[str] = tuple(PROGRAMS),
    runs: str | None = None,
) -> Trained:
    """An arm from a seed: the shipped one, or made now and kept for the next claim.

    Args:
        name: of `ARMS`.
        seed: from 0.
        meta_steps: of the meta-training; `None` for the shipped one.
        programs: of `PROGRAMS`, for a meta-training.
        runs: a folder for the run directories of all meta-trainings.

    Raises:
        InputError: for shipped weights of another architecture or size, or a run directory of another configuration.
    """
    return _trained_arm(name, seed, meta_steps, tuple(programs), runs)


@lru_cache(maxsize=64)  # which keys calls by position and by keyword apart: nothing but the function above calls it
def _trained_arm(name: str, seed: int, meta_steps: int | None, programs: tuple[str, ...], runs: str | None) -> Trained:
    if meta_steps is not None:
        folder = None if runs is None else Path(runs) / f"{name.replace(' ', '-')}-{seed}"
        return train_arm(name, seed, meta_steps=meta_steps, programs=programs, folder=folder)
    rule, wanted = zoo.load(_weights(name, seed)), new_rule(ARMS[name].kind, jax.random.key(0))
    if _shape(rule) != _shape(wanted):
        raise InputError(
            f"{_weights(name, seed)} does not fit the arm {name}: it must be a {ARMS[name].kind} of its sizes."
        )
    with (WEIGHTS / "meta_loss.csv").open(newline="") as file:
        (row,) = [r for r in csv.DictReader(file) if (r["arm"], r["seed"]) == (name, str(seed))]
    curve = np.asarray(row["meta_loss"].split(), np.float64)
    others = int(row["meta_steps"]), float(row["compile_seconds"]), float(row["inner_steps_per_second"])
    return Trained(blinded(rule) if ARMS[name].blind else rule, curve, *others)


def write_arms(arms: Mapping[tuple[str, int], Trained], folder: Path, *, parts: int = 50) -> None:
    """Write arms as `trained_arm` reads them: `ARM-SEED.safetensors` with its card, and the means of meta-losses in `meta_loss.csv`.

    Args:
        arms: by name and seed, meta-trained on all programs.
        folder: where they go.
        parts: stretches of a meta-training over which meta-losses are averaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("arm", "seed", "meta_steps", "compile_seconds", "inner_steps_per_second", "meta_loss"))
    for (name, seed), found in arms.items():
        first = subset(ARMS[name].size, seed, tuple(PROGRAMS))[0]
        card = Card(
            description=f"The arm {name} of lopt reproduce tasks, seed {seed}: for its claims, not for use. Of its {ARMS[name].size} tasks the first is named.",
            tasks=({"name": "sampled", "fields": {"seed": first}},),
            seed=seed,
            meta_steps=found.meta_steps,
            inner_steps=found.meta_steps * 2 * PAIRS * TRUNCATION,
            horizon=(HORIZON, HORIZON),
        )
        rule = found.optimizer
        plain = new_rule(ARMS[name].kind, jax.random.key(0))
        rule = jax.tree.unflatten(jax.tree.structure(plain), jax.tree.leaves(rule))
        zoo.save(folder / _weights(name, seed).name, rule, card)
        curve = " ".join(f"{x.mean():.5g}" for x in np.array_split(found.meta_loss, min(parts, len(found.meta_loss))))
        rate = (f"{found.compile_seconds:.1f}", f"{found.inner_steps_per_second:.0f}")
        table.writerow((name, seed, found.meta_steps, *rate, curve))
    write_text(folder / "meta_loss.csv", text.getvalue())


def _weights(name: str, seed: int) -> Path:
    return WEIGHTS / f"{name.replace(' ', '-')}-{seed}.safetensors"


def _shape(rule: Optimizer) -> Any:
    return jax.tree.structure(rule), [x.shape for x in jax.tree.leaves(rule)]


def arm_scores(
    name: str,
    seed: int,
    *,
    count: int,
    steps: int,
    meta_steps: int | None = None,
    programs: Sequence[str] = tuple(PROGRAMS),
    runs: str | None = None,
) -> Mapping[str, Float[np.ndarray, " kept"]]:
    """Normalised losses of an arm on the held-out tasks, by split; kept for the next claim.

    Args:
        name: as for `trained_arm`.
        seed: as for `trained_arm`.
        count: of held-out tasks.
        steps: of a training.
        meta_steps: as for `trained_arm`.
        programs: as for `trained_arm`.
        runs: as for `trained_arm`.
    """
    return _arm_scores(name, seed, count, steps, meta_steps, tuple(programs), runs)


@lru_cache(maxsize=64)
def _arm_scores(
    name: str,
    seed: int,
    count: int,
    steps: int,
    meta_steps: int | None,
    programs: tuple[str, ...],
    runs: str | None,
) -> Mapping[str, Float[np.ndarray, " kept"]]:
    held = held_out_tasks(count, programs, steps)
    found = held.losses([trained_arm(name, seed, meta_steps=meta_steps, programs=programs, runs=runs).optimizer])
    return {s: held.normalised(found[s], s)[0] for s in SPLITS}


def all_scores(
    names: Sequence[str], seeds: int, split: str, **given: Any
) -> dict[str, Float[np.ndarray, "seeds kept"]]:
    """`arm_scores` of several arms and seeds on one split."""
    return {n: np.stack([arm_scores(n, seed, **given)[split] for seed in range(seeds)]) for n in names}


def sized(estimate: Estimate, rising: str, falling: str) -> str:
    """An estimate by its size, after the word for its sign.

    Args:
        estimate: what differs.
        rising: the word where it is zero or above.
        falling: the word where it is below zero.
    """
    mean, low, high = estimate
    return f"{rising} {estimate}" if mean >= 0.0 else f"{falling} {Estimate(-mean, -high, -low)}"


__all__ = [
    "WEIGHTS",
    "absent",
    "all_scores",
    "arm_scores",
    "refuse_unused",
    "sized",
    "trained_arm",
    "write_arms",
]
