"""The figure of each claim, under its name."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from lopt.evaluate.report.page import COLORS, panels
from lopt.reproduce.claims import Claim
from lopt.reproduce.stability.control import WAYS


def _colors() -> Any:
    return itertools.cycle(COLORS)


def box(claim: Claim) -> Any:
    """Draw it."""
    fig, ((left, right),) = panels(2)
    radius, growth = claim.arrays["radius"], claim.arrays["growth"]
    parts = np.split(np.arange(len(radius)), 3)
    for color, kind, part in zip(_colors(), claim.numbers["by_kind"], parts, strict=False):
        left.plot(radius[part], growth[part], ".", ms=3, color=color, label=kind)
    left.axvline(1.0, color="0.4", lw=0.8, ls=":")
    left.set(xlabel="spectral radius", ylabel="last losses over first", yscale="log", xlim=(None, 2.0))
    left.legend(frameon=False, fontsize=8)
    for color, (top, pre) in zip(_colors(), itertools.product((4.0, 0.25), (False, True)), strict=False):
        rows = [b for b in claim.numbers["bounds"] if (b["curvature"], b["preconditioned"]) == (top, pre)]
        alphas = [b["nominal"] for b in rows]
        label = f"curvature {top:g}" + (", preconditioned" if pre else "")
        for side, style in (("upper", "-"), ("lower", "--")):
            right.plot(alphas, [b[side][1] for b in rows], style, color=color, lw=1)
            right.plot(alphas, [b[side][0] for b in rows], "o", ms=4, color=color)
        right.plot([], [], "o-", color=color, label=label)
    right.set(xlabel="nominal step", ylabel="bounds of the black box", title="lines: theorem, dots: measured")
    right.set_yscale("symlog", linthresh=0.1)
    right.legend(frameon=False, fontsize=8)
    return fig


def noise(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    lengths = np.asarray(claim.numbers["lengths"], float)
    for color, found in zip(_colors(), claim.numbers["by_radius"].values(), strict=False):
        deviation = found["deviation"]
        axes.plot(lengths, deviation, "o-", ms=3, color=color, label=f"radius {found['radius']:.3g}")
        if found["radius"] > 1.0:
            line = deviation[-1] * np.exp(found["predicted"] * (lengths - lengths[-1]))
            axes.plot(lengths, line, "--", lw=0.8, color="0.4")
    axes.set(xlabel="unroll", ylabel="deviation of the meta-gradient", yscale="log", title="dashed: predicted slopes")
    axes.legend(frameon=False, fontsize=8)
    return fig


def control(claim: Claim) -> Any:
    """Draw it."""
    fig, ((left, right),) = panels(2)
    errors = 100 * np.asarray(claim.numbers["errors"])
    for color, way in zip(COLORS, WAYS, strict=False):
        left.plot(errors, 100 * np.asarray(claim.numbers["unstable"][way]), "o-", color=color, label=way)
        right.plot(errors, claim.numbers["log_meta_loss"][way], "o-", color=color, label=way)
    left.set(xlabel="error, %", ylabel="unstable trainings, %")
    right.set(xlabel="error, %", ylabel="log of the expected meta-loss")
    left.legend(frameon=False)
    return fig


def meta_training(claim: Claim) -> Any:
    """Draw it."""
    fig, ((left, right),) = panels(2)
    numbers = claim.numbers
    for color, (name, curves) in zip(_colors(), numbers["curves"].items(), strict=False):
        at = np.linspace(0, numbers["meta_steps"], curves.shape[1])
        left.plot(at, curves.mean(axis=0), color=color, label=name)
        left.fill_between(at, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.12, lw=0)
    left.axhline(numbers["target"], color="0.4", lw=0.8, ls=":")
    left.set(xlabel="meta-step", ylabel="meta-loss", title="mean and range over seeds", yscale="log")
    left.legend(frameon=False, fontsize=8)
    for i, (color, (name, values)) in enumerate(zip(_colors(), numbers["fresh_meta_loss"].items(), strict=False)):
        right.plot(np.full(len(values), i), values, "o", color=color, label=name)
    right.set_xticks(range(len(numbers["fresh_meta_loss"])), labels=list(numbers["fresh_meta_loss"]), rotation=30)
    right.set(ylabel="meta-loss, fresh problems", yscale="log")
    return fig


def longer(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    for color, (name, curve) in zip(_colors(), claim.numbers["curves"].items(), strict=False):
        at = (np.arange(len(curve)) + 0.5) * claim.numbers["steps"] / len(curve)
        axes.plot(at, np.minimum(curve, 1e3), color=color, label=name, lw=1)
    axes.set(xlabel="step", ylabel="training loss, mean over all runs", xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return fig


def zero_shot(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=7.0)
    networks, star = claim.numbers["networks"], claim.numbers["star"]
    for color, name in zip(COLORS, (star, "black-box"), strict=False):
        for i, found in enumerate(networks.values()):
            values = np.minimum(np.nan_to_num(found["left"][name], nan=10.0, posinf=10.0), 10.0)
            axes.plot(np.full(len(values), i), values, "o", color=color, label=name if i == 0 else None)
    axes.axhline(0.0, color="0.4", lw=0.8, ls=":", label="tuned Adam")
    axes.axhline(1.0, color="0.4", lw=0.8, ls="--", label="no progress")
    axes.set_xticks(range(len(networks)), labels=list(networks))
    axes.set(ylabel="left of Adam's way", title="one dot a seed of the meta-training; above 10 drawn at 10")
    axes.legend(frameon=False, fontsize=8)
    return fig


def spectra(claim: Claim) -> Any:
    """Draw it."""
    fig, (row,) = panels(3, width=4.0)
    for color, (name, curves) in zip(_colors(), claim.numbers["curves"].items(), strict=False):
        for axes, field in zip(row, ("spectral_radius", "overshoot", "exponent"), strict=True):
            axes.plot(claim.numbers["steps"], np.median(curves[field], axis=0), "o-", ms=4, color=color, label=name)
            axes.set(xlabel="step", title=field.replace("_", " "))
    for axes, line in zip(row, (1.0, 1.0, 0.0), strict=True):
        axes.axhline(line, color="0.4", lw=0.8, ls=":")
    row[0].set_yscale("log")
    row[1].set_yscale("symlog", linthresh=1.0)
    row[0].legend(frameon=False, fontsize=8)
    return fig
