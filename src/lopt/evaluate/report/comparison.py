"""A comparison as a figure and as one self-contained HTML page."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lopt.evaluate.compare import COLUMNS, Comparison, row_text
from lopt.evaluate.report.page import COLORS, document, image, panels, png_of, table


def figure(comparisons: Sequence[Comparison]) -> bytes:
    """Training (solid) and test loss (dashed) of every comparison, mean over seeds and range, as a PNG."""
    columns = min(3, len(comparisons))
    rows = -(-len(comparisons) // columns)
    fig, grid = panels(columns, rows, width=4.6, height=3.5)
    for axes, found in zip(grid.flat, comparisons, strict=False):
        _panel(axes, found)
    for axes in grid.flat[len(comparisons) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=max(2, len(labels) // 2), frameon=False)
    return png_of(fig)


def _panel(axes: Any, found: Comparison) -> None:
    for color, (label, record) in zip(itertools.cycle(COLORS), found.records.items(), strict=False):
        for curve, style, split in ((record.train_loss, "-", "train"), (record.test_loss, "--", "test")):
            finite = np.where(np.isfinite(curve), curve, np.nan)
            axes.plot(record.steps, finite.mean(axis=0), style, color=color, label=f"{label}, {split}")
            if split == "train":
                axes.fill_between(record.steps, finite.min(axis=0), finite.max(axis=0), color=color, alpha=0.15, lw=0)
    axes.axhline(found.target, color="0.5", lw=0.8, ls=":")
    axes.set(title=found.task, xlabel="step", ylabel="loss", yscale="log")


def comparison_page(title: str, comparisons: Sequence[Comparison], notes: Sequence[str], png: bytes) -> str:
    """One self-contained HTML page: summary, table, figure, how to reproduce."""
    tables = "".join(
        f"<h2>{html.escape(found.task)}</h2>{table(COLUMNS, map(row_text, found.rows), kind='cards')}"
        for found in comparisons
    )
    summary = "".join(f"<li>{html.escape(verdict(found))}</li>" for found in comparisons)
    extra = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    body = f"""<ul>{summary}</ul>
{tables}
<p class="small">Mean ± 95 % confidence interval over seeds (Student's t). Steps to target: the first evaluated step at which the train loss is at most
tuned Adam's final train loss. Adam's learning rate is chosen on the same seeds, which favours Adam. Time: of a step of one training over that of
tuned Adam, all in turns, median and quartiles.</p>
{image(png, "Training and test loss of each optimizer on each task")}
{extra}"""
    return document(title, body)


def verdict(found: Comparison) -> str:
    """Who won, by the final training loss, and where the others ended: a sentence."""
    order = sorted(found.rows, key=lambda row: row.train_loss.value if np.isfinite(row.train_loss.value) else np.inf)
    first, *others = ((row.optimizer, str(row.train_loss)) for row in order)
    text = f"{found.task}: {first[0]} ends lowest, at a train loss of {first[1]}"
    return f"{text}; {', '.join(f'{label} at {loss}' for label, loss in others)}." if others else f"{text}."
