"""The parts of a benchmark's page, as HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lopt.evaluate.archive import Run
from lopt.evaluate.report import _pictures
from lopt.evaluate.report._curves import Curve, Look, Problem, failures, settings


class Provenance(NamedTuple):
    """How a benchmark came about."""

    commands: Sequence[str] = ()
    machine: Mapping[str, Any] = {}  # and versions
    cards: Mapping[str, Mapping[str, Any]] = {}  # of saved optimizers, by the name under which they are reported


class Section(NamedTuple):
    """A part of the page."""

    id: str
    heading: str
    body: str  # HTML


def curves_section(curves: Mapping[Problem, Sequence[Curve]]) -> Section:
    """The interactive curves of a chosen task."""
    options = "".join(
        f'<option value="{i}">{html.escape(task)}, {horizon:,} steps</option>'
        for i, (task, horizon) in enumerate(curves)
    )
    timed = any(c.seconds is not None for found in curves.values() for c in found)
    clock = '<option value="seconds">wall-clock</option>' if timed else ""
    body = f"""<div class="controls">
<label>task <select id="problem">{options}</select></label>
<label>loss <select id="split"><option>train</option><option>valid</option><option>test</option></select></label>
<label>against <select id="clock"><option value="steps">steps</option>{clock}</select></label>
<label><input type="checkbox" id="log-y" checked>log loss</label>
<label><input type="checkbox" id="log-x">log axis of steps</label>
</div>
<figure><div class="plot" id="curves"></div>
<figcaption>Mean over seeds; the band is their range. A line ends where a seed is no longer finite. Learned optimizers are thicker.
Drag to zoom, double-click to reset. The first view ends a little above the highest initial loss. <span id="note"></span></figcaption></figure>"""
    return Section("curves-of-a-task", "Curves of a task", body)


def small_multiples_section(curves: Mapping[Problem, Sequence[Curve]], looks: Sequence[Look]) -> str:
    """All tasks at a glance."""
    return f"""<p class="small-print">Train loss against steps, mean over seeds, on logarithmic axes of loss where all losses are positive.
A picture leads to the curves of its task.</p>{_pictures.small_multiples(curves, looks)}"""


def settings_section(runs: Sequence[Run]) -> str:
    """The setting of each optimizer on each task, folded."""
    found = settings(runs)
    names = list(dict.fromkeys(name for chosen in found.values() for name in chosen))
    if not names:
        return "<p>No optimizer has a setting that was tuned.</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{html.escape(task)}<br><small>{horizon:,} steps</small></th>"
        + "".join(f"<td>{'<br>'.join(map(html.escape, chosen.get(name, ['–'])))}</td>" for name in names)
        + "</tr>"
        for (task, horizon), chosen in found.items()
    )
    return f"""<details><summary>What was chosen for each of {len(found)} tasks</summary>
<div class="scroll"><table><thead><tr><th>task</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"""


def failures_section(runs: Sequence[Run]) -> str:
    """Everything that went wrong, a line each."""
    failed = failures(runs)
    if not failed:
        return "<p>None: every training stayed finite and ended below its initial train loss, and every optimizer was run on every task.</p>"
    lines = "".join(
        f"<li><b>{html.escape(f.optimizer)}</b> on {html.escape(f.problem[0])} ({f.problem[1]:,} steps) {html.escape(f.what)}.</li>"
        for f in failed
    )
    return f"<ul>{lines}</ul>"


def reproduce_section(runs: Sequence[Run], provenance: Provenance) -> str:
    """Commands, machine, versions, weights."""
    commands = html.escape("\n".join(provenance.commands))
    facts = "".join(
        f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>"
        for k, v in provenance.machine.items()
        if v != ""
    )
    hashes = {run.optimizer: run.weights for run in runs if run.weights is not None}
    weights = "".join(
        f"<li><b>{html.escape(n)}</b>: sha256 <code>{html.escape(h)}</code></li>" for n, h in hashes.items()
    )
    cards = "".join(
        f"<details><summary>Card of {html.escape(name)}</summary><pre>{html.escape(json.dumps(card, indent=2))}</pre></details>"
        for name, card in provenance.cards.items()
    )
    return "".join(
        (
            f"<pre>{commands}</pre>" if commands else "",
            f'<ul class="hashes">{weights}</ul>' if weights else "",
            cards,
            f'<div class="scroll"><table class="text"><tbody>{facts}</tbody></table></div>' if facts else "",
        )
    )
