"""Paths on landscapes are those of the rules, what cannot be shown is refused, and the page that plays them works."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from lopt.analyze import LANDSCAPES, Descent, Scene, descend, scenes_of, watch_page, write_watch
from lopt.analyze.descent import picture
from lopt.errors import InputError
from lopt.optimizers import SGD

KEY = jax.random.key(0)
SLOW = {"sgd": SGD(learning_rate=0.01)}


def heights(descents: list[Descent], landscape: str) -> np.ndarray:
    (found,) = (d.heights for d in descents if d.landscape == landscape)
    return found


# --- The paths. ---


def test_gradient_descent_on_a_quadratic_is_its_formula() -> None:
    (found,) = descend({"sgd": SGD(learning_rate=0.05)}, ["booth"], steps=12, key=KEY)
    hessian, minimum = np.array([[10.0, 8.0], [8.0, 10.0]]), np.array([1.0, 3.0])
    step = np.eye(2) - 0.05 * hessian
    for path, start in zip(found.points, LANDSCAPES["booth"].starts, strict=True):
        expected = [minimum + np.linalg.matrix_power(step, t) @ (start - minimum) for t in range(13)]
        np.testing.assert_allclose(path, expected, rtol=1e-4, atol=1e-4)
    away = found.points - minimum
    np.testing.assert_allclose(found.heights, 0.5 * np.einsum("sti,ij,stj->st", away, hessian, away), rtol=1e-3)
    assert (found.diverged == -1).all()


def test_a_path_that_diverges_says_when_and_spoils_no_other() -> None:
    both = descend({"sgd": SGD(learning_rate=0.05)}, ["rosenbrock", "booth"], steps=20, key=KEY)
    assert (both[0].diverged > 0).all()
    for lost, path in zip(both[0].diverged, both[0].heights, strict=True):
        assert np.isfinite(path[:lost]).all()
        assert not np.isfinite(path[lost])
    alone = descend({"sgd": SGD(learning_rate=0.05)}, ["booth"], steps=20, key=KEY)
    np.testing.assert_allclose(both[1].points, alone[0].points, rtol=1e-6)


def test_a_baseline_has_the_best_setting_of_its_grid_on_each_landscape() -> None:
    found = descend(["momentum"], ["bowl", "branin"], steps=30, key=KEY)
    assert found[0].setting != found[1].setting
    for descent in found:
        assert descent.tried == 15
        for factor in (0.3, 3.0):
            rate = descent.setting["learning_rate"] * factor
            other = descend({"it": optax.sgd(rate, momentum=0.9)}, [descent.landscape], steps=30, key=KEY)[0].heights
            other = np.nan_to_num(other, nan=np.inf, posinf=np.inf)
            assert np.log(other + 1e-6).mean() > np.log(descent.heights + 1e-6).mean()


def test_noise_is_the_same_for_all_optimizers() -> None:
    a, b = descend({"a": optax.sgd(0.01), **SLOW}, ["noisy_bowl"], steps=10, key=KEY)
    np.testing.assert_allclose(a.points, b.points, rtol=1e-5, atol=1e-6)
    (other,) = descend(SLOW, ["noisy_bowl"], steps=10, key=jax.random.key(1))
    assert np.abs(other.points[:, 1:] - b.points[:, 1:]).max() > 1e-3


def test_a_schedule_free_rule_is_shown_where_it_is_evaluated() -> None:
    tx = optax.contrib.schedule_free_sgd(0.05)
    (found,) = descend({"it": tx}, ["booth"], steps=5, key=KEY)
    params = np.asarray(LANDSCAPES["booth"].starts[0], np.float32)
    state = tx.init(params)
    for _ in range(5):
        x, y = params
        gradient = np.array([2 * (x + 2 * y - 7) + 4 * (2 * x + y - 5), 4 * (x + 2 * y - 7) + 2 * (2 * x + y - 5)])
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(gradient.astype(np.float32), state, params)
            params = np.asarray(optax.apply_updates(params, updates))
    expected = optax.contrib.schedule_free_eval_params(state, params)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(found.points[0, -1], np.asarray(expected), rtol=1e-4)
    assert np.abs(np.asarray(expected) - params).max() > 0.01


@pytest.mark.parametrize("name", LANDSCAPES)
def test_every_landscape_is_least_at_its_minima_and_starts_above(name: str) -> None:
    scene = LANDSCAPES[name]
    scenes_of([name])  # all starts are in the picture
    seen = picture(name, scene, 40)
    assert seen.min() >= -1e-5
    (found,) = descend(SLOW, {name: scene._replace(starts=scene.minima)}, steps=1, key=KEY)
    np.testing.assert_allclose(found.heights[:, 0], 0.0, atol=2e-5)
    (found,) = descend(SLOW, [name], steps=1, key=KEY)
    assert (found.heights[:, 0] > seen.min() + 1.0).all()


def test_a_picture_has_the_lowest_y_first() -> None:
    seen = picture("booth", LANDSCAPES["booth"], 21)
    np.testing.assert_allclose(seen[0, -1], (10.0 - 20.0 - 7.0) ** 2 + (20.0 - 10.0 - 5.0) ** 2, rtol=1e-5)


# --- What is refused. ---

REFUSED: list[tuple[Any, Any, dict[str, Any], str]] = [
    (SLOW, ["rosenbrok"], {}, "no landscape named 'rosenbrok'; did you mean rosenbrock"),
    (SLOW, [], {}, "no landscapes were named; there are bowl"),
    ([], ["booth"], {}, "no optimizers were named"),
    (["general-11"], ["booth"], {}, "'general-11'; did you mean general-1"),
    (SLOW, ["booth"], {"steps": 0}, "steps is 0; it must be at least 1"),
    (SLOW, ["booth"], {"starts": {"both": [[0, 0]]}}, "no landscape named 'both'; did you mean booth"),
    (SLOW, ["booth"], {"starts": {"booth": [0, 0]}}, r"starts of booth are \[0, 0\]; they must be points"),
    (SLOW, ["booth"], {"starts": {"booth": []}}, "they must be points"),
    (SLOW, ["booth"], {"starts": {"booth": "near"}}, "they must be points"),
    (SLOW, ["booth"], {"starts": {"booth": [[0, 11]]}}, r"start \[0, 11\] is outside the picture of booth"),
    (SLOW, ["booth"], {"starts": {"booth": [[float("nan"), 0]]}}, "outside the picture of booth"),
    (SLOW, {"it": Scene('quadratic{"dim":3}', "", (0, 1, 0, 1), ((0, 0),))}, {}, "has not two parameters"),
    (
        SLOW,
        {"it": Scene('bowl{"wrappers":[["delayed_gradients",{"steps":2}]]}', "", (0, 1, 0, 1), ((0, 0),))},
        {},
        "remembers earlier gradients",
    ),
]


@pytest.mark.parametrize(("optimizers", "landscapes", "fields", "message"), REFUSED)
def test_bad_input(optimizers: Any, landscapes: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        descend(optimizers, landscapes, key=KEY, **fields)
    assert "\n" not in str(caught.value)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    import lopt

    paths = [str(lopt.save(tmp_path / folder / "it.safetensors", SLOW["sgd"])) for folder in "ab"]
    with pytest.raises(InputError, match="would both be reported as it; rename a file"):
        descend(paths, ["booth"], steps=1, key=KEY)


def test_a_page_without_paths_is_refused(tmp_path: Path) -> None:
    scenes = scenes_of(["booth"])
    with pytest.raises(InputError, match="no optimizer descends booth"):
        watch_page("Nothing", [], scenes)
    with pytest.raises(InputError, match="is a folder; name the file"):
        write_watch(tmp_path, "It", descend(SLOW, scenes, steps=1, key=KEY), scenes)


# --- The page. ---


def written(folder: Path) -> Path:
    """Two rules, one of which diverges, on two landscapes."""
    scenes = scenes_of(["booth", "branin"], {"booth": [[-8, 2], [6, -8]]})
    rules = {"plain <b>descent</b>": SGD(learning_rate=0.05), "wild": SGD(learning_rate=2.0)}
    found = descend(rules, scenes, steps=12, key=KEY)
    return write_watch(
        folder / "below" / "watch.html", "Two <i>rules</i>", found, scenes, {"command": "none & nothing"}
    )


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    text = written(tmp_path).read_text()
    assert "default-src 'none'" in text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    rest = text.replace(data, "")
    assert not re.search(r"https?:|//[a-z]|@import|<iframe|<link[^>]*stylesheet|url\(|fetch\(|XMLHttp", rest)
    assert "<i>rules" not in text
    assert "<b>descent" not in text
    assert json.loads(data)["optimizers"] == ["plain <b>descent</b>", "wild"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="the chromium binary is not installed")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_in_chromium(tmp_path: Path, width: int, scheme: Any) -> None:
    from playwright.sync_api import sync_playwright

    file = written(tmp_path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        complaints, requests = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())

        def cells(row: int) -> list[str]:
            return page.locator("#rows tr").nth(row).locator("th, td").all_inner_texts()

        def pixels(selector: str) -> list[int]:
            """How often each colour of the two rules is on a canvas."""
            return page.evaluate(
                """selector => ["o0", "o1"].map(name => {
                  const wanted = channels(css(name)), canvas = document.querySelector(selector);
                  const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
                  pen.drawImage(canvas, 0, 0);
                  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
                  let count = 0;
                  for (let i = 0; i < data.length; i += 4) count += wanted.every((v, k) => data[i + k] === v);
                  return count;
                })""",
                selector,
            )

        def fits() -> bool:
            return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

        assert page.locator("h1").inner_text() == "Two <i>rules</i>"
        assert page.locator("#landscape option").all_inner_texts() == ["booth", "branin"]
        assert page.locator("#now").inner_text() == "step 12 of 12"
        assert cells(0)[0] == "plain <b>descent</b>"
        assert cells(1)[2].startswith("diverged at step")
        assert min(pixels("#pictures canvas")) > 30
        assert min(pixels("#curves")) > 30
        assert fits()

        page.locator("#first").click()
        assert page.locator("#now").inner_text() == "step 0 of 12"
        assert cells(0)[1:] == ["482", ""]
        assert cells(1)[1:] == ["482", ""]
        page.keyboard.press("Tab")
        page.locator("body").click(position={"x": 2, "y": 2})
        page.keyboard.press("ArrowRight")
        page.locator("#forward").click()
        page.locator("#back").focus()
        page.keyboard.press("Enter")
        assert page.locator("#now").inner_text() == "step 1 of 12"
        assert cells(1)[2] == "outside the picture"

        page.locator("#start").select_option("1")
        assert cells(0)[1] != "482"
        page.locator("#pictures canvas").first.scroll_into_view_if_needed()
        side = page.locator("#pictures canvas").first.bounding_box()
        assert side is not None
        page.locator("#pictures canvas").first.click(position={"x": 0.1 * side["width"], "y": 0.4 * side["height"]})
        assert page.locator("#start").input_value() == "0"  # the ring at (-8, 2)

        page.locator("#speed").select_option(label="fast")
        page.locator("#play").click()
        page.locator("#now", has_text="step 12 of 12").wait_for()
        assert page.locator("#play").inner_text() == "Play"

        page.locator(".key").nth(1).click()
        assert page.locator(".key").nth(1).get_attribute("aria-pressed") == "false"
        assert pixels("#pictures canvas")[1] == 0
        page.locator(".key").nth(1).click()
        page.locator("#apart").check()
        assert page.locator("#pictures canvas").count() == 2
        assert pixels("#pictures canvas")[1] == 0
        page.locator("#landscape").select_option(label="branin")
        assert page.locator("#start option").count() == 3
        assert "Three valleys" in page.locator("#about").inner_text()
        assert fits()
        browser.close()
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
