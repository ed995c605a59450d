"""Sampled tasks: the same seed is the same task for ever, and its parts do what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import lopt
from lopt.errors import InputError
from lopt.tasks.corpora.sampling import CONFIGS, Config, Recipe, task_recipe
from lopt.tasks.data.images import fashion_mnist_folder
from lopt.unroll import Inner
from registry import as_users_run_it

needs_fashion = pytest.mark.skipif(fashion_mnist_folder() is None, reason="Fashion-MNIST is not installed")


def seed_of(family: str, dataset: str, fits: Callable[[Recipe], bool]) -> int:
    """The first seed of a family and data set whose recipe fits."""
    recipes = ((seed, task_recipe(seed)) for seed in range(20_000))
    return next(s for s, r in recipes if (r.config.family, r.config.dataset) == (family, dataset) and fits(r))


def test_two_thousand_seeds_are_two_thousand_tasks_of_few_static_parts() -> None:
    recipes = [task_recipe(seed) for seed in range(2_000)]
    assert len(set(recipes)) == 2_000
    assert {r.config for r in recipes} == set(CONFIGS)
    assert len(CONFIGS) == len(set(CONFIGS)) == 43
    for r in recipes:
        assert 0.25 <= r.init_scale <= 2.0
        assert len(r.mapped) == r.config.classes
        assert len(r.kept) == 1 == r.config.classes or 2 <= len(set(r.kept)) == len(r.kept)
        assert len({r.mapped[c] for c in r.kept}) >= min(2, r.config.classes)
        assert r.noise == 0.0 or r.config.has_labels or r.config.dataset == "diabetes"


def test_seeds_are_frozen() -> None:
    """If this fails, old seeds mean other tasks: give the new distribution a new name instead."""
    recipe = task_recipe(165)
    assert recipe == (
        Config("mlp", "digits", (("batch_size", 64), ("eval_size", 256), ("widths", (32,)))),
        "relu",
        1.081284,
        0.1,
        tuple(range(10)),
        tuple(range(10)),
        0.1,
        1535609758,
    )
    text = json.dumps([task_recipe(seed) for seed in range(2_000)])
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "d34a093834b1163eda0e5dc4447ac6013faead093e1da743115a94cb08156543"
    )


def test_a_seed_must_not_be_negative() -> None:
    with as_users_run_it(), pytest.raises(InputError, match="seed is -1; it must be at least 0"):
        lopt.tasks.create("sampled", seed=-1)


def draw(seed: int, split: Any, size: int) -> tuple[Any, Any, Array, Array]:
    task = lopt.tasks.sample_task(seed)
    problem = task.sample(jax.random.key(0))
    return (task, problem, *task._draw(problem, jax.random.key(1), split, size))


def test_classes_are_those_kept_equally_often_and_mapped() -> None:
    recipe = task_recipe(
        seed := seed_of("softmax", "digits", lambda r: len(r.kept) == 4 and r.noise == 0.0 and r.share == 1.0)
    )
    task, _, inputs, labels = draw(seed, "train", 4_000)
    known = {tuple(x): int(c) for x, c in zip(*map(np.asarray, task.inner.train), strict=True)}
    classes = np.asarray([known[tuple(x)] for x in np.asarray(inputs)])
    assert labels.tolist() == [recipe.mapped[c] for c in classes]
    counts = np.bincount(classes, minlength=10)[list(recipe.kept)]
    assert counts.sum() == 4_000
    assert np.abs(counts - 1_000).max() < 5 * np.sqrt(750)


def test_a_share_uses_that_many_training_examples_and_all_others() -> None:
    seed = seed_of("tabular", "breast_cancer", lambda r: r.share == 0.1)
    task, _, inputs, _ = draw(seed, "train", 4_000)
    kept = task_recipe(seed).kept
    counts = np.bincount(np.asarray(task.inner.train[1]))
    assert len(np.unique(np.asarray(inputs), axis=0)) == sum(int(np.float32(0.1) * n) for n in counts[list(kept)])
    assert len(np.unique(np.asarray(draw(seed, "valid", 4_000)[2]), axis=0)) == len(task.inner.valid[1])


def test_noise_belongs_to_the_example_and_to_the_training_split() -> None:
    seed = seed_of("softmax", "digits", lambda r: r.noise == 0.3 and r.mapped == r.kept)
    task, problem, *_ = draw(seed, "train", 1)
    noisy: dict[str, np.ndarray] = {}
    for split in ("train", "valid"):
        _, true = getattr(task.inner, split)
        index = jnp.arange(len(true))
        labels = task._targets(problem, index, true, split)
        assert (task._targets(problem, index[::-1], true[::-1], split)[::-1] == labels).all()
        noisy[split] = np.asarray(labels != true)
    # A label drawn at random is the true one in a tenth of the cases.
    assert abs(noisy["train"].mean() - 0.27) < 5 * np.sqrt(0.27 * 0.73 / len(noisy["train"]))
    assert not noisy["valid"].any()


def test_noise_on_numbers_has_its_deviation() -> None:
    seed = seed_of("tabular", "diabetes", lambda r: r.noise == 0.3)
    task, problem, *_ = draw(seed, "train", 1)
    _, true = task.inner.train
    noise = np.asarray(task._targets(problem, jnp.arange(len(true)), true, "train") - true)
    assert abs(noise.std() / 0.3 - 1.0) < 5 / np.sqrt(2 * len(noise))
    _, held = task.inner.test
    assert (task._targets(problem, jnp.arange(len(held)), held, "test") == held).all()


@pytest.mark.slow
def test_activation_and_scale_are_those_of_the_recipe() -> None:
    recipe = task_recipe(
        seed := seed_of("mlp", "digits", lambda r: r.activation == "gelu" and len(r.config.fields) == 3)
    )
    task, problem, *_ = draw(seed, "valid", 1)
    key = jax.random.key(2)
    params, plain = task.init(problem, key), task.inner.init((), key)
    for w, v in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(w, v * (recipe.init_scale if w.ndim > 1 else 1.0), rtol=1e-6)
    fields = dict(recipe.config.fields) | {"activation": "gelu"}
    known = lopt.tasks.digits_mlp(**fields)
    draw_key, _ = jax.random.split(jax.random.key(1))
    batch = task._draw(problem, draw_key, "valid", task.inner.batch_size)
    expected = known.measure(known.assemble(params), batch, key, False)["loss"]
    np.testing.assert_allclose(task.loss(problem, params, jax.random.key(1), "valid"), expected, rtol=1e-5)


def test_tasks_of_one_static_part_are_one_task_and_one_program() -> None:
    seeds = [s for s in range(400) if task_recipe(s).config == task_recipe(165).config]
    ((config, group),) = lopt.tasks.sample_tasks(seeds).items()
    assert config == task_recipe(165).config
    assert len(seeds) > 2
    traces = 0

    @jax.jit
    def loss(task: lopt.Task, problem: Any) -> Array:
        nonlocal traces
        traces += 1
        key = jax.random.key(0)
        return task.loss(problem, task.init(problem, key), key)

    together = jax.vmap(lambda p: loss(group, p))(group.variations)
    traces = 0
    for i, seed in enumerate(seeds[:3]):
        alone = lopt.tasks.sample_task(seed)
        np.testing.assert_allclose(loss(alone, alone.sample(jax.random.key(i))), together[i], rtol=1e-5)
    assert traces == 1
    drawn = jax.vmap(group.sample)(jax.random.split(jax.random.key(0), 40 * len(seeds)))
    assert set(np.asarray(drawn.noise_seed).tolist()) == {task_recipe(s).noise_seed for s in seeds}


@pytest.mark.slow
@needs_fashion
def test_two_hundred_tasks_train_without_nan() -> None:
    """Twenty steps of Adam each, one program for each static part."""
    adam, compiles, failed = lopt.create("adam", learning_rate=1e-3), 0, []

    @jax.jit
    def train(task: lopt.Task, problem: Any, key: Array) -> Array:
        nonlocal compiles
        compiles += 1
        params = task.init(problem, key)
        inner = Inner(problem, params, adam.init(params), jnp.int32(0), jnp.int32(20))
        return lopt.unroll(adam, task, inner, key, 20)[1]

    tasks = lopt.tasks.sample_tasks(range(200))
    for config, task in tasks.items():
        for i in range(len(task.variations.share)):
            problem = jax.tree.map(lambda x, i=i: x[i], task.variations)
            losses = np.asarray(train(task, problem, jax.random.key(i)))
            failed += [] if np.isfinite(losses).all() else [(config, i)]
    assert not failed
    assert compiles == len(tasks) <= len(CONFIGS)
