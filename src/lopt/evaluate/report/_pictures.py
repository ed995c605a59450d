"""Small pictures that need no JavaScript: keys of the legend, small multiples, intervals. Their colours are CSS variables."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from lopt.evaluate.report._curves import Curve, Look, Problem

DASHARRAYS = {"solid": "none", "dash": "6 3", "dot": "1.5 3", "dashdot": "6 3 1.5 3", "longdash": "10 3"}
POINTS = {  # of shapes, in a square from -1 to 1
    "square": "-.9,-.9 .9,-.9 .9,.9 -.9,.9",
    "diamond": "0,-1.2 1.2,0 0,1.2 -1.2,0",
    "triangle-up": "0,-1.1 1.1,.8 -1.1,.8",
    "triangle-down": "0,1.1 1.1,-.8 -1.1,-.8",
    "cross": "-.4,-1.1 .4,-1.1 .4,-.4 1.1,-.4 1.1,.4 .4,.4 .4,1.1 -.4,1.1 -.4,.4 -1.1,.4 -1.1,-.4 -.4,-.4",
    "x": "-1.1,-.5 -.5,-1.1 0,-.6 .5,-1.1 1.1,-.5 .6,0 1.1,.5 .5,1.1 0,.6 -.5,1.1 -1.1,.5 -.6,0",
    "star": "0,-1.3 .3,-.4 1.2,-.4 .5,.2 .8,1.1 0,.5 -.8,1.1 -.5,.2 -1.2,-.4 -.3,-.4",
}
WIDTH, HEIGHT = 160, 84  # of a small multiple, in its own units


def stroke(look: Look) -> str:
    """The attributes of a line."""
    width = 2.6 if look.learned else 1.4
    return f'fill="none" stroke="var(--{look.color})" stroke-width="{width}" stroke-dasharray="{DASHARRAYS[look.dash]}"'


def mark(look: Look, x: float, y: float, size: float = 4.0) -> str:
    """The shape of an optimizer at a point."""
    shape, _, _ = look.shape.partition("-open")
    fill = "var(--page)" if look.shape.endswith("-open") else f"var(--{look.color})"
    paint = f'fill="{fill}" stroke="var(--{look.color})"'
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="{size}" {paint}/>'
    return (
        f'<polygon points="{POINTS[shape]}" transform="translate({x} {y}) scale({size})" '
        f'{paint} vector-effect="non-scaling-stroke"/>'
    )


def swatch(look: Look) -> str:
    """A stretch of an optimizer's line with its shape."""
    return (
        f'<svg class="swatch" viewBox="0 0 36 12" aria-hidden="true">'
        f'<line x1="1" y1="6" x2="35" y2="6" {stroke(look)}/>{mark(look, 18.0, 6.0)}</svg>'
    )


def legend(looks: Sequence[Look]) -> str:
    """A button for each optimizer, which hides and shows it in all plots."""
    keys = "".join(
        f'<button class="key" data-o="{i}" aria-pressed="{str(look.shown).lower()}">{swatch(look)}{html.escape(look.name)}</button>'
        for i, look in enumerate(looks)
    )
    fewer = "" if all(look.shown for look in looks) else '<button id="few">fewer</button>'
    return f'<div class="legend" role="group" aria-label="Optimizers to show"><button id="all">all</button>{fewer}{keys}</div>'


def small_multiples(
    curves: Mapping[Problem, Sequence[Curve]], looks: Sequence[Look], horizons: Mapping[str, int]
) -> str:
    """The train losses of every task at its horizon, each a link to its interactive curves."""
    order = {look.name: i for i, look in enumerate(looks)}
    cells = []
    for i, ((task, horizon), found) in enumerate(curves.items()):
        if horizon != horizons[task]:
            continue
        ended = {c.optimizer: last for c in found if (last := c.bands["train"][0][-1]) is not None}
        lowest = f"lowest: {min(ended, key=ended.__getitem__)}" if ended else "all diverged"
        cells.append(
            f'<a href="#curves-of-a-task" data-problem="{i}"><b>{html.escape(task)}</b>{_small(found, looks, order)}'
            f"<span>{horizon:,} steps, {html.escape(lowest)}</span></a>"
        )
    return f'<div class="small">{"".join(cells)}</div>'


def _small(curves: Sequence[Curve], looks: Sequence[Look], order: Mapping[str, int]) -> str:
    means = [[v for v in curve.bands["train"][0] if v is not None] for curve in curves]
    starts = [values[0] for values in means if values]
    if not starts:
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true"></svg>'
    low, start = min(min(values) for values in means if values), max(starts)
    log = low > 0
    top = min(
        max(max(values) for values in means if values), start + 0.5 * abs(start - low)
    )  # not that of an explosion
    scale = math.log if log else float
    bottom, span = scale(low), max(scale(max(top, low)) - scale(low), 1e-12)
    lines = []
    for curve in sorted(curves, key=lambda c: looks[order[c.optimizer]].learned):  # the learned ones on top
        o, last = order[curve.optimizer], max(curve.steps[-1], 1)
        points = [
            f"{2 + (WIDTH - 4) * step / last:.1f},{HEIGHT - 3 - (HEIGHT - 6) * min((scale(v) - bottom) / span, 1.1):.1f}"
            for step, v in zip(curve.steps, curve.bands["train"][0], strict=True)
            if v is not None
        ]
        lines.append(f'<polyline class="o{o}" points="{" ".join(points)}" {stroke(looks[o])} stroke-linejoin="round"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{"".join(lines)}</svg>'


def interval_picture(value: float, low: float, high: float, left: float, right: float) -> str:
    """A point with its interval on a scale from `left` to `right`, with a line at 0; an arrow where it lies beyond."""

    def at(x: float) -> float:
        return 4 + 92 * (min(max(x, left), right) - left) / (right - left)

    if math.isnan(value):
        return '<svg class="interval" viewBox="0 0 100 14" aria-hidden="true"></svg>'
    known = not (math.isnan(low) or math.isnan(high))
    bar = f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="7" y2="7" stroke="var(--text)"/>' if known else ""
    point = (
        f'<circle cx="{at(value):.1f}" cy="7" r="3.4" fill="var(--text)"/>'
        if value <= right
        else '<polygon points="92,3 99,7 92,11" fill="var(--text)"/>'
    )
    zero = f'<line x1="{at(0.0):.1f}" x2="{at(0.0):.1f}" y1="0" y2="14" stroke="var(--muted)" stroke-dasharray="2 2"/>'
    return f'<svg class="interval" viewBox="0 0 100 14" aria-hidden="true">{zero}{bar}{point}</svg>'
