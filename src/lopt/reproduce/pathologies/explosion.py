"""The norm of the meta-gradient by backpropagation against the length of the unroll, and the rate that the training dynamics predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from lopt.analyze import dynamics
from lopt.estimators import Backprop, LogUniform
from lopt.population.evolve import stack
from lopt.reproduce.claims import Claim
from lopt.reproduce.pathologies._toy import at
from lopt.tasks import ChaoticToy

SETTINGS = {"stable": (10.0**-1.5, 10.0**-0.5), "unstable": (1.0, 10.0**-0.5)}  # learning rate, one minus the decay


def explosion(
    key: PRNGKeyArray,
    *,
    lengths: Sequence[int] = (2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128),
    starts: int = 2048,
    spread: float = 0.1,
    tolerance: float = 0.2,
) -> Claim:
    r"""Meta-gradients of the mean loss by backpropagation, at a stable and an unstable setting, and the growth of the product of Jacobians.

    $$\frac{\partial s_T}{\partial \theta} = \sum_t \Big(\prod_{k > t} J_k\Big) \frac{\partial F}{\partial \theta}, \qquad
      J_k = \frac{\partial s_{k+1}}{\partial s_k}, \qquad
      \lambda = \frac1T \log \Big\lVert \prod_{k < T} J_k \Big\rVert$$

    with $s$ the parameters and the momentum. The slope of the median of $\log (T \lVert \nabla_\theta L_T \rVert)$ over the longer half of the lengths is held
    against the Lyapunov exponent $\lambda$, taken over the same steps; the mean of the logarithm of the dominant eigenvalue's modulus is given beside it.

    Args:
        key: draws the starts.
        lengths: $T$.
        starts: trainings over which medians are taken.
        spread: deviation of their starts.
        tolerance: relative, of the slope at the unstable setting.

    Source: Metz et al. 2019, section 3.
    """
    task, longest = ChaoticToy(spread=spread), max(lengths)
    estimator = Backprop(task, truncation=None, horizon=LogUniform(1, longest), objective="mean", particles=starts)
    optimizers = stack([at(*setting) for setting in SETTINGS.values()])
    keys = jax.random.split(key, starts)

    @jax.jit
    def norms(optimizers: Any, length: Array) -> tuple[Array, Array]:
        def one(optimizer: Any) -> tuple[Array, Array]:
            (gradients, metrics), _ = estimator.advance(optimizer, estimator.begin(optimizer, keys), keys, length)
            norm = jax.vmap(optax.tree.norm)(gradients)
            return jnp.where(metrics["finite"] > 0.0, norm, jnp.inf), metrics["finite"]

        return jax.vmap(one)(optimizers)

    found = [norms(optimizers, jnp.int32(length)) for length in lengths]
    norm = np.stack([np.asarray(n, np.float64) for n, _ in found], axis=-1)  # [settings, starts, lengths]
    finite = np.stack([np.asarray(f).mean(axis=1) for _, f in found], axis=-1)
    linear = [dynamics(at(*setting), task, key, length=longest, starts=starts) for setting in SETTINGS.values()]

    at_length = np.asarray(lengths)
    late = at_length >= longest // 2
    numbers: dict[str, Any] = {"lengths": list(lengths), "starts": starts}
    rows = []
    for i, name in enumerate(SETTINGS):
        quartiles = np.quantile(norm[i], (0.25, 0.5, 0.75), axis=0, method="nearest")
        slope = float(np.polyfit(at_length[late], np.log(at_length * quartiles[1])[late], 1)[0])
        between = linear[i].growth[:, longest - 1] - linear[i].growth[:, longest // 2 - 1]
        exponent = float(np.median(between) / (longest - longest // 2))
        dominant = float(np.median(np.log(linear[i].moduli[:, longest // 2 :]).mean(axis=-1)))
        numbers[name] = {
            "learning_rate": SETTINGS[name][0],
            "one_minus_decay": SETTINGS[name][1],
            "norm_median": quartiles[1],
            "norm_quartiles": quartiles[[0, 2]],
            "finite_share": finite[i],
            "growth_measured": slope,
            "growth_lyapunov": exponent,
            "growth_dominant_eigenvalue": dominant,
            "product_median": np.median(linear[i].growth, axis=0),
        }
        rows.append(
            {
                "setting": name,
                "learning rate": f"{SETTINGS[name][0]:.3g}",
                "1 − momentum": f"{SETTINGS[name][1]:.3g}",
                f"norm at {lengths[0]} steps": f"{quartiles[1][0]:.3g}",
                f"norm at {longest} steps": f"{quartiles[1][-1]:.3g}",
                "growth a step, measured": f"{slope:+.3f}",
                "Lyapunov exponent": f"{exponent:+.3f}",
                "mean log |dominant eigenvalue|": f"{dominant:+.3f}",
            }
        )
    stable, unstable = (numbers[name] for name in SETTINGS)
    error = abs(unstable["growth_measured"] / unstable["growth_lyapunov"] - 1.0)
    held = bool(
        unstable["growth_lyapunov"] > 0.0
        and error <= tolerance
        and stable["growth_lyapunov"] < 0.0
        and stable["norm_median"][-1] <= stable["norm_median"][late][0]
    )
    return Claim(
        "explosion",
        "(b) The meta-gradient by backpropagation explodes",
        "The norm of the meta-gradient grows exponentially with the unroll where the training dynamics are unstable, at the rate of the "
        "product of their Jacobians.",
        f"At the unstable setting the median norm times the length grows exponentially from {longest // 2} to {longest} steps, at a rate "
        f"within {tolerance:.0%} of the Lyapunov exponent, which is positive; "
        "at the stable setting the exponent is negative and the norm no greater at the end than half-way.",
        f"Unstable: {unstable['growth_measured']:+.3f} a step measured, {unstable['growth_lyapunov']:+.3f} by the Lyapunov exponent, "
        f"{unstable['growth_dominant_eigenvalue']:+.3f} by the mean log modulus of the dominant eigenvalue; the norm went from "
        f"{unstable['norm_median'][0]:.2g} to {unstable['norm_median'][-1]:.2g}. Stable: {stable['growth_measured']:+.3f}, "
        f"{stable['growth_lyapunov']:+.3f} and {stable['growth_dominant_eigenvalue']:+.3f}.",
        held,
        numbers,
        rows,
    )


__all__ = ["explosion"]
