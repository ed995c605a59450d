"""Whether learned optimizers are ahead of tuned hand-designed ones on their own tasks."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.evaluate.training import train_batch
from lopt.optimizer import Optimizer
from lopt.optimizers import Adam, Momentum, RMSProp
from lopt.population.evolve import stack
from lopt.reproduce.claims import Claim
from lopt.reproduce.mechanisms._gru import SETTINGS, STEPS, each
from lopt.task import Task

WORST = 10.0  # times the first loss: what a training that diverges counts as
BASELINES = {
    "momentum": lambda rate, decay: Momentum(learning_rate=rate, decay=decay),
    "rmsprop": lambda rate, decay: RMSProp(learning_rate=rate, decay=decay),
    "adam": lambda rate, decay: Adam(learning_rate=rate, b1=decay),
}


def beats(
    key: PRNGKeyArray,
    *,
    names: Sequence[str] = tuple(SETTINGS),
    meta_steps: int | None = None,
    seeds: int = 128,
    conv_seeds: int = 64,
    trials: int = 24,
    tuning: int = 8,
) -> Claim:
    r"""Compare on fresh problems, by the logarithm of the mean of all losses of a training over its first one.

    Args:
        key: draws problems, starts, minibatches and the random search.
        names: tasks.
        meta_steps: of the meta-training; `None` for the shipped weights.
        seeds: fresh problems.
        conv_seeds: those of the conv net, at most.
        trials: settings of the random search; rates are log-uniform in 1e-4 to 5, one minus the decay in 1e-3 to 0.9.
        tuning: problems on which a setting is judged.

    Source: Maheswaranathan et al. 2020, figure 1.
    """
    search_key, tune_key, test_key = jax.random.split(key, 3)
    draws = np.asarray(jax.random.uniform(search_key, (2, trials), jnp.float32), np.float64)
    rates, decays = 10 ** (-4.0 + 4.7 * draws[0]), 1 - 10 ** (-3.0 + 2.95 * draws[1])
    numbers, rows, ahead = {}, [], []
    for name, (rule, task) in each(names, meta_steps).items():
        count = min(seeds, conv_seeds) if name == "conv" else seeds
        learned = _scores([rule], task, test_key, count)[0]
        numbers[name] = {"learned": learned}
        for kind, create in BASELINES.items():
            settings = [create(float(r), float(d)) for r, d in zip(rates, decays, strict=True)]
            best = int(_scores(settings, task, tune_key, tuning).mean(axis=1).argmin())
            own = _scores([settings[best]], task, test_key, count)[0]
            more = mean_interval(own - learned)
            ahead.append(more.low > 0.0)
            numbers[name][kind] = own
            rows.append(
                {
                    "task": name,
                    "against": kind,
                    "rate": f"{rates[best]:.3g}",
                    "decay": f"{decays[best]:.3g}",
                    "its score": f"{own.mean():.3f}",
                    "learned": f"{learned.mean():.3f}",
                    "difference": str(more),
                    "learned is lower on": f"{np.mean(learned < own):.0%}",
                }
            )
    lost = [f"{row['against']} on {row['task']}" for row, won in zip(rows, ahead, strict=True) if not won]
    return Claim(
        "beats",
        "(a) Each is ahead of tuned momentum, RMSProp and Adam on its task",
        "On the tasks of their meta-training, learned optimizers outperform momentum, RMSProp and Adam, each tuned by random search.",
        f"The log of the mean of {STEPS} losses over the first is lower than that of each baseline on every task, interval of 95 % included; "
        f"a training that diverges counts as {WORST:g} times its first loss.",
        f"Learned optimizers are ahead in {sum(ahead)} of {len(ahead)} comparisons"
        + (f"; not ahead of {', '.join(lost)}." if lost else "."),
        bool(all(ahead)),
        numbers,
        rows,
    )


def _scores(rules: Sequence[Optimizer], task: Task, key: PRNGKeyArray, seeds: int) -> Float[np.ndarray, "rules seeds"]:
    """The logarithm of the mean loss over the first loss of every training."""
    record = train_batch(
        stack(rules), task, steps=STEPS, key=key, seeds=seeds, evals=1, batch=len(rules), tell_horizon=False
    )
    losses = record.minibatch_loss.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = losses.mean(axis=-1) / losses[..., 0]
    return np.log(np.minimum(np.nan_to_num(mean, nan=WORST, posinf=WORST), WORST))


__all__ = ["beats"]
