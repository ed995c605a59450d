"""Recipes: what they build, and the horizon that an optimizer is told or not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt import recipes
from lopt.errors import InputError
from lopt.estimators import ESSingle, PerTask
from lopt.evaluate import train
from lopt.recipes import RECIPES, Recipe, TaskSpec, _annealed, plan_steps, recipe, run
from lopt.tasks.corpora.corpus import find_corpus
from lopt.tasks.data.images import fashion_mnist_folder

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["general", "general_longer"])
def test_a_general_recipe_trains_on_training_splits_only(name: str) -> None:
    for spec in RECIPES[name].tasks:
        corpus, _, member = spec.name.partition("/")
        assert member in find_corpus(corpus).train
    assert {spec.tell_horizon for spec in RECIPES[name].tasks} == {True, False}


@pytest.mark.skipif(fashion_mnist_folder() is None, reason="Fashion-MNIST is not installed")
@pytest.mark.parametrize("name", ["conv_net", "conv_net_2"])
def test_the_recipes_of_conv_nets_keep_classes_for_testing(name: str) -> None:
    from lopt.reproduce.pathologies.headline import TEST_CLASSES

    spec = RECIPES[name].tasks[0]
    assert not set(spec.fields["classes"]) & set(TEST_CLASSES)
    assert spec.build().classes == 5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("norm", ["estimate", "average"])
def test_members_of_corpora_and_norms_of_tasks(norm: Any) -> None:
    untold = TaskSpec(name="quadratic", fields={"dim": 2}, tell_horizon=False, split="valid")
    specs = (TaskSpec(name="wichrowska2017/bowl_1"), untold)
    found = Recipe(description="", optimizer="relative_mlp", tasks=specs, task_norm=norm, horizon=(20, 40), pairs=1)
    optimizer, estimators, _ = found.build(KEY, 10)
    for estimator, told, split in zip(estimators, (True, False), ("train", "valid"), strict=True):
        assert isinstance(estimator, PerTask)
        assert isinstance(estimator.estimator, ESSingle)
        assert estimator.estimator.tell_horizon is told
        assert estimator.estimator.split == split
    estimator = estimators[1]
    gradient, *_ = jax.jit(estimator.estimate)(optimizer, jax.jit(estimator.init)(optimizer, KEY), KEY)
    np.testing.assert_allclose(optax.tree.norm(gradient), 1.0, rtol=1e-5)  # pyright: ignore[reportArgumentType]
    assert specs[0].to_json() == {"name": "wichrowska2017/bowl_1"}
    assert specs[1].to_json() == {"name": "quadratic", "fields": {"dim": 2}, "tell_horizon": False, "split": "valid"}


@pytest.mark.usefixtures("unchecked")
def test_a_recipe_refuses_what_it_does_not_know_or_would_ignore() -> None:
    with pytest.raises(InputError, match="task_norm is 'unit'; it must be one of none, estimate, average"):
        recipe("smoke", task_norm="unit").build(KEY, 1)
    with pytest.raises(InputError, match="even is 'steps' and curriculum is 0"):
        recipe("smoke", even="steps").build(KEY, 1)


def test_a_recipe_begins_with_a_saved_optimizer(tmp_path: Path) -> None:
    card = lopt.zoo.Card(
        command="first", tasks=({"name": "digits_mlp"},), meta_steps=3, inner_steps=40, horizon=(7, 8), seconds=1e6
    )
    saved = lopt.save(tmp_path / "first", lopt.create("relative_mlp", key=KEY), card)
    small = recipe("smoke", pairs=1, truncation=5, horizon=[5, 10], learning_rate=0.0)
    weights = run(small, tmp_path / "second", seed=0, steps=1, init=saved, command="second")
    assert eqx.tree_equal(lopt.load(saved), lopt.load(weights))
    found = lopt.zoo.read_card(weights)
    assert found.command == "first && second"
    assert found.tasks == ({"name": "digits_mlp"}, {"name": "quadratic", "fields": {"dim": 10}})
    assert (found.meta_steps, found.inner_steps, found.horizon) == (4, 50, (5, 10))
    assert found.seconds is not None
    assert found.seconds > 1e6


def test_a_recipe_that_draws_its_tasks_has_one_a_meta_step(tmp_path: Path) -> None:
    """Of two tasks each has about half of the meta-steps; another engine would take both at each."""
    tasks = tuple(TaskSpec(name="quadratic", fields={"dim": dim}) for dim in (2, 3))
    drawn = Recipe(description="Two quadratics.", optimizer="sgd", tasks=tasks, drawn=True, pairs=1)
    run(drawn, tmp_path / "drawn", seed=0, steps=12)
    lines = [json.loads(line) for line in (tmp_path / "drawn" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["inner_steps"] == 12 * 2 * drawn.truncation
    with pytest.raises(InputError, match="draws one task a meta-step, which the local engine alone does"):
        run(drawn, tmp_path / "never", seed=0, steps=1, engine=lopt.engine.Local())


def test_the_card_has_the_greatest_horizon_that_a_curriculum_reached(tmp_path: Path) -> None:
    fast = recipe("smoke", pairs=1, truncation=5, horizon=[5, 60], curriculum=4)
    assert [fast.reached(n) for n in (1, 3, 5, 9)] == [(5, 15), (5, 30), (5, 60), (5, 60)]
    assert recipe("smoke").reached(1) == recipe("smoke").horizon
    weights = run(fast, tmp_path, seed=0, steps=3)
    assert lopt.zoo.read_card(weights).horizon == (5, 30)


@pytest.mark.parametrize("curriculum", [0, 5])
@pytest.mark.parametrize(
    ("horizon", "estimator", "sentence"),
    [
        ([100, 50], "es_single", r"horizon is \(100, 50\); the first must not exceed the second."),
        ([5, 50], "es_single", "horizon is 5; it must be at least the truncation, 20."),
        ([0, 50], "full_es", "horizon is 0; it must be at least 1."),
    ],
)
def test_a_horizon_is_refused_alike_with_and_without_a_curriculum(
    horizon: list[int], estimator: str, curriculum: int, sentence: str
) -> None:
    changed = recipe("smoke", pairs=1, horizon=horizon, curriculum=curriculum, estimator=estimator)
    with pytest.raises(InputError, match=f"^{sentence}$"):
        changed.build(KEY, 1)


@pytest.mark.parametrize("told", [True, False])
def test_an_estimator_tells_the_horizon_or_not(told: bool) -> None:
    estimator = ESSingle(lopt.tasks.Quadratic(dim=2), pairs=1, truncation=5, horizon=10, tell_horizon=told)
    optimizer = lopt.create("relative_mlp", key=KEY)
    state = jax.jit(estimator.init)(optimizer, KEY)
    _, state, _ = jax.jit(estimator.estimate)(optimizer, state, KEY)
    assert bool(jnp.isfinite(state.inner.opt_state.horizon).all()) is told


class OnlyIfTold(lopt.Optimizer):
    """Gradient descent if the horizon is told; stays where it is if not."""

    def init(self, params: Any, *, key: Any = None, horizon: Any = None) -> Any:
        del params, key
        return jnp.asarray(0.0 if horizon is None else 0.1)

    def update(self, updates: Any, state: Any, params: Any, **extra: Any) -> Any:
        del params, extra
        return jax.tree.map(lambda g: -state * g, updates), state


def test_training_tells_the_horizon_or_not() -> None:
    task = lopt.tasks.Quadratic(dim=2)
    told, untold = (train(OnlyIfTold(), task, steps=5, key=KEY, evals=1, tell_horizon=t) for t in (True, False))
    assert told.train_loss[0, -1] < told.train_loss[0, 0]
    assert untold.train_loss[0, -1] == untold.train_loss[0, 0]
    with pytest.raises(InputError, match="Celo needs the length"):
        train(lopt.create("celo", key=KEY), task, steps=1, key=KEY, tell_horizon=False)


def test_the_learning_rate_falls_by_a_cosine_to_a_tenth() -> None:
    tx = _annealed(0.5, 8)
    state, found = tx.init(None), []
    for _ in range(10):
        updates, state = tx.update(jnp.ones(()), state)
        found.append(-float(updates))
    expected = [0.5 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(t / 8, 1)))) for t in range(10)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_steps_are_planned_from_the_speed_of_the_first_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_000))
    monkeypatch.setattr(
        recipes.time, "perf_counter", lambda: next(clock) / 4
    )  # each look at the clock is a quarter of a second later

    def rehearse(*_: Any, steps: int, on_step: Callable[[Any], None], **__: Any) -> None:
        assert steps == recipes.REHEARSED
        for _ in range(steps):
            on_step(None)

    monkeypatch.setattr(recipes, "meta_train", rehearse)
    smoke = recipe("smoke", steps=5_000)
    assert plan_steps(smoke, tmp_path, seed=0, seconds=200.0) == 800
    assert plan_steps(smoke, tmp_path, seed=0, seconds=1.0) == recipes.LEAST_STEPS
    assert plan_steps(smoke, tmp_path, seed=0, seconds=1e6) == 5_000
    (tmp_path / "config.json").write_text(json.dumps({"steps": 1_234}))
    assert plan_steps(smoke, tmp_path, seed=0, seconds=200.0) == 1_234, "a run that is there goes on as it was planned"
