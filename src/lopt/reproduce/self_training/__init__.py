"""Metz et al. 2021, *Training Learned Optimizers with Randomly Initialized Learned Optimizers*: its claims, measured."""

from __future__ import annotations

from lopt.reproduce.claims import ClaimSpec, Paper
from lopt.reproduce.self_training import _figures
from lopt.reproduce.self_training.acceleration import acceleration
from lopt.reproduce.self_training.controls import controls
from lopt.reproduce.self_training.held_out import held_out
from lopt.reproduce.self_training.parity import parity
from lopt.reproduce.self_training.trainers import horizon, released

QUICK = {"seeds": 2, "cycles": 40}

PAPER = Paper(
    title="Optimizers that train themselves",
    source=(
        "Metz, Freeman, Maheswaranathan & Sohl-Dickstein 2021, Training Learned Optimizers with Randomly Initialized Learned Optimizers, "
        "with SmallFC of 197 meta-parameters on two small tasks. The text of the paper was not at hand: selection, mutation and sizes are a reconstruction. "
        "Criteria are ours."
    ),
    claims={
        "parity": ClaimSpec(parity, _figures.parity, QUICK),
        "acceleration": ClaimSpec(acceleration, _figures.acceleration, QUICK),
        "controls": ClaimSpec(controls, _figures.controls, QUICK),
        "horizon": ClaimSpec(horizon, _figures.horizon, {"cycles": QUICK["cycles"], "times": 4}),
        "held_out": ClaimSpec(held_out, _figures.held_out, QUICK),
        "released": ClaimSpec(released, _figures.released, {"cycles": 20}),
    },
)

__all__ = ["PAPER", "acceleration", "controls", "held_out", "horizon", "parity", "released"]
