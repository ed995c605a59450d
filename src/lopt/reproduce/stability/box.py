"""The noisy quadratic model: where rollouts diverge, and the box of Theorem 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt.analyze import LinearTraining, admissible_box
from lopt.reproduce.claims import Claim

KINDS = ("same eigenvectors", "symmetric", "not symmetric")
DIVERGED = 100.0  # times the mean loss of the first steps
FAR = 1e100  # a loss from which no rollout returns


def box(
    key: PRNGKeyArray,
    *,
    draws: int = 1000,
    size: int = 4,
    steps: int = 100,
    nominal: Sequence[float] = (0.0, 0.1, 0.3),
    away: float = 0.05,
    agreement: float = 0.99,
    tolerance: float = 0.01,
) -> Claim:
    r"""Rollouts of the noisy quadratic model against the spectral radius, and the measured bounds of $P$ against Theorem 1 and Lemma 2.

    Args:
        key: draws Hessians, black boxes and noise.
        draws: of each kind of black box.
        size: parameters.
        steps: of a rollout.
        nominal: $\alpha$.
        away: a radius within this of 1 is left out where rollouts are judged: so few steps cannot tell.
        agreement: least share of rollouts that do what the radius says.
        tolerance: relative, of a measured bound.

    Source: Harrison, Metz & Sohl-Dickstein 2022, section 4, Theorem 1 and Lemma 2.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    counted = {kind: _Counts() for kind in KINDS}
    radii, growths = [], []
    for kind in KINDS:
        for hessian, black_box, alpha in _draws(rng, kind, draws, size, nominal):
            training = LinearTraining(hessian, alpha * np.eye(size) + black_box, np.eye(size))
            growth = rollout(training, steps, rng)
            radii.append(training.spectral_radius)
            growths.append(growth)
            counted[kind] = counted[kind].tally(
                admissible_box(hessian, alpha).admits(black_box), training.spectral_radius, growth > DIVERGED, away
            )
    bounds = [
        _bounds(alpha, top, preconditioned, steps)
        for alpha in nominal
        for top in (4.0, 0.25)
        for preconditioned in (False, True)
    ]
    error = max(abs(b[side][0] - b[side][1]) / abs(b["upper"][1]) for b in bounds for side in ("lower", "upper"))
    clear, right = (sum(getattr(c, field) for c in counted.values()) for field in ("clear", "right"))
    exact = counted[KINDS[0]]
    symmetric, other = counted[KINDS[1]], counted[KINDS[2]]
    held = right >= agreement * clear and error <= tolerance and exact.wrong == 0 and symmetric.admitted_unstable == 0
    numbers: dict[str, Any] = {
        "steps": steps,
        "agreement": right / clear,
        "by_kind": {kind: c._asdict() for kind, c in counted.items()},
        "largest_error_of_a_bound": error,
        "bounds": bounds,
    }
    rows = [
        {
            "black box": kind,
            "in the box": str(c.admitted),
            "of these unstable": f"{c.admitted_unstable} ({c.admitted_unstable / max(1, c.admitted):.0%})",
            "outside": str(c.outside),
            "of these stable": f"{c.outside_stable} ({c.outside_stable / max(1, c.outside):.0%})",
            "rollouts as the radius says": f"{c.right} of {c.clear}",
        }
        for kind, c in counted.items()
    ]
    return Claim(
        "box",
        "(a) Rollouts diverge where the spectral radius exceeds 1, and the theorem's box says where",
        "The training of a noisy quadratic is stable if and only if the eigenvalues of the black box lie in a box, which the nominal step moves down "
        "and output preconditioning moves up where the curvature is above 1.",
        f"At least {agreement:.0%} of the rollouts of {steps} steps with a radius {away:g} or more away from 1 end above {DIVERGED:g} times their first losses "
        f"where it is above 1 and only there. Measured bounds are within {tolerance:.0%} of the theorem's. The box decides exactly where "
        "black box and Hessian share eigenvectors, and no symmetric black box inside of it is unstable.",
        f"Rollouts did what the radius says in {right} of {clear}. Bounds were at most {error:.2%} off. With shared eigenvectors the box was wrong "
        f"{exact.wrong} times. Of symmetric black boxes outside, {symmetric.outside_stable / max(1, symmetric.outside):.0%} were stable; "
        f"of those inside that are not symmetric, {other.admitted_unstable / max(1, other.admitted):.0%} were unstable. "
        "So the theorem's condition is exact for shared eigenvectors alone.",
        bool(held),
        numbers,
        rows,
        {"radius": np.asarray(radii), "growth": np.minimum(np.asarray(growths), 1e30)},
    )


