"""Cancelling the nominal term against controlling its size, when the black box errs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.analyze import LinearTraining
from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim

WAYS = ("cancelled", "controlled")


def control(
    key: PRNGKeyArray,
    *,
    errors: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
    draws: int = 400,
    size: int = 4,
    steps: int = 100,
    nominal: float = 3.0,
    wanted: float = 0.5,
) -> Claim:
    r"""Two rules that mean to make the same step, from a nominal step that is too large for the curvature.

    $$Q_\text{cancelled} = \alpha I + \Delta (q - \alpha) I, \qquad Q_\text{controlled} = \Delta q I, \qquad \Delta = \mathrm{diag}(d), \quad
      d_i \sim U(1 - \epsilon, 1 + \epsilon)$$

    The first has learned to cancel most of $\alpha$; its error leaves $\epsilon (\alpha - q) H$ behind. The second has learned the size of the nominal step.

    Args:
        key: draws Hessians and errors.
        errors: $\epsilon$.
        draws: of Hessian and error, the same for both rules.
        size: parameters.
        steps: of the expected meta-loss.
        nominal: $\alpha$ times the largest curvature; above 2 it is unstable on its own.
        wanted: $q$ times the largest curvature.

    Source: Harrison, Metz & Sohl-Dickstein 2022, section 4, Lemma 3 and equations 18 and 19.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    radii = np.zeros((len(errors), 2, draws))
    losses = np.zeros((len(errors), 2, draws))
    for j in range(draws):
        basis, values = np.linalg.qr(rng.standard_normal((size, size)))[0], rng.uniform(0.2, 1.0, size)
        values = values / values.max()
        hessian, signs = (basis * values) @ basis.T, rng.uniform(-1.0, 1.0, size)
        for i, error in enumerate(errors):
            d = np.diag(1.0 + error * signs)
            for way, update in enumerate((nominal * np.eye(size) + d * (wanted - nominal), d * wanted)):
                training = LinearTraining(hessian, update, np.eye(size))
                radii[i, way, j] = training.spectral_radius
                losses[i, way, j] = np.log(training.expected_losses(np.eye(size), steps).mean())
    unstable = (radii > 1.0).mean(axis=-1)
    gains = [mean_interval(cancelled - controlled) for cancelled, controlled in losses]
    grows = bool((np.diff(unstable[:, 0]) >= 0.0).all() and unstable[-1, 0] > 0.0)
    held = bool((unstable[:, 1] == 0.0).all() and grows and all(g.low > 0.0 for g in gains))
    numbers: dict[str, Any] = {
        "errors": list(errors),
        "unstable": dict(zip(WAYS, unstable.T, strict=True)),
        "log_meta_loss": dict(zip(WAYS, losses.mean(axis=-1).T, strict=True)),
        "gain": [list(g) for g in gains],
    }
    rows = [
        {
            "error": f"{error:.0%}",
            "cancelled: unstable": f"{unstable[i, 0]:.0%}",
            "controlled: unstable": f"{unstable[i, 1]:.0%}",
            "log meta-loss, cancelled less controlled": str(gains[i]),
        }
        for i, error in enumerate(errors)
    ]
    return Claim(
        "control",
        "(c) Controlling the nominal step survives errors that cancelling it does not",
        "A black box that has learned to cancel the nominal term leaves part of it behind when it errs; a rule that controls its size does not.",
        f"Under multiplicative errors of {errors[0]:.0%} to {errors[-1]:.0%} no controlled training has a radius above 1, and ever more cancelled ones have. "
        f"At every error the expected meta-loss of {steps} steps is lower where the step is controlled, by more than the 95 % interval.",
        f"At {errors[-1]:.0%} of error {unstable[-1, 0]:.0%} of the cancelled trainings are unstable and {unstable[-1, 1]:.0%} of the controlled ones; "
        f"the log meta-loss is lower by {gains[0]} at {errors[0]:.0%} and by {gains[-1]} at {errors[-1]:.0%}.",
        held,
        numbers,
        rows,
    )


__all__ = ["control"]
