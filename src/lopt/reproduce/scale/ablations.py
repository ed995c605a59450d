"""What each part of the rule and of its meta-training is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.scores.statistics import mean_interval
from lopt.evaluate.training import train_batch
from lopt.names import unknown
from lopt.population.evolve import stack
from lopt.reproduce.claims import Claim
from lopt.reproduce.scale._arms import ARMS, WHOLE, train_arm
from lopt.tasks import create, find_member

LEAST = 50  # meta-steps
TINY = 1e-6  # as in the objective
JUDGED = ("quadratic_20_noisy", "branin", "quadratic_50_noisy", "logistic_10")  # the last two are new to all arms


def ablations(
    key: PRNGKeyArray,
    *,
    arms: Sequence[str] = tuple(ARMS),
    problems: Sequence[str] = JUDGED,
    meta_steps: int = 1_000,
    seeds: int = 8,
    steps: int = 500,
    trainings: int = 8,
    runs: str | Path | None = None,
) -> Claim:
    r"""Meta-train the rule with and without each part from the same seeds, and train with each on the same problems. The score of a training,

    $$\frac1T \sum_t \log\left(\frac{\ell_t}{\ell_0 + 10^{-6}} + 10^{-6}\right)$$

    is averaged over problems and trainings.

    Args:
        key: draws starts and problems.
        arms: of `ARMS`.
        problems: members of `wichrowska2017` to train.
        meta_steps: of a meta-training.
        seeds: meta-trainings of an arm.
        steps: of a training.
        trainings: of each problem.
        runs: a folder for the run directories of all meta-trainings, to go on after a stop.

    Raises:
        InputError: for an unknown arm or problem, one without the whole rule, or a run directory of another configuration.

    Source: Wichrowska et al. 2017, section 5.4.
    """
    words = (
        "ablations",
        "(e) Each part is worth something",
        "Without attention, momentum at several time scales, dynamic input scaling, products of momenta, the logarithmic objective, heavy-tailed lengths or "
        "the hierarchy, the meta-trained optimizer is worse.",
        "For every part, the mean score without it is above that of the whole rule by more than the 95 % interval over seeds of the paired difference.",
    )
    for arm in arms:
        if arm not in ARMS:
            raise InputError(unknown("arm", arm, ARMS))
    if WHOLE not in arms or len(arms) < 2:
        raise InputError(f"arms is {tuple(arms)}; it must name {WHOLE} and another one.")
    if meta_steps < LEAST or seeds < 2:
        return Claim(
            *words,
            f"Not run: {meta_steps} meta-steps from {seeds} seeds cannot tell arms apart; it takes at least {LEAST} from 2.",
            None,
            {},
        )
    tasks = [create(find_member(f"wichrowska2017/{name}")) for name in problems]
    train_key, own = jax.random.split(key)
    scores: dict[str, Float[np.ndarray, "seeds problems"]] = {}
    for arm in arms:
        rules = [
            train_arm(
                arm,
                jax.random.fold_in(train_key, seed),
                meta_steps=meta_steps,
                folder=None if runs is None else Path(runs) / f"{arm.replace(' ', '-')}-{seed}",
            )
            for seed in range(seeds)
        ]
        losses = [
            train_batch(
                stack(rules), task, steps=steps, key=jax.random.fold_in(own, i), seeds=trainings, evals=1, batch=seeds
            ).minibatch_loss
            for i, task in enumerate(tasks)
        ]
        scores[arm] = np.stack([score(x).mean(axis=1) for x in losses], axis=1)
    worth = {arm: mean_interval((scores[arm] - scores[WHOLE]).mean(axis=1)) for arm in arms if arm != WHOLE}
    helpful = [arm for arm, gain in worth.items() if gain.low > 0.0]
    rows = [
        {
            "arm": arm,
            **{problem: f"{scores[arm][:, i].mean():.2f}" for i, problem in enumerate(problems)},
            "above the whole rule": "" if arm == WHOLE else str(worth[arm]),
        }
        for arm in arms
    ]
    return Claim(
        *words,
        f"The whole rule is ahead of {len(helpful)} of {len(worth)} arms ({', '.join(helpful) or 'none'}) beyond the interval over {seeds} seeds.",
        len(helpful) == len(worth),
        {
            "meta_steps": meta_steps,
            "problems": list(problems),
            "scores": scores,
            "worth": {arm: list(gain) for arm, gain in worth.items()},
        },
        rows,
    )


def score(losses: Float[np.ndarray, "*runs steps"]) -> Float[np.ndarray, " *runs"]:
    """The mean of the logarithms of losses over the first one; each at most 10, which is also what a loss counts that is not finite.

    Args:
        losses: of trainings, none negative.
    """
    first = losses[..., :1].astype(np.float64)
    ratio = np.maximum(losses, 0.0) / (first + TINY)
    return np.minimum(np.log(np.where(np.isfinite(ratio), ratio, np.inf) + TINY), 10.0).mean(axis=-1)


__all__ = ["JUDGED", "ablations", "score"]
