"""Our extension: the eigenvalues of the training step itself, along trainings with the arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.analyze import certify
from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.stability._arms import ARMS, BLACK_BOX, HORIZON, home_task
from lopt.reproduce.stability._runs import absent, best_star, trained_arms

FIELDS = ("sharpness", "margin", "overshoot", "spectral_radius", "exponent")


def spectra(
    key: PRNGKeyArray,
    *,
    names: Sequence[str] = tuple(ARMS),
    seeds: int = 3,
    meta_steps: int | None = None,
    looked_at: Sequence[str] | None = None,
    steps: int = HORIZON,
    checkpoints: int = 4,
) -> Claim:
    """A certificate of a training of the home task with every arm and seed.

    Args:
        key: draws the trainings, the same for all.
        names: of `ARMS`.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.
        looked_at: the arms that get certificates; all of `names` if `None`. STAR and the black box are always among them.
        steps: of a training.
        checkpoints: of a certificate.

    Source: lopt's own. The paper has the eigenvalues of the noisy quadratic alone.
    """
    words = (
        "spectra",
        "(g) Our extension: the training step of STAR is more stable than the black box's",
        "What the paper shows for the eigenvalues of the noisy quadratic should show in trainings of networks: with STAR nearby trainings part more slowly, "
        "and steps overshoot less often.",
        "At the checkpoints after the first, the Lyapunov exponent of STAR is below that of the black box by more than the 95 % interval over seeds, and no "
        "larger share of its checkpoints overshoots by 1 %.",
    )
    if reason := absent(names, seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    arms, task = trained_arms(tuple(names), seeds, meta_steps), home_task()[1]
    star = best_star(arms)
    chosen = [n for n in names if looked_at is None or n in (*looked_at, star, BLACK_BOX)]
    certificates = {
        name: [
            certify(rule, task, steps=steps, key=jax.random.fold_in(key, seed), checkpoints=checkpoints, name=name)
            for seed, rule in enumerate(arms[name].optimizers)
        ]
        for name in chosen
    }
    curves = {
        name: {field: np.stack([getattr(c, field) for c in found]) for field in FIELDS}
        for name, found in certificates.items()
    }
    later = slice(1, None)  # the first step of any rule that keeps a second moment overshoots
    exponents = {name: found["exponent"][:, later].mean(axis=1) for name, found in curves.items()}
    over = {name: float((found["overshoot"][:, later] > 1.01).mean()) for name, found in curves.items()}
    gap = mean_interval(exponents[BLACK_BOX] - exponents[star])
    held = bool(gap.low > 0.0 and over[star] <= over[BLACK_BOX])
    numbers: dict[str, Any] = {
        "star": star,
        "steps": certificates[star][0].steps,
        "curves": curves,
        "exponent": exponents,
        "overshoots": over,
        "gap": list(gap),
    }
    rows = [
        {
            "arm": name,
            "checkpoints that overshoot": f"{over[name]:.0%}",
            "median spectral radius": f"{np.median(curves[name]['spectral_radius'][:, later]):.4g}",
            "median margin": f"{np.median(curves[name]['margin'][:, later]):.3g}",
            "Lyapunov exponent a step": str(mean_interval(exponents[name])),
        }
        for name in chosen
    ]
    return Claim(
        *words,
        f"The exponent of the black box is above that of STAR ({star}) by {gap}; steps overshoot at {over[star]:.0%} of STAR's checkpoints and at "
        f"{over[BLACK_BOX]:.0%} of the black box's.",
        held,
        numbers,
        rows,
    )


__all__ = ["spectra"]
