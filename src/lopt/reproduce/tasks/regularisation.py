"""Where an optimizer ends among many solutions: at the nearest, nearer to the origin, or farther out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.scores.statistics import mean_interval
from lopt.optimizer import Optimizer, Params
from lopt.optimizers import Adam
from lopt.reproduce.claims import Claim
from lopt.reproduce.tasks._arms import HOME
from lopt.reproduce.tasks._runs import absent, refuse_unused, trained_arm
from lopt.reproduce.tasks._tasks import PROGRAMS, check_programs
from lopt.task import Split, Task
from lopt.unroll import start
from lopt.unroll import step as inner_step

ADAM = "Adam"
RATE = 0.01  # of Adam
CLOSE = 0.1  # times the start's distance to the solutions, at most, where a training counts as ended
EXACT = 0.01  # how far the ratio of Adam may be from 1


class Diagonal(Task):
    r"""$f(x, y) = (x - y)^2 / 2$, whose solutions are the diagonal. Its start is given, and all splits are the same.

    Args:
        begin: where it starts.

    Source: Metz et al. 2020.
    """

    begin: Float[Array, " 2"]

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Params:
        """The given start."""
        del problem, key
        return {"xy": self.begin}

    def loss(self, problem: tuple[()], params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """The same whatever the split."""
        del problem, key, split
        return 0.5 * jnp.square(params["xy"][0] - params["xy"][1])


def ring(starts: int, radius: float = 1.0) -> Float[np.ndarray, "starts 2"]:
    """Starts on a circle around the origin, none on the diagonal or at a right angle to it, where the nearest solution is the start or the origin.

    Args:
        starts: how many; a multiple of four.
        radius: of the circle.
    """
    angles = 2.0 * np.pi * (np.arange(starts) + 0.5) / starts + np.pi / 4.0
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def nearest(starts: Float[np.ndarray, "starts 2"]) -> Float[np.ndarray, "starts 2"]:
    """The nearest solutions."""
    return np.repeat(starts.mean(axis=1, keepdims=True), 2, axis=1)


@jax.jit
def paths(rule: Optimizer, starts: Float[Array, "starts 2"], steps: Int[Array, ""]) -> Float[Array, "starts 2"]:
    """Where trainings from all starts end.

    Args:
        rule: what trains.
        starts: where.
        steps: how many.
    """

    def one(begin: Array) -> Array:
        task, key = Diagonal(begin), jax.random.key(0)
        inner = start(rule, task, key, steps)
        inner = jax.lax.fori_loop(
            0, steps, lambda i, x: inner_step(rule, task, x, jax.random.fold_in(key, i))[0], inner
        )
        return inner.params["xy"]

    return jax.vmap(one)(starts)


def regularisation(
    key: PRNGKeyArray,
    *,
    seeds: int = 2,
    meta_steps: int | None = None,
    programs: Sequence[str] = tuple(PROGRAMS),
    starts: int = 64,
    steps: int = 1000,
    runs: str | None = None,
) -> Claim:
    r"""End points on $f = (x - y)^2 / 2$ from a ring of starts, of an optimizer that was meta-trained for validation losses and of Adam. The ratio

    $$r = \frac{\sum_i \lVert w_i \rVert}{\sum_i \lVert n_i \rVert}$$

    compares the distances to the origin of end points $w_i$ and of the nearest solutions $n_i$. Adam's half of the criterion is a symmetry: the gradients of
    $x$ and $y$ are opposite, so any elementwise odd rule keeps $x + y$ as it was. Where it converges, it ends at the nearest solution.

    A learned rule may also have a bias: a step of its own, whatever the gradient. The place on the line, the mean of $(x + y) / 2$, tells one from the
    other. Drift to the origin takes starts on both sides of the origin to zero; a bias takes both the same way.

    Args:
        key: not used: arms are those of fixed seeds.
        seeds: of the meta-training.
        meta_steps: of the meta-training; `None` for the shipped arms.
        programs: of `PROGRAMS`, for a meta-training.
        starts: on the ring.
        steps: of a training.
        runs: a folder for the run directories of meta-trainings.

    Raises:
        InputError: for an unknown program, no multiple of four starts, `runs` or `programs` without `meta_steps`, or a run directory of another configuration.

    Source: Metz et al. 2020.
    """
    del key
    words = (
        "regularisation",
        "(d) It drifts to the origin where Adam goes to the nearest solution",
        "Trained for validation losses, the learned optimizer regularises by itself: where all points of a line are solutions it ends near the origin, and a "
        "hand-designed one at the nearest solution.",
        f"In nine trainings of ten the distance to the line ends below {CLOSE:.0%} of what it was, for every seed. The ratio r is below 1 by more than its "
        f"95 % interval over seeds, and within {EXACT:.0%} of 1 for Adam.",
    )
    check_programs(programs)
    refuse_unused(meta_steps, runs, programs)
    if starts < 4 or starts % 4:
        raise InputError(f"starts is {starts}; it must be a multiple of four.")
    if reason := absent((HOME,), seeds, meta_steps):
        return Claim(*words, f"Not run: {reason}", None, {})
    rules = {
        f"seed {s}": trained_arm(HOME, s, meta_steps=meta_steps, programs=programs, runs=runs).optimizer
        for s in range(seeds)
    }
    rules[ADAM] = Adam(learning_rate=RATE)
    begin = ring(starts)
    aim = nearest(begin)
    ends = {
        n: np.asarray(paths(r, jnp.asarray(begin, jnp.float32), jnp.asarray(steps)), np.float64)
        for n, r in rules.items()
    }
    ratio = {n: float(np.linalg.norm(x, axis=1).sum() / np.linalg.norm(aim, axis=1).sum()) for n, x in ends.items()}
    away = np.abs(begin[:, 0] - begin[:, 1])
    solved = {n: float((np.abs(x[:, 0] - x[:, 1]) <= CLOSE * away).mean()) for n, x in ends.items()}
    sides = {"above": begin.sum(axis=1) > 0.0, "below": begin.sum(axis=1) < 0.0}
    place = {n: {side: float(x[of].mean()) for side, of in sides.items()} for n, x in ends.items()}
    found = mean_interval(np.array([r for n, r in ratio.items() if n != ADAM]))
    arrived = all(share >= 0.9 for n, share in solved.items() if n != ADAM)
    held = bool(arrived and found.high < 1.0 and abs(ratio[ADAM] - 1.0) <= EXACT)
    rows = [
        {"optimizer": n, "ended near the line": f"{solved[n]:.0%}", "ratio r": f"{ratio[n]:.3f}"}
        | {f"(x + y) / 2 at the end, starts {side} zero": f"{at:.2f}" for side, at in place[n].items()}
        for n in rules
    ]
    numbers: dict[str, Any] = {"ratio": ratio, "solved": solved, "place": place, "starts": starts, "steps": steps}
    numbers["ends"] = ends
    return Claim(
        *words,
        f"The ratio r is {found} for the learned optimizer and {ratio[ADAM]:.3f} for Adam. Of the learned one's trainings "
        f"{min(s for n, s in solved.items() if n != ADAM):.0%} or more end near the line.",
        held,
        numbers,
        rows,
        {"starts": begin, "nearest": aim},
    )


__all__ = ["Diagonal", "nearest", "paths", "regularisation", "ring"]
