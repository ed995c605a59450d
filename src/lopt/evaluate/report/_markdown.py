"""The summary of a benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from lopt.evaluate.report import _summary, _untuned
from lopt.evaluate.report._origin import Facts
from lopt.evaluate.report._summary import Text
from lopt.evaluate.scores.summary import Scores
from lopt.evaluate.scores.untuned import Untuned


def code(text: str) -> str:
    """A name that stays one cell of a table."""
    return f"`{text.replace('`', chr(39)).replace('|', '¦')}`"


def summary_markdown(
    scores: Scores,
    learned: Collection[str],
    *,
    untuned: Sequence[Untuned] = (),
    notes: Sequence[str] = (),
    tables: Sequence[Facts] = (),
) -> str:
    """The summary as Markdown: notes, the table, that of one setting for all tasks, and where runs and optimizers come from.

    Args:
        scores: of a benchmark.
        learned: the optimizers that are meta-trained; their names are bold.
        untuned: of the same, by `lopt.evaluate.scores.untuned.without_tuning`; none, no table.
        notes: what a reader must know first.
        tables: of the origin of runs and optimizers.
    """
    rows = [(s.optimizer, _summary.row_text(s, scores)) for s in scores.ranked]
    parts = [
        "\n".join(f"- {note}" for note in notes),
        _table(_summary.COLUMNS, rows, learned),
        _line(_summary.NOTE),
    ]
    if untuned:
        rows = [(row.optimizer, _untuned.row_text(row, scores)) for row in untuned]
        table = _table(_untuned.COLUMNS, rows, learned)
        parts += [f"## {_untuned.HEADING}", _line(_untuned.MEANING), table, _line(_untuned.note(untuned, scores))]
    for facts in tables:
        rows = [(first, tuple(Text(cell) for cell in rest)) for first, *rest in facts.rows]
        parts += [f"## {facts.heading}", _table(facts.columns, rows, ())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(columns: Sequence[str], rows: Iterable[tuple[str, tuple[Text, ...]]], learned: Collection[str]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for optimizer, cells in rows:
        name = f"**{code(optimizer)}**" if optimizer in learned else code(optimizer)
        lines.append(f"| {' | '.join((name, *(str(cell).replace('|', '¦') for cell in cells)))} |")
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())
