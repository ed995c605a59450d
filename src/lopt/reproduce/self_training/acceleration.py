"""Whether progress accelerates while a population trains itself."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.self_training.arms import ARMS, lowest

ROUNDING = 1e-9


def acceleration(key: PRNGKeyArray, *, seeds: int = 3, cycles: int = 150, arms: str | None = None) -> Claim:
    r"""By how much log meta-loss falls in the first and in the second quarter of the cycles.

    $$a = (L_{T/4} - L_{T/2}) - (L_0 - L_{T/4})$$

    with $L$ the log meta-loss of the best member. It is positive where the second quarter brings more than the first.

    Args:
        key: not used; the arms are drawn by their seeds, so that all claims share them.
        seeds: populations an arm.
        cycles: of each.
        arms: the folder of their run directories; a temporary one if `None`.

    Source: Metz et al. 2021, abstract: positive feedback.
    """
    del key
    curves = {name: lowest(name, seeds=seeds, cycles=cycles, arms=arms) for name in ("self", "adam")}
    # From the first full window of the smoothing on: before it the curve lags less, which would look like acceleration.
    full = max(1, cycles // 10) - 1
    found = {name: second_minus_first(curve[:, full:]) for name, curve in curves.items()}
    intervals = {name: mean_interval(value) for name, value in found.items()}
    speeds = bool(intervals["self"].low > ROUNDING)  # false for one seed, whose interval is not a number
    own, adam = (float(found[name].mean()) for name in ("self", "adam"))
    return Claim(
        "acceleration",
        "(b) Progress accelerates",
        "Training starts slowly, and positive feedback makes it faster as the optimizers that train get better.",
        "The second quarter of the cycles lowers the log meta-loss of the self-trained population by more than the first, with a 95 % interval above zero; "
        "with Adam it does not.",
        f"Second quarter minus first: {own:+.3f} self-trained, {adam:+.3f} with Adam, means of {seeds} seeds.",
        speeds and not intervals["adam"].low > ROUNDING,
        {"cycles": cycles, "second_minus_first": found, "means": {"self": own, "adam": adam}},
        [
            {"arm": ARMS[name].label, "second quarter minus first": ", ".join(f"{v:+.3f}" for v in value)}
            for name, value in found.items()
        ],
        curves,
    )


def second_minus_first(curves: Float[np.ndarray, "seeds cycles"]) -> Float[np.ndarray, " seeds"]:
    """The fall in the second quarter of each curve minus that in its first.

    Args:
        curves: at least five cycles.
    """
    last = curves.shape[1] - 1
    start, quarter, half = (curves[:, i] for i in (0, last // 4, last // 2))
    return (quarter - half) - (start - quarter)


__all__ = ["acceleration", "second_minus_first"]
