"""The figure of each claim, under its name."""

from __future__ import annotations

from typing import Any

import numpy as np

from lopt.evaluate.report.page import COLORS, panels
from lopt.reproduce.claims import Claim
from lopt.reproduce.tasks.axes import CLOSE, LABELS


def more_tasks(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=5.4)
    sizes, losses = claim.numbers["sizes"], np.stack(list(claim.numbers["losses"].values()))
    means = losses.mean(axis=2)  # sizes, seeds
    for seed in range(means.shape[1]):
        axes.plot(sizes, means[:, seed], "o", ms=4, color=COLORS[0], alpha=0.5)
    axes.plot(sizes, means.mean(axis=1), "-", color=COLORS[0])
    axes.set(xlabel="tasks of the meta-training", ylabel="normalised test loss, held-out tasks", xscale="log")
    axes.set_title("dots: seeds; 1 is the start, 0 Adam at its best rate for the task", fontsize=9)
    return fig


def architecture(claim: Claim) -> Any:
    """Draw it."""
    fig, ((left, right),) = panels(2)
    for i, (color, (name, curves)) in enumerate(zip(COLORS, claim.numbers["curves"].items(), strict=False)):
        label = name if i else "hierarchical LSTM"
        _curves(left, curves, color, label)
        own = claim.numbers["losses"][name].mean(axis=1)
        right.plot(np.full(len(own), i), own, "o", color=color)
    left.set(xlabel="part of the meta-training, %", ylabel="meta-loss")
    left.legend(frameon=False, fontsize=8)
    names = ["hierarchical\nLSTM", *list(claim.numbers["curves"])[1:]]
    right.set_xticks(range(len(names)), labels=names)
    right.set(ylabel="normalised test loss, held-out tasks", xlim=(-0.5, len(names) - 0.5))
    return fig


def clip(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=5.4)
    labels = ("clipped at 0.1", "not clipped")
    for color, label, curves in zip(COLORS, labels, claim.numbers["curves"].values(), strict=False):
        _curves(axes, curves, color, label)
    axes.set(xlabel="part of the meta-training, %", ylabel="meta-loss")
    axes.legend(frameon=False, fontsize=8)
    return fig


def axes(claim: Claim) -> Any:
    """Draw it."""
    losses = claim.numbers["losses"]
    fig, (row,) = panels(len(losses), width=3.4)
    for panel, (name, found) in zip(row, losses.items(), strict=True):
        points = claim.numbers["points"][name]
        for seed, color in zip(range(found.shape[1]), COLORS, strict=False):
            panel.plot(points, found[:, seed], "o-", ms=4, color=color, label=f"seed {seed}")
        panel.axhline(CLOSE, color="0.4", lw=0.8, ls=":")
        panel.set(xlabel=LABELS[name], xscale="log")
    row[0].set(ylabel="normalised training loss; 0 is tuned Adam")
    row[0].legend(frameon=False, fontsize=8)
    return fig


def _curves(axes: Any, curves: np.ndarray, color: str, label: str) -> None:
    """A line a seed, of means over fiftieths."""
    for seed, curve in enumerate(curves):
        y = [part.mean() for part in np.array_split(curve, min(50, len(curve)))]
        axes.plot(np.linspace(0, 100, len(y)), y, color=color, lw=1, label=label if seed == 0 else None)


def regularisation(claim: Claim) -> Any:
    """Draw it."""
    ends = claim.numbers["ends"]
    fig, (row,) = panels(len(ends), width=3.4, height=3.4)
    begin = claim.arrays["starts"]
    for axes, (name, end) in zip(row, ends.items(), strict=True):
        axes.axline((0.0, 0.0), slope=1.0, color="0.8", lw=3, zorder=0)
        for a, b in zip(begin, end, strict=True):
            axes.plot([a[0], b[0]], [a[1], b[1]], color="0.7", lw=0.6)
        axes.plot(*begin.T, ".", ms=3, color="0.5")
        axes.plot(*end.T, "o", ms=3, color=COLORS[0])
        met = np.concatenate([begin, end])
        met = met[np.isfinite(met).all(axis=1)]
        edge = 0.05 * float(np.ptp(met))
        limits = (float(met.min()) - edge, float(met.max()) + edge)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set_title(name, fontsize=9)
    return fig


def table(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=7.6)
    losses = claim.numbers["losses"]
    for i, found in enumerate(losses.values()):
        for j, (split, values) in enumerate(found.items()):
            at = i + 0.15 * (2 * j - 1)
            low, mid, high = np.quantile(values, (0.25, 0.5, 0.75))
            axes.plot([low, high], [at, at], color=COLORS[j], lw=2, label=split if i == 0 else None)
            axes.plot(mid, at, "|", color=COLORS[j], ms=9)
            axes.plot(values.mean(), at, "o", color=COLORS[j], ms=4)
    axes.set_yticks(range(len(losses)), labels=list(losses))
    axes.invert_yaxis()
    axes.set(xlabel="normalised loss: dots are means, bars quartiles, ticks medians")
    axes.legend(frameon=False, fontsize=8)
    return fig


def validation(claim: Claim) -> Any:
    """Draw it."""
    fig, ((axes,),) = panels(width=5.0)
    losses = claim.numbers["losses"]
    for i, (color, label) in enumerate(zip(COLORS, ("with validation losses", "without"), strict=False)):
        train, test = (np.mean(list(losses[s].values())[i], axis=0) for s in ("train", "test"))
        axes.plot(train, test, "o", ms=4, color=color, alpha=0.7, label=label)
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="0.4", lw=0.8, ls=":")
    axes.set(xlabel="normalised training loss", ylabel="normalised test loss")
    axes.legend(frameon=False, fontsize=8)
    return fig
