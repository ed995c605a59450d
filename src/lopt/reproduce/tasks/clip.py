"""Without the clip of meta-gradients the optimizer does not train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce._curves import first_tenth, last_tenth
from lopt.reproduce.claims import Claim
from lopt.reproduce.tasks._arms import HOME
from lopt.reproduce.tasks._runs import absent, refuse_unused, trained_arm
from lopt.reproduce.tasks._tasks import PROGRAMS, check_programs

FREE = "no clip"
LITTLE = 0.1  # of the progress with the clip that still counts as none


def clip(
    key: PRNGKeyArray,
    *,
    seeds: int = 2,
    meta_steps: int | None = None,
    programs: Sequence[str] = tuple(PROGRAMS),
    runs: str | None = None,
) -> Claim:
    """The same meta-trainings with every element of a meta-gradient clipped at 0.1, and without.

    Args:
        key: not used: arms are those of fixed seeds.
        seeds: of the meta-training; both arms of a seed start alike.
        meta_steps: of the meta-training; `None` for the shipped arms.
        programs: of `PROGRAMS`, for a meta-training.
        runs: a folder for the run directories of meta-trainings.

    Raises:
        InputError: for an unknown program, `runs` or `programs` without `meta_steps`, or a run directory of another configuration.

    Source: Metz et al. 2020.
    """
    del key
    words = (
        "clip",
        "(c) Without the clip of meta-gradients it does not train",
        "Without a clip of every element of the meta-gradient at 0.1 no training occurs.",
        "Progress is the mean meta-loss of the first tenth of the meta-steps less that of the last. With the clip it is positive in every seed; without, it is "
        f"at most {LITTLE:.0%} of that, in every seed.",
    )
    check_programs(programs)
    refuse_unused(meta_steps, runs, programs)
    if reason := absent((HOME, FREE), seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    given: dict[str, Any] = {"meta_steps": meta_steps, "programs": tuple(programs), "runs": runs}
    curves = {n: np.stack([trained_arm(n, s, **given).meta_loss for s in range(seeds)]) for n in (HOME, FREE)}
    progress = {n: first_tenth(x) - last_tenth(x) for n, x in curves.items()}
    held = bool((progress[HOME] > 0.0).all() and (progress[FREE] <= LITTLE * progress[HOME]).all())
    labels = {HOME: "clipped at 0.1", FREE: "not clipped"}
    rows = [
        {
            "meta-gradients": labels[n],
            "first tenth": f"{first_tenth(curves[n]).mean():.3f}",
            "last tenth": f"{last_tenth(curves[n]).mean():.3f}",
            **{f"progress, seed {seed}": f"{progress[n][seed]:.3f}" for seed in range(seeds)},
        }
        for n in (HOME, FREE)
    ]
    return Claim(
        *words,
        f"The meta-loss falls by {mean_interval(progress[HOME])} with the clip and by {mean_interval(progress[FREE])} without it.",
        held,
        {"curves": curves, "progress": progress},
        rows,
    )


__all__ = ["clip"]
