"""The table of what the optimizers do where nobody tunes for the task."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence

from lopt.evaluate.report._curves import setting
from lopt.evaluate.report._pictures import interval_picture
from lopt.evaluate.report._sections import Section
from lopt.evaluate.report._summary import Text, as_html, estimate, scale, share_diverged, speed
from lopt.evaluate.report.page import Html, table
from lopt.evaluate.scores.summary import Scores
from lopt.evaluate.scores.untuned import Untuned

HEADING = "One setting for all tasks"
COLUMNS = (
    "optimizer",
    "setting",
    "normalised final train loss",
    "tuned on each task",
    "speed-up over tuned Adam",
    "diverged",
)
MEANING = """How good each baseline is where nobody tunes it for the task, which is how a learned optimizer is used: at the one setting that is best over all
tasks, beside the optimizers that have nothing tuned."""
NOTE = """Scored as above: 0 is the best baseline that was tuned on the task. Tuned on each task: the same score with the best setting of each. The one setting
has the lowest mean regret over the tasks; it is chosen on these very tasks and seeds, which favours the baselines."""


def row_text(row: Untuned, scores: Scores) -> tuple[Text, ...]:
    """A row without the name, in the order of `COLUMNS`."""
    said = setting(dict(row.config))
    return (
        Text(", ".join(said) or "as it comes"),
        estimate(row.summary.normalized),
        Text("–") if row.tuned is None else estimate(row.tuned.normalized),
        speed(row.summary, scores),
        share_diverged(row.summary),
    )


def note(rows: Sequence[Untuned], scores: Scores) -> str:
    """What stands below the table."""
    there = {row.optimizer for row in rows}
    missing = [name for name in scores.baselines if name not in there]
    return NOTE + (f" No setting of {' or '.join(missing)} was run on all its tasks." if missing else "")


def untuned_section(
    rows: Sequence[Untuned], scores: Scores, learned: Collection[str], swatches: Mapping[str, str]
) -> Section | None:
    """The table as HTML; None where there is nothing to tell.

    Args:
        rows: of the benchmark.
        scores: of the same.
        learned: the optimizers that are meta-trained.
        swatches: how each optimizer is drawn, HTML.
    """
    if not rows:
        return None
    low, high = scale([row.summary.normalized for row in rows])
    body = []
    for row in rows:
        chosen, loss, *rest = (as_html(text) for text in row_text(row, scores))
        picture = Html(interval_picture(*row.summary.normalized, low, high))
        name = Html(swatches[row.optimizer] + html.escape(row.optimizer))
        body.append((name, chosen, loss, picture, *rest))
    marked = ["learned" if row.optimizer in learned else "" for row in rows]
    drawn = table((*COLUMNS[:3], "", *COLUMNS[3:]), body, kind="summary", marked=marked)
    text = f'<p>{MEANING}</p>{drawn}<p class="small-print">{html.escape(note(rows, scores))}</p>'
    return Section("one-setting", HEADING, text)
