"""Every task has every property; then what only some of them have."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

import lopt
from lopt.errors import InputError
from lopt.tasks import MissingDataError, PointMLP, Quadratic, Reparametrized, SampledTask
from lopt.tasks.data import images as data
from lopt.tasks.networks.learning import LearningTask
from registry import TASKS, TaskRow, as_users_run_it, task_marks, task_rows

SPLITS = ("train", "valid", "test")
split_rows = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=task_marks(row)) for row in TASKS if row.splits]
)
smooth_rows = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=task_marks(row)) for row in TASKS if row.smooth]
)
split_names = pytest.mark.parametrize("split", SPLITS)


def key(seed: int) -> Array:
    return jax.random.key(seed)


# One compiled program for each task.


@jax.jit
def begin(task: lopt.Task, seed: Array) -> tuple[PyTree[Array], PyTree[Array]]:
    problem_key, params_key = jax.random.split(seed)
    problem = task.sample(problem_key)
    return problem, task.init(problem, params_key)


@jax.jit
def losses(task: lopt.Task, problem: PyTree[Array], params: PyTree[Array], seed: Array) -> dict[str, Array]:
    return {split: task.loss(problem, params, seed, split) for split in SPLITS}


@jax.jit
def all_metrics(task: lopt.Task, problem: PyTree[Array], params: PyTree[Array], seed: Array) -> dict[str, Any]:
    return {split: task.metrics(problem, params, seed, split) for split in SPLITS}


begin_many = jax.jit(jax.vmap(begin, in_axes=(None, 0)))
losses_many = jax.jit(jax.vmap(losses, in_axes=(None, 0, 0, 0)))


def assert_same(a: PyTree[Array], b: PyTree[Array]) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def examples_of(task: lopt.Task) -> Any:
    """What holds the examples of a task's splits."""
    inner: Any = task
    while not isinstance(inner, LearningTask | PointMLP):
        inner = inner.inner if isinstance(inner, SampledTask) else inner.task
    return inner if isinstance(inner, LearningTask) else inner.points


# Every task.


@task_rows
def test_starts_finite_on_every_split(row: TaskRow) -> None:
    task = row.create()
    for seed in range(3):
        problem, params = begin(task, key(seed))
        found = losses(task, problem, params, key(10 + seed))
        for loss in found.values():
            assert (loss.shape, loss.dtype) == ((), jnp.float32)
            assert float(loss) > 0.0
            assert float(task.normalize(loss)) < 1e3
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


@task_rows
def test_normalised_loss_at_the_start_is_about_one(row: TaskRow) -> None:
    task = row.create()
    seeds = jax.random.split(key(0), 64)
    problems, params = begin_many(task, seeds)
    for loss in losses_many(task, problems, params, seeds).values():
        assert 0.5 < float(jax.vmap(task.normalize)(loss).mean()) < 2.0


@smooth_rows
def test_gradient_agrees_with_finite_differences(row: TaskRow) -> None:
    task = row.create()
    problem, params = begin(task, key(0))
    flat, unravel = ravel_pytree(params)
    loss = jax.jit(lambda x: task.loss(problem, unravel(x), key(1)))
    gradient = jax.jit(jax.grad(loss))(flat)
    # Along the gradient the slope is its norm: the largest there is, so the least disturbed by rounding.
    norm = float(jnp.linalg.norm(gradient))
    assert norm > 1e-3
    direction = gradient / norm
    across = jnp.asarray(np.random.default_rng(0).normal(size=flat.shape), jnp.float32)
    across = direction + across / jnp.linalg.norm(across)
    for way in (direction, across):
        slope = float(gradient @ way)
        step = 1e-4 * float(loss(flat)) / norm  # small: every ReLU that switches on the way is an error
        difference = float(loss(flat + step * way)) - float(loss(flat - step * way))
        np.testing.assert_allclose(difference / (2.0 * step), slope, rtol=5e-3)


