"""A claim of a paper, measured: its figures, whether it held, and the report that says so."""

from __future__ import annotations

import base64
import html
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lopt.checkpoint import write_bytes, write_text
from lopt.evaluate.report import document
from lopt.machine import cores

VERDICTS = {True: "held", False: "did not hold", None: "not run"}


class Claim(NamedTuple):
    """A claim, what was measured, and whether it held."""

    name: str  # of its figure's file
    title: str
    statement: str  # what the paper says
    criterion: str  # when it counts as held, in words and figures
    found: str  # what was measured, in one or two sentences
    held: bool | None  # `None` where it was not run
    numbers: dict[str, Any]  # every figure; JSON once arrays are lists
    rows: Sequence[Mapping[str, str]] = ()  # the table of the page, by column
    arrays: Mapping[str, np.ndarray] = {}  # drawn, but too large for the JSON
    seconds: float = 0.0  # all it cost, compilation included


class Report(NamedTuple):
    """What a reproduction found and where it wrote it."""

    claims: list[Claim]
    page: Path
    results: Path
    figures: list[Path]


def write_report(
    folder: Path,
    claims: Sequence[Claim],
    draw: Callable[[Claim], bytes | None],
    *,
    title: str,
    source: str,
    settings: Mapping[str, Any],
) -> Report:
    """Write `report.html`, `results.json` and a PNG for every claim that has one.

    Args:
        folder: where they go.
        claims: in the order of the page.
        draw: the figure of a claim as a PNG, or `None`.
        title: of the page.
        source: the paper.
        settings: the command, the seed and what else it takes to run it again.
    """
    settings = {**settings, **environment()}
    drawn = {claim.name: png for claim in claims if (png := draw(claim)) is not None}
    figures = [folder / f"{name}.png" for name in drawn]
    for path, png in zip(figures, drawn.values(), strict=True):
        write_bytes(path, png)
    results = {
        "title": title,
        "source": source,
        "settings": dict(settings),
        "claims": [plain({**claim._asdict(), "arrays": None}) for claim in claims],
    }
    for entry in results["claims"]:
        del entry["arrays"]
    page, found = folder / "report.html", folder / "results.json"
    write_text(page, claims_page(title, source, claims, drawn, settings))
    write_text(found, json.dumps(results, indent=1, allow_nan=False) + "\n")
    return Report(list(claims), page, found, figures)


def claims_page(
    title: str, source: str, claims: Sequence[Claim], figures: Mapping[str, bytes], settings: Mapping[str, Any]
) -> str:
    """One self-contained HTML page: every claim with its verdict, criterion, table and figure."""
    counted = {verdict: sum(VERDICTS[c.held] == verdict for c in claims) for verdict in VERDICTS.values()}
    summary = ", ".join(f"{n} {verdict}" for verdict, n in counted.items() if n)
    contents = "".join(
        f'<li><a href="#{html.escape(c.name)}">{html.escape(c.title)}</a> {_badge(c)}<br>{html.escape(c.found)}</li>'
        for c in claims
    )
    sections = "".join(_section(claim, figures.get(claim.name)) for claim in claims)
    facts = "".join(f"<li>{html.escape(str(k))}: {html.escape(str(v))}</li>" for k, v in settings.items())
    body = f"""<p>{html.escape(source)}</p>
<p>Of {len(claims)} claims: {summary}.</p>
<ol class="claims">{contents}</ol>
{sections}
<h2>How to reproduce</h2>
<ul class="small">{facts}</ul>"""
    return document(title, body)


def _section(claim: Claim, png: bytes | None) -> str:
    text = f'<h2 id="{html.escape(claim.name)}">{html.escape(claim.title)} {_badge(claim)}</h2>'
    for label, value in (("Claim", claim.statement), ("Criterion", claim.criterion), ("Found", claim.found)):
        text += f"<p><b>{label}.</b> {html.escape(value)}</p>"
    if claim.rows:
        text += table(claim.rows)
    if png is not None:
        image = base64.b64encode(png).decode()
        text += f'<div class="scroll figure"><img alt="{html.escape(claim.title)}" src="data:image/png;base64,{image}"></div>'
    return text + (f'<p class="small">{claim.seconds:.0f} s, compilation included.</p>' if claim.seconds else "")


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows by column as an HTML table."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in rows[0])
    body = "".join(
        "<tr>"
        + "".join(
            f"<{cell}>{html.escape(value)}</{cell}>"
            for cell, value in zip(("th", *("td" for _ in range(len(row) - 1))), row.values(), strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _badge(claim: Claim) -> str:
    verdict = VERDICTS[claim.held]
    return f'<span class="verdict {verdict.replace(" ", "-")}">{verdict}</span>'


def environment() -> dict[str, Any]:
    """Versions and the machine."""
    packages = {name: version(name) for name in ("lopt", "jax", "jaxlib", "optax", "equinox", "numpy")}
    return {
        "python": platform.python_version(),
        **packages,
        "machine": f"{platform.system()} {platform.machine()}, {len(cores())} cores",
    }


def plain(thing: Any) -> Any:
    """The same with lists for arrays and `None` for what is not finite: JSON."""
    if isinstance(thing, Mapping):
        return {str(k): plain(v) for k, v in thing.items()}
    if isinstance(thing, np.ndarray | np.generic):
        return plain(thing.tolist())
    if isinstance(thing, list | tuple):
        return [plain(x) for x in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing


__all__ = ["VERDICTS", "Claim", "Report", "claims_page", "write_report"]
