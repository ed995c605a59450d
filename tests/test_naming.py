"""One grammar for a task: as data, as JSON and as text, there and back; one name builds one task wherever it stands."""

from __future__ import annotations

import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt.errors import InputError
from lopt.estimators import ESSingle
from lopt.recipes import RECIPES, TaskSpec
from lopt.tasks import TASKS, WRAPPERS, Normalized, TaskName, catalogue, create
from registry import as_users_run_it

KEY = jax.random.key(0)
FIELDS: dict[str, dict[str, Any]] = {  # of the wrappers that need some
    "delayed_gradients": {"steps": 2},
    "noisy_gradients": {"deviation": 0.1},
    "normalized_gradients": {},
    "random_subspace": {"dim": 2},
    "reduced_batch": {"fraction": 0.5},
    "rescaled": {"scale": 3.0},
    "sparse_gradients": {"probability": 0.5},
    "sum_with": {"others": ('bowl{"condition":5.0}', "quadratic")},
}


def there_and_back(task: TaskName) -> None:
    assert TaskName.parse(str(task)) == task
    assert TaskName.from_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_has_a_name_that_builds_it(name: str) -> None:
    task = TaskName("digits_mlp", {"widths": (4,)}).wrapped(name, **FIELDS.get(name, {}))
    there_and_back(task)
    built = create(str(task))
    direct = WRAPPERS[name](create("digits_mlp", widths=(4,)), **FIELDS.get(name, {}))
    assert eqx.tree_equal(built, direct)
    assert not eqx.tree_equal(built, create("digits_mlp", widths=(4,)))


def test_wrappers_are_applied_from_the_innermost() -> None:
    one = create('bowl{"wrappers":[["noisy_gradients",{"deviation":1.0}],["sparse_gradients",{"probability":0.5}]]}')
    assert isinstance(one, lopt.tasks.SparseGradients)
    assert isinstance(one.task, lopt.tasks.NoisyGradients)


def test_names_of_recipes_and_corpora_there_and_back() -> None:
    for recipe in RECIPES.values():
        for spec in recipe.tasks:
            there_and_back(spec.task)
    for name in ("held_out", "small_images", "wichrowska2017_full"):
        for split in lopt.tasks.find_corpus(name):
            for task in split.values():
                there_and_back(task)


@pytest.mark.parametrize("name", ["small_images/digits_32", "wichrowska2017/bowl_1", "held_out/vit_digits"])
def test_one_name_builds_one_task(name: str) -> None:
    built = create(name)
    assert isinstance(built, Normalized)
    for other in (TaskSpec(name=name).build(), create(TaskName(name)), create(TaskName.parse(name))):
        assert eqx.tree_equal(built, other)


@pytest.mark.parametrize("objective", ["mean", "mean_log", "late_log"])
def test_objectives_of_losses_alone_do_not_see_that_a_task_is_normalised(objective: Any) -> None:
    """What `general` meta-trains on, whose objective is `mean_log`: bit for bit that of the tasks before they are normalised."""
    name = "wichrowska2017/bowl_1"
    assert RECIPES["general"].objective == "mean_log"
    assert RECIPES["general_longer"].objective == "late_log"
    optimizer = lopt.create("sgd", learning_rate=0.1)

    @jax.jit
    def gradient(task: lopt.Task) -> Any:
        estimator = ESSingle(task, pairs=1, truncation=5, horizon=10, objective=objective)
        return estimator.estimate(optimizer, estimator.init(optimizer, KEY), KEY)[0]

    normalised, raw = gradient(create(name)), gradient(create(lopt.tasks.find_member(name)))
    assert all(bool(jnp.any(x != 0)) for x in jax.tree.leaves(raw))
    jax.tree.map(np.testing.assert_array_equal, normalised, raw)


def test_every_task_resolves_to_itself() -> None:
    for name in TASKS:
        full = catalogue.resolved(TaskName(name))
        assert catalogue.identity(full) == catalogue.identity(TaskName(name)) == str(full)
        there_and_back(full)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('bowl{"wrappers":[["noisy",{}]]}', "There is no wrapper named 'noisy'; did you mean noisy_gradients"),
        (
            'bowl{"wrappers":[["noisy_gradients",{"sigma":1}]]}',
            "There is no field of wrapper noisy_gradients named 'sigma'",
        ),
        (
            'bowl{"wrappers":[["noisy_gradients",{}]]}',
            "wrapper noisy_gradients cannot be built from no fields: .*deviation",
        ),
        ('bowl{"wrappers":"log_objective"}', "wrappers is 'log_objective'; it must be a list of pairs"),
        ('bowl{"wrappers":[["log_objective"]]}', "it must be a list of pairs"),
        ('bowl{"wrappers":[[1,{}]]}', "it must be a list of pairs"),
        ('bowl{"wrappers":3}', "it must be a list of pairs"),
        ("bowl{[]}", "is not of the form"),
    ],
)
def test_a_bad_name_is_one_sentence(text: str, sentence: str) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=sentence) as error:
        create(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entry", ["digits_mlp()", {}, {"name": 3}, {"name": "bowl", "fields": 3}, {"name": "bowl", "wrappers": [1]}]
)
def test_a_bad_entry_is_one_sentence(entry: Any) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=r"is not a task|must be a list of pairs"):
        TaskName.from_json(entry)


def test_a_view_that_is_not_there_is_one_sentence() -> None:
    with as_users_run_it(), pytest.raises(InputError, match="no image data set named 'fashion_28_edges'; did you mean"):
        create("fashion_mlp", view="edges")
