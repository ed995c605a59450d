"""Two neighbours of the field, Huang & Yang 2022 and Zhao et al. 2020: their claims, measured on tasks of lopt."""

from __future__ import annotations

from lopt.reproduce.claims import ClaimSpec, Paper
from lopt.reproduce.neighbours import _figures
from lopt.reproduce.neighbours.bend import bend
from lopt.reproduce.neighbours.continuation import continuation
from lopt.reproduce.neighbours.default_model import default_model
from lopt.reproduce.neighbours.frontier import frontier

# The claims on graphs share compiled programs, so their sizes agree.
QUICK_GRAPHS = {"graphs": 48, "tuning": 48, "learning_rates": (1e-2, 3e-2)}

PAPER = Paper(
    title="Neighbours: analytic continuation and low-precision graph networks",
    source=(
        "Huang & Yang 2022, Learned optimizers for analytic continuation, and Zhao et al. 2020, Learned Low Precision Graph Neural Networks, "
        "at the scale of one small machine. The texts of the papers were not at hand: claims are recalled, and methods are reconstructions on tasks of lopt. "
        "Criteria are ours."
    ),
    claims={
        "continuation": ClaimSpec(
            continuation, _figures.continuation, {"spectra": 48, "tuning": 16, "learning_rates": (0.03, 0.1)}
        ),
        "default_model": ClaimSpec(default_model, _figures.default_model, {"spectra": 48}),
        "frontier": ClaimSpec(frontier, _figures.frontier, QUICK_GRAPHS | {"costs": (0.3,)}),
        "bend": ClaimSpec(bend, _figures.bend, QUICK_GRAPHS),
    },
)

__all__ = ["PAPER", "bend", "continuation", "default_model", "frontier"]
