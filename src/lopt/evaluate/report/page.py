"""What every page is made of: its frame and style, tables, pictures."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from lopt.errors import needs_extra

COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe & Ito: safe for colour-blind readers


def document(title: str, body: str, head: str = "") -> str:
    """The frame of every report: one page that needs nothing else, readable on a phone and in the dark.

    Args:
        title: of the page, plain text.
        body: what follows the heading, HTML.
        head: what the head has besides, HTML.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>{head}
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
</body>
</html>
"""


# Of pages with scripts: nothing may be loaded, and nothing sent.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; form-action 'none'; base-uri 'none'"


def application(title: str, body: str, data: Any, *, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """A page with scripts. Nothing in it may load anything: its own policy forbids it.

    Args:
        title: of the page, plain text.
        body: what follows the heading, HTML.
        data: what the scripts read from the element `data`, as JSON.
        styles: sheets, after that of every page.
        scripts: sources, in their order.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    sources = "\n".join(f"<script>{source}</script>" for source in scripts)
    sheets = "\n".join(f"<style>{sheet}</style>" for sheet in styles)
    return document(
        title,
        f"""{body}
<script type="application/json" id="data">{text}</script>
{sources}""",
        head=f"""<meta http-equiv="Content-Security-Policy" content="{POLICY}">
{sheets}""",
    )


def source(package: str, name: str) -> str:
    """The text of a sheet or script that lies in a package.

    Args:
        package: its name.
        name: of the file.
    """
    return files(package).joinpath(name).read_text()


class Html(str):
    """Text that is HTML already. All other text is escaped."""

    __slots__ = ()


def markup(text: str) -> str:
    """Text as HTML.

    Examples:
        >>> markup("a < b"), markup(Html("<b>a</b>"))
        ('a &lt; b', '<b>a</b>')
    """
    return text if isinstance(text, Html) else html.escape(text)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", marked: Sequence[str] = ()) -> str:
    """A table that scrolls where it is too wide; of the kind `cards`, each row becomes a card on a phone. The first cell of a row is its heading.

    Args:
        columns: their names.
        rows: the cells of each.
        kind: class of the table.
        marked: class of each row.
    """
    head = "".join(f"<th>{markup(column)}</th>" for column in columns)
    body = []
    for i, (first, *rest) in enumerate(rows):
        mark = f' class="{marked[i]}"' if marked and marked[i] else ""
        cells = "".join(
            f'<td data-column="{html.escape(column)}">{markup(cell)}</td>'
            for column, cell in zip(columns[1:], rest, strict=True)
        )
        body.append(f"<tr{mark}><th>{markup(first)}</th>{cells}</tr>")
    named = f' class="{kind}"' if kind else ""
    return f"""<div class="scroll" tabindex="0"><table{named}><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>"""


def image(png: bytes, alt: str) -> str:
    """A PNG inside the page.

    Args:
        png: the file.
        alt: what it shows, plain text.
    """
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def panels(columns: int = 1, rows: int = 1, *, width: float = 5.0, height: float = 3.6) -> tuple[Any, Any]:
    """A figure of matplotlib and its axes, rows by columns, without the upper and right sides of their frames.

    Args:
        columns: of axes.
        rows: of axes.
        width: of one of them, inches.
        height: of one of them, inches.
    """
    with needs_extra("plot"):
        from matplotlib.figure import Figure  # not pyplot: the caller's backend stays as it is

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def png_of(figure: Any) -> bytes:
    """A figure of matplotlib as a PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; font-size: .9rem; }
th, td { padding: .25rem .7rem; text-align: right; }
th:first-child, td:nth-child(2) { text-align: left; }
tr.first > * { border-top: 1px solid var(--line); }
img { max-width: 100%; background: white; border-radius: 6px; margin-top: 1rem; }
.figure img { width: 100%; min-width: 44rem; max-width: none; }
.small { font-size: .85rem; opacity: .8; }
h2 { font-size: 1.2rem; border-top: 1px solid var(--line); padding-top: 1rem; margin-top: 2rem; }
table.plain td:nth-child(2), table.cards td:nth-child(2) { text-align: right; }
@media (max-width: 48rem) {
  table.cards thead { display: none; }
  table.cards, table.cards tbody, table.cards tr, table.cards th { display: block; }
  table.cards tr { border-top: 1px solid var(--line); padding: .4rem 0; }
  table.cards td { display: flex; justify-content: space-between; white-space: normal; }
  table.cards td::before { content: attr(data-column); opacity: .8; }
}
.claims li { margin-bottom: .5rem; }
.verdict { font-size: .8rem; font-weight: 600; padding: .1rem .5rem; border-radius: 4px; white-space: nowrap; background: #8883; }
.verdict.held { background: #009e7340; }
.verdict.did-not-hold { background: #d55e0060; }
"""
