"""The corpus that the optimizer was meta-trained on, and problems that it has not met."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.scores.statistics import wilson
from lopt.reproduce.claims import Claim
from lopt.reproduce.scale._versus import BASELINES, WEIGHTS, learned_optimizer, versus
from lopt.tasks import create, find_member

# Members of the corpus that the shipped weights were meta-trained on, and members and held-out problems that they were not.
PROBLEMS = (
    *("quadratic_100_noisy", "logistic_10", "rosenbrock", "branin", "styblinski_tang_noisy", "matmul_2_6"),
    *("log_quadratic_50", "rescaled_norm_18_p_2.5", "norm_22_p_3"),
    *("quadratic_50_noisy", "bowl_5_rotated", "logistic_200", "beale", "booth_noisy", "log_bowl_5"),
    *(
        "rescaled_quadratic_25",
        "sparse_quadratic_20",
        "test_rosenbrock_noisy",
        "test_softmax_10_2",
        "test_mlp_10_32_64_2",
    ),
)
RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def corpus(
    key: PRNGKeyArray,
    *,
    weights: str | Path = WEIGHTS,
    problems: Sequence[str] = PROBLEMS,
    steps: int = 500,
    seeds: int = 4,
    learning_rates: Sequence[float] = RATES,
) -> Claim:
    """Final training losses on problems of the corpus and on held-out ones, beside RMSProp and Adam, each tuned for the problem.

    Args:
        key: draws problems, starts and minibatches, the same for all.
        weights: the saved optimizer, by name or path.
        problems: members of `wichrowska2017`.
        steps: of a training.
        seeds: trainings of a problem.
        learning_rates: of the grids.

    Raises:
        InputError: for a problem that the corpus does not have, or weights that the claim does not fit.

    Source: Wichrowska et al. 2017, section 5.1, at the scale of one small machine.
    """
    if not problems:
        raise InputError("problems is empty; name at least one member of wichrowska2017.")
    learned, card = learned_optimizer(weights)
    tasks = [create(find_member(f"wichrowska2017/{name}")) for name in problems]
    met = {str(task["name"]) for task in card.tasks}
    found: dict[str, Any] = {}
    for i, (name, task) in enumerate(zip(problems, tasks, strict=True)):
        own = jax.random.fold_in(key, i)
        result = versus(learned, task, steps=steps, key=own, seeds=seeds, learning_rates=learning_rates)
        found[name] = result._asdict() | {"left": result.left, "met": f"wichrowska2017/{name}" in met}
    groups = {"all": list(found.values()), "not met": [f for f in found.values() if not f["met"]]}
    counts = {
        group: {
            rival: wilson(float(sum(float(f["learned"].mean()) < float(f["tuned"][rival].mean()) for f in of)), len(of))
            for rival in BASELINES
        }
        for group, of in groups.items()
        if of
    }
    rows = [
        {
            "problem": name,
            "in meta-training": "yes" if f["met"] else "no",
            "at the start": f"{f['first'].mean():.3g}",
            "learned": f"{f['learned'].mean():.3g}",
            **{rival: f"{f['tuned'][rival].mean():.3g}" for rival in BASELINES},
        }
        for name, f in found.items()
    ]
    sentence = " ".join(
        f"{'Of all' if group == 'all' else 'Of those not met in meta-training'}, {len(groups[group])} problems, it ends below "
        + " and ".join(f"{rival} on {of[rival].value * len(groups[group]):.0f} ({of[rival]})" for rival in BASELINES)
        + "."
        for group, of in counts.items()
    )
    return Claim(
        "corpus",
        "(a) Ahead of tuned RMSProp and Adam on most problems of the corpus",
        "On the corpus of its meta-training and on held-out problems, the hierarchical RNN beats RMSProp and Adam with tuned learning rates.",
        "Its mean final training loss is below that of RMSProp, and below that of Adam, each at its best rate for the problem, on more than half of all "
        "problems: the lower ends of both 95 % intervals of the share are above 0.5.",
        sentence,
        bool(all(share.low > 0.5 for share in counts["all"].values())),
        {
            "steps": steps,
            "problems": found,
            "shares": {g: {n: list(e) for n, e in of.items()} for g, of in counts.items()},
        },
        rows,
    )


__all__ = ["PROBLEMS", "corpus"]
