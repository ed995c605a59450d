"""What the learned optimizers have learned: each claim asks one analysis of every optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.analyze import adaptation, heavy_ball, momentum, response, schedule, state_space
from lopt.reproduce.claims import Claim
from lopt.reproduce.mechanisms._gru import CURVATURES, SETTINGS, STEPS, each

DIMENSIONS = 5  # that hold 95 % of the variance, at most
CLOSE, FACTOR = 0.05, 3.0  # how near a decay and a rate are to the optimal ones
STRONG, WEAK = (
    10.0,
    100.0,
)  # usual gradients: a rule that clips does so below the first, one that does not above the second
RISE, FALL = 1.1, 0.5  # of a rate: the peak over the first, the last over the peak
EXPONENT = -0.2  # of the learning rate in the size of the gradient, at most


def converges(
    key: PRNGKeyArray, *, names: Sequence[str] = tuple(SETTINGS), meta_steps: int | None = None, steps: int = STEPS
) -> Claim:
    """Principal components of the states of a training, and fixed points without gradients.

    Args:
        key: draws problems.
        names: tasks.
        meta_steps: of the meta-training; `None` for the shipped weights.
        steps: of the training.

    Source: Maheswaranathan et al. 2020, figure 2.
    """
    numbers, rows, held = {}, [], []
    for name, (rule, task) in each(names, meta_steps).items():
        space, modes = state_space(rule, task, key=key, steps=steps), momentum(rule, task, key=key)
        held.append(0 < space.dimensions <= DIMENSIONS and modes.fixed_points == 1)
        numbers[name] = {"shares": space.shares[:20], "dimensions": space.dimensions, "points": modes.fixed_points}
        rows.append(
            {
                "task": name,
                "numbers of a state": str(len(space.shares)),
                "dimensions": str(space.dimensions),
                "fixed points": str(modes.fixed_points),
                "distance to its successor": f"{modes.distance:.2g}",
            }
        )
    return Claim(
        "converges",
        "(b) Dynamics are low-dimensional around one fixed point",
        "The states of a learned optimizer move in few dimensions, around one fixed point where there is no gradient.",
        f"On every task at most {DIMENSIONS} principal components hold 95 % of the variance, and one fixed point is found from all visited states.",
        "; ".join(f"{r['task']}: {r['dimensions']} dimensions, fixed points {r['fixed points']}" for r in rows) + ".",
        bool(all(held)),
        numbers,
        rows,
    )


def resembles(key: PRNGKeyArray, *, meta_steps: int | None = None) -> Claim:
    """The strongest mode of the optimizer of linear regression beside the momentum that is fastest on its curvatures.

    Args:
        key: draws problems.
        meta_steps: of the meta-training; `None` for the shipped weights.

    Source: Maheswaranathan et al. 2020, figure 3.
    """
    ((rule, task),) = each(("linear",), meta_steps).values()
    modes = momentum(rule, task, key=key)
    (rate, decay), (best_rate, best_decay) = modes.dominant, heavy_ball(*CURVATURES)
    held = abs(decay - best_decay) <= CLOSE and best_rate / FACTOR <= rate <= best_rate * FACTOR
    numbers = {
        "rate": rate,
        "decay": decay,
        "best_rate": best_rate,
        "best_decay": best_decay,
        "moduli": np.abs(modes.eigenvalues)[:8],
        "rates": np.abs(modes.rates)[:8],
        "fixed_points": modes.fixed_points,
    }
    rows = [
        {"": "strongest mode", "rate": f"{rate:.3g}", "decay": f"{decay:.3f}"},
        {"": "fastest momentum", "rate": f"{best_rate:.3g}", "decay": f"{best_decay:.3f}"},
    ]
    return Claim(
        "resembles",
        "(c) Momentum near the fastest one",
        "The strongest mode of the linearised optimizer of linear regression lies near the momentum that is optimal for its curvatures.",
        f"Its decay is within {CLOSE} of the optimal one and its rate within a factor of {FACTOR:g}.",
        f"The strongest mode has the decay {decay:.3f} and the rate {rate:.3g}; the fastest momentum has {best_decay:.3f} and {best_rate:.3g}.",
        bool(held),
        numbers,
        rows,
    )


def clips(key: PRNGKeyArray, *, meta_steps: int | None = None) -> Claim:
    """From which gradient on the update no longer follows, on Rosenbrock's function and on linear regression.

    Args:
        key: draws problems.
        meta_steps: of the meta-training; `None` for the shipped weights.

    Source: Maheswaranathan et al. 2020, figure 4.
    """
    numbers, rows, at = {}, [], {}
    for name, (rule, task) in each(("linear", "rosenbrock"), meta_steps).items():
        curve = response(rule, task, key=key)
        at[name] = float(curve.threshold / curve.scale)
        numbers[name] = {
            "gradients": curve.gradients / curve.scale,
            "update": np.abs(curve.update),
            "threshold": at[name],
            "gain": curve.gain,
        }
        rows.append({"task": name, "threshold, usual gradients": f"{at[name]:.3g}", "gain": f"{curve.gain:.3g}"})
    return Claim(
        "clips",
        "(d) Clipping on Rosenbrock's function, not on linear regression",
        "Where gradients differ much in size, as on Rosenbrock's function, the learned optimizer clips; on linear regression it does not.",
        f"The largest update over the slope at zero is below {STRONG:g} usual gradients on Rosenbrock's function, above {WEAK:g} on linear regression.",
        f"It is {at['rosenbrock']:.3g} usual gradients on Rosenbrock's function and {at['linear']:.3g} on linear regression.",
        bool(at["rosenbrock"] < STRONG and at["linear"] > WEAK),
        numbers,
        rows,
    )


def rises(key: PRNGKeyArray, *, names: Sequence[str] = tuple(SETTINGS), meta_steps: int | None = None) -> Claim:
    """The slope of the update function at every step without gradients.

    Args:
        key: draws problems.
        names: tasks.
        meta_steps: of the meta-training; `None` for the shipped weights.

    Source: Maheswaranathan et al. 2020, figure 5.
    """
    numbers, rows, held = {}, [], []
    for name, (rule, task) in each(names, meta_steps).items():
        found = schedule(rule, task, key=key, steps=STEPS)
        held.append(found.peak > 0 and found.rises >= RISE and found.decays <= FALL)
        numbers[name] = {"rate": found.rate, "peak": found.peak}
        rows.append(
            {
                "task": name,
                "first rate": f"{found.rate[0]:.3g}",
                "largest": f"{found.rate[found.peak]:.3g}",
                "at step": str(found.peak),
                "last": f"{found.rate[-1]:.3g}",
            }
        )
    did = [row["task"] for row, yes in zip(rows, held, strict=True) if yes]
    return Claim(
        "rises",
        "(e) A learning rate that rises, then decays",
        "Without gradients a learned optimizer changes its learning rate by itself: it first rises, then decays.",
        f"On every task the largest rate comes after the first step and is at least {RISE:g} times the first one; the last is at most {FALL:g} of it.",
        f"It does on {len(did)} of {len(rows)} tasks" + (f" ({', '.join(did)})." if did else "."),
        bool(all(held)),
        numbers,
        rows,
    )


def adapts(key: PRNGKeyArray, *, names: Sequence[str] = tuple(SETTINGS), meta_steps: int | None = None) -> Claim:
    """The update under a constant gradient, by its size.

    Args:
        key: draws problems.
        names: tasks.
        meta_steps: of the meta-training; `None` for the shipped weights.

    Source: Maheswaranathan et al. 2020, figure 6.
    """
    numbers, rows, held = {}, [], []
    for name, (rule, task) in each(names, meta_steps).items():
        found = adaptation(rule, task, key=key)
        half = found.gradients > 0
        held.append(found.exponent <= EXPONENT)
        numbers[name] = {
            "gradients": found.gradients[half] / found.scale,
            "rate": np.abs(found.update[half] / found.gradients[half]),
            "exponent": found.exponent,
        }
        rows.append({"task": name, "exponent": f"{found.exponent:.2f}", "settled": f"{found.settled.mean():.0%}"})
    return Claim(
        "adapts",
        "(f) The learning rate falls with the size of the gradient",
        "Under a constant gradient the learned optimizer settles, and its learning rate is the smaller, the larger the gradient.",
        f"The exponent of the update over the gradient, in the gradient, around its usual size is at most {EXPONENT:g} on every task; Adam's is -1.",
        "Exponents: " + ", ".join(f"{row['task']} {row['exponent']}" for row in rows) + ".",
        bool(all(held)),
        numbers,
        rows,
    )


__all__ = ["adapts", "clips", "converges", "resembles", "rises"]
