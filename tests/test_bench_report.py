"""The interactive page of a benchmark."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from lopt.errors import InputError
from lopt.evaluate.archive import Run, Timing
from lopt.evaluate.report import Provenance, benchmark_page
from lopt.evaluate.report._curves import SPLITS, curves, failures, looks, rounded

BASELINES = (
    "adam",
    "nadamw",
    "adamw",
    "lion",
    "muon",
    "sgd",
    "momentum",
    "rmsprop",
    "adafactor",
    "prodigy",
    "schedule_free",
)


def synthetic(
    optimizers: tuple[str, ...] = ("star", "adam", "sgd"),
    tasks: int = 3,
    seeds: int = 3,
    evals: int = 20,
    horizons: tuple[int, ...] = (200,),
    learned: int = 1,
) -> tuple[list[Run], list[Timing]]:
    """Curves that fall, each optimizer at its own speed on each task; the first ones are learned."""
    runs, timings = [], []
    for t in range(tasks):
        for o, name in enumerate(optimizers):
            for horizon in horizons:
                speed = np.random.default_rng((t, o)).uniform(1, 6)
                for seed in range(seeds):
                    rng = np.random.default_rng((t, o, seed))
                    steps = np.unique(np.linspace(0, horizon, evals + 1).astype(int))
                    train = (
                        (2 + 0.1 * rng.normal())
                        * (0.03 + np.exp(-speed * steps / horizons[0]))
                        * np.exp(0.05 * rng.normal(size=len(steps)))
                    )
                    runs.append(
                        Run(
                            f"digits_mlp{t}",
                            name,
                            {} if o < learned else {"learning_rate": 10 ** -(1 + o % 4), "weight_decay": 0.1 * (o % 2)},
                            f"{o:064x}" if o < learned else None,
                            horizon,
                            seed,
                            steps,
                            train,
                            1.1 * train,
                            1.2 * train + 0.05,
                            {"test_accuracy": np.exp(-train)},
                        )
                    )
            for turn in range(3):
                timings.append(Timing(f"digits_mlp{t}", name, horizons[0], turn, 1e-4 * (1 + o) * (1 + 0.05 * turn)))
    return runs, timings


def diverged(run: Run, at: int = 3) -> Run:
    """The same run, infinite from an evaluation on, after an explosion."""
    train = run.train_loss.copy()
    train[at - 1], train[at], train[at + 1 :] = 1e12, math.inf, math.nan
    return run._replace(train_loss=train, valid_loss=train, test_loss=train)


def text_of(runs: list[Run], timings: list[Timing], title: str = "A benchmark") -> str:
    provenance = Provenance(["lopt bench smoke"], {"cpu": "a processor", "jax": "0"}, {"star": {"seed": 0}})
    return benchmark_page(title, runs, timings, provenance)


def carried(text: str) -> dict[str, Any]:
    """What the page hands to its JavaScript."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# --- What is made of runs. ---


def test_curves_are_means_and_ranges_over_seeds() -> None:
    runs, timings = synthetic(tasks=1, seeds=2)
    curve = curves(runs, timings)["digits_mlp0", 200][0]
    for split in SPLITS:
        values = np.stack([getattr(run, f"{split}_loss") for run in runs[:2]])
        mean, low, high = (np.array(v) for v in curve.bands[split])
        np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-3)
        np.testing.assert_allclose(low, values.min(axis=0), rtol=1e-3)
        np.testing.assert_allclose(high, values.max(axis=0), rtol=1e-3)
    assert curve.seconds == pytest.approx(1.05e-4), "the median of the turns"
    assert curves(runs, [])["digits_mlp0", 200][0].seconds is None


def test_a_mean_ends_where_a_seed_is_not_finite() -> None:
    runs, _ = synthetic(("adam",), tasks=1, seeds=2, learned=0)
    mean, low, high = curves([diverged(runs[0]), runs[1]], [])["digits_mlp0", 200][0].bands["train"]
    assert [v is None for v in mean] == [False] * 3 + [True] * 18
    assert low[3:] == high[3:] == rounded(runs[1].train_loss[3:]), "the range is that of the other seed"
    assert curves([diverged(runs[0])], [])["digits_mlp0", 200][0].bands["train"][1][3:] == [None] * 18


