"""The parts of a benchmark's page, as HTML."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lopt.evaluate.report import _pictures
from lopt.evaluate.report._curves import Curve, Look, Problem, failures, settings
from lopt.evaluate.report._figures import Plot
from lopt.evaluate.report._origin import Facts
from lopt.evaluate.report._summary import number
from lopt.evaluate.report.page import Html, table
from lopt.evaluate.runs import Run, Unit
from lopt.evaluate.scores.summary import Scores

PROFILES = """The fraction of tasks on which an optimizer reaches tuned Adam's final train loss within so many times the time of the fastest; an optimizer
that never reaches it counts as infinitely slow. Further up and left is better."""
AXES = "Mean over seeds of the normalised final train loss, with 95 % intervals: 0 is the best tuned baseline of the same task, 1 no progress."

EDGES = '<p class="small-print">†: the learning rate is the lowest or the highest of the grid; a better one may lie beyond.</p>'


class Provenance(NamedTuple):
    """How a benchmark came about."""

    commands: Sequence[str] = ()
    machine: Mapping[str, Any] = {}  # and versions
    cards: Mapping[str, Mapping[str, Any]] = {}  # of saved optimizers, by the name under which they are reported
    failures: Sequence[str] = ()  # of the bench: what could not be run, and why
    notes: Sequence[str] = ()  # what a reader must know of it, a sentence each
    tables: Sequence[Facts] = ()  # of the origin of runs and optimizers


class Section(NamedTuple):
    """A part of the page."""

    id: str
    heading: str
    body: str  # HTML


def facts_section(facts: Facts) -> Section:
    """A table of plain text."""
    return Section(facts.id, facts.heading, table(facts.columns, facts.rows, kind="text"))


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
<figcaption>Mean over seeds; the band is their range. Baselines at the setting with the lowest final train loss,
for all three losses. A line ends where a seed is no longer finite. Learned optimizers are thicker.
Drag to zoom, double-click to reset. The first view ends a little above the highest initial loss. <span id="note"></span></figcaption></figure>"""
    return Section("curves-of-a-task", "Curves of a task", body)


def tasks_section(
    curves: Mapping[Problem, Sequence[Curve]], looks: Sequence[Look], scores: Scores, ranked: Sequence[str]
) -> Section:
    """All tasks at a glance, and the normalised losses behind it."""
    body = f"""<p class="small-print">Train loss against steps, mean over seeds, on logarithmic axes of loss where all losses are positive.
A picture leads to the curves of its task.</p>{_pictures.small_multiples(curves, looks, scores.horizons)}
<details><summary>Normalised final train loss on each task</summary>{_task_table(scores, ranked)}
<p class="small-print">Mean over seeds: 0 is the best tuned baseline, 1 no progress. Bold: the lowest. ∞: a seed diverged, or training failed.</p></details>"""
    return Section("tasks", "All tasks", body)


def _task_table(scores: Scores, ranked: Sequence[str]) -> str:
    known, rows = scores.table, []
    for task in scores.tasks:
        means = {name: float(known[name][task].normalized.mean()) for name in ranked if task in known[name]}
        lowest = min((m for m in means.values() if math.isfinite(m)), default=math.nan)
        losses = {name: number(means.get(name, math.nan), 2) for name in ranked}
        cells = (Html(f"<b>{loss}</b>") if means.get(name) == lowest else loss for name, loss in losses.items())
        rows.append((_problem(task, scores.horizons[task]), *cells))
    return table(("task", *ranked), rows)


def _problem(task: str, horizon: int) -> Html:
    return Html(f"{html.escape(task)}<br><small>{horizon:,} steps</small>")


def plots_section(id_: str, heading: str, plots: Sequence[Plot | None], note: str = "") -> Section | None:
    """Plots side by side where there is room; None where there are none."""
    there = [plot for plot in plots if plot is not None]
    if not there:
        return None
    several = len(there) > 1
    figures = "".join(_plot(plot, several) for plot in there)
    body = f'<div class="pair">{figures}</div>' if several else figures
    return Section(id_, heading, (f'<p class="small-print">{note}</p>' if note else "") + body)


def _plot(plot: Plot, titled: bool) -> str:
    title = f"<h3>{html.escape(plot.title)}</h3>" if titled else ""
    height = f' style="height:{plot.height}px"' if plot.height else ""
    caption = f"<figcaption>{plot.caption}</figcaption>" if plot.caption else ""
    return f'<figure>{title}<div class="plot" id="{plot.id}"{height}></div>{caption}</figure>'


def settings_section(runs: Sequence[Run], edges: Mapping[Unit, str]) -> Section | None:
    """The setting of each optimizer on each task, folded. Learning rates that end their grid are marked."""
    found = settings(runs)
    names = list(dict.fromkeys(name for chosen in found.values() for name in chosen))
    if not names:
        return None
    rows = [
        (
            _problem(task, horizon),
            *(
                Html(
                    "<br>".join(map(html.escape, chosen.get(name, ["–"]))) + _edge(edges.get(Unit(task, name, horizon)))
                )
                for name in names
            ),
        )
        for (task, horizon), chosen in found.items()
    ]
    body = f"""<details><summary>What was chosen on each task, and for each number of steps</summary>
{table(("task", *names), rows)}</details>
{EDGES if edges else ""}"""
    return Section("settings", "Tuned settings", body)


def _edge(end: str | None) -> str:
    return f"<br><small>† {end} rate</small>" if end else ""


def failures_section(runs: Sequence[Run], bench: Sequence[str], scores: Scores) -> Section:
    """Everything that went wrong, a line each: in trainings, in the bench, in scoring."""
    lines = [
        f"<b>{html.escape(f.optimizer)}</b> on {html.escape(f.problem[0])} ({f.problem[1]:,} steps) {html.escape(f.what)}."
        for f in failures(runs, scores.baselines)
    ]
    lines += [html.escape(text) for text in bench]
    said = "".join(f"<li>{line}</li>" for line in lines)
    none = "<p>None: every training stayed finite and ended below its initial train loss, and every optimizer was run on every task.</p>"
    more = "".join(f"<li>{html.escape(note)}</li>" for note in scores.notes)
    scoring = f"<p>Notes of the scores:</p><ul>{more}</ul>" if more else ""
    return Section("failures", "Failures and divergences", (f"<ul>{said}</ul>" if said else none) + scoring)


def reproduce_section(runs: Sequence[Run], provenance: Provenance) -> Section:
    """Commands, machine, versions, saved optimizers."""
    commands = html.escape("\n".join(provenance.commands))
    facts = "".join(
        f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>"
        for k, v in provenance.machine.items()
        if v != ""
    )
    saved = {run.optimizer: run.fingerprint for run in runs if run.fingerprint is not None}
    fingerprints = "".join(
        f"<li><b>{html.escape(n)}</b>: fingerprint <code>{html.escape(f)}</code></li>" for n, f in saved.items()
    )
    cards = "".join(
        f"<details><summary>Card of {html.escape(name)}</summary><pre>{html.escape(json.dumps(card, indent=2))}</pre></details>"
        for name, card in provenance.cards.items()
    )
    body = "".join(
        (
            f"<pre>{commands}</pre>" if commands else "",
            f'<ul class="hashes">{fingerprints}</ul>' if saved else "",
            cards,
            f'<div class="scroll"><table class="text"><tbody>{facts}</tbody></table></div>' if facts else "",
        )
    )
    return Section("reproduce", "Reproduce", body)
