"""Corpora: their splits are disjoint, and what is held out is never trained on."""

from __future__ import annotations

import itertools

import jax
import pytest

import lopt
from lopt.errors import InputError
from lopt.tasks import Autoencoder, CharTransformer, ImageConv, Tabular, VisionTransformer
from lopt.tasks.catalogue import identity
from lopt.tasks.corpora.corpus import CORPORA, Members, find_corpus, is_held_out
from lopt.tasks.corpora.sampling import task_recipe
from lopt.tasks.data.images import fashion_mnist_folder
from registry import as_users_run_it

needs_fashion = pytest.mark.skipif(fashion_mnist_folder() is None, reason="Fashion-MNIST is not installed")


def contents(members: Members) -> set[object]:
    """What members are, whatever they are called; sampled tasks by what they draw."""
    return {task_recipe(t.fields["seed"]) if t.name == "sampled" else identity(t) for t in members.values()}


@pytest.mark.parametrize("name", CORPORA)
def test_splits_are_disjoint(name: str) -> None:
    """But for what the ensemble of Wichrowska et al. has in both as released: Rosenbrock, and the clean quadratic that is off."""
    both = {"rosenbrock", "rosenbrock_noisy", "quadratic_20"} if "wichrowska" in name else set()
    for one, other in itertools.combinations(find_corpus(name), 2):
        assert not set(one) & set(other)
        assert contents(one) & contents(other) <= contents({n: one[n] for n in both & set(one)})
    for split in find_corpus(name):
        assert len(contents(split)) == len(split)
    assert find_corpus(name).test


def test_sizes() -> None:
    assert [len(s) for s in find_corpus("small_images")] == [4, 8, 8]
    assert [len(s) for s in find_corpus("held_out")] == [0, 0, 20]
    train, valid, test = map(len, find_corpus("taskset"))
    assert (1_300 < train < 1_500, 180 < valid < 240, test) == (True, True, 300)


def test_no_meta_training_sees_a_held_out_family() -> None:
    seeds = [int(name.removeprefix("sampled_")) for split in find_corpus("taskset")[:2] for name in split]
    assert len(seeds) > 1_000
    configs = {task_recipe(s).config for s in seeds}
    assert not {"vae", "char_transformer"} & {c.family for c in configs}
    assert "diabetes" not in {c.dataset for c in configs}
    # The rule leaves out nothing else.
    left = {task_recipe(s).config for s in range(2_000) if is_held_out(s)}
    assert {c.family for c in left} == {"vae", "char_transformer", "tabular"}
    assert not left & configs


@needs_fashion
@pytest.mark.slow
def test_every_named_task_can_be_built_and_started() -> None:
    for name in ("small_images", "held_out"):
        for split in find_corpus(name):
            for member in split.values():
                task = lopt.tasks.create(member)
                params = jax.eval_shape(lambda key, task=task: task.init((), key), jax.random.key(0))
                loss = jax.eval_shape(lambda p, key, task=task: task.loss((), p, key), params, jax.random.key(0))
                assert loss.shape == ()


@needs_fashion
def test_held_out_tasks_are_what_their_names_say() -> None:
    found = {
        name: lopt.tasks.create(member) for name, member in find_corpus("held_out").test.items() if "28" not in name
    }
    kinds = {"vit": VisionTransformer, "residual": ImageConv, "transformer": CharTransformer, "vae": Autoencoder}
    for name, task in found.items():
        prefix = name.split("_")[0]
        assert isinstance(task, (kinds | {"diabetes": Tabular}).get(prefix, lopt.Task)), name
        if isinstance(task, ImageConv):
            assert task.blocks > 0
        if isinstance(task, Autoencoder):
            assert task.variational


def test_an_unknown_corpus_is_one_sentence() -> None:
    with as_users_run_it(), pytest.raises(InputError, match="no corpus named 'small_image'; did you mean small_images"):
        find_corpus("small_image")