@pytest.mark.parametrize("count", [1, 7, 8, 20, 40])
def test_no_two_optimizers_look_alike_without_colour_or_by_it(count: int) -> None:
    found = looks(["adam", *(f"o{i}" for i in range(count - 1))], ["o3"])
    assert len({(k.color, k.shape) for k in found}) == count
    assert count > 25 or len({(k.color, k.dash) for k in found}) == count
    assert count > 16 or len({k.shape for k in found}) == count, "told apart by shape alone"
    assert sum(k.shown for k in found) == min(count, 8)
    assert all(k.shown for k in found if k.name in ("adam", "o3"))


def test_failures_are_listed() -> None:
    runs, _ = synthetic(tasks=2, seeds=3)
    assert failures(runs) == []
    runs[1] = diverged(runs[1])
    runs[3] = runs[3]._replace(train_loss=runs[3].train_loss[::-1].copy())
    lacking = [run for run in runs if not (run.optimizer == "sgd" and run.task == "digits_mlp1")]
    assert [(f.optimizer, *f.problem, f.what) for f in failures(lacking)] == [
        ("star", "digits_mlp0", 200, "diverged in 1 of 3 seeds, first seen at step 30"),
        ("adam", "digits_mlp0", 200, "ended above its initial train loss in 1 of 3 seeds"),
        ("sgd", "digits_mlp1", 200, "was not run"),
    ]


# --- The page as text. ---


def test_the_page_carries_every_curve() -> None:
    runs, timings = synthetic()
    data = carried(text_of([diverged(runs[0]), *runs[1:]], timings))
    names = [look["name"] for look in data["looks"]]
    assert sorted(names) == ["adam", "sgd", "star"]
    assert [sorted(names[c["o"]] for c in problem["curves"]) for problem in data["problems"]] == [sorted(names)] * 3


def test_names_are_text() -> None:
    evil = "</script><script>window.hacked=1</script><img src=x onerror=hacked=1>\"'&amp; %{x}"
    runs, timings = synthetic((evil, "adam"), tasks=1)
    runs = [run._replace(task=evil, config={evil: evil}, weights=None) for run in runs]
    timings = [timing._replace(task=evil) for timing in timings]
    provenance = Provenance([evil], {evil: evil}, {evil: {evil: evil}})
    text = benchmark_page(evil, runs, timings, provenance)
    assert "<script>window" not in text
    assert "<img" not in text.replace(get_plotlyjs(), "")
    assert text.count(html.escape(evil)) >= 10
    assert carried(text)["looks"][0]["name"] == evil


def test_no_runs_and_no_plotly_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="runs is empty"):
        benchmark_page("A benchmark", [], [], Provenance())
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"lopt\[report\]"):
        text_of(*synthetic(tasks=1))


# --- In a browser. ---


class Tab(NamedTuple):
    """A page in Chromium, what it complained of and what it asked for."""

    page: Any
    complaints: list[str]
    requests: list[str]

    def visible(self) -> int:
        """How many curves of means are drawn."""
        return self.page.locator("#curves .scatterlayer path.js-line").count()

    def style(self, selector: str, name: str) -> str:
        return self.page.evaluate("([s, n]) => getComputedStyle(document.querySelector(s))[n]", [selector, name])

    def width(self) -> list[int]:
        """Of what can be scrolled, and of the window."""
        return self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if shutil.which("chromium") is None:
        pytest.skip("the chromium binary is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    contexts = []

    def open_page(text: str, width: int = 1200, **context: Any) -> Tab:
        path = tmp_path / "report.html"
        path.write_text(text)
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **context))
        tab = Tab(contexts[-1].new_page(), [], [])
        tab.page.on("console", lambda message: tab.complaints.append(message.text))
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()


