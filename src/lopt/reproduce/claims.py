"""Measure the claims of a paper: their figures, whether they held, and the report that says so."""

from __future__ import annotations

import html
import inspect
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lopt.checkpoint import write_bytes, write_text
from lopt.errors import InputError
from lopt.evaluate.report.page import document, image, png_of, table
from lopt.machine import cores, many_maps
from lopt.names import unknown

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


class ClaimSpec(NamedTuple):
    """How a claim is measured and drawn."""

    measure: Callable[..., Claim]  # of a key and of its sizes
    draw: Callable[[Claim], Any]  # its figure, of matplotlib; not asked where the claim was not run
    quick: Mapping[str, Any] = {}  # the sizes that `--quick` changes


class Paper(NamedTuple):
    """A paper and its claims, by name."""

    title: str
    source: str
    claims: Mapping[str, ClaimSpec]


def measure(
    paper: Paper,
    folder: Path,
    *,
    only: Sequence[str] = (),
    seed: int = 0,
    quick: bool = False,
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
    fields: Mapping[str, Any] | None = None,
    command: str = "",
    on_progress: Callable[[str], None] | None = None,
) -> Report:
    """Measure the claims of a paper and write the report: `report.html`, `results.json`, a PNG for each.

    Args:
        paper: whose claims.
        folder: where it goes.
        only: the names of the claims to measure, all if empty. A claim finds the same whatever others are measured.
        seed: draws everything.
        quick: whether each claim takes its quick sizes.
        sizes: arguments by claim; instead of those of `quick`.
        fields: arguments for the claims that have such, as `{"weights": "conv-net-1"}`.
        command: goes into the report.
        on_progress: told what is being done and what came out.

    Raises:
        InputError: for an unknown claim, a field that none of the claims to measure has, or a value of another kind than the field's default.
    """
    for name in only:
        if name not in paper.claims:
            raise InputError(unknown("claim", name, paper.claims))
    specs = {name: spec for name, spec in paper.claims.items() if not only or name in only}
    tell = on_progress or (lambda _: None)
    takes = {name: dict(inspect.signature(spec.measure).parameters) for name, spec in specs.items()}
    for names in takes.values():
        del names["key"]
    for field, given in (fields or {}).items():
        having = [names[field] for names in takes.values() if field in names]
        if not having:
            raise InputError(unknown("field of a claim", field, sorted(set().union(*takes.values()))))
        for one in having:
            _refuse_kind(field, given, one.default)
    folder.mkdir(parents=True, exist_ok=True)  # what cannot be written should not be measured first
    claims, drawn = [], {}
    for name, spec in specs.items():
        tell(f"{name} ...")
        if many_maps():
            jax.clear_caches()
        began = time.perf_counter()
        own = {field: value for field, value in (fields or {}).items() if field in takes[name]}
        chosen = sizes.get(name, {}) if sizes is not None else spec.quick if quick else {}
        key = jax.random.fold_in(jax.random.key(seed), list(paper.claims).index(name))
        claim = spec.measure(key, **{**chosen, **own})
        claims.append(claim._replace(seconds=0.0 if claim.held is None else time.perf_counter() - began))
        if claim.held is not None:
            drawn[name] = png_of(spec.draw(claim))
        tell(claim.found)
    settings = {"command": command, "claims": [*specs], "seed": seed, "quick": quick, "devices": jax.device_count()}
    return write_report(folder, paper, claims, drawn, settings=settings)


def _refuse_kind(field: str, given: Any, default: Any) -> None:
    """Refuse a value of another kind than the default's; where that is None, anything goes."""
    if isinstance(default, list | tuple):
        if not isinstance(given, list | tuple):
            raise InputError(f"{field} is {given!r}; it must be a list.")
        for x in given if default else ():
            _refuse_kind(f"An entry of {field}", x, default[0])
        return
    whole = isinstance(given, int) and not isinstance(given, bool)
    kinds = {
        bool: (isinstance(given, bool), "true or false"),
        int: (whole, "a whole number"),
        float: (whole or isinstance(given, float), "a number"),
        str: (isinstance(given, str), "text"),
    }
    fits, words = kinds.get(type(default), (True, ""))
    if not fits:
        raise InputError(f"{field} is {given!r}; it must be {words}.")


def write_report(
    folder: Path,
    paper: Paper,
    claims: Sequence[Claim],
    drawn: Mapping[str, bytes],
    *,
    settings: Mapping[str, Any],
) -> Report:
    """Write `report.html`, `results.json` and a PNG for every claim that has one.

    Args:
        folder: where they go.
        paper: whose claims.
        claims: in the order of the page.
        drawn: the figures of claims, by name, as PNGs.
        settings: the command, the seed and what else it takes to run it again.
    """
    settings = {**settings, **environment()}
    figures = [folder / f"{name}.png" for name in drawn]
    for path, png in zip(figures, drawn.values(), strict=True):
        write_bytes(path, png)
    results = {
        "title": paper.title,
        "source": paper.source,
        "settings": dict(settings),
        "claims": [plain({k: v for k, v in claim._asdict().items() if k != "arrays"}) for claim in claims],
    }
    page, found = folder / "report.html", folder / "results.json"
    write_text(page, claims_page(paper.title, paper.source, claims, drawn, settings))
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
        text += table(list(claim.rows[0]), [list(row.values()) for row in claim.rows], kind="plain")
    if png is not None:
        text += f'<div class="scroll figure">{image(png, claim.title)}</div>'
    return text + (f'<p class="small">{claim.seconds:.0f} s, compilation included.</p>' if claim.seconds else "")


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


__all__ = ["VERDICTS", "Claim", "ClaimSpec", "Paper", "Report", "claims_page", "measure", "write_report"]
