"""What a population comes to when a part of self-training is missing."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.self_training.arms import ARMS, lowest


def controls(
    key: PRNGKeyArray,
    *,
    names: Sequence[str] = ("frozen", "selection", "alone", "sgd"),
    seeds: int = 3,
    cycles: int = 150,
    arms: str | None = None,
) -> Claim:
    """The end of every control beside that of the self-trained population.

    Args:
        key: not used; the arms are drawn by their seeds, so that all claims share them.
        names: of the controls, as in `ARMS`.
        seeds: populations an arm.
        cycles: of each.
        arms: the folder of their run directories; a temporary one if `None`.

    Source: the arms are ours; the text of the paper was not at hand.
    """
    del key
    curves = {name: lowest(name, seeds=seeds, cycles=cycles, arms=arms) for name in ("self", "adam", *names)}
    behind = {name: curves[name][:, -1] - curves["self"][:, -1] for name in names}
    worse = [name for name in names if mean_interval(behind[name]).low > 0.0]
    means = {name: float(values.mean()) for name, values in behind.items()}
    text = "; ".join(f"{ARMS[name].label} {value:+.3f}" for name, value in means.items())
    return Claim(
        "controls",
        "(c) It takes training, selection and a population",
        "Trainers that never learn, selection without meta-gradients, a population of one and plain gradient descent do worse.",
        "Every control ends above the self-trained population, by more than the 95 % interval of the paired differences in log meta-loss.",
        f"Above the self-trained population at the end, in log meta-loss: {text}. By more than the interval: {len(worse)} of {len(names)}.",
        len(worse) == len(names),
        {"cycles": cycles, "behind": behind, "means": means, "end": {n: c[:, -1] for n, c in curves.items()}},
        [
            {
                "arm": ARMS[name].label,
                "log meta-loss after the first cycle": f"{curve[:, 0].mean():.3f}",
                "at the end": f"{curve[:, -1].mean():.3f}",
                "minus self-trained": f"{(curve[:, -1] - curves['self'][:, -1]).mean():+.3f}",
                "seeds above it": f"{int((curve[:, -1] > curves['self'][:, -1]).sum())} of {seeds}",
            }
            for name, curve in curves.items()
        ],
        curves,
    )


__all__ = ["controls"]
