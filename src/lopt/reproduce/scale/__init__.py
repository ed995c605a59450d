"""Wichrowska et al. 2017, *Learned Optimizers that Scale and Generalize*: its claims, measured."""

from __future__ import annotations

from lopt.reproduce.claims import ClaimSpec, Paper
from lopt.reproduce.scale import _figures
from lopt.reproduce.scale.ablations import ablations
from lopt.reproduce.scale.corpus import corpus
from lopt.reproduce.scale.large import large, large_lstm, large_with_mlps
from lopt.reproduce.scale.networks import networks, networks_with_mlps
from lopt.reproduce.scale.overhead import overhead

ONE_NETWORK = {"names": ("digits, relu",), "steps": 200, "seeds": 2, "learning_rates": (1e-3, 1e-2)}
SMALL_INCEPTION = {"names": ("inception, small",), "steps": 300}

PAPER = Paper(
    title="Learned optimizers that scale and generalize",
    source=(
        "Wichrowska et al. 2017, Learned Optimizers that Scale and Generalize, at the scale of one small machine. Criteria are ours. "
        "They were settled before any run of this command, that of (a) after four problems had been looked at, that of (d) after the benchmark of overheads. "
        "The text of the paper was not at hand: its claims are recalled."
    ),
    claims={
        "corpus": ClaimSpec(
            corpus,
            _figures.corpus,
            {
                "problems": ("quadratic_50_noisy", "rosenbrock"),
                "steps": 300,
                "seeds": 2,
                "learning_rates": (1e-3, 1e-2, 1e-1),
            },
        ),
        "networks": ClaimSpec(networks, _figures.networks, ONE_NETWORK),
        "large": ClaimSpec(large, _figures.large, SMALL_INCEPTION),
        "large_lstm": ClaimSpec(large_lstm, _figures.large, SMALL_INCEPTION),
        "overhead": ClaimSpec(
            overhead, _figures.overhead, {"data": "digits", "channels": 8, "blocks": 1, "batches": (1, 256)}
        ),
        "ablations": ClaimSpec(
            ablations,
            _figures.ablations,
            {
                "arms": ("whole", "no dynamic scaling"),
                "problems": ("branin",),
                "meta_steps": 50,
                "seeds": 2,
                "steps": 200,
            },
        ),
        "networks_with_mlps": ClaimSpec(networks_with_mlps, _figures.networks, ONE_NETWORK),
        "large_with_mlps": ClaimSpec(large_with_mlps, _figures.large, SMALL_INCEPTION),
    },
)

__all__ = [
    "PAPER",
    "ablations",
    "corpus",
    "large",
    "large_lstm",
    "large_with_mlps",
    "networks",
    "networks_with_mlps",
    "overhead",
]
