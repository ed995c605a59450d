"""One page on which optimizers descend landscapes of two parameters side by side."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lopt.analyze.descent import Descent, Scene, picture
from lopt.analyze.page import made_by
from lopt.checkpoint import write_text
from lopt.errors import InputError
from lopt.evaluate.report.page import application, source

CELLS = 128  # of a picture, a side
BANDS = 20  # of a picture, of equal height on the logarithmic scale
RANGE = 1e6  # from the highest to the lowest of them, at most
SPEEDS = {"slow": 5, "medium": 20, "fast": 60}  # steps a second


def watch_page(
    title: str, descents: Sequence[Descent], scenes: Mapping[str, Scene], facts: Mapping[str, Any] | None = None
) -> str:
    """One self-contained HTML page: a picture of each landscape, the paths on it and their heights, step by step.

    Args:
        title: of the page.
        descents: from `descend`, at least one for each scene.
        scenes: the landscapes by name, from `scenes_of`.
        facts: what it takes to make the page again.

    Raises:
        InputError: where there are no paths, or none on some scene.
    """
    if missing := [name for name in scenes if all(d.landscape != name for d in descents)]:
        raise InputError(f"no optimizer descends {missing[0]}; a page needs paths on each of its landscapes.")
    if not descents:
        raise InputError("descents is empty; a page needs at least one path.")
    names = list(dict.fromkeys(d.optimizer for d in descents))
    data = {
        "optimizers": names,
        "steps": descents[0].heights.shape[1] - 1,
        "landscapes": [
            _landscape(name, scene) | {"runs": [_run(d, names) for d in descents if d.landscape == name]}
            for name, scene in scenes.items()
        ],
    }
    options = "".join(f'<option value="{i}">{html.escape(_plain(name))}</option>' for i, name in enumerate(scenes))
    body = BODY.format(landscapes=options, speeds=_speeds(), last=data["steps"], again=made_by(facts or {}))
    sheets = [source("lopt.evaluate.report", "theme.css"), source("lopt.analyze", "watch.css")]
    scripts = [source("lopt.analyze", name) for name in ("watch_drawing.js", "watch.js")]
    return application(title, body, data, styles=sheets, scripts=scripts)


def write_watch(
    path: Path,
    title: str,
    descents: Sequence[Descent],
    scenes: Mapping[str, Scene],
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write `watch_page` by write-then-rename. Arguments as for it.

    Args:
        path: of the page; its folder is made where it is missing.
        title: of the page.
        descents: from `descend`.
        scenes: the landscapes by name.
        facts: what it takes to make the page again.

    Raises:
        InputError: for a folder in the place of the page; and as `watch_page`.
        OSError: where nothing can be written there.
    """
    prepare(path)
    write_text(path, watch_page(title, descents, scenes, facts))
    return path


def prepare(path: Path) -> None:
    """Make the folder of a page, so that what cannot be written is not computed first.

    Args:
        path: of the page.

    Raises:
        InputError: for a folder in its place.
        OSError: for a folder that cannot be made.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file of the page, as {path / 'watch.html'}.")
    path.parent.mkdir(parents=True, exist_ok=True)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _speeds() -> str:
    return "".join(
        f'<option value="{speed}"{" selected" if name == "medium" else ""}>{name}</option>'
        for name, speed in SPEEDS.items()
    )


def _encoded(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()


def _landscape(name: str, scene: Scene) -> dict[str, Any]:
    heights = picture(name, scene, CELLS)
    high = float(np.log10(np.nanmax(heights)))
    logs = np.log10(np.maximum(heights, 10**high / RANGE))
    low = float(logs.min())
    levels = np.round((logs - low) / max(high - low, 1e-9) * 65535)
    return {
        "name": _plain(name),
        "about": scene.about,
        "frame": scene.frame,
        "minima": scene.minima,
        "starts": scene.starts,
        "cells": CELLS,
        "bands": BANDS,
        "factor": 10 ** ((high - low) / BANDS),
        "levels": _encoded(levels, "<u2"),
    }


def _run(descent: Descent, names: Sequence[str]) -> dict[str, Any]:
    setting = ", ".join(f"{_plain(name)} {value:g}" for name, value in descent.setting.items())
    return {
        "optimizer": names.index(descent.optimizer),
        "setting": f"{setting}, best of {descent.tried}" if setting else "",
        "diverged": descent.diverged.tolist(),
        "points": _encoded(descent.points, "<f4"),
        "heights": _encoded(descent.heights, "<f4"),
    }


BODY = """<div class="controls">
<label>Landscape <select id="landscape">{landscapes}</select></label>
<label>Start <select id="start"></select></label>
<label>Speed <select id="speed">{speeds}</select></label>
<label><input type="checkbox" id="apart"> a picture each</label>
</div>
<p id="about"></p>
<div class="controls player" role="group" aria-label="Player">
<button id="first">Restart</button><button id="back" aria-label="One step back">− 1</button>
<button id="play">Play</button><button id="forward" aria-label="One step forward">+ 1</button>
<label class="track">Step <input type="range" id="step" min="0" max="{last}" value="{last}"></label>
<output id="now" for="step"></output>
</div>
<div class="stage">
<figure><div id="pictures"></div><figcaption id="key"></figcaption></figure>
<figure><canvas id="curves" role="img"></canvas>
<figcaption>Height above the least value, on a logarithmic scale, against the step. A cross ends a path that diverged.</figcaption></figure>
</div>
<div class="scroll" tabindex="0"><table class="plain"><thead><tr><th>optimizer</th><th>height at this step</th><th>remarks</th></tr></thead>
<tbody id="rows"></tbody></table></div>
<p class="small-print">A name hides and shows its path. A ring in the picture is a start; click it to choose it.
Keys: space plays and pauses, the arrows left and right step.
A baseline without a setting of its own has the best one of its grid on this landscape:
the least mean of the logarithm of the height, over all steps and starts. Other optimizers are as they were given.</p>
{again}"""

__all__ = ["prepare", "watch_page", "write_watch"]
