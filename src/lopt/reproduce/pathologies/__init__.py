"""Metz et al. 2019, *Understanding and correcting pathologies in the training of learned optimizers*: its claims, measured."""

from __future__ import annotations

from lopt.reproduce.claims import ClaimSpec, Paper
from lopt.reproduce.pathologies import _figures
from lopt.reproduce.pathologies.explosion import explosion
from lopt.reproduce.pathologies.headline import headline
from lopt.reproduce.pathologies.influence import influence
from lopt.reproduce.pathologies.landscape import landscape
from lopt.reproduce.pathologies.truncation import truncation
from lopt.reproduce.pathologies.variance import variance

PAPER = Paper(
    title="Pathologies of training learned optimizers",
    source=(
        "Metz, Maheswaranathan, Nixon, Freeman & Sohl-Dickstein 2019, Understanding and correcting pathologies in the training of learned optimizers, "
        "at the scale of one small machine. Criteria are ours, and were settled on trial runs with seed 0. "
        "The text of the paper was not at hand: its claims and equations are recalled."
    ),
    claims={
        "landscape": ClaimSpec(landscape, _figures.landscape, {"pixel": 0.05}),
        "explosion": ClaimSpec(explosion, _figures.explosion, {"starts": 512}),
        "truncation": ClaimSpec(
            truncation,
            _figures.truncation,
            {"particles": 16, "meta_steps": 800, "seeds": 3, "trainings": 512, "rates": 81},
        ),
        "variance": ClaimSpec(variance, _figures.variance, {"repeats": 256}),
        "influence": ClaimSpec(
            influence, _figures.influence, {"particles": 200, "meta_steps": 600, "learning_rate": 4e-3, "seeds": 2}
        ),
        "headline": ClaimSpec(
            headline,
            _figures.headline,
            {"evals": 20, "seeds": 5, "learning_rates": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)},
        ),
    },
)

__all__ = ["PAPER", "explosion", "headline", "influence", "landscape", "truncation", "variance"]
