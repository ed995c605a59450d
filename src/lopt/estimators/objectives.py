"""Meta-objectives: what makes one number of the losses of an unroll."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lopt.task import Task

Objective = Literal["normalised", "mean", "last", "relative", "mean_log", "late_log"]

WORST = 10.0  # what a loss counts that is not finite, where losses are normalised or logarithms
LARGEST = 1e4  # the same for plain losses
TINY = 1e-6  # keeps logarithms finite: Wichrowska's number


def squash(loss: Float[Array, " *steps"]) -> Float[Array, " *steps"]:
    r"""$\rho(x) = x$ for $x \le 1$, $\min(1 + \log x, 10)$ above, and 10 for NaN and infinity; its derivative is finite everywhere."""
    finite = jnp.isfinite(loss)
    safe = jnp.where(finite, loss, 1.0)
    squashed = jnp.where(safe <= 1.0, safe, jnp.minimum(1.0 + jnp.log(jnp.maximum(safe, 1.0)), WORST))
    return jnp.where(finite, squashed, WORST)


def meta_loss(losses: Float[Array, " steps"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""The mean of normalised losses, made finite.

    $$L = \frac1K \sum_t \rho(\ell_t), \qquad \rho(x) = x \text{ for } x \le 1, \quad \min(1 + \log x, 10) \text{ above, and } 10 \text{ for NaN}$$

    The logarithm keeps an order among diverging runs and stops any of them from drowning the rest.

    Returns:
        $L$, and the fraction of losses that were not finite.
    """
    return jnp.mean(squash(losses)), jnp.mean(_lost(losses).astype(jnp.float32))


def score(
    objective: Objective, task: Task, loss: Float[Array, ""], first: Float[Array, ""], progress: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""What one loss contributes to the meta-loss, and 1 where it was not finite.

    | objective | $s_t$; the meta-loss is its mean over the steps |
    |---|---|
    | `normalised` | $\rho(\mathrm{normalize}(\ell_t))$ |
    | `mean` | $\min(\ell_t, 10^4)$, and $10^4$ for NaN |
    | `relative` | $\rho(\ell_t / (\ell_0 + 10^{-6}))$, for losses that are not negative |
    | `mean_log` | $\log(\ell_t / (\ell_0 + 10^{-6}) + 10^{-6})$, at most 10, for losses that are not negative |
    | `late_log` | $2\tau_t$ times that of `mean_log`, $\tau_t$ the part of the training that is over: the end counts most |
    | `last` | as `normalised`, but of one loss alone: that at the parameters after the last step |

    Args:
        objective: which.
        task: normalises.
        loss: $\ell_t$.
        first: $\ell_0$, the loss of the first minibatch of the inner problem.
        progress: $\tau_t$, above 0 and at most 1.

    Source: `relative` is the objective of Maheswaranathan et al. 2020 as long as no loss exceeds the first; `mean_log` that of Wichrowska et al. 2017
    (`scale_objective` of its release), which takes $\ell_t$ over the whole data set where this takes minibatches; `last` that of Metz et al. 2022,
    *VeLO*; `late_log` is lopt's own.
    """
    if objective == "mean":
        value = jnp.minimum(jnp.where(_lost(loss), LARGEST, loss), LARGEST)
    elif objective in ("relative", "mean_log", "late_log"):
        either = _lost(loss) | _lost(first)
        ratio = jnp.where(either, 1.0, jnp.maximum(loss, 0.0)) / (
            jnp.where(either, 1.0, jnp.maximum(first, 0.0)) + TINY
        )
        shrunk = squash(ratio) if objective == "relative" else jnp.minimum(jnp.log(ratio + TINY), WORST)
        value = jnp.where(either, WORST, shrunk)
        if objective == "late_log":
            value = 2.0 * progress * value
    else:
        value = squash(task.normalize(loss))
    return value, _lost(loss).astype(jnp.float32)


def _lost(loss: Float[Array, " *steps"]) -> Bool[Array, " *steps"]:
    return ~jnp.isfinite(loss)
