"""Hand-designed rules come out of the analyses of mechanisms as what they are; questions without meaning are refused; the page works."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt.analyze import (
    adaptation,
    explain,
    heavy_ball,
    mechanisms,
    momentum,
    response,
    schedule,
    state_space,
    write_mechanisms,
)
from lopt.analyze.momentum import linearise, realise
from lopt.analyze.probing import probe_of, row_of
from lopt.errors import InputError
from lopt.optimizers import Adam, GRUOptimizer, Momentum, RMSProp

KEY = jax.random.key(0)
TASK = lopt.tasks.Quadratic(dim=8, noise=0.1)


# --- Controls: each rule is what it is. ---


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_mode_of_momentum_is_its_decay_and_its_rate(decay: float) -> None:
    found = momentum(Momentum(learning_rate=0.2, decay=decay), TASK, key=KEY)
    assert found.from_fixed_point
    assert len(found.eigenvalues) == 1
    assert found.fixed_points == 1
    np.testing.assert_allclose(found.dominant, (0.2, decay), rtol=1e-4)
    np.testing.assert_allclose(found.direct, 0.0, atol=1e-6)
    np.testing.assert_allclose(found.kernel, 0.2 * decay ** np.arange(100), rtol=1e-3, atol=1e-6)


def test_nesterov_is_momentum_and_a_step_along_the_gradient() -> None:
    found = momentum(optax.sgd(0.1, momentum=0.8, nesterov=True), TASK, key=KEY)
    np.testing.assert_allclose((found.rates[0].real, abs(found.eigenvalues[0])), (0.08, 0.8), rtol=1e-4)
    np.testing.assert_allclose(found.direct, 0.1, rtol=1e-4)


def test_gradient_descent_has_neither_momentum_nor_clipping_nor_a_schedule_nor_adaptation() -> None:
    rule = optax.sgd(0.3)
    assert momentum(rule, TASK, key=KEY).dominant == pytest.approx((0.3, 0.0))
    found = response(rule, TASK, key=KEY)
    assert (found.gain, found.threshold) == (pytest.approx(0.3), math.inf)
    np.testing.assert_allclose(schedule(rule, TASK, key=KEY, steps=20).rate, 0.3, rtol=1e-4)
    assert adaptation(rule, TASK, key=KEY, settle=5).exponent == pytest.approx(0.0, abs=1e-4)


def test_the_memory_of_adam_is_measured_in_noise() -> None:
    found = momentum(Adam(learning_rate=0.01, b1=0.8), TASK, key=KEY)
    assert not found.from_fixed_point
    assert found.dominant[1] == pytest.approx(0.8, abs=0.01)


def test_a_mode_beside_a_greater_step_along_the_gradient_is_told() -> None:
    """Nesterov with a small decay steps mostly along the gradient, and yet has a momentum."""
    found = momentum(optax.sgd(0.1, momentum=0.3, nesterov=True), TASK, key=KEY)
    assert found.dominant == pytest.approx((0.1, 0.0))
    assert "a momentum with β = 0.300" in found.sentence
    assert "learning rate of 0.1." in found.sentence
    assert "no momentum that matters" in momentum(optax.sgd(0.1), TASK, key=KEY).sentence


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_rule_that_looks_at_other_elements_is_not_put_to_one(seed: int) -> None:
    task = lopt.tasks.create("digits_mlp", widths=(32,))
    probe = probe_of(lopt.load("demo-1"), task, key=jax.random.key(seed))
    assert not probe.alone
    assert not probe.quiet


QUIET = {
    "momentum": (Momentum(learning_rate=0.1), True),
    "clipped": (optax.chain(optax.clip(0.02), optax.sgd(0.1)), True),
    "gru": (GRUOptimizer(hidden=4, key=KEY), True),
    "adam": (Adam(learning_rate=0.01), False),
    "star": (lopt.create("star", key=KEY), False),
    "small_fc": (lopt.create("small_fc", key=KEY), False),
    "demo-1": (lopt.load("demo-1"), False),
}


@pytest.mark.parametrize(("rule", "quiet"), QUIET.values(), ids=QUIET)
def test_whether_a_rule_divides_by_its_gradients(rule: Any, quiet: bool) -> None:
    assert probe_of(rule, TASK, key=KEY).quiet == quiet


def test_rmsprop_has_no_momentum() -> None:
    assert momentum(RMSProp(learning_rate=0.01, decay=0.99), TASK, key=KEY).dominant[1] == 0.0


def test_the_adaptation_of_adam_is_its_formula() -> None:
    rate, b1, b2, eps = 0.1, 0.8, 0.9, 1e-3
    found = adaptation(Adam(learning_rate=rate, b1=b1, b2=b2, eps=eps), TASK, key=KEY, settle=200)
    g = found.gradients
    np.testing.assert_allclose(found.update, -rate * g / (np.abs(g) + eps), rtol=1e-4)
    size = np.abs(g) + eps
    slope = rate * ((1 - b1) / size - (1 - b2) * np.abs(g) / size**2)
    np.testing.assert_allclose(found.rate, slope, rtol=0.02)
    assert found.settled.all()


def test_the_threshold_of_clipping_is_found() -> None:
    rule = optax.chain(optax.clip(0.25), optax.sgd(0.1))
    found = response(rule, TASK, key=KEY)
    assert found.threshold == pytest.approx(0.25, rel=1e-4)
    assert found.growth == pytest.approx(0.0, abs=1e-6)
    by_norm = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    assert "clipped" in response(by_norm, lopt.tasks.Quadratic(dim=1), key=KEY).sentence


@pytest.mark.parametrize("rule", [optax.sgd, optax.adam], ids=["sgd", "adam"])
def test_a_cosine_is_found(rule: Any) -> None:
    found = schedule(rule(optax.cosine_decay_schedule(0.1, 40)), TASK, key=KEY, steps=40)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(40) / 40))
    np.testing.assert_allclose(found.rate, expected, rtol=1e-3, atol=1e-6)
    assert found.by_slope == (rule is optax.sgd)


EXPLAINED = [
    (optax.sgd(0.1), "gradient"),
    (optax.sgd(0.1, momentum=0.9), "momentum"),
    (optax.adam(0.01), "momentum + scaling"),
    (optax.sgd(optax.cosine_decay_schedule(0.1, 200)), "momentum + schedule"),
    (optax.adam(optax.cosine_decay_schedule(0.1, 200)), "all"),
]


@pytest.mark.parametrize(("rule", "part"), EXPLAINED, ids=[part for _, part in EXPLAINED])
def test_what_a_rule_is_made_of_explains_it(rule: Any, part: str) -> None:
    found = explain(rule, TASK, key=KEY)
    assert found.share(part) > 0.999
    if part in ("momentum + scaling", "all"):
        assert found.share("momentum") < 0.9
    if part == "momentum":
        assert found.share("gradient") < 0.9


def test_noise_is_explained_by_nothing() -> None:
    found = explain(optax.chain(optax.scale(0.0), optax.add_noise(1.0, 0.0, jax.random.key(0))), TASK, key=KEY)
    assert found.left == pytest.approx(1.0, abs=0.02)


def test_more_columns_do_not_fit_the_noise_of_other_steps() -> None:
    """An update that is momentum and noise: all parts together find no less than momentum alone, up to what a fit on few steps costs."""
    noisy = optax.chain(optax.sgd(0.1, momentum=0.9), optax.add_noise(3e-4, 0.0, jax.random.key(0)))
    found = explain(noisy, lopt.tasks.Quadratic(dim=8, noise=0.1), key=KEY)
    assert 0.1 < found.share("momentum") < 0.9
    assert found.share("all") > found.share("momentum") - 0.05


# --- The linearised optimizer. ---


class LinearOptimizer(lopt.Optimizer):
    """A rule of one parameter, linearised."""

    parts: tuple[Any, ...]

    def init(self, params: Any, *, key: Any = None, horizon: Any = None) -> Any:
        del key, horizon
        return jnp.zeros((len(self.parts[1]), params.size))

    def update(self, updates: Any, state: Any, params: Any, **extra: Any) -> Any:
        del extra
        a, b, c, d, constant = self.parts
        update = c @ state + d * updates + constant
        return update, a @ state + b[:, None] * updates[None]


def small_signal_gru() -> GRUOptimizer:
    """A GRU of two units that stays where it is nearly linear, and descends."""
    rule = GRUOptimizer(hidden=2, input_scale=1e-2, key=jax.random.key(1))
    return eqx.tree_at(lambda o: o.readout, rule, -40.0 * rule.cell.candidate[0][:, None])


def test_the_linearised_optimizer_replaces_a_gru_on_a_quadratic() -> None:
    rule = small_signal_gru()
    task = lopt.tasks.Quadratic(dim=5)
    probe = probe_of(rule, task, key=KEY)
    linear = linearise(probe, row_of(probe.settled(np.zeros((1, 1)), 300), 0))
    assert linear.is_fixed
    parts = (linear.state_to_state, linear.gradient_to_state, linear.state_to_update, linear.direct, linear.update)
    replaced = LinearOptimizer(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), parts))
    curves = []
    for each in (rule, replaced):
        inner = lopt.start(each, task, jax.random.key(2), horizon=50)
        curves.append(np.asarray(lopt.unroll(each, task, inner, jax.random.key(3), 50)[1]))
    assert curves[0][-1] < 0.7 * curves[0][0], "it descends"
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.02)


def test_the_mode_of_a_gru_is_found() -> None:
    """A GRU that is an average: its update gate holds at 0.7, its candidate is the gradient."""
    zero = jax.tree.map(jnp.zeros_like, GRUOptimizer(hidden=1, key=KEY))
    rule = eqx.tree_at(
        lambda o: (o.cell.gates_bias, o.cell.candidate, o.readout),
        zero,
        (
            jnp.full_like(zero.cell.gates_bias, math.log(0.7 / 0.3)),
            zero.cell.candidate.at[0].set(1e-3),
            jnp.full((1, 1), -1000.0),
        ),
    )
    found = momentum(rule, TASK, key=KEY)
    assert found.from_fixed_point
    np.testing.assert_allclose(found.dominant, (0.3, 0.7), rtol=1e-3)


def test_a_response_of_two_exponentials_has_two_modes() -> None:
    k = np.arange(60)
    values, rates = realise(0.3 * 0.9**k + 0.1 * 0.5**k)
    np.testing.assert_allclose(np.real(values), (0.9, 0.5), rtol=1e-6)
    np.testing.assert_allclose(np.real(rates), (0.3, 0.1), rtol=1e-6)


def test_the_best_heavy_ball() -> None:
    assert heavy_ball(1e-3, 1.0) == pytest.approx((3.758, 0.881), abs=1e-3)
    assert heavy_ball(2.0, 2.0) == pytest.approx((0.5, 0.0))
    with pytest.raises(InputError, match=r"least is 2\.0 and greatest 1\.0; both must be positive"):
        heavy_ball(2.0, 1.0)


# --- What has no meaning, and what goes wrong. ---


def test_a_rule_without_memory_has_no_state_space() -> None:
    with pytest.raises(InputError, match=r"keeps nothing for a parameter.*response, schedule"):
        state_space(optax.sgd(0.1), TASK, key=KEY)


def test_two_moments_are_two_dimensions() -> None:
    assert len(state_space(Adam(learning_rate=0.01), TASK, key=KEY, steps=20).shares) == 2


def test_a_rule_that_does_not_move_has_no_updates_to_explain() -> None:
    with pytest.raises(InputError, match="did not move"):
        explain(GRUOptimizer(hidden=2, key=KEY), TASK, key=KEY)


def test_divergence_is_reported_as_found() -> None:
    growing = optax.trace(decay=2.0)

    def late(step: Any) -> Any:
        return jnp.where(step > 3, jnp.inf, 0.1)

    assert "not finite" in schedule(optax.sgd(late), TASK, key=KEY, steps=8).sentence
    assert "diverges" in adaptation(growing, TASK, key=KEY, settle=200).sentence


def test_an_unknown_mechanism_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean momentum"):
        mechanisms(optax.sgd(0.1), TASK, key=KEY, only=["momentun"])


# --- The page. ---

QUICK = {
    "schedule": {"steps": 20},
    "momentum": {"length": 20, "draws": 4},
    "adaptation": {"points": 5, "settle": 20},
    "response": {"points": 9, "draws": 2},
    "state_space": {"steps": 60},
    "explain": {"steps": 60},
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="the chromium binary is not installed")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_chromium(tmp_path: Path, width: int) -> None:
    from playwright.sync_api import sync_playwright

    rule = optax.sgd(0.1, momentum=0.9)
    found = mechanisms(rule, TASK, key=KEY, fields=QUICK)
    files = write_mechanisms(tmp_path, "What <b>momentum</b> does", found, {"command": "none"})
    assert json.loads((tmp_path / "momentum.json").read_text())["rates"][0][0] == pytest.approx(0.1)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        complaints, requests = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(files[0].as_uri())
        assert page.locator("h1").inner_text() == "What <b>momentum</b> does"
        assert page.locator("img").count() == 6
        assert page.evaluate("[...document.images].every(i => i.naturalWidth > 100)")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert "β = 0.900" in page.locator("#momentum + p").inner_text()
        assert page.locator("table tbody tr").count() == 7
        browser.close()
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
