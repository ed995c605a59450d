"""A Markdown extension: equations as MathML, which browsers draw without a script, a font or a network.

It takes what `pymdownx.arithmatex` (generic) has found and translates it with latex2mathml when the page is built. Where that package
is not installed, the TeX source is shown as code.
"""

from __future__ import annotations

import html
import re
from typing import Any

from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor

try:
    from latex2mathml.converter import convert  # pyright: ignore[reportMissingImports]
except ImportError:
    convert = None

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def mathml(tex: str, *, block: bool) -> str:
    """An equation as HTML.

    Args:
        tex: its TeX source, without dollars.
        block: whether it stands on a line of its own.
    """
    tex = tex.strip()
    if convert is None:
        return f"<code>{html.escape(tex)}</code>"
    return convert(tex, display="block" if block else "inline")


class MathML(Postprocessor):
    """Replaces every equation of a finished page."""

    def run(self, text: str) -> str:
        """The page with MathML."""

        def replace(found: re.Match[str]) -> str:
            tag, tex = found.groups()
            return f'<{tag} class="arithmatex">{mathml(html.unescape(tex), block=tag == "div")}</{tag}>'

        return EQUATION.sub(replace, text)


class MathMLExtension(Extension):
    """Registers `MathML` after everything that restores stashed HTML."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Called by Markdown."""
        md.postprocessors.register(MathML(md), "mathml", -10)


def makeExtension(**kwargs: Any) -> MathMLExtension:
    """Called by Markdown."""
    return MathMLExtension(**kwargs)
