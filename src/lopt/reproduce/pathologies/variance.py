"""Variance of the reparameterisation gradient, of evolution strategies, and of the two merged, against the length of the unroll."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lopt.estimators import LogUniform, Merged
from lopt.reproduce.claims import Claim
from lopt.reproduce.pathologies._toy import at
from lopt.tasks import ChaoticToy

PARTS = ("reparameterisation", "evolution strategies", "merged")


def variance(
    key: PRNGKeyArray,
    *,
    lengths: Sequence[int] = (2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
    pairs: Sequence[int] = (8, 64),
    repeats: int = 512,
    std: float = 0.1,
    learning_rate: float = 0.1,
    gap: float = 10.0**-0.5,
    spread: float = 0.1,
    allowed: float = 1.1,
    resamples: int = 300,
) -> Claim:
    """Repeated estimates of one smoothed meta-gradient by `Merged` and by its parts, on the same noise and starts.

    Variances are over repeats, summed over the two meta-parameters; intervals are percentiles of a bootstrap over repeats.

    Args:
        key: draws starts and noise.
        lengths: of the unrolls, whole problems.
        pairs: antithetic pairs of an estimate; the verdict is on the last, as the merge weighs by variances that it takes from them.
        repeats: estimates at each length.
        std: of the noise on the logarithms.
        learning_rate: where the gradient is estimated.
        gap: one minus the decay, ditto.
        spread: deviation of the starts.
        allowed: greatest variance of the merged estimate, over the lower of its parts.
        resamples: of the bootstrap.

    Source: Metz et al. 2019, section 4.
    """
    task, optimizer = ChaoticToy(spread=spread), at(learning_rate, gap)
    curves = []
    for number in pairs:
        estimator = Merged(task, horizon=LogUniform(1, max(lengths)), pairs=number, std=std, objective="mean")
        keys = jax.random.split(jax.random.fold_in(key, number), repeats)

        @jax.jit
        def estimates(optimizer: Any, length: Array, estimator: Merged = estimator, keys: Array = keys) -> Array:
            def one(key: Array) -> Array:
                pair_keys = jax.random.split(key, estimator.pairs)
                state = estimator.begin(optimizer, pair_keys)
                ((reparam, es), metrics), _ = estimator.advance(optimizer, state, pair_keys, length)
                merged, _ = estimator.combine((reparam, es), metrics)
                means = [jax.tree.map(lambda x: jnp.mean(x, axis=0), part) for part in (reparam, es)]
                return jnp.stack([jnp.stack(jax.tree.leaves(part)) for part in (*means, merged)])

            return jax.lax.map(one, keys, batch_size=max(1, 4096 // estimator.pairs))

        curves.append([np.asarray(estimates(optimizer, jnp.int32(n)), np.float64) for n in lengths])
    draws = np.random.default_rng(repeats).integers(repeats, size=(resamples, repeats))
    numbers: dict[str, Any] = {
        "lengths": list(lengths),
        "learning_rate": learning_rate,
        "one_minus_decay": gap,
        "std": std,
        "spread": spread,
        "repeats": repeats,
        "by_pairs": {n: _curves(samples, lengths, draws) for n, samples in zip(pairs, curves, strict=True)},
    }
    last, first = (numbers["by_pairs"][pairs[i]] for i in (-1, 0))
    worst = int(np.argmax(last["ratio"]))
    ratio, (low, high) = last["ratio"][worst], last["ratio_interval"][worst]
    few = int(np.argmax(first["ratio"]))
    reparam, es = (last["variance"][part] for part in PARTS[:2])
    held = bool(reparam[0] < es[0] and reparam[-1] > es[-1] and ratio <= allowed)
    crossing = last["crossing"]
    enough = "" if first["ratio"][few] <= allowed else ": too few for weights taken from the same samples"
    at_few = (
        f" With {pairs[0]} pairs it is {first['ratio'][few]:.2f} times at {lengths[few]} steps{enough}."
        if len(pairs) > 1
        else ""
    )
    return Claim(
        "variance",
        "(d) Each estimator has its length, and the merged one follows the better",
        "The reparameterisation gradient varies less for short unrolls and explodes for long ones, evolution strategies are bounded, "
        "and the merged estimate is as good as the better of the two.",
        f"The variance of the reparameterisation gradient is below that of ES at {lengths[0]} steps and above at {lengths[-1]}; at every length that "
        f"of the merged estimate from {pairs[-1]} pairs is at most {allowed:g} times the lower.",
        f"The variances cross at {crossing:.0f} steps. Merged from {pairs[-1]} pairs the variance is at most {ratio:.2f} [{low:.2f}, {high:.2f}] times "
        f"the lower of its parts, at {lengths[worst]} steps.{at_few}",
        held,
        numbers,
        _rows(lengths, last, first if len(pairs) > 1 else None, pairs),
    )


def _curves(samples: list[np.ndarray], lengths: Sequence[int], draws: np.ndarray) -> dict[str, Any]:
    """Variances, their ratio with its interval, and where the parts cross. A sample is `[repeats, parts, meta-parameters]`."""
    found = np.stack([_variances(s) for s in samples], axis=-1)  # [parts, lengths]
    again = np.stack([[_variances(s[d]) for d in draws] for s in samples], axis=-1)  # [resamples, parts, lengths]

    def ratio(v: np.ndarray) -> np.ndarray:
        return v[..., 2, :] / np.minimum(v[..., 0, :], v[..., 1, :])

    ends = np.quantile(ratio(again), (0.025, 0.975), axis=0)
    intervals = np.quantile(again, (0.025, 0.975), axis=0)
    return {
        "variance": dict(zip(PARTS, found, strict=True)),
        "variance_interval": {part: intervals[:, i] for i, part in enumerate(PARTS)},
        "ratio": ratio(found),
        "ratio_interval": ends.T,
        "crossing": crossing(lengths, found[0], found[1]),
    }


def _variances(sample: np.ndarray) -> np.ndarray:
    return sample.var(axis=0, ddof=1).sum(axis=-1)


def crossing(lengths: Sequence[int], rising: np.ndarray, other: np.ndarray) -> float:
    """The first length at which `rising` exceeds `other`, between lengths by logarithms; NaN if there is none."""
    gap = np.log(rising) - np.log(other)
    for i in range(1, len(lengths)):
        if gap[i - 1] <= 0.0 < gap[i]:
            before, after = math.log(lengths[i - 1]), math.log(lengths[i])
            return math.exp(before + (after - before) * -gap[i - 1] / (gap[i] - gap[i - 1]))
    return float(lengths[0]) if gap[0] > 0.0 else math.nan


def _rows(
    lengths: Sequence[int], last: dict[str, Any], first: dict[str, Any] | None, pairs: Sequence[int]
) -> list[dict[str, str]]:
    rows = []
    for i, length in enumerate(lengths):
        row = {"unroll": str(length)} | {f"variance, {part}": f"{last['variance'][part][i]:.2g}" for part in PARTS}
        low, high = last["ratio_interval"][i]
        row[f"merged / lower, {pairs[-1]} pairs"] = f"{last['ratio'][i]:.2f} [{low:.2f}, {high:.2f}]"
        if first is not None:
            low, high = first["ratio_interval"][i]
            row[f"the same, {pairs[0]} pairs"] = f"{first['ratio'][i]:.2f} [{low:.2f}, {high:.2f}]"
        rows.append(row)
    return rows


__all__ = ["variance"]