def test_the_page_works(opened: Callable[..., Tab]) -> None:
    runs, timings = synthetic()
    tab = opened(text_of([diverged(runs[0]), *runs[1:]], timings))
    page = tab.page
    assert tab.visible() == 3

    # The legend hides an optimizer and shows it again, in the curves and in the small pictures.
    star = page.locator(".key", has_text="star")
    small = page.locator(f".small polyline.o{star.get_attribute('data-o')}").first
    assert small.is_visible()
    star.click()
    assert (tab.visible(), star.get_attribute("aria-pressed"), small.is_visible()) == (2, "false", False)
    star.click()
    assert (tab.visible(), star.get_attribute("aria-pressed"), small.is_visible()) == (3, "true", True)
    star.dblclick()
    assert tab.visible() == 1, "it alone"
    page.locator("#all").click()
    assert tab.visible() == 3

    # Split, axis, task.
    def drawn() -> tuple[list[float], list[float]]:
        """The reference's curve."""
        return tuple(page.evaluate(f"(() => {{ const t = byId('curves').data.find({ADAM}); return [t.x, t.y]; }})()"))

    def title(axis: str) -> str:
        return page.locator(f"#curves .{axis}title").text_content()

    adam = curves(runs, timings)["digits_mlp0", 200][1]
    assert drawn() == (adam.steps, adam.bands["train"][0])
    page.locator("#split").select_option("test")
    assert drawn() == (adam.steps, adam.bands["test"][0])
    assert title("y") == "test loss"
    page.locator("#clock").select_option("seconds")
    assert adam.seconds is not None
    np.testing.assert_allclose(drawn()[0], np.array(adam.steps) * adam.seconds)
    assert title("x") == "seconds of training"
    assert page.evaluate("byId('curves').layout.yaxis.type") == "log"
    page.locator("#log-y").uncheck()
    page.locator("#log-x").check()
    assert page.evaluate("['x', 'y'].map(a => byId('curves').layout[a + 'axis'].type)") == ["log", "linear"]
    page.locator(".small a").nth(2).click()
    assert page.locator("#problem").input_value() == "2"
    assert drawn()[1] == curves(runs, timings)["digits_mlp2", 200][1].bands["test"][0]

    # Hovering says whose the point is.
    page.locator("#log-x").uncheck()
    page.locator("#curves").scroll_into_view_if_needed()
    box = page.locator("#curves .scatterlayer .trace:last-child .point").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#curves .hoverlayer .hovertext").first.wait_for()
    assert re.match(r"(star|adam|sgd)step 200.*test loss", page.locator("#curves .hovertext").first.text_content())

    assert tab.complaints == []
    assert tab.requests == [page.url.partition("#")[0]], "nothing but the page itself"


ADAM = "t => t.mode === 'lines+markers' && data.looks[t.o].name === 'adam'"


def test_the_page_on_a_phone(opened: Callable[..., Tab]) -> None:
    names = ("a_learned_optimizer_with_quite_a_long_name", *BASELINES)
    tab = opened(text_of(*synthetic(names, tasks=6)), 375, is_mobile=True, has_touch=True)
    assert tab.width() == [375, 375]
    for details in tab.page.locator("summary").all():
        details.tap()
    assert tab.width() == [375, 375]
    assert tab.visible() == 8
    tab.page.locator("#all").tap()
    assert tab.visible() == 12
    assert tab.page.evaluate("byId('curves').layout.dragmode") is False, "a finger scrolls the page"
    assert tab.complaints == []


PLOT_HAS_THE_TEXT_COLOUR = """() => {
    const fill = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
    return fill("#curves .xtitle", "fill") === fill("body", "color");
}"""


def test_the_page_follows_the_colour_scheme(opened: Callable[..., Tab]) -> None:
    tab = opened(text_of(*synthetic()), color_scheme="light")

    def colours() -> tuple[str, ...]:
        tab.page.wait_for_function(PLOT_HAS_THE_TEXT_COLOUR)
        lines = tab.page.evaluate("[...document.querySelectorAll('#curves path.js-line')].map(p => p.style.stroke)")
        title = tab.style("#curves .xtitle", "fill")
        return (tab.style("html", "backgroundColor"), tab.style("body", "color"), title, *lines)

    light = colours()
    tab.page.emulate_media(color_scheme="dark")
    dark = colours()
    assert len(light) == len(dark) == 6
    assert all(a != b for a, b in zip(light, dark, strict=True)), "page, text, plot and every curve"
    tab.page.emulate_media(color_scheme="light")
    assert colours() == light
    assert tab.complaints == []


def test_hostile_names_do_nothing_in_a_browser(opened: Callable[..., Tab]) -> None:
    evil = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1"><b>bold</b>'
    runs, timings = synthetic((evil, "adam"), tasks=1)
    runs = [run._replace(task=evil, config={evil: 1}) for run in runs]
    tab = opened(text_of(runs, timings, title=evil))
    assert tab.page.locator("h1").text_content() == evil
    assert tab.page.locator(".key").first.text_content() == evil
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("img, b > b").count() == 0
    assert tab.complaints == []
    assert len(tab.requests) == 1
