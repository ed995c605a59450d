"""Metz et al. 2019, *Understanding and correcting pathologies in the training of learned optimizers*: its claims, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from lopt.reproduce.claims import Claim, Report, write_report
from lopt.reproduce.pathologies._figures import draw
from lopt.reproduce.pathologies.explosion import explosion
from lopt.reproduce.pathologies.headline import headline
from lopt.reproduce.pathologies.influence import influence
from lopt.reproduce.pathologies.landscape import landscape
from lopt.reproduce.pathologies.truncation import truncation
from lopt.reproduce.pathologies.variance import variance

TITLE = "Pathologies of training learned optimizers"
SOURCE = (
    "Metz, Maheswaranathan, Nixon, Freeman & Sohl-Dickstein 2019, Understanding and correcting pathologies in the training of learned optimizers, "
    "at the scale of this machine. Criteria are ours, and were settled on trial runs with seed 0. "
    "The text of the paper was not at hand: its claims and equations are recalled."
)

CLAIMS: dict[str, Callable[..., Claim]] = {
    "landscape": landscape,
    "explosion": explosion,
    "truncation": truncation,
    "variance": variance,
    "influence": influence,
    "headline": headline,
}

# What `--quick` changes; everything else is as the functions have it.
QUICK: dict[str, dict[str, Any]] = {
    "landscape": {"pixel": 0.05},
    "explosion": {"starts": 512},
    "truncation": {"particles": 16, "meta_steps": 800, "seeds": 3, "trainings": 512, "rates": 81},
    "variance": {"repeats": 256},
    "influence": {"particles": 200, "meta_steps": 600, "learning_rate": 4e-3, "seeds": 2},
    "headline": {"evals": 20, "seeds": 3},
}


def pathologies(
    folder: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    weights: str | Path | None = None,
    command: str = "",
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Report:
    """Measure every claim and write the report: `report.html`, `results.json`, a PNG for each.

    Args:
        folder: where it goes.
        seed: draws everything.
        quick: smaller sizes, `QUICK`.
        weights: a saved optimizer for the last claim, which is not run without.
        command: goes into the report.
        sizes: arguments by claim; instead of those of `quick`.
        on_progress: told what is being done and what came out.
    """
    tell = on_progress or (lambda _: None)
    sizes = sizes if sizes is not None else QUICK if quick else {}
    folder.mkdir(parents=True, exist_ok=True)  # what cannot be written should not be measured first
    claims = []
    for i, (name, measure) in enumerate(CLAIMS.items()):
        tell(f"{name} ...")
        began = time.perf_counter()
        more = {"weights": weights} if name == "headline" else {}
        claim = measure(jax.random.fold_in(jax.random.key(seed), i), **{**sizes.get(name, {}), **more})
        claims.append(claim._replace(seconds=0.0 if claim.held is None else time.perf_counter() - began))
        tell(claim.found)
    settings = {"command": command, "seed": seed, "quick": quick, "devices": jax.device_count()}
    return write_report(folder, claims, draw, title=TITLE, source=SOURCE, settings=settings)


__all__ = [
    "CLAIMS",
    "QUICK",
    "explosion",
    "headline",
    "influence",
    "landscape",
    "pathologies",
    "truncation",
    "variance",
]
