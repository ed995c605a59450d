"""The self-trained optimizer on tasks that no arm has seen."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt import tasks
from lopt.population import Rules
from lopt.population.cycle import evaluate
from lopt.population.evolve import stack
from lopt.reproduce.claims import Claim
from lopt.reproduce.self_training.arms import HORIZON, run_arm, stacked_adams
from lopt.task import Task

RATES = np.geomspace(1e-3, 1.0, 13)


def held_out_tasks() -> dict[str, Task]:
    """By the name under which they are reported."""
    return {
        "quadratic, 30 dimensions": tasks.create("quadratic", dim=30),
        "digits, 8 hidden units": tasks.create("digits_mlp", widths=(8,), batch_size=16),
        "labels of a random network": tasks.create("random_network_mlp"),
    }


def held_out(
    key: PRNGKeyArray, *, seeds: int = 3, cycles: int = 150, problems: int = 16, arms: str | None = None
) -> Claim:
    """The log meta-loss of the best member of each self-trained population and of Adam at 13 rates, on the same problems.

    Args:
        key: draws the problems.
        seeds: self-trained populations.
        cycles: of each.
        problems: of each task. Adam's rate is chosen on these, which favours Adam.
        arms: the folder of the run directories; a temporary one if `None`.

    Source: Metz et al. 2021: better than tuned Adam, as summaries have it.
    """
    rules = dataclasses.replace(Rules(), problems=problems, horizon=HORIZON)
    chosen = [run_arm("self", seed=seed, cycles=cycles, folder=arms).best for seed in range(seeds)]
    learned = stack(chosen)
    judge = jax.jit(evaluate, static_argnums=0)
    own, adam, rates = {}, {}, {}
    for name, task in held_out_tasks().items():
        own[name] = np.minimum(np.asarray(judge(rules, [task], learned, key), np.float64), 10.0)
        swept = np.asarray(judge(rules, [task], stacked_adams(RATES), key), np.float64)
        adam[name], rates[name] = float(swept.min()), float(RATES[swept.argmin()])
    gaps = {name: float(own[name].mean() - adam[name]) for name in own}
    won = [name for name, gap in gaps.items() if gap < 0.0]
    text = "; ".join(f"{name} {gap:+.3f}" for name, gap in gaps.items())
    return Claim(
        "held_out",
        "(e) The result beats a tuned Adam on tasks it has not seen",
        "The self-trained optimizer trains new tasks better than a tuned Adam.",
        f"On every held-out task its mean log meta-loss over {HORIZON} steps is below that of the best of {len(RATES)} Adams.",
        f"Self-trained minus tuned Adam, log meta-loss: {text}. Below Adam on {len(won)} of {len(gaps)}.",
        len(won) == len(gaps),
        {"self": own, "adam": adam, "rates": rates, "gaps": gaps},
        [
            {
                "task": name,
                "self-trained": f"{own[name].mean():.3f}",
                "tuned Adam": f"{adam[name]:.3f}",
                "its rate": f"{rates[name]:.3g}",
            }
            for name in own
        ],
    )


__all__ = ["held_out"]
