"""What a step costs beside one of SGD, by the size of the batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.scores.statistics import mean_interval
from lopt.evaluate.timing import Stretch, in_turns
from lopt.optimizers import SGD
from lopt.reproduce.claims import Claim
from lopt.reproduce.scale._versus import WEIGHTS, learned_optimizer
from lopt.tasks import MissingDataError, TaskName, create

CLOSE = 1.5  # times a step of SGD, at most, with the largest batch


def overhead(
    key: PRNGKeyArray,
    *,
    weights: str | Path = WEIGHTS,
    data: str = "fashion_28",
    channels: int = 16,
    blocks: int = 3,
    batches: Sequence[int] = (1, 4, 16, 64, 256),
    turns: int = 10,
) -> Claim:
    """Time of a step, gradient and update, over that of SGD in the same turn, on a residual net.

    Args:
        key: draws the start and minibatches.
        weights: the saved optimizer, by name or path.
        data: a name of `lopt.tasks.data.images.IMAGES`.
        channels: of the network.
        blocks: of the network, two convolutions each.
        batches: examples a minibatch, growing.
        turns: of timing.

    Raises:
        InputError: for fewer than two batches or ones that do not grow, or weights that the claim does not fit.

    Source: Wichrowska et al. 2017, figure 7, whose network and hardware were others.
    """
    words = (
        "overhead",
        "(d) The overhead of a step falls to the cost of SGD with the size of the batch",
        "What the update costs does not depend on the batch, so the time of a step over that of SGD falls towards one as batches grow.",
        f"The mean ratio over turns falls from each batch to the next, and the upper end of its interval is at most {CLOSE:g} at the largest.",
    )
    if len(batches) < 2 or list(batches) != sorted(set(batches)):
        raise InputError(f"batches is {tuple(batches)}; it must be two sizes or more, each larger than the one before.")
    learned, _ = learned_optimizer(weights)
    fields: dict[str, Any] = {"images": data, "channels": channels, "blocks": blocks, "norm": "none", "eval_size": 64}
    try:
        tasks = {batch: create(TaskName("residual_net", fields | {"batch_size": batch})) for batch in batches}
    except MissingDataError as error:
        return Claim(*words, f"Not run: {error}", None, {})
    ratios, milliseconds = {}, {}
    for batch, task in tasks.items():
        seconds = in_turns(
            {name: Stretch(rule, task, 100, key) for name, rule in (("SGD", SGD()), ("learned", learned))}, turns
        )
        ratios[batch] = mean_interval(seconds["learned"] / seconds["SGD"])
        milliseconds[batch] = {name: float(1e3 * np.median(x)) for name, x in seconds.items()}
    means = [ratio.value for ratio in ratios.values()]
    last = ratios[batches[-1]]
    rows = [
        {
            "batch": str(batch),
            "SGD, ms a step": f"{milliseconds[batch]['SGD']:.2f}",
            "learned, ms a step": f"{milliseconds[batch]['learned']:.2f}",
            "ratio": str(ratio),
        }
        for batch, ratio in ratios.items()
    ]
    return Claim(
        *words,
        f"The ratio is {ratios[batches[0]]} at a batch of {batches[0]} and {last} at {batches[-1]}.",
        bool(all(a > b for a, b in itertools.pairwise(means)) and last.high <= CLOSE),
        {"milliseconds": milliseconds, "ratios": {batch: list(ratio) for batch, ratio in ratios.items()}},
        rows,
    )


__all__ = ["overhead"]
