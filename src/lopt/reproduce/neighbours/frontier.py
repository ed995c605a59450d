"""Searched graph networks beside uniformly quantised ones: size and accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.neighbours._graphs import (
    FLOAT,
    GRAPHS,
    MARGIN,
    RATES,
    STEPS,
    WIDTHS,
    accuracy,
    search,
    too_small,
    trainers,
    uniform,
)

COSTS = (0.03, 0.3, 1.0)
KINDS = {"searched": True, "bit widths searched alone": False}  # whether neighbourhoods are chosen too


def frontier(
    key: PRNGKeyArray,
    *,
    trainer: str = "general-1",
    graphs: int = 128,
    tuning: int = 32,
    steps: int = 150,
    costs: Sequence[float] = COSTS,
    learning_rates: Sequence[float] = RATES,
) -> Claim:
    r"""Search bit widths and neighbourhoods on random graphs, then train each design anew, with a tuned Adam and with a saved optimizer.

    A second search, of bit widths alone, tells what each of the two choices is worth; the criterion does not look at it.

    Args:
        key: draws graphs and starts.
        trainer: the saved optimizer, by name or path.
        graphs: how many.
        tuning: other graphs, on which Adam is tuned.
        steps: of a search and of a training.
        costs: $\lambda$ of the searches.
        learning_rates: of Adam's grid.

    Raises:
        InputError: for no cost, no graph to tune on, or no rate.

    Source: Zhao et al. 2020, *Learned Low Precision Graph Neural Networks*, at the scale of one small machine.
    """
    words = (
        "frontier",
        "(c) Searched networks are on the frontier of size and accuracy, or above it",
        "A differentiable search of architecture and bit widths finds graph networks that are smaller than uniformly quantised ones and as accurate.",
        f"For both optimizers and at every cost, the accuracy of searched networks is no more than {MARGIN:.0%} below that of uniform ones of as many bits: "
        "the lower end of the interval of the paired difference, over graphs, is above that.",
    )
    if graphs < GRAPHS or steps < STEPS:
        return Claim(*words, f"Not run: {too_small(graphs, steps)}", None, {})
    at_least(1, tuning=tuning, **{"the number of costs": len(costs), "the number of rates": len(learning_rates)})
    tune_key, key = jax.random.split(key)
    keys = jax.random.split(key, graphs)
    optimizers, rate = trainers(trainer, jax.random.split(tune_key, tuning), steps, learning_rates)
    numbers: dict[str, Any] = {"rate": rate, "steps": steps, "trainers": {}}
    rows, level = [], []
    for name, optimizer in optimizers.items():
        same = {bits: accuracy(optimizer, uniform(bits, bits, graphs), keys, steps) for bits in WIDTHS}
        found: dict[str, Any] = {"uniform": {str(bits): list(mean_interval(x)) for bits, x in same.items()}}
        found |= {kind: {} for kind in KINDS}
        rows += [
            {
                "optimizer": name,
                "network": "float" if bits == FLOAT else f"uniform, {bits} bits",
                "bits": f"{bits}",
                "accuracy": str(mean_interval(x)),
                "above the frontier by": "",
                "graph convolutions": "100%",
            }
            for bits, x in same.items()
        ]
        for (kind, hops), cost in itertools.product(KINDS.items(), costs):
            design = search(optimizer, cost, keys, steps, hops=hops)
            own, bits = accuracy(optimizer, design, keys, steps), np.asarray(design.bits, np.float64)
            above = mean_interval(own - interpolated(bits, same))
            if hops:
                level.append(above.low > -MARGIN)
            chosen = np.asarray(design.hops).mean(axis=0)
            found[kind][f"{cost:g}"] = {
                "bits": list(mean_interval(bits)),
                "accuracy": list(mean_interval(own)),
                "above": list(above),
                "hops": chosen,
                "widths": np.asarray(design.widths).mean(axis=0),
            }
            rows.append(
                {
                    "optimizer": name,
                    "network": f"{kind}, cost {cost:g}",
                    "bits": str(mean_interval(bits)),
                    "accuracy": str(mean_interval(own)),
                    "above the frontier by": str(above),
                    "graph convolutions": f"{chosen[:, 1].mean():.0%}",
                }
            )
        numbers["trainers"][name] = found
    return Claim(
        *words,
        f"In {sum(level)} of {len(level)} searches the networks found are no more than {MARGIN:.0%} below the frontier of uniform ones, interval included.",
        bool(all(level)),
        numbers,
        rows,
    )


def interpolated(
    bits: Float[np.ndarray, " graphs"], uniforms: dict[int, Float[np.ndarray, " graphs"]]
) -> Float[np.ndarray, " graphs"]:
    """The accuracy of uniform networks at any number of bits, on each graph: a straight line between neighbours.

    Args:
        bits: where.
        uniforms: accuracies by bits, on each graph.
    """
    points = np.asarray(sorted(uniforms), np.float64)
    curves = np.stack([uniforms[int(b)] for b in points], axis=-1)
    return np.asarray([np.interp(b, points, curve) for b, curve in zip(bits, curves, strict=True)])


__all__ = ["frontier", "interpolated"]
