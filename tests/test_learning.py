"""Data of the learning problems, and what their networks are made of."""

from __future__ import annotations

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lopt
from lopt.errors import InputError
from lopt.tasks import MissingDataError
from lopt.tasks.data import images as data
from lopt.tasks.data import tables
from lopt.tasks.data import text as texts
from lopt.tasks.networks import layers as networks
from lopt.tasks.networks.image_conv import convolve
from lopt.tasks.networks.learning import classified
from registry import as_users_run_it

SPLITS = ("train", "valid", "test")
KEY = jax.random.key(0)


# Images.


def test_area_means_average_the_area_of_every_pixel() -> None:
    """Against refining both grids to a common one, where all areas are whole pixels."""
    image = np.random.default_rng(0).uniform(0, 255, (2, 28, 28)).astype(np.float32)
    fine = image.repeat(2, 1).repeat(2, 2)  # 56 = 8 * 7
    np.testing.assert_allclose(data.area_means(image, 8), fine.reshape(2, 8, 7, 8, 7).mean((2, 4)), rtol=1e-5)
    np.testing.assert_allclose(data.area_means(image, 14), image.reshape(2, 14, 2, 14, 2).mean((2, 4)), rtol=1e-5)
    np.testing.assert_array_equal(data.area_means(image, 28), image)


@pytest.mark.skipif(data.fashion_mnist_folder() is None, reason="Fashion-MNIST is not installed")
def test_views_of_fashion_mnist_are_views_of_the_same_photographs() -> None:
    whole, crops = data.images("fashion_28"), data.images("fashion_8_crops")
    big, small = (np.asarray(d.test.images[:9], np.float64) for d in (whole, crops))
    middle = big.reshape(-1, 28, 28)[:, 6:22, 6:22].reshape(-1, 8, 2, 8, 2).mean((2, 4))
    assert np.abs(small.reshape(-1, 8, 8) - middle).max() <= 0.5
    for name in ("fashion_8", "fashion_8_crops", "fashion_8_edges"):
        found = data.images(name)
        assert [e.images.shape for e in found[:3]] == [(50_000, 64), (10_000, 64), (10_000, 64)]
        assert (found.train.labels == whole.train.labels).all()


def test_class_subsets_are_renumbered_and_complete() -> None:
    digits = data.digits()
    found = data.only_classes(digits, (7, 2))
    for split in SPLITS:
        images, labels = getattr(digits, split)
        for new, old in enumerate((7, 2)):
            few_images, few_labels = getattr(found, split)
            np.testing.assert_array_equal(few_images[few_labels == new], images[labels == old])
    assert (found.classes, len(found.test.labels)) == (2, int(np.isin(digits.test.labels, (2, 7)).sum()))


def test_label_noise_is_on_that_share_of_the_training_split() -> None:
    digits = data.digits()
    noisy, again, other = (data.with_label_noise(digits, 0.5, seed=s) for s in (1, 1, 2))
    changed = (noisy.train.labels != digits.train.labels).mean()
    assert abs(changed - 0.45) < 5 * np.sqrt(0.45 * 0.55 / 1197)
    assert (noisy.train.labels == again.train.labels).all()
    assert (noisy.train.labels != other.train.labels).any()
    assert noisy.valid is digits.valid
    assert noisy.test is digits.test
    assert (data.with_label_noise(digits, 0.0).train.labels == digits.train.labels).all()


