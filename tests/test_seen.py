"""A task of a bench that is on an optimizer's card is found under every spelling, and no other task is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lopt.evaluate.bench.suites import SUITES
from lopt.evaluate.report.seen import seen
from lopt.recipes import RECIPES, TaskSpec
from lopt.tasks import TaskName, find_corpus
from lopt.zoo import available, read_card

SCALED = [["reparametrized", {"level": "tensor", "low": 0.3, "high": 3.0}]]
NOISY = [["noisy_gradients", {"deviation": 0.5}]]


def entry(text: str, **how: Any) -> dict[str, Any]:
    """What a card has of a task, through a file."""
    return json.loads(json.dumps({**TaskName.parse(text).to_json(), **how}))


@pytest.mark.parametrize(
    ("card", "task"),
    [
        (entry("small_images/digits_32"), "small_images/digits_32"),
        (entry("small_images/fashion_8_32", tell_horizon=False, split="valid"), "small_images/fashion_8_32"),
        (entry("small_images/fashion_8_32"), 'fashion_mlp{"size":8}'),
        (entry("small_images/fashion_8_edges_32"), 'fashion_mlp{"size":8,"view":"edges"}'),
        (entry("digits_mlp"), "digits_mlp"),
        (entry('digits_mlp{"widths":[64]}'), 'digits_mlp{"widths":[64]}'),
        (entry('digits_mlp{"activation":"tanh","widths":[8,8]}'), 'digits_mlp{"widths":[8,8],"activation":"tanh"}'),
        ({"name": "digits_mlp", "wrappers": SCALED}, "digits_mlp"),
        ({"name": "small_images/digits_32", "wrappers": SCALED, "tell_horizon": False}, "digits_mlp"),
        (entry("digits_mlp"), 'digits_mlp{"widths":[32],"dropout":0}'),
        (entry("conv_net"), 'conv_net{"classes":null,"filters":[[3,3,8],[3,3,16]]}'),
        (entry('quadratic{"dim":10}'), 'quadratic{"dim":10}'),
        (entry('bowl{"condition":3.0}'), 'bowl{"condition":3}'),
        (entry("image_vit"), "held_out/vit_digits"),
        (entry("held_out/vit_digits_deep"), 'image_vit{"depth":4}'),
        (entry('sampled{"seed":5}'), "taskset/sampled_5"),
        (entry("wichrowska2017_full/quadratic_20_noisy"), "wichrowska2017/quadratic_20_noisy"),
        ({"name": "least_squares", "wrappers": NOISY}, "wichrowska2017/quadratic_20_noisy"),
        (entry("small_images/digits_32"), "digits_mlp"),
        (entry('digits_mlp{"widths":[32,32]}'), "small_images/digits_32x32"),
        (entry('my_task{"x":1}'), 'my_task{"x":1}'),
        (entry('digits_mlp{"no_such_field":1}'), 'digits_mlp{"no_such_field":1}'),
        ({"name": "not a task{"}, "not a task{"),
    ],
)
def test_the_same_task_is_found(card: dict[str, Any], task: str) -> None:
    assert seen([entry("two_moons"), card], ["bowl", task]) == [task]


@pytest.mark.parametrize(
    ("card", "task"),
    [
        (entry('digits_mlp{"widths":[64]}'), "digits_mlp"),
        (entry('digits_mlp{"widths":[64]}'), 'digits_mlp{"widths":[64,64]}'),
        (entry('digits_mlp{"widths":[6]}'), 'digits_mlp{"widths":[64]}'),
        (entry('digits_mlp{"widths":[64]}'), 'digits_mlp{"activation":"tanh","widths":[64]}'),
        (entry("digits_mlp"), "fashion_mlp"),
        (entry("digits_mlp"), "small_images/digits_32x32"),
        (entry("small_images/digits_32"), "digits_32"),
        (entry("small_images/fashion_8_crops_32"), "small_images/fashion_8_edges_32"),
        (entry("taskset/sampled_1"), "taskset/sampled_11"),
        (entry("wichrowska2017/quadratic_20_noisy"), "wichrowska2017/quadratic_50_noisy"),
        (entry("wichrowska2017/quadratic_20_noisy"), "least_squares"),
        (entry('conv_net{"images":"fashion_14"}'), 'conv_net{"classes":[0,2],"images":"fashion_14"}'),
        (entry('digits_mlp{"no_such_field":1}'), "digits_mlp"),
        (entry(""), "bowl"),
    ],
)
def test_another_task_is_not(card: dict[str, Any], task: str) -> None:
    assert seen([card], [task]) == []


def test_what_recipes_write_on_cards_is_read() -> None:
    specs = [spec for recipe in RECIPES.values() for spec in recipe.tasks]
    specs += [
        TaskSpec(
            name="quadratic",
            fields={"dim": 3},
            tell_horizon=False,
            wrappers=RECIPES["general_longer"].tasks[2].wrappers,
        )
    ]
    for spec in specs:
        task = str(TaskName(spec.name, spec.fields))
        assert seen([json.loads(json.dumps(spec.to_json()))], [task]) == [task]


@pytest.mark.parametrize("name", ["held_out", "small_images", "wichrowska2017"])
def test_the_members_of_a_corpus_are_told_apart(name: str) -> None:
    twins = ("rosenbrock", "test_rosenbrock"), ("rosenbrock_noisy", "test_rosenbrock_noisy")  # one task as released
    members = [member for split in find_corpus(name) for member in split]
    for member in members:
        same = {f"{name}/{m}" for m in next((pair for pair in twins if member in pair), (member,))}
        assert set(seen([{"name": f"{name}/{member}"}], [f"{name}/{m}" for m in members])) == same


def test_the_held_out_suites_have_nothing_of_the_recipes_and_of_the_released() -> None:
    cards = [spec.to_json() for recipe in RECIPES.values() for spec in recipe.tasks]
    cards += [task for name in available() for task in read_card(name).tasks]
    assert seen(cards, SUITES["held_out"]().tasks) == []


def test_the_general_recipe_has_seen_two_tasks_of_generalisation_by_another_name() -> None:
    tasks = SUITES["generalisation"]().tasks
    found = {name: seen(read_card(name).tasks, tasks) for name in ("general-1", "demo-1")}
    assert found["general-1"] == ["digits_mlp", 'fashion_mlp{"size":8}']
    assert found["demo-1"] == ["digits_mlp", 'digits_mlp{"widths":[32,32]}', 'digits_mlp{"activation":"tanh"}']
