"""The meta-gradient on the noisy quadratic model: how its variance grows with the unroll."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.stability.box import slopes


def noise(
    key: PRNGKeyArray,
    *,
    radii: Sequence[float] = (0.7, 0.9, 1.02, 1.05, 1.1, 1.2),
    lengths: Sequence[int] = (20, 40, 60, 80, 120, 160, 200, 240, 280, 320),
    size: int = 4,
    batches: int = 10,
    repeats: int = 250,
    tolerance: float = 0.1,
) -> Claim:
    r"""The deviation of the exact meta-gradient with respect to $P$, over starts and noise, against the length of the unroll.

    $$\Big\lVert \mathrm{std}\, \frac{\partial}{\partial P} \frac1T \sum_t \ell_t \Big\rVert_F \sim \rho(A)^{2T} \quad \text{where } \rho(A) > 1$$

    Args:
        key: draws the Hessian's eigenvectors, starts and noise.
        radii: $\rho(A)$, each by the length of the step.
        lengths: $T$; slopes are taken over the upper half.
        size: parameters.
        batches: of repeats; intervals are over them.
        repeats: unrolls in a batch.
        tolerance: relative, of a slope; and the largest slope times the difference of lengths where the training is stable.

    Source: Harrison, Metz & Sohl-Dickstein 2022, section 4, on equation 8.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = np.linspace(0.2, 1.0, size)
    hessian, upper = (basis * values) @ basis.T, slice(len(lengths) // 2, None)
    at, found = np.asarray(lengths, float), {}
    for radius in radii:
        rate = (1.0 + radius) / values[-1]  # 1 - rate * the largest eigenvalue is minus the radius
        rate = min(rate, (1.0 - radius) / values[0]) if radius < 1.0 else rate
        spread = np.stack([deviations(hessian, rate, lengths, repeats, rng) for _ in range(batches)])
        actual = max(abs(1.0 - rate * values))
        slope = mean_interval(slopes(at[upper], np.log(spread[:, upper])))
        found[radius] = {"radius": actual, "predicted": 2 * math.log(actual), "slope": list(slope), "text": str(slope)}
        found[radius]["deviation"] = np.exp(np.log(spread).mean(axis=0))
    unstable = {r: f for r, f in found.items() if f["radius"] > 1.0}
    stable = {r: f for r, f in found.items() if f["radius"] < 1.0}
    error = max(abs(f["slope"][0] / f["predicted"] - 1.0) for f in unstable.values())
    over = float(at[upper][-1] - at[upper][0])
    rise = max(f["slope"][0] * over for f in stable.values())
    numbers: dict[str, Any] = {
        "lengths": list(lengths),
        "by_radius": found,
        "largest_error": error,
        "stable_rise": rise,
    }
    rows = [
        {
            "spectral radius": f"{f['radius']:.3g}",
            "growth of the log deviation a step": f["text"],
            "predicted": f"{f['predicted']:.3f}" if f["radius"] > 1.0 else "at most 0",
            f"deviation at {lengths[0]} steps": f"{f['deviation'][0]:.2g}",
            f"at {lengths[-1]} steps": f"{f['deviation'][-1]:.2g}",
        }
        for f in found.values()
    ]
    return Claim(
        "noise",
        "(b) The variance of the meta-gradient grows with the unroll as the spectral radius says",
        "Where the spectral radius exceeds 1, mean and variance of the meta-gradient diverge with the unroll: step t has a polynomial of degree 2t in A.",
        f"Where the radius is above 1, the logarithm of the deviation grows by twice its logarithm a step, within {tolerance:.0%}; where it is below 1, by at "
        f"most {tolerance:g} over {over:.0f} steps.",
        f"Slopes are within {error:.1%} of the predicted ones. In stable trainings the logarithm changes by at most {rise:+.2f} over {over:.0f} steps.",
        bool(error <= tolerance and rise <= tolerance),
        numbers,
        rows,
    )


def deviations(
    hessian: Float[np.ndarray, "n n"], rate: float, lengths: Sequence[int], repeats: int, rng: np.random.Generator
) -> Float[np.ndarray, " lengths"]:
    r"""Root of the summed variances of $\partial L_T / \partial P$, by forward differentiation along $n^2$ directions.

    Args:
        hessian: $H$.
        rate: $Q = \mathrm{rate} \cdot I$.
        lengths: $T$.
        repeats: unrolls.
        rng: draws starts and noise.
    """
    n, found, total = len(hessian), [], 0.0
    w, dw = rng.standard_normal((repeats, n)), np.zeros((repeats, n, n, n))  # dw[..., i, j, :] by P_ij
    for t in range(1, max(lengths) + 1):
        gradient = (w - rng.standard_normal((repeats, n))) @ hessian
        total = total + np.einsum("rk,rijk->rij", gradient, dw)
        direct = np.einsum("ik,rj->rijk", np.eye(n), gradient)
        w, dw = w - rate * gradient, dw - rate * (dw @ hessian) - direct
        if t in lengths:
            found.append(math.sqrt((total / t).var(axis=0, ddof=1).sum()))
    return np.asarray(found)


__all__ = ["deviations", "noise"]
