"""Fresh optimizers trained by one that is finished: beyond its own horizon, and released ones against a tuned Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt import zoo
from lopt.evaluate.scores.statistics import mean_interval
from lopt.optimizer import Optimizer
from lopt.optimizers import Adam
from lopt.population import Rules
from lopt.reproduce.claims import Claim
from lopt.reproduce.self_training import arms as shared

RULES = Rules(
    steps=shared.STEPS, horizon=shared.HORIZON, replaced=0.0
)  # no selection: every member is a run of its own


def taught(
    trainers: Sequence[Optimizer], *, pupils: int, cycles: int, key: PRNGKeyArray, where: Path
) -> Float[np.ndarray, "trainers pupils cycles"]:
    """The log meta-loss of fresh `SmallFC`s, each trained by one optimizer from outside.

    Args:
        trainers: of one architecture; each trains as many pupils.
        pupils: of each, the same at the start for all.
        cycles: of `STEPS` meta-steps.
        key: draws the pupils and their problems.
        where: the run directory.
    """
    begin_key, key = jax.random.split(key)
    members = [pupil for pupil in shared.fresh(begin_key, pupils) for _ in trainers]
    found = shared.train(members, RULES, list(trainers), cycles=cycles, key=key, where=where)
    return found.losses.reshape(cycles, pupils, len(trainers)).transpose(2, 1, 0)


def horizon(
    key: PRNGKeyArray, *, pupils: int = shared.MEMBERS, cycles: int = 150, times: int = 8, arms: str | None = None
) -> Claim:
    """A fresh optimizer trained by the best self-trained one, for many times the horizon at which that was itself trained.

    Args:
        key: draws the pupils.
        pupils: fresh optimizers.
        cycles: of the self-trained population, seed 0.
        times: horizons.
        arms: the folder of the run directories; a temporary one if `None`.

    Source: Metz et al. 2020, *Tasks, stability, architecture, and compute*: the trainer worsens its pupil beyond its own horizon.
    """
    trainer = shared.run_arm("self", seed=0, cycles=cycles, folder=arms).best
    once = shared.HORIZON // shared.STEPS
    digest = "-".join(str(int(n)) for n in jax.random.key_data(key).ravel())
    where = Path(arms or shared.scratch().name) / f"horizon-{cycles}-{pupils}-{times}-{digest}"
    (curves,) = taught([trainer], pupils=pupils, cycles=times * once, key=key, where=where)
    at, end = (mean_of(curves, n, once) for n in (once, times * once))
    change = mean_interval(end - at)
    rows = [
        {
            "horizons": str(n),
            "meta-steps": str(n * shared.HORIZON),
            "log meta-loss": f"{mean_of(curves, n * once, once).mean():.3f}",
        }
        for n in range(1, times + 1)
    ]
    return Claim(
        "horizon",
        "(d) Beyond its own horizon a trainer worsens what it trains",
        "An optimizer that trains a fresh one helps for about as many steps as it was itself trained for, and harms later.",
        f"The mean log meta-loss of {pupils} fresh optimizers during horizon {times} is above that during the first, with a 95 % interval above zero.",
        f"From {at.mean():.3f} during the first {shared.HORIZON} meta-steps to {end.mean():.3f} during the last: {change.value:+.3f}.",
        bool(change.low > 0.0),
        {"horizon": shared.HORIZON, "times": times, "first": at, "last": end, "change": change.value},
        rows,
        {"pupils": curves},
    )


def mean_of(curves: Float[np.ndarray, "pupils cycles"], end: int, width: int) -> Float[np.ndarray, " pupils"]:
    """The mean of each curve over so many cycles up to one."""
    return curves[:, max(0, end - width) : end].mean(axis=1)


def released(
    key: PRNGKeyArray,
    *,
    weights: Sequence[str] = ("general-1", "demo-1"),
    pupils: int = 2,
    cycles: int = 60,
    slack: float = 0.05,
    arms: str | None = None,
) -> Claim:
    """Released optimizers as outer optimizers of fresh `SmallFC`s, against an Adam at the best of five rates.

    Args:
        key: draws the pupils and their problems, the same for all.
        weights: saved optimizers, by name or path.
        pupils: fresh optimizers. A released one trains each five times, on other problems; Adam once at each rate.
        cycles: of 10 meta-steps.
        slack: in log meta-loss, by which the end may be above Adam's.
        arms: the folder of the run directories; a temporary one if `None`.

    Source: the claim is ours.
    """
    groups: Mapping[str, list[Optimizer]] = {
        "Adam": [Adam(learning_rate=rate) for rate in shared.ADAM_RATES],
        **{
            name: [zoo.load(name)] * len(shared.ADAM_RATES) for name in weights
        },  # as many runs as of Adam: one program for all
    }
    digest = "-".join(str(int(n)) for n in jax.random.key_data(key).ravel())
    curves: dict[str, np.ndarray] = {}
    for name, trainers in groups.items():
        where = Path(arms or shared.scratch().name) / f"released-{Path(name).name}-{pupils}-{cycles}-{digest}"
        curves[name] = taught(trainers, pupils=pupils, cycles=cycles, key=key, where=where)
    width = max(1, cycles // 10)
    ends = {name: c[:, :, -width:].mean(axis=(1, 2)) for name, c in curves.items()}
    chosen = int(ends["Adam"].argmin())
    used = {name: slice(chosen, chosen + 1) if name == "Adam" else slice(None) for name in curves}
    target = float(ends["Adam"][chosen])
    mean = {name: c[used[name]].mean(axis=(0, 1)) for name, c in curves.items()}
    smoothed = {name: shared.smooth(c, width) for name, c in mean.items()}
    when = {name: np.flatnonzero(c <= target + slack) for name, c in smoothed.items()}
    steps = {name: int(w[0] + 1) * shared.STEPS if len(w) else None for name, w in when.items()}
    held = all(steps[name] is not None for name in weights)
    text = "; ".join(f"{n} " + (f"after {s} meta-steps" if s else "never") for n, s in steps.items())
    return Claim(
        "released",
        "(f) A released optimizer trains a fresh one as well as a tuned Adam",
        "An optimizer that was meta-trained for networks also serves as the outer optimizer of a meta-training.",
        f"Each of {', '.join(weights)} brings the mean log meta-loss within {slack:g} of where the best of five Adams ends.",
        f"The best Adam has a rate of {shared.ADAM_RATES[chosen]:g} and ends at {target:.3f}. Within {slack:g} of that: {text}.",
        held,
        {
            "adam_rate": shared.ADAM_RATES[chosen],
            "adam_ends": ends["Adam"],
            "target": target,
            "ends": {name: float(c[-1]) for name, c in smoothed.items()},
            "first": {name: float(c[0]) for name, c in smoothed.items()},
            "reached": {name: s for name, s in steps.items() if s},
        },
        [
            {
                "outer optimizer": name,
                "log meta-loss at the end": f"{c[-1]:.3f}",
                "meta-steps to the target": str(steps[name] or "never"),
            }
            for name, c in smoothed.items()
        ],
        smoothed,
    )


__all__ = ["horizon", "mean_of", "released", "taught"]
