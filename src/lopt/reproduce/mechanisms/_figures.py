"""The figure of each claim, under its name."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from lopt.evaluate.report.page import COLORS, panels
from lopt.reproduce.claims import Claim


def _lines(claim: Claim) -> Any:
    return zip(itertools.cycle(COLORS), claim.numbers.items(), strict=False)


def beats(claim: Claim) -> Any:
    """Draw it."""
    fig, (row,) = panels(len(claim.numbers), width=3.4)
    for axes, (name, scores) in zip(row, claim.numbers.items(), strict=True):
        for color, (kind, values) in zip(COLORS, scores.items(), strict=False):
            axes.plot(np.sort(values), (np.arange(len(values)) + 1) / len(values), color=color, label=kind)
        axes.set(xlabel="log of mean loss over first", title=name)
    row[0].set_ylabel("share of problems")
    row[0].legend(frameon=False, fontsize=8)
    return fig


def converges(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    for color, (name, found) in _lines(claim):
        axes.plot(1 + np.arange(len(found["shares"])), np.cumsum(found["shares"]), "o-", ms=3, color=color, label=name)
    axes.axhline(0.95, color="0.4", lw=0.8, ls=":")
    axes.set(xlabel="components", ylabel="share of the variance", ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8)
    return fig


def resembles(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    numbers = claim.numbers
    axes.plot(numbers["rates"], numbers["moduli"], "o", color=COLORS[0], label="modes")
    axes.plot(numbers["best_rate"], numbers["best_decay"], "*", ms=12, color=COLORS[1], label="fastest momentum")
    axes.set(xlabel="learning rate", ylabel="decay", xscale="log", ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize=8)
    return fig


def clips(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    for color, (name, found) in _lines(claim):
        axes.plot(found["gradients"], found["update"], color=color, label=name)
        axes.axvline(found["threshold"], color=color, lw=0.8, ls=":")
    axes.set(xlabel="gradient, over the usual one", ylabel="size of the update", xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return fig


def rises(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    for color, (name, found) in _lines(claim):
        axes.plot(found["rate"] / found["rate"][found["peak"]], color=color, label=name)
    axes.set(xlabel="step", ylabel="learning rate over its largest")
    axes.legend(frameon=False, fontsize=8)
    return fig


def adapts(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    for color, (name, found) in _lines(claim):
        axes.plot(found["gradients"], found["rate"] / found["rate"][0], "o-", ms=3, color=color, label=name)
    axes.set(xlabel="gradient, over the usual one", ylabel="update over gradient, relative", xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return fig


def ours(claim: Claim) -> Any:
    """Draw it."""
    fig, ((left, right),) = panels(2)
    for color, (name, found) in _lines(claim):
        left.plot(found["kernel"], color=color, label=name)
        right.plot(found["rate"], color=color, label=name)
    left.set(xlabel="steps since a gradient", ylabel="share in the update, relative")
    right.set(xlabel="step", ylabel="size of a step over its largest")
    left.legend(frameon=False, fontsize=8)
    return fig
