"""The figure of each claim, under its name."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from lopt.evaluate.report.page import COLORS, panels
from lopt.reproduce.claims import Claim
from lopt.reproduce.pathologies.landscape import GAPS, LINE, RATES
from lopt.reproduce.pathologies.variance import PARTS


def _whole(axes: Any, lengths: list[int]) -> None:
    """Ticks of a logarithmic axis: at most seven of the lengths themselves."""
    ticks = lengths[:: -(-len(lengths) // 7)]
    axes.set_xticks(ticks, labels=[str(t) for t in ticks])
    axes.set_xticks([], minor=True)


def landscape(claim: Claim) -> Any:
    """Draw it."""
    unrolls = claim.numbers["unrolls"]
    fig, grid = panels(len(unrolls), 3, width=3.0, height=2.7)
    extent = (*(math.log10(r) for r in RATES), *(math.log10(g) for g in GAPS))
    for i, unroll in enumerate(unrolls):
        raw = claim.arrays["picture"][i]
        low, high = np.quantile(raw, (0.01, 0.99))
        for axes, values, kind in ((grid[0, i], raw, "raw"), (grid[1, i], claim.arrays["smoothed"][i], "smoothed")):
            axes.imshow(values, origin="lower", extent=extent, aspect="auto", vmin=low, vmax=high, cmap="viridis")
            axes.axhline(math.log10(LINE), color="white", lw=0.6, ls=":")
            axes.set_title(f"{unroll} steps, {kind}", fontsize=10)
        line, smooth = claim.arrays["line"][i], claim.arrays["smooth_line"][i]
        along = np.linspace(extent[0], extent[1], len(line))
        grid[2, i].plot(along, line, lw=0.4, color=COLORS[0], label="raw")
        grid[2, i].plot(along[: len(smooth)], smooth[: len(along)], lw=1.2, color=COLORS[1], label="smoothed")
        exponent = claim.numbers["raw"]["exponent"][i]
        grid[2, i].set_title(f"along the dotted line; exponent {exponent:.2f}", fontsize=10)
        grid[2, i].set_xlabel("log10 learning rate")
    for axes, label in zip(grid[:, 0], ("log10 (1 − momentum)", "log10 (1 − momentum)", "meta-loss"), strict=True):
        axes.set_ylabel(label)
    grid[2, 0].legend(frameon=False, fontsize=8)
    return fig


def explosion(claim: Claim) -> Any:
    """Draw it."""
    fig, grid = panels(width=6.4, height=4.0)
    axes, lengths = grid[0, 0], np.asarray(claim.numbers["lengths"])
    for color, name in zip(COLORS, ("stable", "unstable"), strict=False):
        found = claim.numbers[name]
        median, (low, high) = found["norm_median"], found["norm_quartiles"]
        label = f"{name}: {found['growth_measured']:+.3f} a step"
        axes.plot(lengths, median, "o-", ms=3, color=color, label=label)
        axes.fill_between(lengths, low, high, color=color, alpha=0.15, lw=0)
        middle = len(lengths) // 2
        rate = found["growth_lyapunov"]
        line = median[middle] * np.exp(rate * (lengths - lengths[middle])) * lengths[middle] / lengths
        if name == "unstable":
            axes.plot(lengths, line, "--", color="0.4", lw=1, label=f"Lyapunov exponent {rate:+.3f}")
    axes.set(
        xlabel="unroll", ylabel="norm of the meta-gradient", yscale="log", title="median and quartiles over starts"
    )
    axes.legend(frameon=False)
    return fig


def truncation(claim: Claim) -> Any:
    """Draw it."""
    fig, grid = panels(2, width=4.8, height=3.8)
    numbers = claim.numbers
    lengths, left, right = numbers["truncations"], grid[0, 0], grid[0, 1]
    means, halves = np.array([numbers["interval"][k] for k in lengths]).T
    left.errorbar(lengths, means, yerr=halves, fmt="o", ms=4, color=COLORS[0], label="found, 95 % interval")
    left.plot(lengths, [numbers["predicted"][k] for k in lengths], "-", color=COLORS[1], lw=1, label="predicted")
    left.axhline(numbers["exact"], color="0.3", ls="--", lw=1, label="exact")
    left.set(xlabel="truncation", ylabel="learning rate", xscale="log", title="to which it converges", ylim=(0, None))
    _whole(left, lengths)
    left.legend(frameon=False)
    right.plot(numbers["sweep_rates"], numbers["sweep_meta_loss"], color="0.3", lw=1)
    for color, k in zip(itertools.cycle(COLORS), lengths, strict=False):
        rate = numbers["interval"][k][0]
        loss = np.interp(rate, numbers["sweep_rates"], numbers["sweep_meta_loss"])
        right.plot([rate], [loss], "o", color=color, label=f"{k} steps")
    least = numbers["sweep_meta_loss"].min()
    right.set(
        xlabel="learning rate", ylabel="meta-loss over the horizon", xscale="log", ylim=(0.97 * least, 1.5 * least)
    )
    right.legend(frameon=False, fontsize=8)
    return fig


def variance(claim: Claim) -> Any:
    """Draw it."""
    fig, grid = panels(2, width=4.8, height=3.8)
    (left, right), lengths = grid[0], claim.numbers["lengths"]
    pairs = list(claim.numbers["by_pairs"])
    last = claim.numbers["by_pairs"][pairs[-1]]
    for color, part, style in zip(COLORS, PARTS, ("o-", "o-", "k--"), strict=False):
        low, high = last["variance_interval"][part]
        left.plot(
            lengths, last["variance"][part], style, ms=3, label=part, **({} if "k" in style else {"color": color})
        )
        left.fill_between(lengths, low, high, color="0.3" if "k" in style else color, alpha=0.15, lw=0)
    if math.isfinite(last["crossing"]):
        left.axvline(last["crossing"], color="0.5", lw=0.8, ls=":")
    top = 1e4 * max(last["variance"][PARTS[1]])
    left.set(xlabel="unroll", ylabel="variance", xscale="log", yscale="log", title=f"{pairs[-1]} pairs")
    left.set_ylim(top=top)
    left.legend(frameon=False, fontsize=8)
    for color, number in zip(COLORS, pairs, strict=False):
        found = claim.numbers["by_pairs"][number]
        low, high = found["ratio_interval"].T
        right.plot(lengths, found["ratio"], "o-", ms=3, color=color, label=f"{number} pairs")
        right.fill_between(lengths, low, high, color=color, alpha=0.15, lw=0)
    right.axhline(1.1, color="0.4", lw=0.8, ls="--", label="1.1")
    right.set(xlabel="unroll", ylabel="variance, merged / lower part", xscale="log", ylim=(0, None))
    _whole(left, lengths)
    _whole(right, lengths)
    right.legend(frameon=False, fontsize=8)
    return fig


def influence(claim: Claim) -> Any:
    """Draw it."""
    fig, grid = panels(2, width=4.8, height=3.8)
    (left, right), curves = grid[0], dict(claim.arrays)
    effects = curves.pop("effects")
    left.plot(effects, color=COLORS[0])
    left.axhline(0.0, color="0.5", lw=0.8)
    left.set(
        xlabel="inner step", ylabel="first coordinate, a unit of theta", title="early effects contradict late ones"
    )
    for color, (label, curve) in zip(itertools.cycle(COLORS), curves.items(), strict=False):
        for i, seed in enumerate(curve):
            right.plot(seed, color=color, lw=1, label=label if i == 0 else None)
    right.axhline(claim.numbers["minimum"], color="0.3", ls="--", lw=1, label="exact minimum")
    right.set(xlabel="meta-step", ylabel="theta")
    right.legend(frameon=False, fontsize=8)
    return fig


def headline(claim: Claim) -> Any:
    """Draw it."""
    fig, grid = panels(2, width=4.8, height=3.8)
    for axes, split in zip(grid[0], ("train_loss", "test_loss"), strict=True):
        for color, (label, found) in zip(itertools.cycle(COLORS), claim.numbers["optimizers"].items(), strict=False):
            curve = np.asarray(found[split])
            axes.plot(found["seconds"], curve.mean(axis=0), color=color, label=label)
            axes.fill_between(found["seconds"], curve.min(axis=0), curve.max(axis=0), color=color, alpha=0.15, lw=0)
        axes.set(xlabel="seconds of one training", ylabel=split.replace("_", " "), yscale="log")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return fig