@task_rows
def test_vmapped_equals_looped(row: TaskRow) -> None:
    task = row.create()
    seeds = jax.random.split(key(3), 64)
    problems, params = begin_many(task, seeds)
    together = losses_many(task, problems, params, seeds)
    for i, seed in enumerate(seeds[:3]):
        problem, start = begin(task, seed)
        for x, y in zip(jax.tree.leaves((problem, start)), jax.tree.leaves((problems, params)), strict=True):
            np.testing.assert_allclose(x, y[i], rtol=1e-5, atol=1e-6)
        alone = losses(task, problem, start, seed)
        for split in SPLITS:
            np.testing.assert_allclose(alone[split], together[split][i], rtol=row.precision)


@task_rows
def test_keys_decide_everything(row: TaskRow) -> None:
    task = row.create()
    problem, params = begin(task, key(0))
    assert_same(begin(task, key(0)), (problem, params))
    other_params = task.init(problem, key(1))
    assert not np.array_equal(ravel_pytree(other_params)[0], ravel_pytree(task.init(problem, key(2)))[0])
    found, again, other = (losses(task, problem, params, key(seed)) for seed in (5, 5, 6))
    assert_same(found, again)
    assert (float(found["train"]) != float(other["train"])) == row.noisy


@task_rows
def test_compiles_once_for_all_its_problems(row: TaskRow) -> None:
    task, traces = row.create(), 0

    @jax.jit
    def loss(task: lopt.Task, problem: Any, params: Any, seed: Array) -> Array:
        nonlocal traces
        traces += 1
        return task.loss(problem, params, seed)

    for seed in range(3):
        loss(task, *begin(task, key(seed)), key(seed))
    assert traces == 1


@task_rows
def test_adam_lowers_the_loss_on_every_split(row: TaskRow) -> None:
    task = row.create()
    adam = lopt.create("adam", learning_rate=row.learning_rate)

    @jax.jit
    def train(task: lopt.Task, seed: Array) -> Any:
        inner = lopt.start(adam, task, seed, 100)
        before = {s: task.metrics(inner.problem, inner.params, seed, s)["loss"] for s in SPLITS}
        inner, _ = lopt.unroll(adam, task, inner, seed, 100)
        return before, {s: task.metrics(inner.problem, inner.params, seed, s)["loss"] for s in SPLITS}

    before, after = train(task, key(0))
    for split in SPLITS:
        assert float(after[split]) < 0.8 * float(before[split]), split


@task_rows
def test_metrics_report_the_loss(row: TaskRow) -> None:
    task = row.create()
    problem, params = begin(task, key(0))
    for metrics in all_metrics(task, problem, params, key(1)).values():
        assert float(metrics["loss"]) > 0.0
        assert float(task.normalize(metrics["loss"])) < 1e3
        assert all(value.shape == () for value in metrics.values())
        assert set(row.reports) <= set(metrics)
        assert 0.0 <= float(metrics.get("accuracy", 0.0)) <= 1.0
        assert ("accuracy" in metrics) == ("accuracy" in row.reports)


@task_rows
def test_is_named_in_the_table_of_tasks(row: TaskRow) -> None:
    assert row.kind in lopt.tasks.TASKS or isinstance(getattr(lopt.tasks, row.kind), type)


# Tasks with splits.


@split_rows
@split_names
def test_a_split_reads_itself_only(row: TaskRow, split: str) -> None:
    """Poison the other splits: nothing changes. Poison it: everything does."""
    task = row.create()
    problem, params = begin(task, key(0))

    def poisoned(which: Any) -> lopt.Task:
        def where(task: Any) -> list[Any]:
            inner = examples_of(task)
            return [leaf for s in SPLITS if which(s) for leaf in getattr(inner, s)]

        def poison(x: Array) -> Array:
            return -x[::-1] if jnp.issubdtype(x.dtype, jnp.floating) else x[::-1] ^ jnp.asarray(5, x.dtype)

        return eqx.tree_at(where, task, replace_fn=poison)

    def found(task: lopt.Task) -> Any:
        seed = key(1)
        return losses(task, problem, params, seed)[split], all_metrics(task, problem, params, seed)[split]["loss"]

    clean = found(task)
    assert_same(found(poisoned(lambda s: s != split)), clean)
    bad = found(poisoned(lambda s: s == split))
    assert all(float(x) != float(y) for x, y in zip(bad, clean, strict=True))


