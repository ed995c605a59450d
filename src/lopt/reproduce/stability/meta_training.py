"""The six arms: how fast their meta-loss falls, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce._curves import last_tenth
from lopt.reproduce.claims import Claim
from lopt.reproduce.stability._arms import ARMS, BLACK_BOX, HORIZON
from lopt.reproduce.stability._runs import absent, best_star, first_at, home_runs, smoothed, trained_arms


def meta_training(
    key: PRNGKeyArray,
    *,
    names: Sequence[str] = tuple(ARMS),
    seeds: int = 3,
    meta_steps: int | None = None,
    problems: int = 4,
    steps: int = 100 * HORIZON,
) -> Claim:
    """Meta-loss curves of the arms, and their meta-loss on fresh problems.

    Args:
        key: not used: the arms are those of fixed seeds.
        names: of `ARMS`.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.
        problems: fresh ones, on which the meta-trained arms are judged.
        steps: of the trainings, of which the first horizon is looked at; the next claim looks at the rest.

    Source: Harrison, Metz & Sohl-Dickstein 2022, section 6.
    """
    del key
    words = (
        "meta_training",
        "(d) STAR's meta-loss falls faster and ends lower than the black box's",
        "At the same cost of a step, meta-training with a nominal term, preconditioning and decay is faster and ends lower than that of the black box.",
        "STAR is the arm with both terms whose meta-loss was lowest in the last tenth of its meta-training. Its mean curve reaches the level of the black box's"
        " last tenth in fewer meta-steps than the black box's own first does. On fresh problems its mean loss is lower by more than the 95 % interval of the "
        "difference, paired by seeds.",
    )
    if reason := absent(names, seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    arms = trained_arms(tuple(names), seeds, meta_steps)
    runs = home_runs(tuple(names), seeds, meta_steps, steps, problems)
    star = best_star(arms)
    curves = {name: smoothed(arm.meta_loss) for name, arm in arms.items()}
    count = arms[star].meta_steps
    fresh = {name: losses[..., :HORIZON].mean(axis=(1, 2)) for name, losses in runs.items()}
    target = float(last_tenth(curves[BLACK_BOX]).mean())
    stretch = count / curves[star].shape[1]
    reached = {name: (first_at(c.mean(axis=0), target) + 1) * stretch for name, c in curves.items()}
    gain = mean_interval(fresh[BLACK_BOX] - fresh[star])
    faster = reached[star] < reached[BLACK_BOX]
    when = {n: f"after {x:.0f} of {count} meta-steps" if np.isfinite(x) else "never" for n, x in reached.items()}
    held = bool(faster and gain.low > 0.0)
    numbers: dict[str, Any] = {
        "star": star,
        "meta_steps": count,
        "target": target,
        "meta_steps_to_target": reached,
        "curves": curves,
        "late_meta_loss": {name: last_tenth(arm.meta_loss) for name, arm in arms.items()},
        "fresh_meta_loss": fresh,
        "gain": list(gain),
    }
    rows = [
        {
            "arm": name,
            "meta-loss of the last tenth of the meta-steps": str(mean_interval(last_tenth(arms[name].meta_loss))),
            f"mean loss of {HORIZON} steps, fresh problems": str(mean_interval(fresh[name])),
            "meta-steps to where the black box ends": f"{reached[name]:.0f}" if np.isfinite(reached[name]) else "never",
        }
        for name in names
    ]
    return Claim(
        *words,
        f"STAR is {star}. It reaches {target:.3f}, where the black box ends, {when[star]}; the black box first does {when[BLACK_BOX]}. On fresh problems the "
        f"mean loss of the black box less that of STAR is {gain}.",
        held,
        numbers,
        rows,
    )


__all__ = ["meta_training"]
