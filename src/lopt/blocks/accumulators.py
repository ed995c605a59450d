r"""Exponential moving averages of the gradient and of its square, whole and factored."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def decay_to_param(decay: float | Sequence[float]) -> Float[Array, ...]:
    r"""$p = \log(1 - \beta)/10$, the scale on which decays are meta-learned (Metz et al. 2022)."""
    # In float32, as the reference: weights meta-learned there meet the decays that they were learned with.
    return jnp.log(1.0 - jnp.asarray(decay, jnp.float32)) / 10.0


def param_to_decay(param: Float[Array, ...]) -> Float[Array, ...]:
    r"""$\beta = 1 - \exp(10 p)$, clipped to $[0, 1]$; inverse of `decay_to_param`."""
    return jnp.clip(1.0 - jnp.exp(10.0 * param), 0.0, 1.0)


def ema(old: Array, new: Array, decay: float | Array) -> Array:
    r"""$\beta\,\mathrm{old} + (1-\beta)\,\mathrm{new}$."""
    return decay * old + (1.0 - decay) * new


def safe_rsqrt(x: Array, floor: float = 1e-9) -> Array:
    r"""$1/\sqrt{\max(x, \mathrm{floor})}$."""
    return jax.lax.rsqrt(jnp.maximum(x, floor))


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The second-largest and the largest axis of a tensor of rank two or more, `None` below (Shazeer & Stern 2018)."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])


def factored_zeros(shape: tuple[int, ...]) -> tuple[Array, Array | None]:
    """Start of a factored second moment: row and column with their reduced axis kept as 1; below rank two the diagonal and `None`."""
    axes = factored_axes(shape)
    if axes is None:
        return jnp.zeros(shape, jnp.float32), None
    rows_axis, cols_axis = axes
    row = tuple(1 if i == cols_axis else n for i, n in enumerate(shape))
    col = tuple(1 if i == rows_axis else n for i, n in enumerate(shape))
    return jnp.zeros(row, jnp.float32), jnp.zeros(col, jnp.float32)


def factored_means(g: Array, floor: float = 1e-30) -> tuple[Array, Array | None]:
    r"""What a factored second moment averages over time: means of $g^2 + \mathrm{floor}$ along either axis."""
    axes = factored_axes(g.shape)
    if axes is None:
        return jnp.square(g) + floor, None
    rows_axis, cols_axis = axes
    row, col = (jnp.mean(jnp.square(g), axis, keepdims=True) for axis in (cols_axis, rows_axis))
    return row + floor, col + floor


def factored_scale(row: Array, col: Array | None) -> tuple[Array, Array | None]:
    r"""Adafactor's preconditioner as two broadcastable factors.

    $$\hat g = g \cdot \frac{1}{\sqrt{r/(\bar r + 10^{-9})}} \cdot \frac{1}{\sqrt{c}}$$

    with $r, c$ the row and column means and $\bar r$ the mean of $r$ along its own axis; the diagonal
    $1/\sqrt{d}$ and `None` below rank two.
    """
    if col is None:
        return safe_rsqrt(row + 1e-9), None
    # `row` varies along the axis that `col` has reduced.
    axes = factored_axes(tuple(max(r, c) for r, c in zip(row.shape, col.shape, strict=True)))
    assert axes is not None
    mean = jnp.mean(row, axes[0], keepdims=True)
    return safe_rsqrt(row / (mean + 1e-9)), safe_rsqrt(col)