# Tables and text.


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_tables_are_split_and_standardised_by_the_training_rows(name: str) -> None:
    import sklearn.datasets

    raw, target = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    found = tables.table(name)
    rows = np.concatenate([r.features for r in found[:3]])
    assert rows.shape == raw.shape
    # An affine map for each column, which takes every row of the file to one row of one split.
    np.testing.assert_allclose(found.train.features.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(found.train.features.std(0), 1.0, rtol=1e-4)
    assert np.abs(found.test.features.mean(0)).max() > 0.01
    for ours, theirs in zip(rows.T, raw.T, strict=True):
        assert abs(np.corrcoef(np.sort(ours), np.sort(theirs))[0, 1] - 1.0) < 1e-5
    targets = np.concatenate([r.targets for r in found[:3]])
    if found.classes > 1:
        assert np.bincount(targets).tolist() == np.bincount(target).tolist()
    else:
        assert abs(found.train.targets.std() - 1.0) < 1e-5


def test_text_is_cut_into_pieces_that_do_not_overlap() -> None:
    found = texts.text("prose", 10)
    whole = texts.encode(texts._prose())
    assert found.classes == len(texts.ALPHABET) == len(set(texts.ALPHABET)) == 64
    begins = (0, int(0.8 * len(whole)), int(0.9 * len(whole)))
    for begin, windows in zip(begins, found[:3], strict=True):
        flat = windows.inputs.ravel()
        np.testing.assert_array_equal(flat, whole[begin : begin + len(flat)])
        np.testing.assert_array_equal(windows.targets.ravel(), whole[begin + 1 : begin + 1 + len(flat)])
    assert begins[0] + found.train.inputs.size < begins[1]
    assert begins[1] + found.valid.inputs.size < begins[2]


def test_characters_have_their_numbers() -> None:
    assert "".join(texts.ALPHABET[i] for i in texts.encode("Ab z0_(\n€\t")) == "ab z0_(\n??"


@pytest.mark.parametrize("name", ["prose", "source"])
def test_missing_text_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # what makes an import fail
    monkeypatch.setattr(texts, "SOURCES", ("argparse", "no_such_module"))
    texts.text.cache_clear()
    with pytest.raises(MissingDataError, match="not on this machine: install a Python with its"):
        texts.text(name)


# Networks.


@settings(max_examples=4)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 2), st.integers(5, 8))
def test_convolve_is_the_convolution(ins: int, height: int, width: int, stride: int, side: int) -> None:
    layer = eqx.nn.Conv2d(ins, 2, (height, width), stride=stride, padding="SAME", key=KEY)
    x = jax.random.normal(KEY, (ins, side, side + 1, 3))
    theirs = jax.vmap(layer, in_axes=-1, out_axes=-1)(x)
    np.testing.assert_allclose(convolve(layer, x), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("blocks", [0, 1])
def test_networks_on_a_batch_are_equinoxes_layers_on_each_image(norm: networks.Norm, blocks: int) -> None:
    fields: dict[str, Any] = {"channels": 4, "blocks": 1} if blocks else {"filters": ((3, 2, 4), (2, 3, 3))}
    task = (lopt.tasks.residual_net if blocks else lopt.tasks.conv_net)(norm=norm, **fields)
    network = task.assemble(task.init((), KEY))
    # Scales and offsets that are not all the same.
    noisy = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), network.norms)
    network = eqx.tree_at(lambda n: n.norms, network, noisy)
    images, _ = task._draw(KEY, "train", 5)

    def one(x: jax.Array) -> jax.Array:
        layers = zip(network.layers, network.norms, strict=True)
        if not blocks:
            for layer, norm in layers:
                x = jax.nn.relu(norm(layer(x)))
            return network.head(x.reshape(-1))
        x = y = network.stem(x)
        for layer, norm in layers:
            y = layer(jax.nn.relu(norm(y)))
        return network.head(jnp.mean(jax.nn.relu(x + y), axis=(1, 2)))

    single = images.reshape(-1, 1, task.side, task.side) / task.brightest
    theirs = jax.vmap(one, axis_name=networks.BATCH)(single)
    np.testing.assert_allclose(task.logits(network, images, KEY, True), theirs, rtol=1e-4, atol=1e-5)


def test_batch_norm_normalises_over_batch_and_space() -> None:
    x = 3.0 + 2.0 * jax.random.normal(KEY, (16, 3, 4, 4))
    norm = networks.BatchNorm(3)
    norm = eqx.tree_at(lambda n: (n.weight, n.bias), norm, (jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 2.0])))
    y = np.asarray(jax.vmap(norm, axis_name=networks.BATCH)(x))
    np.testing.assert_allclose(y.mean((0, 2, 3)), [0.0, 1.0, 2.0], atol=1e-5)
    np.testing.assert_allclose(y.std((0, 2, 3)), [1.0, 2.0, 3.0], rtol=1e-4)


def test_dropout_acts_in_training_only() -> None:
    task = lopt.tasks.digits_mlp(dropout=0.5, batch_size=8)
    params = task.init((), KEY)
    batch = task._draw(KEY, "train", 8)
    network = task.assemble(params)
    seeds = jax.random.split(KEY, 2)
    training = [float(task.measure(network, batch, k, True)["loss"]) for k in seeds]
    resting = [float(task.measure(network, batch, k, False)["loss"]) for k in seeds]
    assert training[0] != training[1]
    assert resting[0] == resting[1]
    assert float(task.loss((), params, KEY, "valid")) == float(
        lopt.tasks.digits_mlp(batch_size=8).loss((), _bare(params), KEY, "valid")
    )


def _bare(params: Any) -> Any:
    """The same numbers in the tree of a network without dropout."""
    leaves = jax.tree.leaves(params)
    return jax.tree.unflatten(jax.tree.structure(lopt.tasks.digits_mlp().init((), KEY)), leaves)


