"""The figure and the self-contained page."""

from __future__ import annotations

import base64
import html
import io
import math
import re
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lopt.evaluate import Comparison, TrainRecord, Tuned, mean_interval
from lopt.evaluate.compare import COLUMNS, TUNED, Row, row_text, steps_to
from lopt.evaluate.report import comparison_page, figure, verdict
from lopt.evaluate.timing import spread

STEPS = [0, 50, 100]
PNG = b"\x89PNG\r\n\x1a\n"


def record(train_loss: list[list[float]]) -> TrainRecord:
    curve = np.array(train_loss)
    return TrainRecord(
        steps=np.array(STEPS),
        train_loss=curve,
        valid_loss=curve,
        test_loss=1.1 * curve,
        metrics={"test_accuracy": np.exp(-curve)},
        minibatch_loss=np.zeros((len(curve), STEPS[-1])),
        params=np.zeros(len(curve)),
        seconds=np.array([0.05, 0.06]),
        compile_seconds=1.0,
    )


def comparison(
    task: str = "digits", curves: dict[str, list[list[float]]] | None = None, target: float = 0.5
) -> Comparison:
    """Two seeds; the learned optimizer reaches the target at step 50, or 100."""
    curves = curves or {"learned": [[2.0, 0.4, 0.1], [2.1, 0.9, 0.2]]}
    records = {name: record(curve) for name, curve in curves.items()} | {
        TUNED: record([[2.0, 1.0, 0.4], [2.1, 1.1, 0.6]])
    }
    rows = [
        Row(
            name,
            mean_interval(found.train_loss[:, -1]),
            mean_interval(found.test_loss[:, -1]),
            mean_interval(found.metrics["test_accuracy"][:, -1]),
            steps_to(target, found),
            spread([0.5, 0.6]),
            spread([1.0, 1.1]),
            tuple(0.5 * s for s in steps_to(target, found)),
        )
        for name, found in records.items()
    ]
    adam = Tuned("adam", [], {"learning_rate": 0.1}, {"learning_rate": 0.1})
    return Comparison(task, STEPS[-1], 2, target, adam, records, rows)