@split_rows
def test_gradients_come_from_the_training_split(row: TaskRow) -> None:
    """`unroll` with losses of another split moves the parameters exactly as without."""
    task, sgd = row.create(), lopt.create("sgd")

    @jax.jit
    def run(task: lopt.Task) -> Any:
        inner = lopt.start(sgd, task, key(0), 3)
        return [lopt.unroll(sgd, task, inner, key(1), 3, split=split) for split in ("train", "valid")]

    (train, train_losses), (valid, valid_losses) = run(task)
    for x, y in zip(jax.tree.leaves(train.params), jax.tree.leaves(valid.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
    assert (np.asarray(train_losses) != np.asarray(valid_losses)).all()


def test_digits_are_split_into_disjoint_examples() -> None:
    """Every one of scikit-learn's 1,797 examples is in one split, once. No image occurs twice in the whole set."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    known = sorted((*row.astype(int), label) for row, label in zip(pixels, labels, strict=True))
    found = data.digits()
    rows = {
        s: [(*map(int, image), int(label)) for image, label in zip(*getattr(found, s), strict=True)] for s in SPLITS
    }
    assert [len(rows[s]) for s in SPLITS] == [1197, 300, 300]
    assert sorted(itertools.chain(*rows.values())) == known
    assert len(set(known)) == len(known)
    assert not set(rows["train"]) & set(rows["valid"])
    assert not set(rows["train"]) & set(rows["test"])
    assert not set(rows["valid"]) & set(rows["test"])
    assert (found.classes, found.brightest) == (10, int(pixels.max()))
    assert all(set(getattr(found, s).labels.tolist()) == set(range(10)) for s in SPLITS)


def test_minibatches_are_of_the_asked_size_and_reach_every_example() -> None:
    task = lopt.tasks.digits_mlp(widths=(), batch_size=6_000)
    images, labels = task._draw(key(0), "valid", task.batch_size)
    assert images.shape == (6_000, 64)
    # 6,000 draws of 300 examples miss one with probability 300 exp(-20) = 6e-7.
    assert len(np.unique(np.asarray(images), axis=0)) == 300
    table = {
        tuple(i): int(label) for i, label in zip(np.asarray(task.valid.images).tolist(), task.valid.labels, strict=True)
    }
    assert [table[tuple(i)] for i in np.asarray(images[:50]).tolist()] == labels[:50].tolist()


def test_metrics_take_a_small_split_whole() -> None:
    task = lopt.tasks.digits_mlp(widths=(), eval_size=300)
    params = task.init((), key(0))
    one, other = (all_metrics(task, (), params, key(seed)) for seed in (1, 2))
    assert float(one["test"]["loss"]) == float(other["test"]["loss"])
    assert float(one["train"]["loss"]) != float(other["train"]["loss"])
    logits = np.asarray(task.logits(task.assemble(params), task.test.images, key(0), False), np.float64)
    labels = np.asarray(task.test.labels)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(300), labels])
    np.testing.assert_allclose(one["test"]["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(one["test"]["accuracy"], (logits.argmax(1) == labels).mean(), rtol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu", "sigmoid"])
def test_network_is_what_it_says(activation: str) -> None:
    task = lopt.tasks.digits_mlp(widths=(7, 5), activation=activation)
    params = task.init((), key(0))
    assert [x.shape for x in jax.tree.leaves(params)] == [(7, 64), (7,), (5, 7), (5,), (10, 5), (10,)]
    images = task.train.images[:3]
    x = images.astype(jnp.float32) / 16.0
    leaves = jax.tree.leaves(params)
    for i in range(3):
        x = x @ leaves[2 * i].T + leaves[2 * i + 1][None]
        x = getattr(jax.nn, activation)(x) if i < 2 else x
    np.testing.assert_allclose(task.logits(task.assemble(params), images, key(0), False), x, rtol=1e-5, atol=1e-6)


def test_network_trains_in_low_precision() -> None:
    task = lopt.tasks.digits_mlp(widths=(4,), batch_size=8)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), task.init((), key(0)))
    loss, grads = jax.value_and_grad(lambda p: task.loss((), p, key(1)))(params)
    assert loss.dtype == jnp.float32
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(grads))


# Quadratics.


def hessian(problem: Any) -> np.ndarray:
    a = np.asarray(problem.axis, np.float64)
    reflection = np.eye(len(a)) - 2.0 * np.outer(a, a)
    return reflection @ np.diag(np.asarray(problem.eigenvalues, np.float64)) @ reflection


@settings(max_examples=5)
@given(st.integers(1, 6), st.floats(-3.0, 0.0), st.floats(0.0, 2.0), st.integers(0, 99))
def test_quadratic_is_its_equation(dim: int, low: float, width: float, seed: int) -> None:
    task = Quadratic(dim=dim, low=low, high=low + width)
    problem, params = begin(task, key(seed))
    eigenvalues = np.asarray(problem.eigenvalues)
    assert (eigenvalues >= 10**low * (1 - 1e-5)).all()
    assert (eigenvalues <= 10 ** (low + width) * (1 + 1e-5)).all()
    np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(hessian(problem))), np.sort(eigenvalues), rtol=1e-4)
    d = np.asarray(params, np.float64) - np.asarray(problem.optimum, np.float64)
    found = losses(task, problem, params, key(seed))
    for loss in found.values():
        np.testing.assert_allclose(loss, 0.5 * d @ hessian(problem) @ d, rtol=1e-4)
    assert float(losses(task, problem, problem.optimum, key(seed))["train"]) == 0.0


@pytest.mark.parametrize(
    "fields", [{"dim": 20}, {"dim": 3, "low": -1.0, "high": 1.0}, {"dim": 5, "low": -0.5, "high": -0.5}], ids=str
)
def test_quadratic_normalises_its_expected_start_to_one(fields: dict[str, Any]) -> None:
    task = Quadratic(**fields)

    @jax.jit
    def draw(task: lopt.Task, seeds: Array) -> Array:
        problems, params = jax.vmap(begin, in_axes=(None, 0))(task, seeds)
        return jax.vmap(lambda q, p, k: task.normalize(task.loss(q, p, k)))(problems, params, seeds)

    found = np.asarray(draw(task, jax.random.split(key(0), 20_000)), np.float64)
    error = found.std() / math.sqrt(len(found))
    assert error < 0.02
    assert abs(found.mean() - 1.0) < 4.0 * error


def test_quadratic_noise_is_on_the_training_split_only() -> None:
    task = Quadratic(dim=4, noise=0.3)
    problem, _ = begin(task, key(0))
    seeds = jax.random.split(key(1), 20_000)
    found = jax.vmap(losses, in_axes=(None, None, None, 0))(task, problem, problem.optimum, seeds)
    assert not found["valid"].any()
    assert not found["test"].any()
    train = np.asarray(found["train"], np.float64)
    expected = 0.5 * 0.3**2 * float(problem.eigenvalues.sum())  # half the trace of H times the variance
    assert abs(train.mean() - expected) < 4.0 * train.std() / math.sqrt(len(train))


# Other coordinates.


@pytest.mark.parametrize("level", ["global", "tensor", "parameter"])
def test_reparametrized_task_is_the_same_at_the_same_point(level: Any) -> None:
    inner = lopt.tasks.digits_mlp(widths=(3,), batch_size=8)
    task = Reparametrized(inner, level, low=0.1, high=10.0)
    problem, params = begin(task, key(0))
    original = jax.tree.map(lambda w, c: w * c, params, problem.scale)
    outer_found, inner_found = losses(task, problem, params, key(1)), losses(inner, (), original, key(1))
    outer_metrics, inner_metrics = (all_metrics(*at, key(1)) for at in ((task, problem, params), (inner, (), original)))
    for split in SPLITS:
        np.testing.assert_allclose(outer_found[split], inner_found[split], rtol=1e-6)
        np.testing.assert_allclose(outer_metrics[split]["loss"], inner_metrics[split]["loss"], rtol=1e-6)
        assert float(outer_metrics[split]["accuracy"]) == float(inner_metrics[split]["accuracy"])
    assert float(task.normalize(jnp.float32(3.0))) == float(inner.normalize(jnp.float32(3.0)))

    scales = [np.asarray(s) for s in jax.tree.leaves(problem.scale)]
    shapes = [p.shape for p in jax.tree.leaves(params)]
    assert [s.shape for s in scales] == (shapes if level == "parameter" else [()] * len(shapes))
    numbers = np.concatenate([s.ravel() for s in scales])
    assert (numbers >= 0.1 * (1 - 1e-5)).all()
    assert (numbers <= 10.0 * (1 + 1e-5)).all()
    assert len(np.unique(numbers)) == {"global": 1, "tensor": len(scales), "parameter": len(numbers)}[level]


def test_scales_are_log_uniform() -> None:
    task = Reparametrized(Quadratic(dim=2), "global", low=1e-2, high=1e2)
    problems = jax.vmap(task.sample)(jax.random.split(key(0), 4_000))
    exponents = np.sort(np.log10(np.asarray(problems.scale, np.float64))) / 4.0 + 0.5
    uniform = (np.arange(4_000) + 0.5) / 4_000
    assert np.abs(exponents - uniform).max() < 1.95 / math.sqrt(4_000)  # Kolmogorov's bound at 0.1 %


def test_reparametrized_starts_where_the_inner_task_starts() -> None:
    inner = Quadratic(dim=5)
    task = Reparametrized(inner, "parameter")
    problem = task.sample(key(0))
    params = task.init(problem, key(1))
    np.testing.assert_allclose(params * problem.scale, inner.init(problem.problem, key(1)), rtol=1e-6)


# Bad input.


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("digits_mlp", {"batch_size": -1}, "batch_size is -1; it must be"),
        ("digits_mlp", {"batch_size": 0}, "batch_size is 0; it must be"),
        ("digits_mlp", {"eval_size": 0}, "eval_size is 0; it must be"),
        ("digits_mlp", {"widths": (0,)}, r"widths is \[0\]; it must be"),
        ("digits_mlp", {"widths": (32, -8)}, r"widths is \[32, -8\]; it must be"),
        ("digits_mlp", {"widths": (2.5,)}, r"widths is \[2\.5\]; it must be"),
        (
            "digits_mlp",
            {"activation": "rellu"},
            "activation is 'rellu'; it must be one of relu, tanh, gelu, silu, sigmoid",
        ),
        ("digits_mlp", {"width": (3,)}, "'width'; did you mean widths"),
        ("digit_mlp", {}, "no task named 'digit_mlp'; did you mean digits_mlp"),
        ("fashion_mlp", {"size": 13}, "size is 13; Fashion-MNIST comes in 28, 14, 8 or 7"),
        ("quadratic", {"dim": 0}, "dim is 0; it must be at least 1"),
        ("quadratic", {"low": 1.0, "high": 0.0}, r"low is 1\.0 and high 0\.0; low must not exceed high"),
        ("quadratic", {"noise": -0.5}, r"noise is -0\.5; it must be at least 0"),
    ],
)
def test_rejects_bad_arguments(name: str, fields: dict[str, Any], message: str) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=message):
        lopt.tasks.create(name, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level": "layer"}, "level is 'layer'; it must be one of global, tensor, parameter"),
        ({"low": 2.0, "high": 1.0}, r"low is 2\.0 and high 1\.0; they must be positive, low no greater than high"),
        ({"low": 0.0}, r"low is 0\.0 and high 100\.0; they must be positive"),
    ],
)
def test_reparametrized_rejects_bad_arguments(fields: dict[str, Any], message: str) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=message):
        Reparametrized(Quadratic(), **fields)


# Fashion-MNIST on disk.


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine without Fashion-MNIST, whose `$LOPT_DATA` is the folder given."""
    monkeypatch.setattr(data, "FASHION_MNIST_FOLDER", tmp_path / "nowhere")
    monkeypatch.setenv("LOPT_DATA", str(tmp_path))
    data.fashion_mnist.cache_clear()
    yield tmp_path
    data.fashion_mnist.cache_clear()


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), compresslevel=1))


