"""The page of a benchmark."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from lopt.errors import InputError
from lopt.evaluate.archive import Run, Timing
from lopt.evaluate.report import _pictures
from lopt.evaluate.report._curves import Curve, Look, Problem, curves, learned, looks
from lopt.evaluate.report._sections import (
    Provenance,
    Section,
    curves_section,
    failures_section,
    reproduce_section,
    settings_section,
    small_multiples_section,
)
from lopt.evaluate.report.frame import document


def benchmark_page(title: str, runs: Sequence[Run], timings: Sequence[Timing], provenance: Provenance) -> str:
    """One self-contained HTML page of a benchmark.

    Args:
        title: of the page, plain text.
        runs: the selected ones, one setting for each optimizer on each task and horizon.
        timings: of their steps; may be empty.
        provenance: what is said of their origin.

    Raises:
        InputError: where there are no runs, or plotly is not installed.
    """
    if not runs:
        raise InputError("runs is empty; a page needs at least one run.")
    found = curves(runs, timings)
    drawn = looks(list(dict.fromkeys(run.optimizer for run in runs)), learned(runs))
    sections = [
        curves_section(found),
        Section("tasks", "All tasks", small_multiples_section(found, drawn)),
        Section("settings", "Tuned settings", settings_section(runs)),
        Section("failures", "Failures", failures_section(runs)),
        Section("reproduce", "Reproduce", reproduce_section(runs, provenance)),
    ]
    return _put_together(title, _pictures.legend(drawn), sections, _payload(found, drawn, []))


def _put_together(title: str, legend: str, sections: Sequence[Section], data: str) -> str:
    """The page from its parts. Nothing in it may load anything: its own policy forbids it."""
    links = "".join(f'<a href="#{s.id}">{html.escape(s.heading)}</a>' for s in sections)
    body = "".join(f'<section><h2 id="{s.id}">{html.escape(s.heading)}</h2>{s.body}</section>' for s in sections)
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
    return document(
        title,
        f"""<nav aria-label="Parts of this page">{links}</nav>
{legend}
{body}
<script type="application/json" id="data">{data}</script>
<script>{_plotly()}</script>
<script>{_own("bench.js")}</script>""",
        head=f"""<meta http-equiv="Content-Security-Policy" content="{policy}">
<style>{_own("bench.css")}</style>
<style id="hidden"></style>""",
    )


def _plotly() -> str:
    """The source of plotly.js.

    Raises:
        InputError: where plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError("The interactive report needs plotly: pip install 'lopt[report]'.") from None
    return get_plotlyjs()


def _own(name: str) -> str:
    return files("lopt.evaluate.report").joinpath(name).read_text()


def _payload(
    curves: Mapping[Problem, Sequence[Curve]], looks: Sequence[Look], figures: Sequence[dict[str, Any]]
) -> str:
    """What the page's JavaScript reads, as JSON that may stand in HTML."""
    order = {look.name: i for i, look in enumerate(looks)}
    problems = [
        {
            "curves": [
                {"o": order[c.optimizer], "steps": c.steps, "bands": c.bands, "seconds": c.seconds}
                for c in sorted(found, key=lambda c: looks[order[c.optimizer]].learned)  # the learned ones on top
            ]
        }
        for found in curves.values()
    ]
    data = {"looks": [look._asdict() for look in looks], "problems": problems, "figures": figures}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