class Cells(HTMLParser):
    """The texts of a page's table cells, row by row, and every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.open = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.rows[-1][-1] += data


# --- The page. ---


def test_the_page_holds_every_row() -> None:
    comparisons = [comparison("home"), comparison("away", {"a": [[1.0, 0.9, 0.8]] * 2, "b": [[1.0, 0.2, 0.1]] * 2})]
    found = Cells(comparison_page("A title", comparisons, [], PNG)).rows
    assert found == [list(cells) for c in comparisons for cells in (COLUMNS, *map(row_text, c.rows))]
    assert len(found) == 7


def test_the_page_is_self_contained() -> None:
    png = figure([comparison()])
    text = comparison_page("A title", [comparison()], ["a note"], png)
    written = text.replace(base64.b64encode(png).decode(), "")
    assert len(written) < 5_000
    assert not re.search(r"https?:|//|@import|<script|<iframe|<link[^>]*stylesheet|url\(", written, re.IGNORECASE)
    for tag, attributes in Cells(text).tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    (image,) = (a["src"] for tag, a in Cells(text).tags if tag == "img")
    assert image is not None
    assert base64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True) == png


def test_the_page_escapes_what_it_is_given() -> None:
    evil = "<script>alert('x')</script> & \"quotes\""
    text = comparison_page(evil, [comparison(evil, {evil: [[1.0, 0.4, 0.1]] * 2})], [evil], PNG)
    assert "<script" not in text
    assert text.count(html.escape(evil)) >= 5, "title, heading, task, optimizer, note"
    assert Cells(text).rows[1][0] == evil


def test_the_page_says_what_was_noted() -> None:
    text = comparison_page("A title", [comparison()], ["Fashion-MNIST was left out.", "Reproduce: lopt demo"], PNG)
    assert "Fashion-MNIST was left out." in text
    assert "Reproduce: lopt demo" in text
    assert "<title>A title</title>" in text


def test_the_verdict_names_the_winner_first() -> None:
    found = verdict(comparison(curves={"a": [[1.0, 0.2, 0.1]] * 2, "b": [[1.0, 0.9, 0.8]] * 2}))
    assert found.index("a ends lowest") < found.index("0.100") < found.index("b at 0.800")
    assert TUNED in found
    lost = verdict(comparison(curves={"lost": [[2.0, math.inf, math.nan]] * 2}))
    assert lost.index(TUNED) < lost.index("lost at diverged")


def test_a_diverged_optimizer_is_shown_as_such() -> None:
    found = comparison(curves={"lost": [[2.0, math.inf, math.nan]] * 2})
    row = Cells(comparison_page("A title", [found], [], figure([found]))).rows[1]
    assert row[:3] == ["lost", "diverged", "diverged"]
    assert "0 of 2 seeds" in row


# --- The figure. ---


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return imread(io.BytesIO(png))


@pytest.mark.parametrize(("panels", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 3)), (7, (3, 3))])
def test_the_figure_is_a_png_with_a_panel_for_each(panels: int, shape: tuple[int, int]) -> None:
    png = figure([comparison(f"task {i}") for i in range(panels)])
    assert png.startswith(PNG)
    assert png.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", png[16:24])
    assert (height, width) == (round(3.5 * 130) * shape[0], 598 * shape[1])


def test_every_optimizer_is_drawn() -> None:
    """Also where there are more of them than colours."""
    from matplotlib.figure import Figure

    drawn: list[str] = []
    save = Figure.savefig

    def spy(self: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.extend(line.get_label() for axes in self.axes for line in axes.get_lines())
        save(self, *args, **kwargs)

    names = [f"optimizer {i}" for i in range(9)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", spy)
        figure([comparison(curves={name: [[1.0, 0.5, 0.2]] * 2 for name in names})])
    for name in (*names, TUNED):
        assert f"{name}, train" in drawn
        assert f"{name}, test" in drawn


def test_different_curves_give_different_figures() -> None:
    one, two = (pixels(figure([comparison(curves={"a": [[2.0, x, 0.1]] * 2})])) for x in (0.2, 1.5))
    assert one.shape == two.shape
    assert (one != two).any()
    assert len(np.unique(one.reshape(-1, one.shape[-1]), axis=0)) > 10, "something is drawn"


@pytest.mark.parametrize(
    "curve", [[2.0, math.inf, math.nan], [math.nan] * 3, [0.0, 0.0, 0.0], [1e-30, 1e30, 1.0], [-1.0, -2.0, -3.0]]
)
def test_strange_curves_are_drawn_without_a_warning(curve: list[float]) -> None:
    assert figure([comparison(curves={"strange": [curve, curve]})]).startswith(PNG)


def test_the_callers_backend_is_left_alone() -> None:
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import matplotlib
matplotlib.use("svg")
from test_report import comparison, figure
figure([comparison()])
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent)], check=True)


# --- In a browser. ---


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="the chromium binary is not installed")
def test_the_page_in_chromium(tmp_path: Path) -> None:
    comparisons = [comparison("home"), comparison("away <b>& co</b>")]
    text = comparison_page("A title", comparisons, ["a note"], figure(comparisons))
    path, shot = tmp_path / "report.html", tmp_path / "shot.png"
    path.write_text(text)
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        "--v=0",
    ]

    def chromium(name: str, *arguments: str, url: str = path.as_uri()) -> subprocess.CompletedProcess[str]:
        profile = f"--user-data-dir={tmp_path / name}"
        command = ["chromium", *quiet, profile, *arguments, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)

    def console(done: subprocess.CompletedProcess[str]) -> list[str]:
        return [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    # The log does show errors of a page that has some.
    (tmp_path / "bad.html").write_text("<!doctype html><script>nothing.here</script>")
    assert console(chromium("control", "--dump-dom", url=(tmp_path / "bad.html").as_uri()))

    dumped = chromium("dom", "--dump-dom")
    assert not console(dumped)
    dom = Cells(dumped.stdout)
    assert dom.rows == Cells(text).rows
    assert [row[0] for row in dom.rows] == 2 * [COLUMNS[0], "learned", TUNED]
    assert "<h2>away &lt;b&gt;&amp; co&lt;/b&gt;</h2>" in dumped.stdout
    assert "<h1>A title</h1>" in dumped.stdout

    drawn = chromium("shot", "--window-size=1200,1000", f"--screenshot={shot}")
    assert not console(drawn)
    seen = pixels(shot.read_bytes())
    assert seen.shape[:2] == (1000, 1200)
    # The curves' colours: the picture is decoded and shown, not an empty frame.
    colors = {tuple(c) for c in np.unique(np.round(255 * seen[..., :3]).astype(int).reshape(-1, 3), axis=0).tolist()}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colors
