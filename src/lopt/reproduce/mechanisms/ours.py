"""The same questions, asked of released optimizers of this library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt import tasks, zoo
from lopt.analyze import adaptation, momentum, response, schedule
from lopt.reproduce.claims import Claim
from lopt.reproduce.mechanisms.found import EXPONENT, RISE, STRONG

DECAY = 0.5  # of a mode that counts as momentum, at least
STEPS = 200


def ours(
    key: PRNGKeyArray, *, optimizers: Sequence[str] = ("general-1", "conv-net-1", "demo-1"), width: int = 32
) -> Claim:
    """Momentum, clipping, schedule and adaptation of saved optimizers, on a small classifier of digits.

    Args:
        key: draws problems and noise.
        optimizers: names or paths of saved ones.
        width: of the hidden layer of the classifier.

    Source: lopt's own; the mechanisms are those of Maheswaranathan et al. 2020.
    """
    task = tasks.create("digits_mlp", widths=(width,))
    numbers, rows, held = {}, [], []
    for name in optimizers:
        rule = zoo.load(name)
        modes, curve = momentum(rule, task, key=key, horizon=STEPS), response(rule, task, key=key, horizon=STEPS)
        rates, slope = schedule(rule, task, key=key, steps=STEPS), adaptation(rule, task, key=key, horizon=STEPS)
        strongest = float(np.abs(modes.eigenvalues[0])) if len(modes.eigenvalues) else 0.0
        threshold = float(curve.threshold / curve.scale)
        has = (strongest >= DECAY, threshold < STRONG, rates.rises >= RISE, slope.exponent <= EXPONENT)
        held.append(all(has))
        kernel = modes.kernel / max(float(np.abs(modes.kernel).max()), 1e-30)
        numbers[name] = {"kernel": kernel, "rate": rates.rate / rates.rate[rates.peak]}
        rows.append(
            {
                "optimizer": name,
                "decay of its strongest mode": f"{strongest:.3f}",
                "clips from, usual gradients": f"{threshold:.3g}",
                "rate rises by": f"{rates.rises:.3g}",
                "exponent": f"{slope.exponent:.2f}",
            }
        )
    return Claim(
        "ours",
        "(g) Released optimizers of lopt have the same mechanisms",
        "Optimizers that were meta-trained for use, not for analysis, have momentum, clipping, a rising schedule and adaptation too (ours).",
        f"Each has a mode of decay {DECAY:g} or more, clips below {STRONG:g} usual gradients, a rate that rises by {RISE:g} or more, "
        f"and an exponent of at most {EXPONENT:g}.",
        f"{sum(held)} of {len(held)} have all four.",
        bool(held and all(held)),
        numbers,
        rows,
    )


__all__ = ["ours"]
