"""The figure of each claim, under its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lopt.evaluate.report.page import COLORS, panels
from lopt.evaluate.scores.statistics import mean_interval
from lopt.reproduce.claims import Claim
from lopt.reproduce.self_training.arms import ARMS, STEPS


def _curves(axes: Any, curves: Mapping[str, np.ndarray]) -> None:
    for color, (name, curve) in zip([*COLORS, "0.3", "0.6"], curves.items(), strict=False):
        steps = STEPS * (1 + np.arange(curve.shape[1]))
        axes.plot(steps, curve.mean(axis=0), color=color, label=ARMS[name].label if name in ARMS else name)
        if len(curve) > 1:
            ends = np.array([(e.low, e.high) for e in map(mean_interval, curve.T)]).T
            axes.fill_between(steps, *ends, color=color, alpha=0.15, lw=0)
    axes.set(xlabel="meta-steps", ylabel="log meta-loss of the best member")
    # What the populations did sets the range: intervals of two or three seeds can be many times as wide.
    low, high = min(c.min() for c in curves.values()), max(c.max() for c in curves.values())
    axes.set_ylim(low - 0.1 * (high - low + 1e-6), high + 0.1 * (high - low + 1e-6))
    axes.legend(frameon=False, fontsize=8)


def parity(claim: Claim) -> Any:
    """Draw both arms, the lineage tree, and who trains whom over time."""
    fig, ((left, middle, right),) = panels(3, height=3.8)
    _curves(left, {name: claim.arrays[name] for name in ("self", "adam")})
    trainers, copies = claim.arrays["trainers"], claim.arrays["copies"]
    cycles, members = trainers.shape
    for member in range(members):
        middle.axhline(member, color="0.85", lw=0.8, zorder=0)
    for cycle, child, parent in copies:
        if child != parent:
            middle.plot([cycle, cycle], [parent, child], color=COLORS[0], lw=0.5, alpha=0.6)
            middle.plot([cycle], [child], "o", color=COLORS[0], ms=2)
    middle.set(xlabel="cycle", ylabel="member", title="who is a copy of whom (dots: copies), seed 0", xlim=(0, cycles))
    shown = right.imshow(trainers.T, aspect="auto", origin="lower", cmap="tab10", interpolation="nearest")
    fig.colorbar(shown, ax=right, label="trained by member")
    right.set(xlabel="cycle", ylabel="member", title="who trains whom, seed 0")
    return fig


def acceleration(claim: Claim) -> Any:
    """Draw the falls of each quarter."""
    fig, ((left, right),) = panels(2, height=3.8)
    _curves(left, claim.arrays)
    for place, (name, values) in enumerate(claim.numbers["second_minus_first"].items()):
        right.plot([place] * len(values), values, "o", color=COLORS[place], label=ARMS[name].label)
    right.axhline(0.0, color="0.5", lw=0.8)
    right.set(xticks=[], ylabel="fall in the second quarter minus the first", xlim=(-0.5, 1.5))
    right.legend(frameon=False, fontsize=8)
    return fig


def controls(claim: Claim) -> Any:
    """Draw all arms."""
    fig, ((axes,),) = panels(width=7.0, height=4.4)
    _curves(axes, claim.arrays)
    return fig


def horizon(claim: Claim) -> Any:
    """Draw the pupils."""
    fig, ((axes,),) = panels(width=6.0, height=3.8)
    _curves(axes, {"trained by the self-trained optimizer": claim.arrays["pupils"]})
    axes.axvline(claim.numbers["horizon"], color="0.4", ls=":", lw=1)
    axes.set(ylabel="log meta-loss", title="dotted: the horizon of the trainer's own training")
    return fig


def held_out(claim: Claim) -> Any:
    """Draw both on every task."""
    fig, ((axes,),) = panels(width=7.0, height=3.8)
    for place, (name, values) in enumerate(claim.numbers["self"].items()):
        first = place == 0
        axes.plot(values, [place] * len(values), "o", color=COLORS[0], label="self-trained, a seed" if first else None)
        axes.plot([claim.numbers["adam"][name]], [place], "D", color=COLORS[1], label="tuned Adam" if first else None)
    axes.set(yticks=range(len(claim.numbers["self"])), yticklabels=list(claim.numbers["self"]), xlabel="log meta-loss")
    axes.legend(frameon=False, fontsize=8)
    return fig


def released(claim: Claim) -> Any:
    """Draw the pupils of each outer optimizer."""
    fig, ((axes,),) = panels(width=6.0, height=3.8)
    _curves(axes, {name: curve[None] for name, curve in claim.arrays.items()})
    axes.axhline(claim.numbers["target"], color="0.4", ls=":", lw=1)
    axes.set(ylabel="log meta-loss, mean over pupils", title="dotted: where the best Adam ends")
    return fig