@pytest.fixture
def little_fashion(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of the right form: blank but for the index of each image, in its first 2x2 block."""
    folder = elsewhere / "fashion-mnist"
    for prefix, count in (("train", 50_100), ("t10k", 200)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    raw = (gzip.decompress((folder / name).read_bytes()) for name in data.FASHION_MNIST_FILES)
    monkeypatch.setattr(data, "FASHION_MNIST_SHA256", tuple(hashlib.sha256(r).hexdigest() for r in raw))
    return folder


def test_missing_fashion_mnist_says_how_to_get_it(elsewhere: Path) -> None:
    with pytest.raises(MissingDataError, match=r"apt-get install dataset-fashion-mnist.*\$LOPT_DATA/fashion-mnist"):
        lopt.tasks.create("fashion_mlp")


def test_incomplete_fashion_mnist_is_missing(little_fashion: Path) -> None:
    assert data.fashion_mnist_folder() == little_fashion
    (little_fashion / data.FASHION_MNIST_FILES[2]).unlink()
    assert data.fashion_mnist_folder() is None


def test_fashion_mnist_is_read_pooled_and_split(little_fashion: Path) -> None:
    found = data.fashion_mnist(28)
    assert [len(getattr(found, s).labels) for s in SPLITS] == [50_000, 100, 200]

    def index(examples: data.Examples) -> list[int]:
        images = np.asarray(examples.images).astype(int)
        return (images[:, 0] * 256 + images[:, 1]).tolist()

    assert index(found.train) == list(range(50_000))
    assert index(found.valid) == list(range(50_000, 50_100))
    assert index(found.test) == list(range(200))
    assert found.test.labels.tolist() == [i % 10 for i in range(200)]
    pooled = data.fashion_mnist(14)
    assert pooled.test.images.shape == (200, 196)
    assert pooled.test.images[:, 0].tolist() == [round(i / 4) for i in range(200)]
    assert not pooled.test.images[:, 1:].any()
    assert data.fashion_mnist(7).test.images.shape == (200, 49)


@pytest.mark.parametrize(
    "damage", ["truncated gzip", "not gzip", "truncated data", "wrong type", "empty", "empty gzip", "one bit"]
)
def test_a_damaged_file_is_one_clear_sentence(little_fashion: Path, damage: str) -> None:
    path = little_fashion / data.FASHION_MNIST_FILES[3]
    content = path.read_bytes()
    raw = gzip.decompress(content)
    path.write_bytes(
        {
            "truncated gzip": content[: len(content) // 2],
            "not gzip": b"<html>404</html>",
            "truncated data": gzip.compress(raw[:-7]),
            "wrong type": gzip.compress(b"\x00\x00\x0d" + raw[3:]),
            "empty": b"",
            "one bit": gzip.compress(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]),
            "empty gzip": gzip.compress(b""),
        }[damage]
    )
    with pytest.raises(InputError) as raised:
        data.fashion_mnist(28)
    message = str(raised.value)
    assert str(path) in message
    assert "Install it again." in message
    assert "\n" not in message


@pytest.mark.skipif(data.fashion_mnist_folder() is None, reason="Fashion-MNIST is not installed")
def test_installed_fashion_mnist_is_whole() -> None:
    found = data.fashion_mnist(7)
    assert [len(getattr(found, s).labels) for s in SPLITS] == [50_000, 10_000, 10_000]
    assert np.bincount(found.test.labels).tolist() == [1_000] * 10
    assert int(np.bincount(np.concatenate([found.train.labels, found.valid.labels])).min()) == 6_000


def test_optax_takes_the_parameters_of_every_task() -> None:
    for row in (r for r in TASKS if not task_marks(r)):
        shapes = jax.eval_shape(begin, row.create(), key(0))[1]
        tx = optax.chain(optax.clip_by_global_norm(1.0), lopt.create("star").to_optax())
        updates, _ = jax.eval_shape(tx.update, shapes, jax.eval_shape(tx.init, shapes), shapes)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, shapes)
