"""What the meta-tasks say of themselves: a learned optimizer's training, analytic continuation, a quantised graph network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

import lopt
from lopt.errors import InputError
from lopt.tasks import AnalyticContinuation, LearnedOptimizerTraining, Quadratic, QuantizedGNN
from lopt.tasks.networks.quantized_gnn import QuantizedParams, quantize
from lopt.tasks.surfaces.analytic_continuation import fermionic_kernel
from registry import as_users_run_it

SPLITS = ("train", "valid", "test")


# A learned optimizer's training.


def test_the_meta_gradient_of_two_steps_of_sgd_is_the_known_one() -> None:
    """With losses $f(w_0)$ and $f(w_0 - \\eta g_0)$ the slope in $\\log\\eta$ is half of $-\\eta\\, g_1 \\cdot g_0$."""
    inner, rate = Quadratic(dim=4), 0.3
    task = LearnedOptimizerTraining(lopt.create("sgd", learning_rate=rate), inner, steps=2)

    @jax.jit
    def both(key: Array) -> tuple[Any, Any]:
        found = jax.value_and_grad(lambda theta: task.loss((), theta, key))(task.optimizer)
        start_key, _ = jax.random.split(jax.random.split(key, 1)[0])
        begun = lopt.start(task.optimizer, inner, start_key, 2)
        before, gradient = jax.value_and_grad(inner.loss, argnums=1)(begun.problem, begun.params, key)
        after, next_gradient = jax.value_and_grad(inner.loss, argnums=1)(
            begun.problem, begun.params - rate * gradient, key
        )
        return found, (0.5 * (before + after), -0.5 * rate * jnp.dot(gradient, next_gradient))

    (loss, gradient), (expected, slope) = both(jax.random.key(0))
    np.testing.assert_allclose(loss, inner.normalize(expected), rtol=1e-5)
    np.testing.assert_allclose(gradient.log_learning_rate, inner.normalize(slope), rtol=1e-4)


def test_starts_are_fresh_meta_parameters_of_the_given_kind() -> None:
    learned = LearnedOptimizerTraining(lopt.create("mlp", hidden=(5,)), Quadratic(dim=2))
    one, other = (learned.init((), jax.random.key(seed)) for seed in (1, 2))
    assert jax.tree.structure(one) == jax.tree.structure(learned.optimizer)
    assert (one.net.weights[0] != other.net.weights[0]).all()  # pyright: ignore[reportAttributeAccessIssue]
    hand = LearnedOptimizerTraining(lopt.create("sgd", learning_rate=0.3), Quadratic(dim=2), spread=0.2)
    starts = jax.vmap(lambda key: hand.init((), key))(jax.random.split(jax.random.key(0), 1_000))
    logs = np.asarray(starts.log_learning_rate, np.float64)  # pyright: ignore[reportAttributeAccessIssue]
    assert abs(logs.mean() - np.log(0.3)) < 4 * 0.2 / np.sqrt(1_000)
    assert abs(logs.std() - 0.2) < 4 * 0.2 / np.sqrt(2_000)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("adam", 50), ("mlp", 10), ("small_fc", 20)])
def test_the_three_of_the_small_time_set_have_finite_meta_gradients(name: str, steps: int) -> None:
    """On digits, whose dead pixels give gradients of exactly zero: no rule may divide by the root of their mean square."""
    task = lopt.tasks.create("learned_optimizer_training", optimizer=name, widths=(4,), steps=steps)
    # optax raises a float to the integer step, whose derivative the strict rules of the other tests forbid
    with jax.numpy_dtype_promotion("standard"):
        gradient = jax.jit(jax.grad(lambda theta: task.loss((), theta, jax.random.key(1))))(
            task.init((), jax.random.key(0))
        )
    leaves = jax.tree.leaves(gradient)
    assert all(jnp.isfinite(x).all() for x in leaves)
    assert any((x != 0).any() for x in leaves)


# Analytic continuation.


def test_the_fermionic_kernel_is_its_formula_and_never_overflows() -> None:
    beta, times, grid = 3.0, np.linspace(0.0, 3.0, 7), np.linspace(-5.0, 5.0, 11)
    naive = np.exp(-times[:, None] * grid) / (1.0 + np.exp(-beta * grid))
    np.testing.assert_allclose(fermionic_kernel(times, grid, beta), naive, rtol=1e-12)
    with np.errstate(over="raise", invalid="raise"):
        far = fermionic_kernel(times, 1e5 * grid, beta)
    np.testing.assert_array_equal(far[0] + far[-1], 1.0)  # K(0) + K(beta), whatever the frequency


def test_chi_squared_is_about_half_a_point_at_the_true_spectrum_and_as_expected_at_the_start() -> None:
    task, problems = AnalyticContinuation(frequencies=33, points=16, noise=5e-3), 2_000

    @jax.jit
    def look(key: Array) -> tuple[dict[str, Array], Array, Array]:
        problem = task.sample(key)
        truth = jnp.log(problem.spectrum + 1e-30)
        found = {split: task.metrics(problem, truth, key, split) for split in SPLITS}
        return {s: m["loss"] for s, m in found.items()}, found["train"]["l1"], task.loss(problem, task.model * 0.0, key)

    chi, l1, start = jax.vmap(look)(jax.random.split(jax.random.key(0), problems))
    for split in SPLITS:
        assert abs(float(jnp.mean(chi[split])) - 0.5) < 4.0 * np.sqrt(0.5 / (16 * problems)), split
    assert abs(np.corrcoef(chi["train"], chi["valid"])[0, 1]) < 4.0 / np.sqrt(problems)  # independent measurements
    assert float(jnp.max(l1)) < 1e-5
    error = float(jnp.std(start)) / np.sqrt(problems)
    assert error < 0.05 * float(task.start)
    assert abs(float(jnp.mean(start)) - float(task.start)) < 4.0 * error


def test_continuation_has_its_analytic_gradient_and_entropy() -> None:
    model = np.linspace(1.0, 3.0, 9)
    plain, regular = (AnalyticContinuation(frequencies=9, points=6, entropy=e, model=model) for e in (0.0, 2.0))
    problem = plain.sample(jax.random.key(0))
    logits = plain.init(problem, jax.random.key(1))
    z = np.asarray(logits, np.float64)
    a, m = np.exp(z) / np.exp(z).sum(), model / model.sum()
    kernel, data = np.asarray(plain.kernel, np.float64), np.asarray(problem.train, np.float64)
    slope = kernel.T @ (kernel @ a - data) / plain.noise**2 / 6
    entropy_slope = 2.0 / 6 * (np.log(a / m) + 1.0)
    for task, by_mass in ((plain, slope), (regular, slope + entropy_slope)):
        gradient = jax.grad(lambda x, task=task: task.loss(problem, x, jax.random.key(2)))(logits)
        expected = a * (by_mass - a @ by_mass)
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    added = float(regular.loss(problem, logits, jax.random.key(2)) - plain.loss(problem, logits, jax.random.key(2)))
    np.testing.assert_allclose(added, 2.0 / 6 * np.sum(a * np.log(a / m)), atol=1e-2)
    for split in ("valid", "test"):
        assert float(regular.loss(problem, logits, jax.random.key(2), split)) == float(
            plain.loss(problem, logits, jax.random.key(2), split)
        )


def test_continuation_is_ill_posed() -> None:
    singular = np.linalg.svd(np.asarray(AnalyticContinuation().kernel, np.float64), compute_uv=False)
    assert singular[12] < 1e-3 * singular[0]


# The quantised graph network.


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_quantiser_rounds_to_its_levels_and_passes_gradients(bits: int) -> None:
    x = jax.random.normal(jax.random.key(bits), (500,))
    found = np.asarray(quantize(x, bits), np.float64)
    step = float(jnp.max(jnp.abs(x))) / (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(found / step, np.round(found / step), atol=1e-4)
    assert len(np.unique(np.round(found / step))) <= 2**bits - 1
    assert np.abs(found - np.asarray(x)).max() <= 0.5 * step * (1 + 1e-5)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(quantize(x, bits)))(x), 1.0)
    assert not quantize(jnp.zeros(3), bits).any()


@pytest.fixture(scope="module")
def gnn() -> tuple[QuantizedGNN, Any, QuantizedParams]:
    task = QuantizedGNN(nodes=48, classes=3, features=6, hidden=5, noise=1.0, bit_cost=0.2)
    problem = jax.jit(task.sample)(jax.random.key(0))
    return task, problem, task.init(problem, jax.random.key(1))


def test_graphs_are_those_of_the_block_model() -> None:
    task = QuantizedGNN(nodes=96, inside=0.3, between=0.05)
    problem = jax.jit(task.sample)(jax.random.key(0))
    adjacency, labels = np.asarray(problem.adjacency, np.float64), np.asarray(problem.labels)
    edges = adjacency > 0
    np.testing.assert_array_equal(adjacency, adjacency.T)
    assert edges.diagonal().all()
    degrees = edges.sum(axis=1)
    np.testing.assert_allclose(adjacency, edges / np.sqrt(np.outer(degrees, degrees)), rtol=1e-5)
    same, above = labels[:, None] == labels, np.triu(np.ones((96, 96), bool), 1)
    for which, rate in ((same, 0.3), (~same, 0.05)):
        pairs = edges[which & above]
        assert abs(pairs.mean() - rate) < 4.0 * np.sqrt(rate * (1 - rate) / len(pairs))


def test_a_split_reads_the_labels_of_its_own_nodes(gnn: tuple[QuantizedGNN, Any, QuantizedParams]) -> None:
    task, problem, params = gnn

    @jax.jit
    def losses(labels: Array) -> dict[str, Array]:
        return {s: task.loss(problem._replace(labels=labels), params, jax.random.key(0), s) for s in SPLITS}

    clean = losses(problem.labels)
    owner = {}
    for node in range(task.nodes):
        found = losses(problem.labels.at[node].set((problem.labels[node] + 1) % 3))
        changed = [s for s in SPLITS if float(found[s]) != float(clean[s])]
        assert len(changed) == 1
        owner[node] = changed[0]
    assert [list(owner.values()).count(s) for s in SPLITS] == [24, 12, 12]


def test_the_gradient_of_the_last_choice_is_exact(gnn: tuple[QuantizedGNN, Any, QuantizedParams]) -> None:
    """That of the first passes straight through the rounding of the hidden units."""
    task, problem, params = gnn

    @jax.jit
    def loss(choice: Array) -> Array:
        both = jnp.stack([params.choice[0], choice])
        return task.loss(problem, params._replace(choice=both), jax.random.key(0))

    gradient = jax.grad(loss)(params.choice[1])
    step = 0.05 * gradient / jnp.linalg.norm(gradient)
    difference = float(loss(params.choice[1] + step) - loss(params.choice[1] - step)) / 0.1
    np.testing.assert_allclose(difference, float(jnp.linalg.norm(gradient)), rtol=5e-3)


def test_adam_learns_above_chance_with_fewer_bits() -> None:
    adam = lopt.create("adam", learning_rate=0.03)
    task = QuantizedGNN(nodes=64, classes=4, features=8, hidden=8, noise=1.5, bit_cost=3.0, bits=(2, 8))

    @jax.jit
    def train(key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        inner = lopt.start(adam, task, key, 100)
        before = task.metrics(inner.problem, inner.params, key, "test")
        inner, _ = lopt.unroll(adam, task, inner, key, 100)
        return before, task.metrics(inner.problem, inner.params, key, "test")

    before, after = jax.vmap(train)(jax.random.split(jax.random.key(0), 8))
    assert float(jnp.mean(after["accuracy"])) > 0.5  # chance is 0.25, with a deviation of 0.04 on 128 nodes
    np.testing.assert_allclose(before["bits"], 5.0, rtol=0.02)
    assert float(jnp.max(after["bits"])) < 4.0


# Bad input.


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("analytic_continuation", {"noise": 0.0}, r"noise is 0\.0; it must be positive"),
        ("analytic_continuation", {"frequencies": 1}, "frequencies is 1; it must be at least 2"),
        ("analytic_continuation", {"entropy": -1.0}, r"entropy is -1\.0; it must be at least 0"),
        ("analytic_continuation", {"model": np.ones(3)}, r"model has shape \(3,\); it must be 65 positive numbers"),
        ("quantized_gnn", {"bits": (1, 8)}, r"bits is \[1, 8\]; it must be of whole numbers from 2 to 16"),
        ("quantized_gnn", {"inside": 1.5}, r"inside is 1\.5; it must lie between 0 and 1"),
        ("quantized_gnn", {"nodes": 2}, "nodes is 2; it must be at least 4"),
        ("learned_optimizer_training", {"optimizer": "adamm"}, "no optimizer named 'adamm'"),
    ],
)
def test_rejects_bad_arguments(name: str, fields: dict[str, Any], message: str) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=message):
        lopt.tasks.create(name, **fields)


@pytest.mark.parametrize(
    ("optimizer", "fields", "message"),
    [
        (lopt.create("sgd"), {"steps": 0}, "steps is 0; it must be at least 1"),
        (lopt.create("sgd"), {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        (lopt.create("sgd"), {"spread": -1.0}, r"spread is -1\.0; it must be at least 0"),
        (optax.sgd(0.1), {}, "optimizer is a GradientTransformation.*; it must be one of adam, adamw"),
    ],
    ids=["steps", "batch_size", "spread", "optimizer"],
)
def test_learned_optimizer_training_rejects_bad_arguments(optimizer: Any, fields: dict[str, Any], message: str) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=message):
        LearnedOptimizerTraining(optimizer, Quadratic(), **fields)
