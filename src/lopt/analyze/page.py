"""One page about what an optimizer has learned: every mechanism with its figure and a sentence."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import PRNGKeyArray

from lopt.analyze.adaptation import adaptation
from lopt.analyze.explain import Explained, explain
from lopt.analyze.momentum import momentum
from lopt.analyze.response import response
from lopt.analyze.schedule import schedule
from lopt.analyze.state_space import state_space
from lopt.checkpoint import write_text
from lopt.errors import InputError
from lopt.evaluate.report.page import document, image, png_of, table
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.task import Task

# What a page asks, in its order, and what each question is.
MECHANISMS: dict[str, tuple[Callable[..., Any], str]] = {
    "response": (response, "How does the update follow the gradient, and where is it clipped?"),
    "schedule": (schedule, "Does the learning rate change with the step?"),
    "momentum": (momentum, "For how long does a gradient act?"),
    "adaptation": (adaptation, "Does the learning rate depend on the size of the gradients?"),
    "state_space": (state_space, "How much of its memory does the rule use?"),
    "explain": (explain, "How much of the updates of a real training do known mechanisms explain?"),
}


class Finding(NamedTuple):
    """The answer to one question.

    Attributes:
        name: of the analysis.
        question: in words.
        answer: in one sentence; why there is none, where the question has no meaning for the rule.
        record: the arrays; `None` where there is no answer.
    """

    name: str
    question: str
    answer: str
    record: Any


def mechanisms(
    optimizer: Optimizer | optax.GradientTransformation,
    task: Task,
    *,
    key: PRNGKeyArray,
    only: Sequence[str] = (),
    fields: Mapping[str, Mapping[str, Any]] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Ask an optimizer all questions about mechanisms.

    Args:
        optimizer: of lopt or of optax.
        task: on which; its gradients are the usual ones.
        key: draws everything.
        only: names of analyses; all if empty.
        fields: arguments by analysis.
        on_progress: told each answer.

    Raises:
        InputError: for an unknown name, with the nearest ones.

    Examples:
        >>> import jax, lopt, optax
        >>> from lopt.analyze import mechanisms
        >>> found = mechanisms(optax.sgd(0.1), lopt.tasks.Quadratic(dim=3), key=jax.random.key(0), only=["schedule"])
        >>> found[0].answer
        'The effective learning rate is 0.1 at every step: there is no schedule.'
    """
    for name in (*only, *(fields or {})):
        if name not in MECHANISMS:
            raise InputError(unknown("mechanism", name, MECHANISMS))
    found = []
    for i, (name, (analysis, question)) in enumerate(MECHANISMS.items()):
        if only and name not in only:
            continue
        try:
            record = analysis(optimizer, task, key=jax.random.fold_in(key, i), **(fields or {}).get(name, {}))
            found.append(Finding(name, question, record.sentence, record))
        except InputError as error:
            found.append(Finding(name, question, str(error), None))
        if on_progress is not None:
            on_progress(f"{name}: {found[-1].answer}")
    return found


def mechanisms_page(title: str, findings: Sequence[Finding], facts: Mapping[str, Any]) -> str:
    """One self-contained HTML page.

    Args:
        title: of the page.
        findings: from `mechanisms`.
        facts: what it takes to make the page again.
    """
    contents = "".join(f"<li><b>{html.escape(f.name)}.</b> {html.escape(f.answer)}</li>" for f in findings)
    sections = "".join(_section(f) for f in findings)
    return document(title, f'<ul class="claims">{contents}</ul>\n{sections}\n{made_by(facts)}')


def made_by(facts: Mapping[str, Any]) -> str:
    """What it takes to make a page again, as HTML; empty without facts.

    Args:
        facts: by name.
    """
    rows = "".join(f"<li>{html.escape(str(k))}: {html.escape(str(v))}</li>" for k, v in facts.items())
    return f'<h2>How to make this page again</h2>\n<ul class="small">{rows}</ul>' if rows else ""


def write_mechanisms(folder: Path, title: str, findings: Sequence[Finding], facts: Mapping[str, Any]) -> list[Path]:
    """`mechanisms.html` and a JSON file for each record in a folder, by write-then-rename.

    Args:
        folder: made where it is missing.
        title: of the page.
        findings: from `mechanisms`.
        facts: what it takes to make the page again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "mechanisms.html"
    write_text(page, mechanisms_page(title, findings, facts))
    written = [page]
    for finding in findings:
        if finding.record is not None:
            written.append(folder / f"{finding.name}.json")
            write_text(written[-1], finding.record.to_json())
    return written


def _section(finding: Finding) -> str:
    text = (
        f'<h2 id="{html.escape(finding.name)}">{html.escape(finding.question)}</h2><p>{html.escape(finding.answer)}</p>'
    )
    if finding.record is None:
        return text
    if isinstance(finding.record, Explained):
        record = finding.record
        rows = [[part, f"{share:.1%}"] for part, share in zip(record.parts, record.shares, strict=True)]
        rows.append(["left", f"{record.left:.1%}"])
        text += table(["regressed on", "explained variance on held-out steps"], rows, kind="plain")
    return (
        text + f'<div class="scroll figure" tabindex="0">{image(png_of(finding.record.plot()), finding.question)}</div>'
    )


__all__ = ["MECHANISMS", "Finding", "made_by", "mechanisms", "mechanisms_page", "write_mechanisms"]
