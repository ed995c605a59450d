"""Networks that the meta-training never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.evaluate.grid import tune
from lopt.evaluate.scores.statistics import mean_interval
from lopt.evaluate.training import train_batch
from lopt.population.evolve import stack
from lopt.reproduce.claims import Claim
from lopt.reproduce.stability._arms import ARMS, BLACK_BOX
from lopt.reproduce.stability._runs import absent, best_star, diverged, level, trained_arms
from lopt.tasks import TaskName, create

NETWORKS: dict[str, TaskName] = {
    "conv net, layer norm": TaskName("conv_net", {"norm": "layer", "batch_size": 32}),
    "residual net": TaskName("residual_net", {"channels": 8, "blocks": 1, "batch_size": 32}),
    "LSTM on text": TaskName("char_rnn", {"cell": "lstm"}),
    "transformer on text": TaskName("char_transformer", {}),
}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of Adam
NEAR = 0.2  # of the way from the start to tuned Adam, at most left to go
STALLED = 0.5  # of the same way, at least left to go


def zero_shot(
    key: PRNGKeyArray,
    *,
    names: Sequence[str] = tuple(ARMS),
    seeds: int = 3,
    meta_steps: int | None = None,
    networks: Sequence[str] = tuple(NETWORKS),
    steps: int = 1000,
    problems: int = 2,
    learning_rates: Sequence[float] = RATES,
) -> Claim:
    r"""The black box, STAR and a tuned Adam on networks of other kinds. A training is judged by what it leaves of Adam's way,

    $$\frac{\ell - \ell_\text{Adam}}{\ell_0 - \ell_\text{Adam}}$$

    with losses of the last 50 steps, and $\ell_0$ the first loss.

    Args:
        key: draws problems, starts and minibatches, the same for all.
        names: of `ARMS`, among which the best one with both terms is STAR.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.
        networks: of `NETWORKS`.
        steps: of a training.
        problems: for every arm and seed.
        learning_rates: of Adam's grid.

    Source: Harrison, Metz & Sohl-Dickstein 2022, section 6, figure 4, at the scale of one small machine.
    """
    words = (
        "zero_shot",
        "(f) STAR trains networks that it has never seen; the black box does not",
        "On other architectures and data the black box diverges, and STAR is comparable to a tuned Adam.",
        f"On every network no training of STAR diverges and it leaves at most {NEAR:.0%} of the way from the start to tuned Adam, on average; on every network "
        f"some training of the black box diverges, or it leaves more than {STALLED:.0%} of that way.",
    )
    if reason := absent(names, seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    arms = trained_arms(tuple(names), seeds, meta_steps)
    star = best_star(arms)
    found: dict[str, Any] = {}
    for i, network in enumerate(networks):
        task, own = create(NETWORKS[network]), jax.random.fold_in(key, i)
        adam = tune("adam", task, steps=steps, key=own, seeds=problems, learning_rates=learning_rates)
        rules = {
            "Adam": ([adam.optimizer], 1),
            BLACK_BOX: (arms[BLACK_BOX].optimizers, seeds),
            star: (arms[star].optimizers, seeds),
        }
        losses = {
            name: train_batch(
                stack(members), task, steps=steps, key=own, seeds=problems, evals=1, batch=size
            ).minibatch_loss.astype(np.float64)
            for name, (members, size) in rules.items()
        }
        best = level(losses["Adam"], steps)[0]  # by problem
        left = {
            name: ((level(x, steps) - best) / (x[..., 0] - best)).mean(axis=1)
            for name, x in losses.items()
            if name != "Adam"
        }
        found[network] = {
            "adam_learning_rate": adam.setting["learning_rate"],
            "loss": {name: level(x, steps).mean(axis=1) for name, x in losses.items()},
            "diverged": {name: float(diverged(x, steps).mean()) for name, x in losses.items()},
            "left": left,
        }
    failed = [n for n, f in found.items() if _bad(f, BLACK_BOX)]
    near = [n for n, f in found.items() if f["diverged"][star] == 0.0 and float(f["left"][star].mean()) <= NEAR]
    held = bool(len(near) == len(found) and len(failed) == len(found))
    rows = [
        {"network": network, "tuned Adam": str(mean_interval(f["loss"]["Adam"]))}
        | {
            f"{name}: {what}": text
            for name in (star, BLACK_BOX)
            for what, text in (
                ("loss", str(mean_interval(f["loss"][name]))),
                ("diverged", f"{f['diverged'][name]:.0%}"),
                ("left of Adam's way", str(mean_interval(f["left"][name]))),
            )
        }
        for network, f in found.items()
    ]
    numbers: dict[str, Any] = {"star": star, "steps": steps, "networks": found}
    return Claim(
        *words,
        f"STAR ({star}) is near a tuned Adam on {len(near)} of {len(found)} networks ({', '.join(near) or 'none'}); the black box diverges or stalls on "
        f"{len(failed)} ({', '.join(failed) or 'none'}).",
        held,
        numbers,
        rows,
    )


def _bad(found: Mapping[str, Any], name: str) -> bool:
    return found["diverged"][name] > 0.0 or not float(found["left"][name].mean()) <= STALLED


__all__ = ["NETWORKS", "zero_shot"]
