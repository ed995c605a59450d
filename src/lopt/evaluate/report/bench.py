"""The page of a benchmark."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from lopt.errors import InputError, needs_extra
from lopt.evaluate.report import _figures, _pictures, _summary
from lopt.evaluate.report._curves import Curve, Look, Problem, curves, learned, looks
from lopt.evaluate.report._sections import (
    AXES,
    PROFILES,
    Provenance,
    Section,
    curves_section,
    facts_section,
    failures_section,
    plots_section,
    reproduce_section,
    settings_section,
    tasks_section,
)
from lopt.evaluate.report._untuned import untuned_section
from lopt.evaluate.report.page import application, source
from lopt.evaluate.runs import Run, Timing
from lopt.evaluate.scores.summary import Scores
from lopt.evaluate.scores.untuned import Untuned

OWN = "lopt.evaluate.report"  # where its sheets and script lie
TABLES = ("summary", "one-setting", "seen", "origins")  # before the plots


def benchmark_page(
    title: str,
    runs: Sequence[Run],
    timings: Sequence[Timing],
    scores: Scores,
    provenance: Provenance = Provenance(),  # noqa: B008 - immutable
    *,
    axes: Mapping[str, Mapping[float | str, str]] | None = None,
    untuned: Sequence[Untuned] = (),
) -> str:
    """One self-contained HTML page of a benchmark.

    Args:
        title: of the page, plain text.
        runs: the selected ones, one setting for each optimizer on each task and horizon.
        timings: of their steps; may be empty.
        scores: of these runs.
        provenance: what is said of their origin; the horizons on its cards make the plot of longer ones.
        axes: of generalisation, as for `lopt.evaluate.scores.axes.along`.
        untuned: of the same, by `lopt.evaluate.scores.untuned.without_tuning`; none, no table of them.

    Raises:
        InputError: where there are no runs, where scores are of other ones, or plotly is not installed.
    """
    if not runs:
        raise InputError("runs is empty; a page needs at least one run.")
    if {run.optimizer for run in runs} != set(scores.optimizers):
        raise InputError(f"scores are of {', '.join(scores.optimizers)}; the runs are of other optimizers.")
    found, meta_trained = curves(runs, timings), learned(runs)
    ranked = [summary.optimizer for summary in scores.ranked]
    drawn = looks(ranked, meta_trained, scores.reference)
    order = {look.name: i for i, look in enumerate(drawn)}
    cards = {name: card.get("horizon") or (0, 0) for name, card in provenance.cards.items() if name in order}
    seen = {name: int(longest) for name, (_, longest) in cards.items() if longest}  # a card may not say
    profiles = _figures.profiles(scores, order)
    speedups = _figures.speedups(scores, ranked, order)
    tests = _figures.generalisation(scores, order)
    longer = _figures.horizons(scores, seen, order)
    along = _figures.axes(scores, axes or {}, order)
    swatches = {look.name: _pictures.swatch(look) for look in drawn}
    sections = [
        Section("summary", "Summary", _summary.table(scores, meta_trained, swatches)),
        untuned_section(untuned, scores, meta_trained, swatches),
        *(facts_section(facts) for facts in provenance.tables),
        curves_section(found),
        tasks_section(found, drawn, scores, ranked),
        plots_section("profiles", "Performance profiles", profiles, PROFILES),
        plots_section("speed-up", "Speed-up over tuned Adam", [speedups]),
        plots_section("test", "Test beside train", [tests]),
        plots_section("longer", "Beyond the horizon of meta-training", [longer]),
        plots_section("axes", "Generalisation", along, AXES),
        settings_section(runs, scores.edges),
        failures_section(runs, provenance.failures, scores),
        reproduce_section(runs, provenance),
    ]
    plots = [plot for plot in (*profiles, speedups, tests, longer, *along) if plot is not None]
    data = _payload(found, drawn, [{"id": p.id, "traces": p.traces, "layout": p.layout} for p in plots])
    parts = [section for section in sections if section is not None]
    return _put_together(title, _summary.lead(provenance.notes), _pictures.legend(drawn), parts, data)


def _put_together(title: str, lead: str, legend: str, sections: Sequence[Section], data: Any) -> str:
    """The page from its parts."""
    links = "".join(f'<a href="#{s.id}">{html.escape(s.heading)}</a>' for s in sections)
    parts = {s.id: f'<section><h2 id="{s.id}">{html.escape(s.heading)}</h2>{s.body}</section>' for s in sections}
    tables = "".join(parts.pop(id_, "") for id_ in TABLES)
    return application(
        title,
        f"""{lead}
<nav aria-label="Parts of this page">{links}</nav>
{tables}<div>{legend}{"".join(parts.values())}</div>""",  # the legend stays in sight below the tables
        data,
        styles=[source(OWN, "theme.css"), source(OWN, "bench.css")],
        scripts=[_plotly(), source(OWN, "bench.js")],
    )


def _plotly() -> str:
    """The source of plotly.js."""
    with needs_extra("report"):
        from plotly.offline import get_plotlyjs
    return get_plotlyjs()


def _payload(
    curves: Mapping[Problem, Sequence[Curve]], looks: Sequence[Look], figures: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the page's JavaScript reads."""
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
    return {"looks": [look._asdict() for look in looks], "problems": problems, "figures": figures}
