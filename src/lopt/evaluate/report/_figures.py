"""The plots of scores, as what the page's JavaScript hands to plotly: `o` says whose a trace is, and so how it looks."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lopt.evaluate.report._curves import rounded
from lopt.evaluate.scores.axes import along, extrapolation
from lopt.evaluate.scores.cells import Cell
from lopt.evaluate.scores.resampling import Estimate
from lopt.evaluate.scores.summary import Scores

FLOOR = 0.01  # speed-ups below are drawn there
TICKS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class Plot(NamedTuple):
    """A figure of the page."""

    id: str
    title: str
    caption: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int | None = None  # pixels; None for that of all


def profiles(scores: Scores, order: Mapping[str, int]) -> list[Plot]:
    """The performance profiles by steps and by wall-clock, where they are known."""
    found = []
    for id_, kind, values in (
        ("profile-steps", "steps", scores.steps_profile),
        ("profile-seconds", "seconds", scores.seconds_profile),
    ):
        if np.isnan(values).any():
            continue
        traces = [
            {
                "o": order[name],
                "x": rounded(scores.ratios),
                "y": rounded(row),
                "mode": "lines+markers",
                "marker": {"maxdisplayed": 7},  # enough to tell lines apart
                "line": {"shape": "hv"},
                "hovertemplate": "<b>%{fullData.name}</b><br>within %{x} × the fastest on %{y:.0%} of tasks<extra></extra>",
            }
            for name, row in zip(scores.optimizers, values, strict=True)
        ]
        layout = {
            "xaxis": {"title": {"text": f"{kind}, × those of the fastest"}},
            "yaxis": {"title": {"text": "fraction of tasks"}, "range": [-0.03, 1.03], "tickformat": ".0%"},
        }
        found.append(Plot(id_, f"By {kind} to target", "", traces, layout))
    return found


def speedups(scores: Scores, ranking: Sequence[str], order: Mapping[str, int]) -> Plot | None:
    """A dot for each task: the speed-up over tuned Adam."""
    table = scores.table
    names = [n for n in reversed(ranking) if any(not math.isnan(c.speedup) for c in table[n].values())]
    if not names:
        return None
    traces = []
    for y, name in enumerate(names):
        own = [cell for cell in table[name].values() if not math.isnan(cell.speedup)]
        at = [y + 0.5 * ((i * 0.618) % 1 - 0.5) for i in range(len(own))]  # apart, the same every time
        for saturated, marker in ((False, {}), (True, {"symbol": "triangle-right-open"})):
            some = [(cell, y) for cell, y in zip(own, at, strict=True) if cell.saturated is saturated]
            traces.append(
                {
                    "o": order[name],
                    "always": True,  # rows keep the optimizers apart
                    "x": rounded(max(cell.speedup, FLOOR) for cell, _ in some),
                    "y": rounded(y for _, y in some),
                    "mode": "markers",
                    "marker": {"size": 9, "opacity": 0.75, **marker},
                    "text": [
                        f"{html.escape(c.task, quote=False)}<br>{'at least ' if saturated else ''}{c.speedup:.3g} ×"
                        for c, _ in some
                    ],
                    "hovertemplate": "<b>%{fullData.name}</b><br>%{text}<extra></extra>",
                }
            )
        median = max(float(np.median([c.speedup for c in own])), FLOOR)
        traces.append(
            {
                "o": order[name],
                "always": True,
                "x": rounded([median, median]),
                "y": [y - 0.38, y + 0.38],
                "mode": "lines",
                "hoverinfo": "skip",
                "line": {"dash": "solid", "width": 3},
            }
        )
    layout = {
        "xaxis": {
            "title": {"text": "speed-up"},
            "type": "log",
            "tickvals": TICKS,
            "ticktext": [f"{x:g}" for x in TICKS],
        },
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": [html.escape(_short(n), quote=False) for n in names],
            "range": [-0.6, len(names) - 0.4],
            "showgrid": False,
            "zeroline": False,
        },
        "shapes": [{"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot"}}],
    }
    caption = f"""A dot is a task, the bar the median. 1 is as fast as Adam with its best learning rate.
A triangle pointing right is censored: at least so much. Speed-ups below {FLOOR} are drawn at {FLOOR}."""
    return Plot("speedups", "Speed-up on each task", caption, traces, layout, 110 + 34 * len(names))


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def generalisation(scores: Scores, order: Mapping[str, int]) -> Plot | None:
    """Interquartile means of the normalised losses."""
    known = [
        s for s in scores.summaries if math.isfinite(s.normalized.value) and math.isfinite(s.normalized_test.value)
    ]
    if not known:
        return None
    traces = [
        {
            "o": order[s.optimizer],
            "x": rounded([s.normalized.value]),
            "y": rounded([s.normalized_test.value]),
            "error_x": bars([s.normalized]),
            "error_y": bars([s.normalized_test]),
            "mode": "markers",
            "marker": {"size": 11},
            "hovertemplate": "<b>%{fullData.name}</b><br>train %{x:.3g}, test %{y:.3g}<extra></extra>",
        }
        for s in known
    ]
    shapes = [{"type": "line", "x0": -10, "y0": -10, "x1": 10, "y1": 10, "line": {"dash": "dot"}}]
    layout = {
        "xaxis": {"title": {"text": "normalised final train loss"}, "range": _range([x for s in known for x in s.normalized])},
        "yaxis": {"title": {"text": "normalised final test loss"}, "range": _range([x for s in known for x in s.normalized_test])},
        "shapes": shapes,
    }  # fmt: skip
    left_out = sorted(set(scores.optimizers) - {s.optimizer for s in known})
    rest = f" Not drawn, for their means are not finite: {html.escape(', '.join(left_out))}." if left_out else ""
    caption = f"""Interquartile means with 95 % intervals; 0 is the best baseline of each task, for each loss its own.
