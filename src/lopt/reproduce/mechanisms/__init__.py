"""Maheswaranathan et al. 2020, *Reverse engineering learned optimizers reveals known and novel mechanisms*: its claims, measured."""

from __future__ import annotations

from lopt.reproduce.claims import ClaimSpec, Paper
from lopt.reproduce.mechanisms import _figures
from lopt.reproduce.mechanisms.beats import beats
from lopt.reproduce.mechanisms.found import adapts, clips, converges, resembles, rises
from lopt.reproduce.mechanisms.ours import ours

# Optimizers that `--quick` meta-trains itself; all its claims share them.
QUICK = {"names": ("linear", "rosenbrock"), "meta_steps": 200}

PAPER = Paper(
    title="Mechanisms of learned optimizers",
    source=(
        "Maheswaranathan, Sussillo, Metz, Sun & Sohl-Dickstein 2020, Reverse engineering learned optimizers reveals known and novel mechanisms, "
        "at the scale of one small machine. Criteria are ours and were settled before any run of this command; that of beats, "
        "after losses of earlier weights on the same tasks had been seen."
    ),
    claims={
        "beats": ClaimSpec(beats, _figures.beats, QUICK | {"seeds": 32, "trials": 12}),
        "converges": ClaimSpec(converges, _figures.converges, QUICK),
        "resembles": ClaimSpec(resembles, _figures.resembles, {"meta_steps": QUICK["meta_steps"]}),
        "clips": ClaimSpec(clips, _figures.clips, {"meta_steps": QUICK["meta_steps"]}),
        "rises": ClaimSpec(rises, _figures.rises, QUICK),
        "adapts": ClaimSpec(adapts, _figures.adapts, QUICK),
        "ours": ClaimSpec(ours, _figures.ours, {"optimizers": ("general-1",)}),
    },
)

__all__ = ["PAPER", "adapts", "beats", "clips", "converges", "ours", "resembles", "rises"]
