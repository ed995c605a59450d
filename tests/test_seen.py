"""A task of a bench that is on an optimizer's card is found under every spelling, and no other task is."""

from __future__ import annotations

import pytest

from lopt.evaluate.bench.suites import SUITES
from lopt.evaluate.contenders import with_fields
from lopt.evaluate.report import seen as module
from lopt.evaluate.report.seen import seen, seen_by
from lopt.recipes import RECIPES, TaskSpec
from lopt.tasks import find_corpus
from lopt.tasks.data.images import fashion_mnist_folder


@pytest.mark.parametrize(
    ("card", "task"),
    [
        ("small_images/digits_32", "small_images/digits_32"),
        ("small_images/fashion_8_32, horizon untold", "small_images/fashion_8_32"),
        ("digits_mlp()", "digits_mlp"),
        ("digits_mlp(widths=(64,))", 'digits_mlp{"widths":[64]}'),
        ("digits_mlp(widths=[64])", 'digits_mlp{"widths":[64]}'),
        ("digits_mlp(widths=(32, 32)), horizon untold", 'digits_mlp{"widths":[32,32]}'),
        ("digits_mlp(activation=tanh, widths=(8, 8))", 'digits_mlp{"widths":[8,8],"activation":"tanh"}'),
        ("digits_mlp(), tensor scales (0.01, 100.0)", "digits_mlp"),
        ("digits_mlp(widths=(32,)), horizon untold, global scales (0.1, 10.0)", "digits_mlp"),
        ("digits_mlp()", 'digits_mlp{"widths":[32]}'),
        ("conv_net(filters=((3, 3, 8), (3, 3, 16)), classes=None)", "conv_net"),
        ("conv_net(images=fashion_14, classes=(0, 2, 4))", 'conv_net{"classes":[0,2,4],"images":"fashion_14"}'),
        ("quadratic(dim=10)", 'quadratic{"dim":10}'),
        ("image_vit()", "held_out/vit_digits"),
        ("held_out/vit_digits_deep", 'image_vit{"depth":4}'),
        ("sampled(seed=5)", "taskset/sampled_5"),
        ("wichrowska2017_full/quadratic_20_noisy", "wichrowska2017/quadratic_20_noisy"),
        ("small_images/digits_32", "digits_mlp"),
        ("digits_mlp(widths=(32, 32)), horizon untold", "small_images/digits_32x32"),
        ("my_task(x=1)", 'my_task{"x":1}'),
        ("digits_mlp(widths=(0,))", 'digits_mlp{"widths":[0]}'),
        ("not a task{", "not a task{"),
    ],
)
def test_the_same_task_is_found(card: str, task: str) -> None:
    assert seen(["two_moons()", card], ["bowl", task]) == [task]


@pytest.mark.parametrize(
    ("card", "task"),
    [
        ("digits_mlp(widths=(64,))", "digits_mlp"),
        ("digits_mlp(widths=(64,))", 'digits_mlp{"widths":[64,64]}'),
        ("digits_mlp(widths=(6,))", 'digits_mlp{"widths":[64]}'),
        ("digits_mlp(widths=(64,))", 'digits_mlp{"activation":"tanh","widths":[64]}'),
        ("digits_mlp()", "fashion_mlp"),
        ("digits_mlp()", "small_images/digits_32x32"),
        ("small_images/digits_32", "small_images/digits_32x32"),
        ("small_images/digits_32", "digits_32"),
        ("taskset/sampled_1", "taskset/sampled_11"),
        ("wichrowska2017/quadratic_20_noisy", "wichrowska2017/quadratic_50_noisy"),
        ("conv_net(images=fashion_14)", 'conv_net{"classes":[0,2],"images":"fashion_14"}'),
        ("digits_mlp(no_such_field=1)", "digits_mlp"),
        ("many tasks, digits_mlp() among them", "digits_mlp"),
        ("", "bowl"),
    ],
)
def test_another_task_is_not(card: str, task: str) -> None:
    assert seen([card], [task]) == []


def test_what_recipes_write_on_cards_is_read() -> None:
    specs = [spec for recipe in RECIPES.values() for spec in recipe.tasks]
    specs += [TaskSpec(name="quadratic", fields={"dim": 3}, tell_horizon=False, reparametrize="tensor")]
    for spec in specs:
        task = with_fields(spec.name, spec.fields)
        assert seen([str(spec)], [task]) == [task]


def test_the_members_of_a_corpus_are_told_apart() -> None:
    corpora = {name: find_corpus(name) for name in ("small_images", "held_out")}
    members = [f"{name}/{m}" for name, corpus in corpora.items() for split in corpus for m in split]
    assert seen_by({m: [m] for m in members}, members) == {m: [m] for m in members}


def test_the_held_out_suites_have_nothing_of_the_recipes() -> None:
    cards = [str(spec) for recipe in RECIPES.values() for spec in recipe.tasks]
    assert seen(cards, SUITES["held_out"]().tasks) == []


@pytest.mark.skipif(fashion_mnist_folder() is None, reason="Fashion-MNIST is not installed")
def test_the_general_recipe_has_seen_two_tasks_of_generalisation_by_another_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(module, "_build", lambda *text, build=module._build: calls.append(str(text)) or build(*text))
    cards = {name: [str(spec) for spec in RECIPES[name].tasks] for name in ("general", "demo")}
    tasks = SUITES["generalisation"]().tasks
    found = seen_by(cards, tasks)
    assert found["general"] == ["digits_mlp", 'fashion_mlp{"size":8}']
    assert found["demo"] == ["digits_mlp", 'digits_mlp{"widths":[32,32]}', 'digits_mlp{"activation":"tanh"}']
    assert len(calls) == len(set(calls)) <= len(tasks) + sum(map(len, cards.values())), "each is built once"
