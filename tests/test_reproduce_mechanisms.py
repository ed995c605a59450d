"""The mechanisms of learned optimizers: what ships is what the settings say, and each verdict can go either way."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import lopt
from lopt.errors import InputError
from lopt.optimizers import Adam, Momentum
from lopt.reproduce import find_paper
from lopt.reproduce.mechanisms import _gru, adapts, beats, clips, resembles, rises
from lopt.reproduce.mechanisms._gru import CURVATURES, SETTINGS, STEPS, saved, trained

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_ships_is_what_the_settings_say(name: str) -> None:
    card, setting = lopt.zoo.read_card(saved(name)), SETTINGS[name]
    rule: Any = trained(name)
    assert (rule.hidden, (rule.input_scale, rule.output_scale)) == (setting.hidden, setting.scales)
    assert (card.meta_steps, card.horizon) == (setting.meta_steps, (STEPS, STEPS))
    assert card.inner_steps == setting.meta_steps * setting.particles * STEPS
    ((task,),) = (card.tasks,)
    assert task["name"] == setting.task
    assert lopt.tasks.create(task["name"], **task["fields"]) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_what_ships_descends_on_its_task(name: str) -> None:
    rule, task = trained(name), SETTINGS[name].create()
    inner = lopt.start(rule, task, KEY, horizon=STEPS)
    losses = np.asarray(lopt.unroll(rule, task, inner, jax.random.key(1), 100)[1])
    assert losses[-10:].mean() < 0.5 * losses[0]


def test_the_curvatures_are_those_of_the_task() -> None:
    fields = SETTINGS["linear"].fields
    assert (10.0 ** fields["low"], 10.0 ** fields["high"]) == CURVATURES


def put(monkeypatch: pytest.MonkeyPatch, **rules: lopt.Optimizer) -> None:
    """Known rules in the place of the learned ones."""
    monkeypatch.setattr(_gru, "trained", lambda name, meta_steps: rules[name])


def test_the_fastest_momentum_resembles_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, linear=Momentum(learning_rate=3.759, decay=0.881))
    assert resembles(KEY).held
    put(monkeypatch, linear=Momentum(learning_rate=3.759, decay=0.5))
    assert not resembles(KEY).held


def test_a_rule_that_does_not_clip_is_not_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Momentum(learning_rate=0.1, decay=0.9)
    put(monkeypatch, linear=plain, rosenbrock=plain)
    found = clips(KEY)
    assert not found.held
    assert found.numbers["linear"]["threshold"] > 100


def test_adam_adapts_and_momentum_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, linear=Adam(learning_rate=0.1))
    found = adapts(KEY, names=("linear",))
    assert found.held
    assert found.numbers["linear"]["exponent"] == pytest.approx(-1.0, abs=0.01)
    put(monkeypatch, linear=Momentum(learning_rate=0.1, decay=0.9))
    assert not adapts(KEY, names=("linear",)).held
    assert not rises(KEY, names=("linear",)).held


def test_a_baseline_is_not_ahead_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing beats all three by an interval while it is one of them at a rate far too low."""
    put(monkeypatch, linear=Momentum(learning_rate=1e-6, decay=0.9))
    found = beats(KEY, names=("linear",), seeds=4, trials=4, tuning=2)
    assert not found.held
    assert np.mean(found.numbers["linear"]["learned"]) > np.mean(found.numbers["linear"]["momentum"])


def test_bad_input() -> None:
    with pytest.raises(InputError, match="did you mean linear"):
        trained("liner")
    with pytest.raises(InputError, match="meta_steps is 0; it must be at least 1"):
        trained("linear", 0)
    with pytest.raises(InputError, match="no tasks were named; there are linear, rosenbrock"):
        rises(KEY, names=())


@pytest.mark.slow
def test_it_is_meta_trained_on_the_spot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few meta-steps lower the loss, and the same call gives the same weights."""
    monkeypatch.setitem(SETTINGS, "linear", SETTINGS["linear"]._replace(hidden=8, particles=4))
    once, again = (trained.__wrapped__("linear", 6) for _ in range(2))
    for x, y in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(np.any(np.asarray(x)) for x in jax.tree.leaves(once))  # the readout starts at zero
    assert set(find_paper("mechanisms").claims["clips"].quick) == {"meta_steps"}
