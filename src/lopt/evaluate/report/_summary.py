"""The scores of a benchmark as a table."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from lopt.evaluate.report import page
from lopt.evaluate.report._pictures import interval_picture
from lopt.evaluate.report.page import Html
from lopt.evaluate.scores.cells import Cell
from lopt.evaluate.scores.resampling import Estimate
from lopt.evaluate.scores.summary import Scores, Summary

COLUMNS = (
    "optimizer",
    "tasks",
    "normalised final train loss",
    "speed-up over tuned Adam",
    "tasks won against tuned Adam",
    "tasks below every tuned baseline",
    "mean rank",
    "AlgoPerf score, steps",
    "AlgoPerf score, wall-clock",
    "diverged",
    "time of a step, × Adam",
)
NOTE = """All numbers are of the tasks that every optimizer of the table ran; what was tried and failed counts as run, with infinite losses. Tasks: how
many an optimizer ran, of all. Sorted by the interquartile mean of the normalised final train loss: 0 is the best tuned baseline of each task, 1 no progress
since the start, below 0 better than every baseline. Speed-up: Adam's steps for each step, the median over tasks; where a task is censored, the
optimizer ended below all that Adam ever reached, and its speed-up is a lower bound. Tasks won: a lower mean final train loss; a tie is half;
it is clear where the 95 % interval of the difference, over seeds, excludes zero.
Mean rank among all optimizers, 1 is best. AlgoPerf score: the area under the performance profile, 1 is best. Time of a step: the median over
tasks, and from the lowest to the highest. Beside the numbers 95 % intervals, for new seeds on these tasks; that of tasks won is for new
tasks of the same kind."""

NOTHING_IN_COMMON = "There is no task that all optimizers ran, so they cannot be compared."


class Text(NamedTuple):
    """A cell of the summary table."""

    value: str
    notes: tuple[str, ...] = ()  # interval, what is censored

    def __str__(self) -> str:
        return f"{self.value} ({'; '.join(self.notes)})" if self.notes else self.value


def number(x: float, decimals: int = 3) -> str:
    """A number for people.

    Examples:
        >>> number(-0.01234), number(float("inf")), number(1234567.0)
        ('−0.012', '∞', '1.2e+06')
    """
    if not math.isfinite(x):
        return "–" if math.isnan(x) else "∞" if x > 0 else "−∞"
    text = f"{x:.{decimals}f}" if abs(x) < 1e4 else f"{x:.1e}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def estimate(found: Estimate, unit: str = "", decimals: int = 3) -> Text:
    """A value with its interval, if there is one."""
    value = number(found.value, decimals) + (unit if math.isfinite(found.value) else "")
    unknown = math.isnan(found.low) or math.isnan(found.high)
    return Text(value, () if unknown else (f"{number(found.low, decimals)} to {number(found.high, decimals)}",))


def row_text(s: Summary, scores: Scores) -> tuple[Text, ...]:
    """A row of the summary table without the name, in the order of `COLUMNS`."""
    own = _own(s, scores)
    won = Text("–")
    if s.wins is not None:
        count, (_, low, high) = s.wins.fraction.value * s.wins.tasks, s.wins.fraction
        clear = f"clear: {s.wins.clear} won, {s.wins.clear_losses} lost"
        won = Text(f"{count:g} of {s.wins.tasks}", (f"{100 * low:.0f} to {100 * high:.0f} %", clear))
    costs = [cell.cost.median for cell in own if not math.isnan(cell.cost.median)]
    spread = (f"{min(costs):.2f} to {max(costs):.2f}",) if len(costs) > 1 else ()
    return (
        Text(f"{len(s.tasks)} of {len(scores.tasks)}"),
        estimate(s.normalized),
        speed(s, scores),
        won,
        lowest_of_all(s.optimizer, scores),
        Text(number(s.rank, 1)),
        Text(number(s.steps_score, 2)),
        Text(number(s.seconds_score, 2)),
        share_diverged(s),
        Text(f"{np.median(costs):.2f}", spread) if costs else Text("–"),
    )


def _own(s: Summary, scores: Scores) -> list[Cell]:
    """Of the tasks that all ran."""
    return [cell for task, cell in scores.table[s.optimizer].items() if task in scores.common]


def speed(s: Summary, scores: Scores) -> Text:
    """The speed-up over tuned Adam, and on how many tasks it is a lower bound."""
    count = sum(cell.reference is not None for cell in _own(s, scores))
    found = estimate(s.speedup, "×", 2)
    censored = (f"{s.saturated * count:.0f} of {count} censored",) if s.saturated > 0 else ()
    return Text(("≥ " if s.speedup_censored else "") + found.value, (*found.notes, *censored))


def share_diverged(s: Summary) -> Text:
    """The fraction of trainings."""
    return Text("–" if math.isnan(s.diverged) else f"{100 * s.diverged:.1f} %" if s.diverged else "0")


def lowest_of_all(optimizer: str, scores: Scores) -> Text:
    """On how many of the tasks that all ran it ends lower than every other baseline."""
    table = scores.table
    rivals = [table[name] for name in scores.baselines if name != optimizer and table[name]]
    if not rivals or not table[optimizer]:
        return Text("–")
    own = {task: table[optimizer][task].train_loss.mean() for task in scores.common}
    count = sum(all(own[task] < row[task].train_loss.mean() for row in rivals) for task in scores.common)
    return Text(f"{count} of {len(own)}")


def lead(notes: Sequence[str]) -> str:
    """The notes, which are plain text, as HTML."""
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def table(scores: Scores, learned: Collection[str], swatches: dict[str, str]) -> str:
    """The summary table as HTML.

    Args:
        scores: of the benchmark.
        learned: the optimizers that are meta-trained.
        swatches: how each optimizer is drawn, HTML.
    """
    ranked = scores.ranked
    low, high = scale([s.normalized for s in ranked])
    rows = []
    for s in ranked:
        ran, first, *rest = (as_html(text) for text in row_text(s, scores))
        picture = Html(interval_picture(*s.normalized, low, high))
        rows.append((Html(swatches[s.optimizer] + html.escape(s.optimizer)), ran, first, picture, *rest))
    marked = ["learned" if s.optimizer in learned else "" for s in ranked]
    columns = (*COLUMNS[:3], "", *COLUMNS[3:])
    return f"""{page.table(columns, rows, kind="summary", marked=marked)}<p class="small-print">{NOTE}</p>"""


def scale(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """From where to where their picture goes."""
    finite = [x for found in estimates for x in found if math.isfinite(x)]
    return min([0.0, *finite]), max([0.1, *(x for x in finite if x < 1.2)])


def as_html(text: Text) -> Html:
    """The value, and below it each note."""
    return Html(html.escape(text.value) + "".join(f"<br><small>{html.escape(note)}</small>" for note in text.notes))
