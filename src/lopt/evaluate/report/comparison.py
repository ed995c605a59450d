"""A comparison as a figure and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lopt.errors import needs_extra
from lopt.evaluate.compare import COLUMNS, TUNED, Comparison, cells
from lopt.evaluate.report.frame import COLORS, document


def figure(comparisons: Sequence[Comparison]) -> bytes:
    """Training (solid) and test loss (dashed) of every comparison, mean over seeds and range, as a PNG."""
    with needs_extra("plot"):
        from matplotlib.figure import Figure  # not pyplot: the caller's backend stays as it is

    columns = min(3, len(comparisons))
    rows = -(-len(comparisons) // columns)
    fig = Figure(figsize=(4.6 * columns, 3.5 * rows), layout="constrained")
    grid = fig.subplots(rows, columns, squeeze=False)
    for axes, found in zip(grid.flat, comparisons, strict=False):
        _panel(axes, found)
    for axes in grid.flat[len(comparisons) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=max(2, len(labels) // 2), frameon=False)
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=130)
    return out.getvalue()


def _panel(axes: Any, found: Comparison) -> None:
    for color, (label, record) in zip(itertools.cycle(COLORS), found.records.items(), strict=False):
        for curve, style, split in ((record.train_loss, "-", "train"), (record.test_loss, "--", "test")):
            finite = np.where(np.isfinite(curve), curve, np.nan)
            axes.plot(record.steps, finite.mean(axis=0), style, color=color, label=f"{label}, {split}")
            if split == "train":
                axes.fill_between(record.steps, finite.min(axis=0), finite.max(axis=0), color=color, alpha=0.15, lw=0)
    axes.axhline(found.target, color="0.5", lw=0.8, ls=":")
    axes.set(title=found.task, xlabel="step", ylabel="loss", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)


def page(title: str, comparisons: Sequence[Comparison], notes: Sequence[str], png: bytes) -> str:
    """One self-contained HTML page: summary, table, figure, how to reproduce."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in ("task", *COLUMNS))
    body = "".join(
        f"<tr{' class=first' if i == 0 else ''}><th>{html.escape(found.task) if i == 0 else ''}</th>"
        + "".join(f"<td>{html.escape(c)}</td>" for c in cells(row))
        + "</tr>"
        for found in comparisons
        for i, row in enumerate(found.rows)
    )
    summary = "".join(f"<li>{html.escape(verdict(found))}</li>" for found in comparisons)
    extra = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    image = base64.b64encode(png).decode()
    body = f"""<ul>{summary}</ul>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p class="small">Mean ± 95 % confidence interval over seeds (Student's t). Steps to target: the first evaluated step at which the train loss is at most
tuned Adam's final train loss. Adam's learning rate is chosen on the same seeds, which favours Adam. Time: of a step of one training over that of
tuned Adam, all in turns, median and quartiles.</p>
<img alt="Training and test loss of each optimizer on each task" src="data:image/png;base64,{image}">
{extra}"""
    return document(title, body)


def verdict(found: Comparison) -> str:
    """Who reached tuned Adam's final training loss first, in one sentence per learned optimizer."""
    sentences = []
    for row in found.rows:
        if row.optimizer == TUNED:
            continue
        reached = [s for s in row.steps_to_target if np.isfinite(s)]
        if len(reached) < len(row.steps_to_target):
            sentences.append(
                f"{found.task}: {row.optimizer} reached tuned Adam's final train loss in {len(reached)} of {found.seeds} seeds."
            )
        else:
            sentences.append(
                f"{found.task}: {row.optimizer} reached tuned Adam's final train loss after {np.mean(reached):.0f} of {found.steps} steps."
            )
    return " ".join(sentences)
