"""The figure of each claim, under its name."""

from __future__ import annotations

from typing import Any

import numpy as np

from lopt.evaluate.report.page import COLORS, panels
from lopt.reproduce.claims import Claim
from lopt.reproduce.neighbours._graphs import BITS


def continuation(claim: Claim) -> Any:
    """Draw it."""
    fig, ((left, right),) = panels(2)
    levels = claim.numbers["levels"]
    noises = [float(x) for x in levels]
    for color, name in zip(COLORS, next(iter(levels.values()))["error"], strict=False):
        mean, low, high = np.asarray([x["error"][name] for x in levels.values()]).T
        left.errorbar(noises, mean, (mean - low, high - mean), fmt="o-", ms=3, color=color, label=name)
        right.plot(noises, [1e3 * x["seconds"][name] for x in levels.values()], "o-", ms=3, color=color)
    left.set(xlabel="noise", ylabel="distance to the spectrum", xscale="log")
    right.set(xlabel="noise", ylabel="ms a spectrum", xscale="log", yscale="log")
    left.legend(frameon=False, fontsize=8)
    return fig


def default_model(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    levels = claim.numbers["levels"]
    noises = [float(x) for x in levels]
    for color, name in zip(COLORS, next(iter(levels.values()))["error"], strict=False):
        mean, low, high = np.asarray([x["error"][name] for x in levels.values()]).T
        axes.errorbar(noises, mean, (mean - low, high - mean), fmt="o-", ms=3, color=color, label=name)
    axes.set(xlabel="noise", ylabel="distance to the spectrum", xscale="log")
    axes.legend(frameon=False, fontsize=8)
    return fig


def frontier(claim: Claim) -> Any:
    """Draw it."""
    trainers = claim.numbers["trainers"]
    fig, (row,) = panels(len(trainers))
    for axes, (name, found) in zip(row, trainers.items(), strict=True):
        bits = [float(b) for b in found["uniform"]]
        axes.plot(bits, [x[0] for x in found["uniform"].values()], "o-", ms=3, color=COLORS[0], label="uniform, float")
        for color, (kind, by_cost) in zip(COLORS[1:], list(found.items())[1:], strict=False):
            mean, low, high = np.asarray([x["accuracy"] for x in by_cost.values()]).T
            where = [x["bits"][0] for x in by_cost.values()]
            axes.errorbar(where, mean, (mean - low, high - mean), fmt="s", ms=4, color=color, label=kind)
        axes.set(xlabel="bits", xscale="log", title=name)
        axes.set_xticks(bits, [f"{b:g}" for b in bits])
        axes.minorticks_off()
    row[0].set_ylabel("accuracy")
    row[0].legend(frameon=False, fontsize=8)
    return fig


def bend(claim: Claim) -> Any:
    """Draw it."""
    fig, (row,) = panels(len(claim.arrays))
    for axes, (name, lost) in zip(row, claim.arrays.items(), strict=True):
        for color, bits, curve in zip(COLORS, BITS, lost.T, strict=False):
            axes.plot(BITS, curve, "o-", ms=3, color=color, label=f"activations of {bits} bits")
        axes.axhline(0.0, color="0.4", lw=0.8, ls=":")
        axes.set(xlabel="bits of weights", title=name)
    row[0].set_ylabel("accuracy lost on float")
    row[0].legend(frameon=False, fontsize=8)
    return fig
