"""The paper's table: normalised losses on held-out tasks, untuned and tuned for each task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.tasks._arms import HOME
from lopt.reproduce.tasks._hand_designed import ADAM_RATES, adam8s, adams, nadamws, ordered
from lopt.reproduce.tasks._held_out import SPLITS, held_out_tasks, tuning_losses
from lopt.reproduce.tasks._runs import absent, refuse_unused, sized, trained_arm
from lopt.reproduce.tasks._tasks import PROGRAMS, check_programs

LEARNED = "learned, no tuning"
ADAM14 = f"Adam, {len(ADAM_RATES)} rates for each task"


def _eights(trials: int) -> str:
    """The label of Adam8p at its best of so many trials for each task."""
    return f"Adam8p, {trials} trials for each task"


# Means and medians, training and test, of the paper's table, from notes that were taken while reading it; its text was not at hand.
PUBLISHED: dict[str, tuple[float, float, float, float]] = {
    LEARNED: (0.0773, 0.0242, 0.1132, 0.0289),
    "Adam, one rate for all": (0.2268, 0.1055, 0.2616, 0.0925),
    "Adam8p, one setting for all": (0.2409, 0.1095, 0.2574, 0.1010),
    "NAdamW, one setting for all": (0.2152, 0.0984, 0.2294, 0.0867),
    ADAM14: (0.1504, 0.0674, 0.1520, 0.0632),
    "NAdamW, list of 10 for each task": (0.0828, 0.0396, 0.0862, 0.0385),
    _eights(10): (0.279, 0.133, 0.264, 0.129),
    _eights(100): (0.0954, 0.0469, 0.107, 0.0467),
}


def table(
    key: PRNGKeyArray,
    *,
    arm: str = HOME,
    seeds: int = 2,
    meta_steps: int | None = None,
    programs: Sequence[str] = tuple(PROGRAMS),
    tasks: int = 100,
    steps: int = 100,
    trials: int = 100,
    candidates: int = 28,
    tuning: int = 14,
    runs: str | None = None,
) -> Claim:
    """Final losses on held-out tasks of a learned optimizer without tuning, and of Adam, Adam with eight hyper-parameters and NAdamW. A loss is
    normalised by that at the start and the lowest of all rivals' for the task. A setting for a task is the one with the lowest training loss for the training
    columns, and with the lowest test loss for the test columns, in the rivals' favour. A setting for all has the lowest mean on other tasks.

    Args:
        key: not used: all is drawn from fixed seeds.
        arm: of `ARMS`, the learned optimizer.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.
        programs: of `PROGRAMS`.
        tasks: held out.
        steps: of a training.
        trials: of Adam8p; at least ten.
        candidates: settings of NAdamW from which ten are chosen and put in order.
        tuning: tasks of the meta-training on which they are, and on which settings for all tasks are chosen.
        runs: a folder for the run directories of meta-trainings.

    Raises:
        InputError: for an unknown program or arm, fewer than ten trials or candidates, `runs` without `meta_steps`, or
            a run directory of another configuration.

    Source: Metz et al. 2020, at the scale of one small machine.
    """
    del key
    words = (
        "table",
        "(g) Untuned, it is ahead of Adam with a rate for each task",
        "Without any tuning, the learned optimizer has about half the normalised training loss of Adam at the best of 14 learning rates for each task, and is "
        "level with a list of ten settings of NAdamW.",
        "Its normalised training loss, the mean over seeds, is below that of Adam with 14 rates for each task by more than the 95 % interval over tasks of the "
        "paired difference.",
    )
    check_programs(programs)
    refuse_unused(meta_steps, runs)
    if trials < 10 or candidates < 10:
        raise InputError(f"trials is {trials} and candidates {candidates}; each must be at least 10.")
    if reason := absent((arm,), seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    given: dict[str, Any] = {"meta_steps": meta_steps, "programs": tuple(programs), "runs": runs}
    held = held_out_tasks(tasks, tuple(programs), steps)
    several, nadams = adam8s(trials, 0), nadamws(candidates, 1)
    settings = {"adam": adams(ADAM_RATES), "adam8": several, "nadamw": nadams}
    before = {
        n: tuning_losses(tuple(programs), tuning, steps, r) for n, r in settings.items()
    }  # on tasks of the meta-training
    chosen = ordered(before["nadamw"], 10)
    found = {"adam": held.adam, "adam8": held.losses(several), "nadamw": held.losses([nadams[i] for i in chosen])}
    learned = [held.losses([trained_arm(arm, s, **given).optimizer]) for s in range(seeds)]
    ours: dict[str, dict[str, Float[np.ndarray, " kept"]]] = defaultdict(dict)
    for split in SPLITS:
        best = np.min([found[n][split].min(axis=0) for n in found], axis=0)
        nu = {n: held.normalised(x[split], split, best) for n, x in found.items()}
        ours[LEARNED][split] = np.mean([held.normalised(x[split], split, best)[0] for x in learned], axis=0)
        ours["Adam, one rate for all"][split] = nu["adam"][before["adam"].mean(axis=1).argmin()]
        ours["Adam8p, one setting for all"][split] = nu["adam8"][before["adam8"].mean(axis=1).argmin()]
        ours["NAdamW, one setting for all"][split] = nu["nadamw"][0]
        ours[ADAM14][split] = nu["adam"].min(axis=0)
        ours["NAdamW, list of 10 for each task"][split] = nu["nadamw"].min(axis=0)
        ours[_eights(10)][split] = nu["adam8"][:10].min(axis=0)
        ours[_eights(trials)][split] = nu["adam8"].min(axis=0)
    gain = mean_interval(ours[ADAM14]["train"] - ours[LEARNED]["train"])
    numbers: dict[str, Any] = {
        "losses": dict(ours),
        "gain": list(gain),
        "rates": list(ADAM_RATES),
        "trials": trials,
        "tasks_counted": int(held.kept.sum()),
    }
    rows = [
        {"optimizer": n}
        | {
            f"{split} {what}": f"{of(x[split]):.3f}" + (f" ({PUBLISHED[n][2 * i + j]:.3f})" if n in PUBLISHED else "")
            for i, split in enumerate(SPLITS)
            for j, (what, of) in enumerate((("mean", np.mean), ("median", np.median)))
        }
        for n, x in ours.items()
    ]
    return Claim(
        *words,
        f"On {held.kept.sum()} tasks that count, the mean normalised training loss is {ours[LEARNED]['train'].mean():.3f}, and "
        f"{ours[ADAM14]['train'].mean():.3f} for Adam with 14 rates, {sized(gain, 'which is higher by', 'which is lower by')}. "
        "In the table, figures in parentheses are the published ones, of other tasks and rivals.",
        bool(gain.low > 0.0),
        numbers,
        rows,
    )


__all__ = ["PUBLISHED", "table"]
