"""The scores of a benchmark as a table and as sentences."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from lopt.evaluate.report._pictures import interval_picture
from lopt.evaluate.scores.cells import Cell
from lopt.evaluate.scores.resampling import Estimate
from lopt.evaluate.scores.summary import Scores, Summary

COLUMNS = (
    "optimizer",
    "tasks",
    "normalised final train loss",
    "speed-up over tuned Adam",
    "tasks won against tuned Adam",
    "mean rank",
    "AlgoPerf score, steps",
    "AlgoPerf score, wall-clock",
    "diverged",
    "time of a step, × Adam",
)
NOTE = """All numbers are of the tasks that every optimizer of the table ran; what was tried and failed counts as run, with infinite losses. Tasks: how
many an optimizer ran, of all. Sorted by the interquartile mean of the normalised final train loss: 0 is the best tuned baseline of each task, 1 no progress
since the start, below 0 better than every baseline. Speed-up: Adam's steps for each step, the median over tasks; where a task is censored, the
optimizer ended below all that Adam ever reached, and its speed-up is a lower bound. Tasks won: a lower mean final train loss; a tie is half.
Mean rank among all optimizers, 1 is best. AlgoPerf score: the area under the performance profile, 1 is best. Time of a step: the median over
tasks, and from the lowest to the highest. Beside the numbers 95 % intervals, for new seeds on these tasks; that of tasks won is for new
tasks of the same kind."""

SCALE = "where 0 is the best tuned baseline of each task and 1 no progress"

Name = Callable[[str], str]  # how a name is written


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


def interval(found: Estimate) -> str:
    """A value with its interval, in a sentence."""
    value, notes = estimate(found)
    return f"{value} (95 % interval {notes[0]})" if notes else value


def cells(s: Summary, scores: Scores) -> tuple[Text, ...]:
    """A row of the summary table without the name, in the order of `COLUMNS`."""
    own = _own(s, scores)
    won = Text("–")
    if s.wins is not None:
        count, (_, low, high) = s.wins.fraction.value * s.wins.tasks, s.wins.fraction
        won = Text(f"{count:g} of {s.wins.tasks}", (f"{100 * low:.0f} to {100 * high:.0f} %",))
    costs = [cell.cost.median for cell in own if not math.isnan(cell.cost.median)]
    spread = (f"{min(costs):.2f} to {max(costs):.2f}",) if len(costs) > 1 else ()
    return (
        Text(f"{len(s.tasks)} of {len(scores.tasks)}"),
        estimate(s.normalized),
        speed(s, scores),
        won,
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


def sentences(scores: Scores, learned: Collection[str], name: Name) -> list[str]:
    """Who wins where: first over all tasks, then each learned optimizer against the baselines.

    Args:
        scores: of the benchmark.
        learned: the optimizers that are meta-trained.
        name: how a name is written.
    """
    found = [_overall(scores, learned, name)]
    if not learned:
        found.append("No learned optimizer took part.")
    if not scores.common:
        return found
    return found + [_one(s.optimizer, scores, name) for s in scores.ranked if s.optimizer in learned]


def _overall(scores: Scores, learned: Collection[str], name: Name) -> str:
    if not scores.common:
        return "There is no task that all optimizers ran, so they cannot be compared."
    ranked = [s for s in scores.ranked if not math.isnan(s.normalized.value)]
    if not ranked:
        return "No baseline made progress on any task, so the optimizers cannot be compared."
    first = ranked[0]
    best = first.normalized
    row = scores.table[first.optimizer]
    tasks = [task for task in scores.common if not np.isnan(row[task].normalized).any()]
    where = f"Over {len(tasks)} tasks" if len(tasks) > 1 else f"On {name(tasks[0])}"
    if len(horizons := {scores.horizons[task] for task in tasks}) == 1:
        where += f" at {horizons.pop():,} steps"
    if len(scores.common) < len(scores.tasks):
        where += f", of the {len(scores.common)} of {len(scores.tasks)} that all optimizers ran"

    def kind(s: Summary) -> str:
        tuned = "tuned baseline" if s.optimizer in scores.baselines else "not tuned"
        return f"{name(s.optimizer)} ({'learned' if s.optimizer in learned else tuned})"

    if math.isinf(best.value):
        return f"{where}, every optimizer has diverged in more than a quarter of its trainings."
    tied = [s for s in ranked if math.isclose(s.normalized.value, best.value, abs_tol=1e-9)]
    if len(tied) > 1:
        return f"{where}, {listed([kind(s) for s in tied])} tie for the lowest normalised final train loss, {interval(best)}."
    text = f"{where}, {kind(first)} has the lowest normalised final train loss, {interval(best)}, {SCALE}"
    if len(ranked) == 1:
        return f"{text}; nothing else was run."
    text += f"; next is {kind(ranked[1])} with {interval(ranked[1].normalized)}"
    if math.isnan(best.high) or math.isnan(ranked[1].normalized.low):
        return f"{text}. One seed a task cannot tell whether that is chance."
    near = [s for s in ranked[1:] if s.normalized.low <= best.high]
    if not near:
        return f"{text}. The intervals do not overlap."
    several = "next one's" if len(near) == 1 else f"intervals of {len(near)} others"
    return f"{text}. Its interval overlaps the {several}, so first place is not settled."


def _one(optimizer: str, scores: Scores, name: Name) -> str:
    """A learned optimizer against tuned Adam and against the best baseline of each task."""
    table = {o: {task: row[task] for task in scores.common} for o, row in scores.table.items()}
    own = {task: _final(cell.train_loss) for task, cell in table[optimizer].items()}
    parts = []
    if scores.reference in table and scores.reference != optimizer:
        adam = {t: _final(c.train_loss) for t, c in table[scores.reference].items() if t in own}
        lower, level, higher = (sum(np.sign(_sign(own[t], x)) == s for t, x in adam.items()) for s in (-1, 0, 1))
        text = (
            f"ends lower than tuned {name(scores.reference)} on {lower} of {_tasks(len(adam))} and higher on {higher}"
        )
        text += f", level on {level}" if level else ""
        wins = next(s.wins for s in scores.summaries if s.optimizer == optimizer)
        if wins is not None and (lower or higher):
            text += f" (beyond the spread over seeds: lower on {wins.clear}, higher on {wins.clear_losses})"
        parts.append(text)
    baselines = [b for b in scores.baselines if b != optimizer]
    beaten = [
        task for task, x in own.items() if (rest := [_final(table[b][task].train_loss) for b in baselines if task in table[b]]) and x < min(rest)
    ]  # fmt: skip
    where = f": {listed([name(t) for t in beaten])}" if 0 < len(beaten) <= 6 else ""
    parts.append(
        f"{'' if parts else 'ends '}lower than every tuned baseline on {len(beaten) or 'none'} of {len(own)}{where}"
    )
    text = f"{name(optimizer)} {', and '.join(parts)}."
    diverged = sum(cell.diverged for cell in table[optimizer].values())
    if diverged:
        text += f" It diverged in {diverged} of {sum(len(c.seeds) for c in table[optimizer].values())} trainings."
    return text


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _final(losses: np.ndarray) -> float:
    return float(losses.mean())


def _sign(x: float, y: float) -> float:
    return 0.0 if x == y else x - y


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def lead(scores: Scores, learned: Collection[str], notes: Sequence[str] = ()) -> str:
    """The sentences as HTML, then the notes, which are plain text."""
    said = sentences(scores, learned, lambda text: f"<b>{html.escape(text)}</b>")
    more = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    return f'<div class="lead"><p>{said[0]}</p><ul>{"".join(f"<li>{s}</li>" for s in said[1:])}</ul></div>{more}'


def table(scores: Scores, learned: Collection[str], swatches: dict[str, str]) -> str:
    """The summary table as HTML.

    Args:
        scores: of the benchmark.
        learned: the optimizers that are meta-trained.
        swatches: how each optimizer is drawn, HTML.
    """
    ranked = scores.ranked
    low, high = scale([s.normalized for s in ranked])
    body = []
    for s in ranked:
        ran, first, *rest = (as_html(text) for text in cells(s, scores))
        picture = interval_picture(*s.normalized, low, high)
        kind = ' class="learned"' if s.optimizer in learned else ""
        name = f"<th>{swatches[s.optimizer]}{html.escape(s.optimizer)}</th>"
        body.append(
            f"<tr{kind}>{name}<td>{ran}</td><td>{first}</td><td>{picture}</td>{''.join(f'<td>{x}</td>' for x in rest)}</tr>"
        )
    first, second, third, *others = COLUMNS
    head = f"<th>{first}</th><th>{second}</th><th colspan=2>{third}</th>{''.join(f'<th>{c}</th>' for c in others)}"
    return f"""<div class="scroll" tabindex="0"><table class="summary"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>
<p class="small-print">{NOTE}</p>"""


def scale(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """From where to where their picture goes."""
    finite = [x for found in estimates for x in found if math.isfinite(x)]
    return min([0.0, *finite]), max([0.1, *(x for x in finite if x < 1.2)])


def as_html(text: Text) -> str:
    """The value, and below it each note."""
    return html.escape(text.value) + "".join(f"<br><small>{html.escape(note)}</small>" for note in text.notes)
