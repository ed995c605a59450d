"""The figure of each claim, under its name."""

from __future__ import annotations

from typing import Any

import numpy as np

from lopt.evaluate.report.page import COLORS, panels
from lopt.reproduce.claims import Claim
from lopt.reproduce.scale._versus import BASELINES
from lopt.reproduce.scale.large import WINDOW

FLOOR = 1e-6  # of the ratio of losses that is drawn
GREATEST = 1e30  # loss that is drawn


def corpus(claim: Claim) -> Any:
    """Draw it: the learned optimizer's loss over the baseline's, by problem, in order."""
    found = claim.numbers["problems"]
    fig, ((axes,),) = panels(width=7.0)
    for color, rival in zip(COLORS, BASELINES, strict=False):
        ratios = [(f["learned"].mean() + 1e-12) / (f["tuned"][rival].mean() + 1e-12) for f in found.values()]
        ratios = np.sort(np.clip(np.nan_to_num(ratios, nan=1e6, posinf=1e6), FLOOR, 1e6))
        axes.plot((np.arange(len(ratios)) + 0.5) / len(ratios), ratios, "o-", ms=4, color=color, label=f"over {rival}")
    axes.axhline(1.0, color="0.4", lw=0.8, ls=":")
    axes.set(xlabel="share of problems", ylabel="final loss, learned over tuned", yscale="log")
    axes.set_title("below the line the learned optimizer is ahead; cut at 1e-6 and 1e6", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    return fig


def networks(claim: Claim) -> Any:
    """Draw it."""
    found = claim.numbers["networks"]
    fig, ((axes,),) = panels(width=7.0)
    kinds = ("learned", *BASELINES)
    for j, (color, kind) in enumerate(zip(COLORS, kinds, strict=False)):
        for i, f in enumerate(found.values()):
            values = f["learned"] if kind == "learned" else f["tuned"][kind]
            at = np.full(len(values), i + 0.2 * (j - 1))
            axes.plot(at, values, "o", color=color, ms=5, label=kind if i == 0 else None)
    axes.set_xticks(range(len(found)), labels=list(found))
    axes.set(ylabel="final training loss", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return fig


def large(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    for color, (name, found) in zip(COLORS, claim.numbers["networks"].items(), strict=False):
        losses = found["losses"]
        at = (np.arange(len(losses)) + 0.5) * claim.numbers["steps"] / len(losses)
        axes.plot(
            at, np.minimum(losses, GREATEST), color=color, lw=1, label=f"{name}, {found['parameters']:,} parameters"
        )
    axes.set(xlabel="step", ylabel=f"minibatch loss, means of {WINDOW} steps", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return fig


def overhead(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=6.4)
    ratios = claim.numbers["ratios"]
    mean, low, high = np.array(list(ratios.values())).T
    axes.plot(list(ratios), mean, "o-", ms=4, color=COLORS[0])
    axes.fill_between(list(ratios), low, high, color=COLORS[0], alpha=0.15, lw=0)
    axes.axhline(1.0, color="0.4", lw=0.8, ls=":")
    axes.set(xlabel="examples a batch", ylabel="time of a step over SGD's", xscale="log", yscale="log")
    return fig


def ablations(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=7.0)
    worth = claim.numbers["worth"]
    for i, (mean, low, high) in enumerate(worth.values()):
        axes.plot([low, high], [i, i], color=COLORS[0], lw=2)
        axes.plot(mean, i, "o", color=COLORS[0])
    axes.axvline(0.0, color="0.4", lw=0.8, ls=":")
    axes.set_yticks(range(len(worth)), labels=list(worth))
    axes.set(xlabel="score above that of the whole rule: right of the line the part helps")
    return fig
