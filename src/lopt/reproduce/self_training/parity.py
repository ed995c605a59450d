"""Whether a population that trains itself gets where one gets that Adam trains."""

from __future__ import annotations

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.self_training.arms import ADAM_RATES, ARMS, STEPS, lowest, run_arm


def parity(
    key: PRNGKeyArray, *, seeds: int = 3, cycles: int = 150, slack: float = 0.05, arms: str | None = None
) -> Claim:
    """The best member's log meta-loss, cycle by cycle, of a self-trained population and one that Adam trains.

    The Adam-trained population holds five learning rates as its trainers. Selection chooses among them by the same evaluations.

    Args:
        key: not used; the arms are drawn by their seeds, so that all claims share them.
        seeds: populations an arm.
        cycles: of each.
        slack: in log meta-loss, by which the self-trained end may be above Adam's.
        arms: the folder of their run directories; a temporary one if `None`.

    Source: Metz et al. 2021, abstract.
    """
    del key
    curves = {name: lowest(name, seeds=seeds, cycles=cycles, arms=arms) for name in ("self", "adam")}
    own, adam = curves["self"], curves["adam"]
    gap = mean_interval(own[:, -1] - adam[:, -1])
    later, reached = [], 0
    for mine, other in zip(own, adam, strict=True):
        when = np.flatnonzero(mine <= other[-1])
        if len(when):
            reached += 1
            later.append(int(when[0] - np.flatnonzero(other <= other[-1])[0]) * STEPS)
    middle = f"{np.median(later):+.0f} meta-steps, the median" if later else "never"
    lineage = run_arm("self", seed=0, cycles=cycles, folder=arms)
    return Claim(
        "parity",
        "(a) A population that trains itself reaches what Adam reaches",
        "Randomly initialised learned optimizers can train themselves from scratch, without a hand-designed optimizer, to what a tuned Adam makes of them.",
        f"At the end the mean log meta-loss of the best self-trained member is at most {slack:g} above that of the best Adam-trained one.",
        f"Self-trained minus Adam-trained: {gap.value:+.3f} at the end. {reached} of {seeds} self-trained populations reached the last meta-loss of Adam's; "
        f"later than Adam by: {middle}.",
        bool(gap.value <= slack),
        {
            "cycles": cycles,
            "meta_steps_a_cycle": STEPS,
            "adam_rates": list(ADAM_RATES),
            "end": {name: curve[:, -1] for name, curve in curves.items()},
            "gap": gap.value,
            "reached": reached,
            "meta_steps_later": later,
        },
        [
            {
                "arm": ARMS[name].label,
                "log meta-loss after the first cycle": f"{mean_interval(curve[:, 0]).value:.3f}",
                "at the end": _text(curve[:, -1]),
            }
            for name, curve in curves.items()
        ],
        {
            **curves,
            "trainers": lineage.trainers,
            "copies": np.asarray(lineage.copies, int).reshape(-1, 3) if lineage.copies else np.zeros((1, 3), int),
        },
    )


def _text(values: np.ndarray) -> str:
    return str(mean_interval(values)) if len(values) > 1 else f"{values[0]:.3f}"


__all__ = ["parity"]
