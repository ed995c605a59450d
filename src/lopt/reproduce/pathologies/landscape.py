"""The meta-loss over learning rate and momentum: smooth for short unrolls, fractal for long ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.reproduce.claims import Claim
from lopt.reproduce.pathologies._toy import momentum
from lopt.tasks import ChaoticToy
from lopt.unroll import start, unroll

RATES = (1e-3, 1e2)  # of the source's sweep
GAPS = (1e-3, 1.0)  # one minus the decay, ditto
LINE = 10.0**-0.5  # the gap along which roughness is measured: where the source starts its meta-training
WIDE = 8  # the wide spacing of the exponent, in fine ones


def landscape(
    key: PRNGKeyArray,
    *,
    unrolls: Sequence[int] = (2, 8, 32, 64, 128),
    std: float = 0.1,
    spacing: float = 0.005,
    pixel: float = 0.025,
) -> Claim:
    r"""Meta-losses on a grid and along a fine line, raw and smoothed by a Gaussian, and how rough they are.

    $$\mathcal L(\theta) = E_{\epsilon \sim N(0, \sigma^2 I)}\, L(\theta + \epsilon), \qquad
      R_h = \overline{|L(\theta + h) - 2 L(\theta) + L(\theta - h)|} \propto h^\alpha$$

    $\alpha = 2$ for a smooth curve; below 1 it has no derivative at these spacings, and its graph the dimension $2 - \alpha$. Coordinates are natural
    logarithms.

    Args:
        key: draws nothing but what the task asks for; the toy is deterministic.
        unrolls: $T$; the meta-loss is the mean of the first $T$ losses.
        std: $\sigma$. The paper's 0.01 is of the weights of a network; this is of logarithms.
        spacing: $h$ along the line.
        pixel: distance of the points of the picture.

    Source: Metz et al. 2019, section 3; the toy and its ranges are those of its first author's note of February 2021.
    """
    task, longest = ChaoticToy(), max(unrolls)
    low, high = (math.log(r) for r in RATES)
    bottom, top = (math.log(g) for g in GAPS)
    across = std / 4.0  # distance of the lines over which the smoothing averages
    reach = 4.0 * std

    def grid(rates: np.ndarray, gaps: np.ndarray) -> np.ndarray:
        """`[unrolls, gaps, rates]`, a band of gaps at a time to bound the memory."""
        bands = [
            np.asarray(meta_losses(task, jnp.asarray(rates), jnp.asarray(gap), key, tuple(unrolls), longest))
            for gap in np.array_split(gaps, -(-len(gaps) * len(rates) // 50_000))
        ]
        return np.concatenate(bands, axis=1)

    fine = np.arange(low - reach, high + reach, spacing, dtype=np.float32)
    strip = grid(fine, np.arange(math.log(LINE) - reach, math.log(LINE) + reach + across / 2, across, dtype=np.float32))
    margin = round(reach / spacing)
    raw = strip[:, strip.shape[1] // 2, margin:-margin].astype(np.float64)
    smooth = smoothed(strip, (across, spacing), std)[:, 0]
    picture = grid(
        np.arange(low - reach, high + reach, pixel, dtype=np.float32),
        np.arange(bottom - reach, top + reach, pixel, dtype=np.float32),
    )
    edge = round(reach / pixel)

    found = {kind: roughness(line) for kind, line in (("raw", raw), ("smoothed", smooth))}
    rough, exponent = (found["raw"][k] for k in ("roughness", "exponent"))
    growth, relief = rough[-1] / rough[0], rough[-1] / found["smoothed"]["roughness"][-1]
    held = bool(growth >= 10.0 and exponent[0] >= 1.5 and exponent[-1] <= 0.5 and relief >= 10.0)
    numbers = {
        "unrolls": list(unrolls),
        "std": std,
        "spacing": spacing,
        "gap_of_the_line": LINE,
        **found,
        "roughness_longest_over_shortest": growth,
        "roughness_raw_over_smoothed_at_the_longest": relief,
    }
    rows = [
        {
            "unroll": str(t),
            "roughness, raw": f"{rough[i]:.2g}",
            "exponent, raw": f"{exponent[i]:.2f}",
            "roughness, smoothed": f"{found['smoothed']['roughness'][i]:.2g}",
            "exponent, smoothed": f"{found['smoothed']['exponent'][i]:.2f}",
        }
        for i, t in enumerate(unrolls)
    ]
    arrays = {
        "picture": picture[:, edge:-edge, edge:-edge],
        "smoothed": smoothed(picture, (pixel, pixel), std),
        "line": raw,
        "smooth_line": smooth,
    }
    return Claim(
        "landscape",
        "(a) The meta-loss turns from smooth to fractal",
        "The longer the unroll, the more jagged the meta-loss over learning rate and momentum; smoothing it by a Gaussian makes it "
        "smooth again.",
        f"Along a line of constant momentum, the mean absolute second difference at a spacing of {spacing:g} grows at least tenfold from {unrolls[0]} to "
        f"{longest} steps; its exponent in the spacing (2 is smooth, below 1 not differentiable) falls from at least 1.5 to at most 0.5; smoothed "
        f"with std {std:g} it is at most a tenth of the raw at {longest} steps.",
        f"Roughness grew {growth:.3g}-fold, its exponent fell from {exponent[0]:.2f} to {exponent[-1]:.2f}, and smoothing divided it by {relief:.3g}.",
        held,
        numbers,
        rows,
        arrays,
    )


@partial(jax.jit, static_argnums=(4, 5))
def meta_losses(
    task: Any,
    log_rates: Float[Array, " rates"],
    log_gaps: Float[Array, " gaps"],
    key: PRNGKeyArray,
    unrolls: tuple[int, ...],
    longest: int,
) -> Float[Array, "unrolls gaps rates"]:
    """Mean losses of momentum on `task` over the first so many steps."""

    def one(log_rate: Float[Array, ""], log_gap: Float[Array, ""]) -> Float[Array, " unrolls"]:
        optimizer = momentum(log_rate, log_gap)
        inner = start(optimizer, task, key, longest)
        _, losses = unroll(optimizer, task, inner, key, longest)
        total = jnp.cumsum(losses)
        return jnp.stack([total[t - 1] / t for t in unrolls])

    over_rates = jax.vmap(one, (0, None), 1)
    return jax.vmap(over_rates, (None, 0), 1)(log_rates, log_gaps)


def smoothed(values: np.ndarray, spacing: tuple[float, float], std: float) -> np.ndarray:
    """The last two axes convolved with a Gaussian, cut at four deviations; four deviations shorter on every side."""
    values = values.astype(np.float64)
    for axis, step in zip((-2, -1), spacing, strict=True):
        reach = round(4.0 * std / step)
        weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) * step / std))
        windows = np.lib.stride_tricks.sliding_window_view(values, 2 * reach + 1, axis=axis)
        values = windows @ (weights / weights.sum())
    return values


def roughness(lines: np.ndarray) -> dict[str, np.ndarray]:
    """Mean absolute second difference of lines `[unrolls, points]`, and its exponent from one spacing to `WIDE` of them."""

    def second(m: int) -> np.ndarray:
        return np.abs(lines[:, 2 * m :] - 2.0 * lines[:, m:-m] + lines[:, : -2 * m]).mean(axis=1)

    fine = second(1)
    return {"roughness": fine, "exponent": np.log(second(WIDE) / fine) / math.log(WIDE)}


__all__ = ["landscape", "roughness"]
