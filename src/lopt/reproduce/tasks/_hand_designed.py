"""The hand-designed rivals: Adam, Adam with eight hyper-parameters, NAdamW. Their settings are numbers, so that all share a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.optimizer import Optimizer, Params, State, Updates

ADAM_RATES = tuple(float(x) for x in np.logspace(-5, 1, 14))
PLAIN = {
    "learning_rate": 1e-3,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "l1": 0.0,
    "l2": 0.0,
    "linear": 0.0,
    "exponential": 0.0,
    "weight_decay": 0.0,
    "cosine": 0.0,
    "warmup": 0.0,
}


class HandDesigned(Optimizer):
    r"""Adam with penalties, decays of the learning rate and decoupled weight decay; with Nesterov's momentum it is NAdamW.

    $$u = -\eta_t\, \big(\mathrm{Adam}(g + \lambda_1\, \mathrm{sign}\, w + \lambda_2 w) + \lambda w\big), \qquad
      \eta_t = \eta\, \max(1 - at, 0)\, e^{-bt}\, \min\big(t / t_w, 1\big)\, c_t$$

    $c_t$ is $1$, or a cosine from 1 to 0 over the training.

    Args:
        setting: what differs from `PLAIN`.
        nesterov: whether the momentum is Nesterov's.

    Source: Metz et al. 2020: Adam8p and the settings of its list of NAdamW.
    """

    setting: dict[str, Float[Array, ""]]
    nesterov: bool = eqx.field(static=True)

    def __init__(self, setting: Mapping[str, float] | None = None, *, nesterov: bool = False):
        self.setting = {k: jnp.asarray(v, jnp.float32) for k, v in (PLAIN | dict(setting or {})).items()}
        self.nesterov = nesterov

    def _adam(self) -> optax.GradientTransformation:
        s: Mapping[str, Any] = self.setting
        return optax.scale_by_adam(s["b1"], s["b2"], s["eps"], nesterov=self.nesterov)

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> State:
        """Moments at zero, no step taken."""
        del key
        length = jnp.asarray(1.0 if horizon is None else horizon, jnp.float32)
        return self._adam().init(params), jnp.zeros((), jnp.float32), length

    def update(self, updates: Updates, state: State, params: Params, **extra: Any) -> tuple[Updates, State]:
        """One step; see the class."""
        del extra
        s, (moments, t, length) = self.setting, state
        penalised = jax.tree.map(lambda g, w: g + s["l1"] * jnp.sign(w) + s["l2"] * w, updates, params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises decays to the power of an integer count
            found, moments = self._adam().update(penalised, moments, params)
        rate = s["learning_rate"] * jnp.maximum(1.0 - s["linear"] * t, 0.0) * jnp.exp(-s["exponential"] * t)
        rate = rate * jnp.minimum((t + 1.0) / jnp.maximum(s["warmup"] * length, 1.0), 1.0)
        rate = rate * (1.0 - 0.5 * s["cosine"] * (1.0 - jnp.cos(jnp.pi * t / length)))
        moved = jax.tree.map(lambda u, w: (-rate * (u + s["weight_decay"] * w)).astype(w.dtype), found, params)
        return moved, (moments, t + 1.0, length)


def adams(rates: Sequence[float]) -> list[Optimizer]:
    """Adam at these learning rates."""
    return [HandDesigned({"learning_rate": rate}) for rate in rates]


def adam8s(number: int, seed: int) -> list[Optimizer]:
    """Random settings of Adam with eight hyper-parameters, log-uniform in the paper's ranges; that of epsilon is ours.

    Args:
        number: how many.
        seed: draws them.
    """
    rng = np.random.default_rng(seed)

    def one() -> Optimizer:
        return HandDesigned(
            {
                "learning_rate": _log(rng, 1e-8, 10.0),
                "b1": 1.0 - _log(rng, 1e-4, 1.0),
                "b2": 1.0 - _log(rng, 1e-6, 1.0),
                "eps": _log(rng, 1e-10, 1e-1),
                "l1": _log(rng, 1e-8, 10.0),
                "l2": _log(rng, 1e-8, 10.0),
                "linear": _log(rng, 1e-7, 1e-4),
                "exponential": _log(rng, 1e-6, 1e-3),
            }
        )

    return [one() for _ in range(number)]


def nadamws(number: int, seed: int) -> list[Optimizer]:
    """Random settings of NAdamW with warm-up and a cosine; the ranges are ours.

    Args:
        number: how many.
        seed: draws them.
    """
    rng = np.random.default_rng(seed)

    def one() -> Optimizer:
        return HandDesigned(
            {
                "learning_rate": _log(rng, 1e-4, 1.0),
                "b1": 1.0 - _log(rng, 1e-2, 1.0),
                "b2": 1.0 - _log(rng, 1e-4, 1e-1),
                "eps": _log(rng, 1e-10, 1e-3),
                "weight_decay": _log(rng, 1e-5, 1e-1),
                "cosine": 1.0,
                "warmup": float(rng.uniform(0.0, 0.1)),
            },
            nesterov=True,
        )

    return [one() for _ in range(number)]


def _log(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def ordered(losses: Float[np.ndarray, "settings tasks"], most: int) -> list[int]:
    """Settings in an order in which each, after those before it, takes the most away from the mean over tasks of the lowest loss.

    Args:
        losses: normalised, of every setting on every task.
        most: how many to choose.
    """
    chosen: list[int] = []
    best = np.full(losses.shape[1], np.inf)
    for _ in range(min(most, len(losses))):
        means = np.minimum(losses, best).mean(axis=1)
        means[chosen] = np.inf
        chosen.append(int(means.argmin()))
        best = np.minimum(best, losses[chosen[-1]])
    return chosen


__all__ = ["ADAM_RATES", "PLAIN", "HandDesigned", "adam8s", "adams", "nadamws", "ordered"]
