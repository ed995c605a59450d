"""What it is worth that the optimizer sees a validation loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.tasks._arms import HOME
from lopt.reproduce.tasks._held_out import SPLITS, held_out_tasks
from lopt.reproduce.tasks._runs import absent, all_scores, refuse_unused, sized
from lopt.reproduce.tasks._tasks import PROGRAMS, check_programs

BLIND = "blind"
SMALL = 0.3  # of the training examples, at most: small data


def validation(
    key: PRNGKeyArray,
    *,
    seeds: int = 2,
    meta_steps: int | None = None,
    programs: Sequence[str] = tuple(PROGRAMS),
    tasks: int = 100,
    steps: int = 100,
    runs: str | None = None,
) -> Claim:
    """Training and test losses on held-out tasks that use few of their examples, with and without a validation loss among the inputs of the optimizer.

    Args:
        key: not used: arms and held-out tasks are those of fixed seeds.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.
        programs: of `PROGRAMS`.
        tasks: held out, of which those on small data count.
        steps: of a training.
        runs: a folder for the run directories of meta-trainings.

    Raises:
        InputError: for an unknown program, `runs` without `meta_steps`, or a run directory of another configuration.

    Source: Metz et al. 2020.
    """
    del key
    words = (
        "validation",
        "(e) With a validation loss among its inputs it overfits less",
        "An optimizer that is shown the loss of the validation split can see overfitting and counter it.",
        f"On held-out tasks that use at most {SMALL:.0%} of their training examples the normalised test loss of the arm that sees validation losses is below "
        "that of the one that does not, in every seed and by more than the 95 % interval over tasks of the paired difference.",
    )
    check_programs(programs)
    refuse_unused(meta_steps, runs)
    if reason := absent((HOME, BLIND), seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    held = held_out_tasks(tasks, tuple(programs), steps)
    small = np.concatenate([np.asarray(p.variations.share) <= SMALL for p in held.pools.values()])[held.kept]
    if small.sum() < 2:
        return Claim(
            *words, f"Not run: {small.sum()} of {tasks} held-out tasks are on small data; it takes 2 or more.", None, {}
        )
    given: dict[str, Any] = {"meta_steps": meta_steps, "programs": tuple(programs), "runs": runs}
    losses = {
        s: {n: x[:, small] for n, x in all_scores((HOME, BLIND), seeds, s, **given, count=tasks, steps=steps).items()}
        for s in SPLITS
    }
    above = losses["test"][BLIND] - losses["test"][HOME]
    gain = mean_interval(above.mean(axis=0))
    labels = {HOME: "with", BLIND: "without"}
    rows = [
        {"validation losses": labels[n]}
        | {f"normalised {s} loss": str(mean_interval(losses[s][n].mean(axis=0))) for s in SPLITS}
        | {f"test, seed {seed}": f"{losses['test'][n][seed].mean():.3f}" for seed in range(seeds)}
        for n in (HOME, BLIND)
    ]
    return Claim(
        *words,
        f"On {small.sum()} tasks with small data the normalised test loss "
        f"without validation losses is {sized(gain, 'above that with them by', 'below that with them by')}.",
        bool(gain.low > 0.0 and (above.mean(axis=1) > 0.0).all()),
        {"losses": losses, "gain": list(gain), "tasks_counted": int(small.sum())},
        rows,
    )


__all__ = ["validation"]
