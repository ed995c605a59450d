"""Harrison et al. 2022, *A Closer Look at Learned Optimization: Stability, Robustness, and Inductive Biases*: its claims, measured."""

from __future__ import annotations

from lopt.reproduce.claims import ClaimSpec, Paper
from lopt.reproduce.stability import _figures
from lopt.reproduce.stability.box import box
from lopt.reproduce.stability.control import control
from lopt.reproduce.stability.longer import longer
from lopt.reproduce.stability.meta_training import meta_training
from lopt.reproduce.stability.noise import noise
from lopt.reproduce.stability.spectra import spectra
from lopt.reproduce.stability.zero_shot import zero_shot

# Arms that `--quick` meta-trains itself; all its claims on networks share them.
QUICK = {"names": ("black-box", "decay-1.0"), "seeds": 2, "meta_steps": 300}

PAPER = Paper(
    title="Stability of learned optimizers",
    source=(
        "Harrison, Metz & Sohl-Dickstein 2022, A Closer Look at Learned Optimization: Stability, Robustness, and Inductive Biases, "
        "at the scale of one small machine. Criteria are ours. Those of (a) to (c) were settled on trial runs, those of (d) to (g) before any run. "
        "The text of the paper was not at hand: its claims and equations are recalled."
    ),
    claims={
        "box": ClaimSpec(box, _figures.box, {"draws": 400}),
        "noise": ClaimSpec(noise, _figures.noise, {"repeats": 100}),
        "control": ClaimSpec(control, _figures.control, {"draws": 200}),
        "meta_training": ClaimSpec(meta_training, _figures.meta_training, QUICK | {"problems": 2}),
        "longer": ClaimSpec(longer, _figures.longer, QUICK | {"problems": 2}),
        "zero_shot": ClaimSpec(
            zero_shot,
            _figures.zero_shot,
            QUICK | {"networks": ("conv net, layer norm",), "steps": 300, "problems": 1},
        ),
        "spectra": ClaimSpec(spectra, _figures.spectra, QUICK | {"checkpoints": 3}),
    },
)

__all__ = ["PAPER", "box", "control", "longer", "meta_training", "noise", "spectra", "zero_shot"]
