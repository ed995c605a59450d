"""The hierarchical LSTM beside a feed-forward rule and an LSTM for every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce._curves import last_tenth
from lopt.reproduce.claims import Claim
from lopt.reproduce.tasks._arms import HOME
from lopt.reproduce.tasks._runs import absent, all_scores, refuse_unused, sized, trained_arm
from lopt.reproduce.tasks._tasks import PROGRAMS, check_programs

RIVALS = ("feed-forward", "LSTM")


def architecture(
    key: PRNGKeyArray,
    *,
    rivals: Sequence[str] = RIVALS,
    seeds: int = 2,
    meta_steps: int | None = None,
    programs: Sequence[str] = tuple(PROGRAMS),
    tasks: int = 100,
    steps: int = 100,
    runs: str | None = None,
) -> Claim:
    """Three architectures, meta-trained on the same hundred tasks with the same budget of meta-steps and inner steps.

    Args:
        key: not used: arms and held-out tasks are those of fixed seeds.
        rivals: of `RIVALS`.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.
        programs: of `PROGRAMS`.
        tasks: held out.
        steps: of a training.
        runs: a folder for the run directories of meta-trainings.

    Raises:
        InputError: for an unknown rival or program, `runs` without `meta_steps`, or a run directory of another configuration.

    Source: Metz et al. 2020, at the scale of one small machine.
    """
    del key
    words = (
        "architecture",
        "(b) The hierarchical LSTM ends below the feed-forward rule and the LSTM",
        "At the same budget the hierarchical optimizer ends below a feed-forward network for every parameter and an LSTM for every parameter.",
        "Its mean normalised test loss on held-out tasks is below that of each rival in every seed, and by more than the 95 % interval over tasks of the "
        "paired difference of means over seeds.",
    )
    check_programs(programs)
    refuse_unused(meta_steps, runs)
    if not rivals or set(rivals) - set(RIVALS):
        raise InputError(f"rivals is {tuple(rivals)}; it must hold some of {', '.join(RIVALS)} and nothing else.")
    names = [HOME, *rivals]
    if reason := absent(names, seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    given: dict[str, Any] = {"meta_steps": meta_steps, "programs": tuple(programs), "runs": runs}
    losses = all_scores(names, seeds, "test", **given, count=tasks, steps=steps)
    curves = {n: np.stack([trained_arm(n, s, **given).meta_loss for s in range(seeds)]) for n in names}
    above = {n: losses[n] - losses[HOME] for n in rivals}
    gains = {n: mean_interval(x.mean(axis=0)) for n, x in above.items()}
    beaten = [n for n in rivals if gains[n].low > 0.0 and (above[n].mean(axis=1) > 0.0).all()]
    rows = [
        {
            "rule": "hierarchical LSTM" if n == HOME else n,
            "meta-loss of the last tenth": str(mean_interval(last_tenth(curves[n]))),
            "normalised test loss, mean": f"{losses[n].mean():.3f}",
            **{f"seed {seed}": f"{losses[n][seed].mean():.3f}" for seed in range(seeds)},
            "above the hierarchical LSTM": "" if n == HOME else str(gains[n]),
        }
        for n in names
    ]
    listed = " ".join(f"{n} is {sized(gains[n], 'above it by', 'below it by')}." for n in rivals)
    return Claim(
        *words,
        f"The hierarchical LSTM ends at {losses[HOME].mean():.3f}; it is ahead of {len(beaten)} of {len(rivals)} rivals ({', '.join(beaten) or 'none'}). "
        f"{listed}",
        len(beaten) == len(rivals),
        {"curves": curves, "losses": losses, "gains": {n: list(g) for n, g in gains.items()}},
        rows,
    )


__all__ = ["RIVALS", "architecture"]
