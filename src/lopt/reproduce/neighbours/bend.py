"""Where the frontier of size and accuracy bends: bit widths of weights and of activations, each on its own."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.checks import at_least
from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.neighbours._graphs import (
    BASE,
    BITS,
    FLOAT,
    GRAPHS,
    MARGIN,
    RATES,
    STEPS,
    accuracy,
    too_small,
    trainers,
    uniform,
)
from lopt.tasks.networks.quantized_gnn import QuantizedGNN

AT = (4, 8)  # bits of weights and of activations
BELOW = ((2, 8), (4, 4))  # one step less of either


def bend(
    key: PRNGKeyArray,
    *,
    trainer: str = "general-1",
    graphs: int = 128,
    tuning: int = 32,
    steps: int = 150,
    learning_rates: Sequence[float] = RATES,
    features: int = BASE.features,
    hidden: int = BASE.hidden,
) -> Claim:
    """Train graph convolutions with all pairs of widths, on the same graphs as a float network.

    Args:
        key: draws graphs and starts.
        trainer: the saved optimizer, by name or path.
        graphs: how many.
        tuning: other graphs, on which Adam is tuned.
        steps: of a training.
        learning_rates: of Adam's grid.
        features: of a node.
        hidden: units of the network.

    Raises:
        InputError: for no graph to tune on, no rate, or sizes that are no positive whole numbers.

    Source: Zhao et al. 2020, at the scale of one small machine.
    """
    words = (
        "bend",
        "(d) 4-bit weights with 8-bit activations is where it bends",
        "Weights of 4 bits with activations of 8 bits are the sweet spot of quantised graph networks.",
        f"For both optimizers, that network loses at most {MARGIN:.0%} of accuracy on the float one, and with 2-bit weights or with 4-bit activations it loses "
        "more than that: intervals of paired differences, over graphs, lie on that side.",
    )
    if graphs < GRAPHS or steps < STEPS:
        return Claim(*words, f"Not run: {too_small(graphs, steps)}", None, {})
    at_least(1, tuning=tuning, **{"the number of rates": len(learning_rates)})
    base = QuantizedGNN(bits=BITS, features=features, hidden=hidden)
    tune_key, key = jax.random.split(key)
    keys = jax.random.split(key, graphs)
    optimizers, rate = trainers(trainer, jax.random.split(tune_key, tuning), steps, learning_rates, base)
    pairs = [(w, a) for w in BITS for a in BITS]
    lost, floats = {}, {}
    for name, optimizer in optimizers.items():
        whole = accuracy(optimizer, uniform(FLOAT, FLOAT, graphs), keys, steps, base)
        floats[name] = mean_interval(whole)
        lost[name] = {
            pair: mean_interval(whole - accuracy(optimizer, uniform(*pair, graphs), keys, steps, base))
            for pair in pairs
        }
    kept = [by[AT].high < MARGIN for by in lost.values()]
    worse = [by[pair].low > MARGIN for by in lost.values() for pair in BELOW]
    rows = [
        {
            "optimizer": name,
            "float": str(floats[name]),
            "bits of weights": f"{w}",
            **{f"lost with {a}-bit activations": str(by[w, a]) for a in BITS},
        }
        for name, by in lost.items()
        for w in BITS
    ]
    return Claim(
        *words,
        "4-bit weights with 8-bit activations lose "
        + " and ".join(f"{by[AT]} ({name})" for name, by in lost.items())
        + f" of accuracy on the float network. One step less of either loses more than {MARGIN:.0%} in {sum(worse)} of {len(worse)} cases.",
        bool(all(kept) and all(worse)),
        {
            "rate": rate,
            "steps": steps,
            "float": {name: list(x) for name, x in floats.items()},
            "lost": {name: {f"{w}, {a}": list(x) for (w, a), x in by.items()} for name, by in lost.items()},
        },
        rows,
        {name: np.asarray([[by[w, a].value for a in BITS] for w in BITS]) for name, by in lost.items()},
    )


__all__ = ["bend"]