The test loss is that of the setting with the lowest validation loss, the train loss that of the lowest train loss.
Above the dotted line: generalises worse than it trains.{rest}"""
    return Plot("generalisation", "Test beside train", caption, traces, layout)


def _range(values: Sequence[float]) -> list[float]:
    """Around the values, but not further up than no progress at all."""
    finite = [x for x in values if math.isfinite(x)]
    low, high = min([0.0, *finite]), min(max([0.05, *finite]), 1.3)
    pad = 0.08 * (high - low)
    return [low - pad, high + pad]


def horizons(scores: Scores, trained: Mapping[str, int], order: Mapping[str, int]) -> Plot | None:
    """Learned optimizers beyond the horizon of their meta-training.

    Args:
        scores: of runs to several horizons.
        trained: the longest horizon that each optimizer saw in meta-training.
        order: of the optimizers.
    """
    traces = []
    for name, horizon in trained.items():
        points = [p for p in extrapolation(_several(scores.cells, name), name, horizon) if p.tasks]
        if len(points) > 1:
            traces.append(
                {
                    "o": order[name],
                    "x": rounded(p.multiple for p in points),
                    "y": rounded(p.normalized.value for p in points),
                    "error_y": bars([p.normalized for p in points]),
                    "mode": "lines+markers",
                    "customdata": [[len(p.tasks), p.diverged] for p in points],
                    "hovertemplate": "<b>%{fullData.name}</b><br>%{x} × its horizon: %{y:.3g}<br>%{customdata[0]} tasks, "
                    "%{customdata[1]:.0%} diverged<extra></extra>",
                }
            )
    if not traces:
        return None
    at = sorted({x for trace in traces for x in trace["x"]})
    layout = {
        "xaxis": {
            "title": {"text": "× the longest horizon of meta-training"},
            "type": "log",
            "tickvals": at,
            "ticktext": [f"{x:g}" for x in at],
        },
        "yaxis": {"title": {"text": "normalised final train loss"}},
    }
    caption = (
        "Interquartile means with 95 % intervals. The baselines, 0, were tuned anew for each horizon; 1 is no progress."
    )
    return Plot("horizons", "Beyond the horizon of meta-training", caption, traces, layout)


def _several(cells: Sequence[Cell], optimizer: str) -> list[Cell]:
    """The cells of tasks that an optimizer ran to as many horizons as any: so every point is of the same tasks."""
    counts = Counter(cell.task for cell in cells if cell.optimizer == optimizer)
    return [cell for cell in cells if counts[cell.task] == max(counts.values(), default=0)]


def axes(scores: Scores, given: Mapping[str, Mapping[float | str, str]], order: Mapping[str, int]) -> list[Plot]:
    """Every optimizer along every axis: width, depth, ...

    Args:
        scores: of the tasks of the axes.
        given: by name, the task at each value.
        order: of the optimizers.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for curve in along(scores, given):
        means = [e.value for e in curve.normalized]
        found.setdefault(curve.axis, []).append(
            {
                "o": order[curve.optimizer],
                "x": [html.escape(str(v), quote=False) for v in curve.values],
                "y": rounded(means),
                "error_y": bars(curve.normalized),
                "mode": "lines+markers",
                "text": [html.escape(task, quote=False) for task in curve.tasks],
                "hovertemplate": "<b>%{fullData.name}</b><br>%{text}<br>%{y:.3g}<extra></extra>",
            }
        )
    return [
        Plot(
            f"axis-{i}",
            axis.capitalize(),
            "",
            traces,
            {
                "xaxis": {"title": {"text": html.escape(axis, quote=False)}, "type": "category"},
                "yaxis": {
                    "title": {"text": "normalised final train loss"},
                    "range": _range([x for t in traces for x in _reach(t)]),
                },
            },
        )
        for i, (axis, traces) in enumerate(found.items())
    ]


def _reach(trace: Mapping[str, Any]) -> list[float]:
    """The ends of the error bars."""
    up, down = trace["error_y"]["array"], trace["error_y"]["arrayminus"]
    return [end for y, u, d in zip(trace["y"], up, down, strict=True) if y is not None for end in (y - d, y + u)]


def bars(found: Sequence[Estimate]) -> dict[str, Any]:
    """Error bars of plotly; none where a bound is not known."""
    up = [max(e.high - e.value, 0.0) if math.isfinite(e.high) and math.isfinite(e.value) else 0.0 for e in found]
    down = [max(e.value - e.low, 0.0) if math.isfinite(e.low) and math.isfinite(e.value) else 0.0 for e in found]
    return {"type": "data", "symmetric": False, "array": rounded(up), "arrayminus": rounded(down)}