class _Counts(NamedTuple):
    admitted: int = 0
    admitted_unstable: int = 0
    outside: int = 0
    outside_stable: int = 0
    clear: int = 0  # rollouts whose radius is away from 1
    right: int = 0  # of these, those that did what it says

    @property
    def wrong(self) -> int:
        return self.admitted_unstable + self.outside_stable

    def tally(self, admitted: bool, radius: float, diverged: bool, away: float) -> _Counts:
        stable, clear = radius <= 1.0, abs(radius - 1.0) >= away
        return _Counts(
            self.admitted + admitted,
            self.admitted_unstable + (admitted and not stable),
            self.outside + (not admitted),
            self.outside_stable + (not admitted and stable),
            self.clear + clear,
            self.right + (clear and diverged != stable),
        )


def _draws(
    rng: np.random.Generator, kind: str, draws: int, size: int, nominal: Sequence[float]
) -> Iterator[tuple[Any, Any, float]]:
    """Hessians with eigenvalues from 0.2 to 2, and black boxes with eigenvalues in and around the box."""
    for i in range(draws):
        alpha = nominal[i % len(nominal)]
        basis, values = np.linalg.qr(rng.standard_normal((size, size)))[0], np.sort(rng.uniform(0.2, 2.0, size))
        hessian = (basis * values) @ basis.T
        bounds = admissible_box(hessian, alpha)
        # Half of them within the box, the others up to a tenth of its width beyond it.
        beyond = 0.1 * (bounds.high - bounds.low) * (i // len(nominal) % 2)
        inner = np.sort(rng.uniform(bounds.low - beyond, bounds.high + beyond, size))
        if kind == KINDS[0]:  # the largest along the sharpest direction
            other = basis
        else:
            other = rng.standard_normal((size, size))
            other = np.linalg.qr(other)[0] if kind == KINDS[1] else other
        yield hessian, other @ np.diag(inner) @ np.linalg.inv(other), alpha


def rollout(training: LinearTraining, steps: int, rng: np.random.Generator) -> float:
    """Mean loss of the last ten steps over that of the first ten, with noisy minima, from a random start; infinity where a loss is beyond all bounds.

    Args:
        training: the model.
        steps: of the rollout.
        rng: draws the start and the noise.
    """
    n, losses = len(training.hessian), []
    w, root = rng.standard_normal(n), np.linalg.cholesky(training.covariance)
    for _ in range(steps):
        away = w - root @ rng.standard_normal(n)
        gradient = training.hessian @ away
        losses.append(0.5 * away @ gradient)
        if losses[-1] > FAR:
            return float("inf")
        w = w - training.update @ gradient
    return float(np.mean(losses[-10:]) / np.mean(losses[:10]))


def _bounds(alpha: float, top: float, preconditioned: bool, steps: int) -> dict[str, Any]:
    """The least and greatest eigenvalue along the sharpest direction from which noiseless rollouts do not grow, measured and predicted."""
    hessian = np.diag([top, 0.1])
    output = np.diag(np.diag(hessian) ** -0.5) if preconditioned else np.eye(2)
    predicted = admissible_box(hessian, alpha, preconditioned=preconditioned)

    def grows(value: float) -> bool:
        w = np.array([1.0, 0.0])
        for _ in range(steps):
            w = w - output @ (alpha * np.eye(2) + np.diag([value, 0.0])) @ hessian @ w
        return bool(abs(w[0]) > 1.0)

    def edge(stable: float, unstable: float) -> float:
        for _ in range(40):
            middle = 0.5 * (stable + unstable)
            stable, unstable = (stable, middle) if grows(middle) else (middle, unstable)
        return stable

    inside = 0.5 * (predicted.low + predicted.high)
    width = predicted.high - predicted.low
    return {
        "nominal": alpha,
        "curvature": top,
        "preconditioned": preconditioned,
        "lower": [edge(inside, inside - 5 * width), predicted.low],
        "upper": [edge(inside, inside + 5 * width), predicted.high],
    }


def slopes(xs: Float[np.ndarray, " n"], ys: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
    """Slopes of least squares.

    Args:
        xs: positions.
        ys: values; the last axis is that of the positions.
    """
    centred = xs - xs.mean()
    return (ys * centred).sum(axis=-1) / np.square(centred).sum()


__all__ = ["box", "rollout"]
