"""Along three axes: the width of a network, the size of a batch, the number of examples. Does it keep up with Adam at its best rate?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.scores.statistics import mean_interval
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.reproduce.claims import Claim
from lopt.reproduce.tasks._arms import HOME
from lopt.reproduce.tasks._hand_designed import ADAM_RATES, adams
from lopt.reproduce.tasks._held_out import CHUNK, final_losses
from lopt.reproduce.tasks._runs import absent, refuse_unused, trained_arm
from lopt.reproduce.tasks._tasks import PROGRAMS, Pool, check_programs
from lopt.tasks.corpora.sampled import Variation
from lopt.tasks.corpora.sampling import ACTIVATIONS, Config

WIDTH, BATCH, SHARE = 32.0, 64.0, 1.0  # where the axes cross: the MLP on digits of the meta-training
CLOSE = 0.05  # normalised loss above that of Adam's best rate, at most, that still counts as level


class Axis(NamedTuple):
    """The points of an axis."""

    points: tuple[float, ...]
    within: tuple[float, ...]  # lowest and highest point that the meta-training had


AXES: dict[str, Axis] = {
    "width": Axis((8.0, 32.0, 128.0, 512.0), (32.0, 32.0)),
    "batch": Axis((4.0, 16.0, 64.0, 256.0), (64.0, 64.0)),
    "share": Axis((0.01, 0.03, 0.1, 0.3, 1.0), (0.1, 1.0)),
}
LABELS = {"width": "hidden units", "batch": "examples a batch", "share": "share of the training examples"}


def axes(
    key: PRNGKeyArray,
    *,
    names: Sequence[str] = tuple(AXES),
    starts: int = 4,
    seeds: int = 2,
    meta_steps: int | None = None,
    programs: Sequence[str] = tuple(PROGRAMS),
    steps: int = 100,
    runs: str | None = None,
) -> Claim:
    r"""Final training losses of MLPs on digits, one number varied at a time. A loss is normalised as
    $(\ell - b) / (a - b)$, with $a$ the loss at the start and $b$ that of Adam at its best of 14 rates for the point; both are means over starts.

    Args:
        key: not used: arms and starts are those of fixed seeds.
        names: of `AXES`.
        starts: trainings at each point, from different starts.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.
        programs: of `PROGRAMS`, for a meta-training.
        steps: of a training.
        runs: a folder for the run directories of meta-trainings.

    Raises:
        InputError: for an unknown axis or program, no start, `runs` or `programs` without `meta_steps`, or a run directory of another configuration.

    Source: Metz et al. 2020, who vary the same three for larger networks.
    """
    del key
    words = (
        "axes",
        "(f) Along width, batch size and number of examples it is level with tuned Adam",
        "Within the range of its meta-training the learned optimizer is level with the best learning rate of Adam on every network.",
        f"At every point of the axes within that range, the normalised training loss is at most {CLOSE} in every seed, where 0 is Adam's best of "
        f"{len(ADAM_RATES)} rates.",
    )
    at_least(1, starts=starts)
    for name in names:
        if name not in AXES:
            raise InputError(unknown("axis", name, AXES))
    if not names:
        raise InputError(f"names is empty; name at least one of {', '.join(AXES)}.")
    check_programs(programs)
    refuse_unused(meta_steps, runs, programs)
    if reason := absent((HOME,), seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    rules = [
        trained_arm(HOME, seed, meta_steps=meta_steps, programs=programs, runs=runs).optimizer for seed in range(seeds)
    ]
    found = {name: {x: _normalised(rules, name, x, starts, steps) for x in AXES[name].points} for name in names}
    judged = {(n, x): _within(n, x) for n in names for x in AXES[n].points}
    within = {_place(*at): bool((found[at[0]][at[1]] <= CLOSE).all()) for at, inside in judged.items() if inside}
    highest = max(float(x.max()) for by in found.values() for x in by.values())
    rows = [
        {
            "axis": LABELS[name],
            "point": f"{x:g}",
            "in the meta-training": "yes" if judged[name, x] else "no",
            "normalised training loss": str(mean_interval(losses)),
            **{f"seed {seed}": f"{loss:.3f}" for seed, loss in enumerate(losses)},
        }
        for name in names
        for x, losses in found[name].items()
    ]
    return Claim(
        *words,
        f"It is level at {sum(within.values())} of {len(within)} points within the range of the meta-training; where axes cross is one point. "
        f"Of all {len({_place(*at) for at in judged})} points the highest normalised loss is {highest:.3f}.",
        all(within.values()),
        {
            "losses": {n: np.stack(list(by.values())) for n, by in found.items()},
            "points": {n: list(found[n]) for n in found},
        },
        rows,
    )


def _place(name: str, point: float) -> tuple[float, ...]:
    """Width, batch and share."""
    return tuple(({"width": WIDTH, "batch": BATCH, "share": SHARE} | {name: point}).values())


def _within(name: str, point: float) -> bool:
    low, high = AXES[name].within
    return low <= point <= high


def _normalised(
    rules: Sequence[Optimizer], name: str, point: float, starts: int, steps: int
) -> Float[np.ndarray, " seeds"]:
    """The normalised training losses of the rules at a point, one each; infinity where one is not finite."""
    pools = {"digits": _pool(**{name: point}, starts=starts)}
    first, adam = (x.mean(axis=1) for x in final_losses(pools, adams(ADAM_RATES), steps, 0, CHUNK)["train"])
    learned = final_losses(pools, rules, steps, 0, 1)["train"][1].mean(axis=1)
    return (learned - adam.min()) / (first[0] - adam.min())


def _pool(*, starts: int, width: float = WIDTH, batch: float = BATCH, share: float = SHARE) -> Pool:
    """ReLU networks of one hidden layer on all digits as they are, the same task for every start."""
    fields: dict[str, Any] = {"batch_size": int(batch), "eval_size": 256, "widths": (int(width),)}
    config = Config("mlp", "digits", tuple(sorted(fields.items())))
    classes = jnp.tile(jnp.arange(config.classes, dtype=jnp.int32), (starts, 1))
    same = jnp.ones(starts, jnp.float32)
    variations = Variation(
        activation=jnp.full(starts, ACTIVATIONS.index("relu"), jnp.int32),
        init_scale=same,
        share=share * same,
        kept=classes,
        kept_count=jnp.full(starts, config.classes, jnp.int32),
        mapped=classes,
        noise=0.0 * same,
        noise_seed=jnp.zeros(starts, jnp.uint32),
    )
    return Pool(config, variations, rows=starts)


__all__ = ["AXES", "Axis", "axes"]
