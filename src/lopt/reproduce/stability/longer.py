"""Trainings far longer than those of the meta-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.stability._arms import ARMS, BLACK_BOX, HORIZON
from lopt.reproduce.stability._runs import absent, best_star, diverged, home_runs, level, smoothed, trained_arms


def longer(
    key: PRNGKeyArray,
    *,
    names: Sequence[str] = tuple(ARMS),
    seeds: int = 3,
    meta_steps: int | None = None,
    problems: int = 4,
    multiples: Sequence[int] = (1, 10, 100),
) -> Claim:
    """Fraction diverged and loss after multiples of the horizon of the meta-training, for every arm.

    Args:
        key: not used: the arms and their problems are those of fixed seeds.
        names: of `ARMS`.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.
        problems: fresh ones for every arm and seed.
        multiples: of the horizon.

    Source: Harrison, Metz & Sohl-Dickstein 2022, section 6, figure 3.
    """
    del key
    last = multiples[-1]
    words = (
        "longer",
        f"(e) STAR stays stable for {last} times the horizon of its meta-training",
        "On the task of the meta-training STAR is stable for about a hundred times as many steps as it was meta-trained for; the black box is not.",
        f"After {last} times {HORIZON} steps no training of STAR, the arm of (d), has diverged and its mean loss is not above that after {HORIZON}; "
        "some training of the black box has diverged: its level over 50 steps is above twice the first loss, or not finite.",
    )
    if reason := absent(names, seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    star = best_star(trained_arms(tuple(names), seeds, meta_steps))
    runs = home_runs(tuple(names), seeds, meta_steps, last * HORIZON, problems)
    lost = {name: [float(diverged(x, m * HORIZON).mean()) for m in multiples] for name, x in runs.items()}
    levels = {name: [level(x, m * HORIZON).mean(axis=1) for m in multiples] for name, x in runs.items()}
    change = mean_interval(levels[star][-1] - levels[star][0])
    held = bool(lost[star][-1] == 0.0 and lost[BLACK_BOX][-1] > 0.0 and change.value <= 0.0)
    numbers: dict[str, Any] = {
        "star": star,
        "multiples": list(multiples),
        "diverged": lost,
        "loss": levels,
        "curves": {name: smoothed(x.mean(axis=(0, 1)), 200) for name, x in runs.items()},
        "steps": last * HORIZON,
    }
    rows = [
        {"arm": name}
        | {f"diverged at {m}x": f"{lost[name][i]:.0%}" for i, m in enumerate(multiples)}
        | {f"loss at {m}x": str(mean_interval(levels[name][i])) for i, m in enumerate(multiples)}
        for name in names
    ]
    return Claim(
        *words,
        f"At {last}x {lost[star][-1]:.0%} of the trainings of STAR ({star}) and {lost[BLACK_BOX][-1]:.0%} of the black box's have diverged. "
        f"STAR's loss changed by {change} from 1x to {last}x; the black box's mean is {np.mean(levels[BLACK_BOX][-1]):.3g} there.",
        held,
        numbers,
        rows,
    )


__all__ = ["longer"]
