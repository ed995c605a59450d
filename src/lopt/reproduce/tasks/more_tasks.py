"""Meta-trained on more tasks, a learned optimizer does better on tasks that it has not met."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce._curves import last_tenth
from lopt.reproduce.claims import Claim
from lopt.reproduce.tasks._arms import ARMS
from lopt.reproduce.tasks._runs import absent, all_scores, refuse_unused, sized, trained_arm
from lopt.reproduce.tasks._tasks import PROGRAMS, check_programs

SIZES = {ARMS[name].size: name for name in ("1 task", "10 tasks", "100 tasks", "1000 tasks")}


def more_tasks(
    key: PRNGKeyArray,
    *,
    sizes: Sequence[int] = tuple(SIZES),
    seeds: int = 2,
    meta_steps: int | None = None,
    programs: Sequence[str] = tuple(PROGRAMS),
    tasks: int = 100,
    steps: int = 100,
    runs: str | None = None,
) -> Claim:
    """`HierarchicalLSTM`, meta-trained on nested subsets of sampled tasks for as many meta-steps, on one set of tasks that none has met.

    Args:
        key: not used: arms and held-out tasks are those of fixed seeds.
        sizes: of the subsets.
        seeds: of the meta-training; each has tasks of its own.
        meta_steps: of the meta-training; `None` for the shipped arms.
        programs: of `PROGRAMS`.
        tasks: held out.
        steps: of a training.
        runs: a folder for the run directories of meta-trainings, to go on after a stop.

    Raises:
        InputError: for a size that no arm has, an unknown program, `runs` without `meta_steps`, or a run directory of another configuration.

    Source: Metz et al. 2020, at the scale of one small machine.
    """
    del key
    words = (
        "more_tasks",
        "(a) More tasks generalise better",
        "Meta-trained on more tasks for the same number of meta-steps, the optimizer has lower losses on held-out tasks.",
        "The mean normalised test loss on held-out tasks, over tasks and seeds, falls at every step to a larger subset. Between the smallest and the largest "
        "it falls in every seed, and by more than the 95 % interval over tasks of the paired difference.",
    )
    check_programs(programs)
    refuse_unused(meta_steps, runs)
    for size in sizes:
        if size not in SIZES:
            raise InputError(
                f"A subset of {size} tasks was asked for; there are those of {', '.join(map(str, SIZES))}."
            )
    if len(sizes) < 2 or list(sizes) != sorted(set(sizes)):
        raise InputError(f"sizes is {tuple(sizes)}; it must hold two sizes or more, each larger than the one before.")
    names = [SIZES[size] for size in sizes]
    if reason := absent(names, seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    given: dict[str, Any] = {"meta_steps": meta_steps, "programs": tuple(programs), "runs": runs}
    losses = all_scores(names, seeds, "test", **given, count=tasks, steps=steps)
    trained = {n: [trained_arm(n, seed, **given) for seed in range(seeds)] for n in names}
    means = {n: float(x.mean()) for n, x in losses.items()}
    difference = losses[names[0]] - losses[names[-1]]
    gain = mean_interval(difference.mean(axis=0))
    falls = all(means[b] < means[a] for a, b in itertools.pairwise(names))
    held = bool(falls and gain.low > 0.0 and (difference.mean(axis=1) > 0.0).all())
    speed = float(np.median([t.inner_steps_per_second for n in names for t in trained[n]]))
    compiled = max(t.compile_seconds for n in names for t in trained[n])
    rows = [
        {
            "tasks": f"{size:,}",
            "normalised test loss, mean": f"{means[n]:.3f}",
            **{f"seed {seed}": f"{losses[n][seed].mean():.3f}" for seed in range(seeds)},
            "meta-loss of the last tenth": str(mean_interval(np.array([last_tenth(t.meta_loss) for t in trained[n]]))),
        }
        for size, n in zip(sizes, names, strict=True)
    ]
    listed = ", ".join(f"{means[n]:.3f} on {size:,}" for size, n in zip(sizes, names, strict=True))
    return Claim(
        *words,
        f"Mean normalised test losses by the size of the subset: {listed}. "
        f"From the smallest to the largest it {sized(gain, 'falls by', 'rises by')} over tasks. "
        f"The programs of an arm compile in {compiled:.0f} s at most; then it takes {speed:,.0f} inner steps a second.",
        held,
        {
            "sizes": list(sizes),
            "meta_steps": trained[names[0]][0].meta_steps,
            "tasks_counted": int(difference.shape[1]),
            "losses": losses,
            "gain": list(gain),
            "compile_seconds": compiled,
            "inner_steps_per_second": speed,
        },
        rows,
    )


__all__ = ["SIZES", "more_tasks"]