def test_causal_attention_does_not_see_the_future() -> None:
    task = lopt.tasks.char_transformer(length=6, width=8, depth=1)
    network = task.assemble(task.init((), KEY))
    piece = jnp.asarray(texts.encode("abcdef"))[None]
    changed = piece.at[0, 4].set(0)
    before, after = (np.asarray(task.logits(network, p, KEY, False))[0] for p in (piece, changed))
    np.testing.assert_allclose(before[:4], after[:4], rtol=1e-5)
    assert np.abs(before[4:] - after[4:]).max(1).min() > 1e-3


@pytest.mark.slow
def test_starts_are_equinoxes_own() -> None:
    """Same spread for every tensor as equinox's initialisation has, within what samples of this size allow."""
    for task in (lopt.tasks.residual_net(channels=16, norm="layer"), lopt.tasks.char_rnn(hidden=48, embedding=32)):
        ours = jax.tree.leaves(task.init((), jax.random.key(1)))
        theirs = jax.tree.leaves(eqx.filter(task.network(jax.random.key(2)), eqx.is_inexact_array))
        for x, y in zip(ours, theirs, strict=True):
            assert x.shape == y.shape
            if x.size >= 1_000:
                np.testing.assert_allclose(x.std(), y.std(), rtol=0.1)
            elif float(y.std()) == 0.0:
                np.testing.assert_array_equal(x, y)
            else:
                assert 0.2 < float(jnp.abs(x).max() / jnp.abs(y).max()) < 5.0


def test_squared_error_is_summed_over_classes() -> None:
    logits, labels = jnp.array([[1.0, 2.0, 0.5], [0.0, 0.0, 1.0]]), jnp.array([1, 0])
    found = classified(logits, labels, "squared_error")
    assert float(found["loss"]) == pytest.approx((1 + 1 + 0.25 + 1 + 1) / 2)
    assert float(found["accuracy"]) == 0.5


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("digits_mlp", {"norm": "bach"}, "norm is 'bach'; it must be one of none, batch, layer"),
        ("digits_mlp", {"dropout": 1.0}, r"dropout is 1\.0; it must be at least 0 and below 1"),
        ("digits_mlp", {"objective": "mse"}, "objective is 'mse'; it must be one of cross_entropy, squared_error"),
        ("conv_net", {"filters": ()}, r"filters is \(\); it must be at least one"),
        ("conv_net", {"filters": ((3, 3),)}, "each of height, width and channels"),
        ("conv_net", {"images": "mnist"}, "no image data set named 'mnist'; known: digits"),
        ("residual_net", {"blocks": 0}, "blocks is 0; it must be of positive whole numbers"),
        ("table_mlp", {"table": "iris"}, "no table named 'iris'"),
        ("char_rnn", {"cell": "elman"}, "cell is 'elman'; it must be one of rnn, gru, lstm"),
        ("char_rnn", {"text": "poems"}, "name is 'poems'; it must be one of prose, source"),
        ("char_transformer", {"length": 0}, "length is 0; it must be from 1 to 1,000"),
        ("char_transformer", {"heads": 3}, "heads is 3 and width 32; heads must divide width"),
        ("image_vit", {"patch": 3}, "patch is 3 and images have 8 pixels a side; patch must divide that"),
        ("plain_autoencoder", {"code": 0}, "code is 0; it must be of positive whole numbers"),
    ],
)
def test_rejects_bad_arguments(name: str, fields: dict[str, Any], message: str) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=message):
        lopt.tasks.create(name, **fields)


def test_rejects_bad_subsets_and_noise() -> None:
    with as_users_run_it():
        with pytest.raises(
            InputError, match=r"classes is \[1, 1\]; it must be two or more different numbers from 0 to 9"
        ):
            data.only_classes(data.digits(), (1, 1))
        with pytest.raises(InputError, match=r"share is 1\.5; it must be from 0 to 1"):
            data.with_label_noise(data.digits(), 1.5)


def test_what_is_random_beside_the_minibatch_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fold_in` by a small number gives a key that `split` gives too, and the minibatch is drawn with those."""
    task, given = lopt.tasks.digits_mlp(widths=(4,), dropout=0.5), []
    monkeypatch.setattr(type(task), "measure", lambda *args: given.append(args[3]) or {"loss": jnp.zeros(())})
    key = jax.random.key(0)
    params = task.init((), key)
    task.loss((), params, key)
    task.metrics((), params, key, "train")
    others = {tuple(row) for n in range(1, 65) for row in np.asarray(jax.random.key_data(jax.random.split(key, n)))}
    assert len(given) == 2
    assert not others & {tuple(np.asarray(jax.random.key_data(k))) for k in given}
