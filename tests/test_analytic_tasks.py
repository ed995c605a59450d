"""Analytic tasks: they are their equations, their known minima are minima. The ensemble of Wichrowska et al., member by member."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

import lopt
from lopt.errors import InputError
from lopt.tasks import SURFACES, NoisyGradients, SparseGradients, TaskName
from lopt.tasks.corpora.wichrowska import WICHROWSKA2017, WICHROWSKA2017_FULL, WICHROWSKA2017_OFF, WICHROWSKA2017_TEST
from lopt.tasks.data.images import fashion_mnist_folder
from lopt.tasks.surfaces.chaotic import MINIMA
from registry import as_users_run_it

surfaces = pytest.mark.parametrize("function", SURFACES)


def key(seed: int) -> Array:
    return jax.random.key(seed)


# Compiled: one program takes less time than many operations.
draw_problem = jax.jit(lambda task, k: task.sample(k))
draw_params = jax.jit(lambda task, problem, k: task.init(problem, k))
compiled_loss = jax.jit(
    lambda task, problem, params, k, split: task.loss(problem, params, k, split), static_argnames="split"
)
normalized = jax.jit(lambda task, losses: jax.vmap(task.normalize)(jnp.atleast_1d(losses)))
many_losses = jax.jit(jax.vmap(lambda task, problem, params, k: task.loss(problem, params, k), (None, None, None, 0)))


def loss_at(task: lopt.Task, problem: Any, params: Any, split: Any = "valid") -> float:
    return float(compiled_loss(task, problem, params, key(0), split=split))


# Known minima.


@surfaces
def test_known_minima_are_minima(function: str) -> None:
    surface = SURFACES[function]
    minima = jnp.asarray(surface.minima, jnp.float32)
    values, slopes, bends = jax.jit(
        lambda w: (
            jax.vmap(surface.function)(w),
            jax.vmap(jax.grad(surface.function))(w),
            jax.vmap(jax.hessian(surface.function))(w),
        )
    )(minima)
    np.testing.assert_allclose(values, surface.least, rtol=0.0, atol=1e-5)
    if function != "ackley":  # which is not smooth there
        steepest = np.abs(np.linalg.eigvalsh(np.asarray(bends))).max(axis=1)
        assert (np.abs(slopes).max(axis=1) < 1e-5 * steepest).all()
        assert (np.linalg.eigvalsh(np.asarray(bends)) > 0.0).all()
    left, right, bottom, top = surface.frame
    assert all(left <= x <= right and bottom <= y <= top for x, y in surface.minima)
    x, y, picture = lopt.tasks.landscape(function, cells=300)
    assert (len(x), len(y), picture.shape) == (300, 300, (300, 300))
    assert picture.min() >= surface.least - 1e-5
    assert picture.min() >= -1e-6  # the log objective needs it
    row, column = np.unravel_index(picture.argmin(), picture.shape)
    nearest = min(math.hypot(x[column] - a, y[row] - b) for a, b in surface.minima)
    assert nearest < 0.02 * (right - left) + (
        0.5 if function in ("beale", "rosenbrock") else 0.0
    )  # which lie in flat valleys
    task = lopt.tasks.Landscape(function)
    np.testing.assert_allclose(normalized(task, values), 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "point", "value"),
    [
        ("ackley", (1.0, 1.0), 20.0 - 20.0 * math.exp(-0.2)),
        ("beale", (0.0, 0.0), 14.203125),
        ("booth", (0.0, 0.0), 74.0),
        ("branin", (0.0, 0.0), 46.0 + 10.0 * (1.0 - 1.0 / (8.0 * math.pi))),
        ("log_sum_exp", (0.0, 0.0), math.log(1.0 + 3.0 * math.exp(-0.1))),
        ("matyas", (1.0, 2.0), 0.34),
        ("michalewicz", (0.0, math.pi / 2.0), 1.0),
        ("rosenbrock", (-1.0, 2.0), 104.0),
        ("styblinski_tang", (1.0, 2.0), 56.0),
    ],
)
def test_test_functions_have_their_values(function: str, point: tuple[float, float], value: float) -> None:
    np.testing.assert_allclose(SURFACES[function].function(jnp.asarray(point)), value, rtol=1e-6)


def test_a_start_at_ackleys_minimum_has_a_gradient() -> None:
    assert np.isfinite(jax.grad(SURFACES["ackley"].function)(jnp.zeros(2))).all()


def test_rosenbrock_in_any_dimension() -> None:
    task = lopt.tasks.Landscape("rosenbrock", dim=7)
    assert loss_at(task, (), jnp.ones(7)) == 0.0
    assert loss_at(task, (), jnp.zeros(7)) == 6.0
    starts = jax.jit(jax.vmap(lambda k: task.init((), k)))(jax.random.split(key(0), 4_000))
    assert starts.shape == (4_000, 7)
    assert -5.0 <= float(starts.min()) < -4.9
    assert 9.9 < float(starts.max()) <= 10.0
    found = np.asarray(jax.vmap(lambda w: task.normalize(task.loss((), w, key(0))))(starts), np.float64)
    assert abs(found.mean() - 1.0) < 4.0 * found.std() / math.sqrt(len(found))


STRASSEN = (
    [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 1, 0, -1]],
    [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]],
)


def test_strassen_solves_the_search_for_matrix_multiplication() -> None:
    left, right = (jnp.asarray(np.transpose(x), jnp.float32) for x in STRASSEN)
    task = lopt.tasks.MatMulSearch(n=2, k=7)
    assert loss_at(task, (), type(draw_params(task, (), key(0)))(left, right)) < 1e-9
    naive = [(i, k, j) for i in range(2) for j in range(2) for k in range(2)]
    left, right = np.zeros((4, 8), np.float32), np.zeros((4, 8), np.float32)
    for at, (i, k, j) in enumerate(naive):
        left[2 * i + k, at] = right[2 * k + j, at] = 1.0
    task = lopt.tasks.MatMulSearch(n=2, k=8)
    assert loss_at(task, (), type(draw_params(task, (), key(0)))(jnp.asarray(left), jnp.asarray(right))) < 1e-9


def test_search_for_matrix_multiplication_is_its_equation() -> None:
    task = lopt.tasks.MatMulSearch(n=3, k=20)
    params = draw_params(task, (), key(0))
    one_hot = np.eye(9)
    a, b = np.repeat(one_hot, 9, axis=0), np.tile(one_hot, (9, 1))
    c = (a.reshape(-1, 3, 3) @ b.reshape(-1, 3, 3)).reshape(81, 9)
    p = (a @ np.asarray(params.left, np.float64)) * (b @ np.asarray(params.right, np.float64))
    expected = np.sum((p @ np.linalg.solve(p.T @ p, p.T @ c) - c) ** 2)
    np.testing.assert_allclose(loss_at(task, (), params), expected, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(params.left, axis=0), 1.0, rtol=1e-5)


@pytest.mark.parametrize("curve", MINIMA)
def test_minima_of_the_chaotic_toys(curve: Any) -> None:
    task = lopt.tasks.ChaoticToy(curve=curve)
    x, least = MINIMA[curve]
    grid = np.linspace(-6.0, 6.0, 2_001, dtype=np.float32)
    values = np.asarray(jax.vmap(lambda w: task.loss((), w, key(0)))(jnp.asarray(grid)))
    assert values.min() >= least - 1e-5
    assert abs(grid[values.argmin()] - x) < 0.01
    np.testing.assert_allclose(loss_at(task, (), jnp.float32(x)), least, atol=1e-5)
    assert float(draw_params(task, (), key(0))) == -4.0
    np.testing.assert_allclose(task.normalize(task.loss((), jnp.float32(-4.0), key(0))), 1.0, rtol=1e-6)


def test_momentum_on_the_toy_is_chaotic_in_its_learning_rate() -> None:
    """Outer losses at neighbouring learning rates differ a hundred times more where the rate is large."""
    task = lopt.tasks.ChaoticToy()

    @jax.jit
    @jax.vmap
    def outer(rate: Array) -> Array:
        momentum = lopt.optimizers.Momentum(learning_rate=rate, decay=0.7)
        return lopt.unroll(momentum, task, lopt.start(momentum, task, key(0), 50), key(1), 50)[1].mean()

    rough, smooth = (np.abs(np.diff(outer(jnp.logspace(low, low + 0.2, 400)))).mean() for low in (0.3, -2.0))
    assert rough > 100.0 * smooth


def solved(task: Any) -> tuple[Any, Any]:
    problem = draw_problem(task, key(0))
    solution = np.linalg.solve(np.asarray(problem.matrix, np.float64), np.asarray(problem.target, np.float64))
    return problem, jnp.asarray(solution, jnp.float32)


MINIMISED: dict[str, Callable[[], tuple[lopt.Task, Any, Any]]] = {
    "least_squares": lambda: (task := lopt.tasks.LeastSquares(dim=5), *solved(task)),
    "p_norm": lambda: (task := lopt.tasks.PNorm(dim=5, power=3.0), *solved(task)),
    "bowl": lambda: (lopt.tasks.Bowl(condition=5.0, angle=1.0), (), jnp.zeros(2)),
    "dependency_chain": lambda: (lopt.tasks.DependencyChain(dim=3), (), jnp.zeros(4)),
    "min_max_well": lambda: (lopt.tasks.MinMaxWell(dim=3), (), jnp.asarray([1.0, -1.0, 1.0])),
    "projection": lambda: (task := lopt.tasks.DataQuadratic("projection"), draw_problem(task, key(0)), jnp.zeros(12)),
    "sum_of_quadratics": lambda: (task := lopt.tasks.DataQuadratic("sum"), draw_problem(task, key(0)), jnp.zeros(12)),
    "noisy_quadratic": lambda: (lopt.tasks.NoisyQuadratic(covariance=1.0), (), jnp.zeros(3)),
    "influence_balancing": lambda: (lopt.tasks.InfluenceBalancing(), (), jnp.float32(-1.0 / 6.0)),
    "tilted": lambda: (task := lopt.tasks.Quadratic(tilted=True), p := draw_problem(task, key(0)), p.optimum),
}


@pytest.mark.parametrize("name", MINIMISED)
def test_other_known_minima_are_minima(name: str) -> None:
    task, problem, best = MINIMISED[name]()
    least = loss_at(task, problem, best)
    assert abs(float(task.normalize(jnp.float32(least)))) < 1e-5
    nearby = jax.random.normal(key(1), (200, *best.shape)) * jnp.logspace(-2, 0, 200).reshape(200, *[1] * best.ndim)
    around = jax.jit(jax.vmap(lambda d: task.loss(problem, best + d, key(0), "valid")))(nearby)
    assert least <= float(around.min())


# Equations.


@pytest.mark.parametrize("power", [1.0, 2.5])
def test_linear_systems_are_their_equations(power: float) -> None:
    squares, norm = lopt.tasks.LeastSquares(dim=6), lopt.tasks.PNorm(dim=6, power=power)
    problem, w = draw_problem(squares, key(0)), draw_params(squares, draw_problem(squares, key(0)), key(1))
    r = np.asarray(problem.matrix, np.float64) @ np.asarray(w, np.float64) - np.asarray(problem.target, np.float64)
    np.testing.assert_allclose(loss_at(squares, problem, w), 0.5 * r @ r, rtol=1e-5)
    expected = np.sum((np.abs(r) + 1e-6) ** power) ** (1.0 / power)
    np.testing.assert_allclose(loss_at(norm, problem, w), expected, rtol=1e-5)


def test_bowl_is_its_equation() -> None:
    task, w = lopt.tasks.Bowl(condition=5.0, angle=0.3), np.asarray([0.7, -1.2])
    turn = np.asarray([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    expected = 0.5 * np.sum((np.diag([math.sqrt(5.0), 1.0]) @ turn @ w) ** 2)
    np.testing.assert_allclose(loss_at(task, (), jnp.asarray(w, jnp.float32)), expected, rtol=1e-5)


def test_winding_paths_are_their_equations() -> None:
    w = np.asarray([0.5, -1.0, 2.0])
    params = jnp.asarray(w, jnp.float32)
    chain = 0.25 + 1.0 / (0.25 + 1e-6) + 4.0 / (1.0 + 1e-6)
    np.testing.assert_allclose(loss_at(lopt.tasks.DependencyChain(dim=2), (), params), chain, rtol=1e-5)
    np.testing.assert_allclose(loss_at(lopt.tasks.MinMaxWell(dim=3), (), params), 4.0 + 4.0 - 2.0, rtol=1e-5)
    snake = lopt.tasks.OutwardSnake(dim=3, examples=40, batch_size=64)
    problem = draw_problem(snake, key(0))
    d = np.asarray(problem.data)
    assert set(d.ravel()) == {0.0, 1.0}
    path = w[1:] - math.pi * np.cos(w[:-1])
    expected = np.sum(d[:, 0]) / (np.linalg.norm(w) + 1e-6) + np.sum((d[:, 1:] * path) ** 2)
    for split in ("train", "valid"):  # a batch as large as the data is the data
        np.testing.assert_allclose(loss_at(snake, problem, params, split), expected, rtol=1e-5)


@pytest.mark.parametrize("form", ["projection", "sum"])
def test_data_quadratics_are_their_equations(form: Any) -> None:
    task = lopt.tasks.DataQuadratic(form, dim=3, examples=10, batch_size=4)
    problem, w = draw_problem(task, key(0)), np.asarray([0.5, -1.0, 2.0], np.float32)
    d = np.asarray(problem.data, np.float64)
    np.testing.assert_array_equal(np.sort(d, axis=0), np.sort(-d, axis=0))
    each = np.sum((w * d) ** 2, 1) if form == "projection" else np.sum((w - d) ** 2, 1) - np.sum(d**2, 1)
    np.testing.assert_allclose(loss_at(task, problem, jnp.asarray(w)), 4 * each.mean(), rtol=1e-5)
    batches = many_losses(task, problem, jnp.asarray(w), jax.random.split(key(1), 5_000))
    error = float(batches.std()) / math.sqrt(5_000)
    assert abs(float(batches.mean()) - 4 * each.mean()) < 4.0 * error


def test_noisy_quadratic_has_the_spectrum_and_the_covariance_given() -> None:
    spectrum, covariance = np.asarray([2.0, 0.5, 0.0]), np.asarray([[1.0, 0.5, 0.0], [0.5, 2.0, 0.0], [0.0, 0.0, 0.0]])
    task = lopt.tasks.NoisyQuadratic(spectrum=spectrum, covariance=covariance)
    w = jnp.asarray([1.0, -2.0, 3.0])
    np.testing.assert_allclose(loss_at(task, (), w), 0.5 * (2.0 + 0.5 * 4.0), rtol=1e-6)
    slopes = jax.jit(jax.vmap(lambda k: jax.grad(lambda x: task.loss((), x, k))(w)))(jax.random.split(key(0), 20_000))
    # The gradient is H (w - mu).
    np.testing.assert_allclose(slopes.mean(0), spectrum * np.asarray(w), atol=0.06)
    expected = np.diag(spectrum) @ covariance @ np.diag(spectrum)
    np.testing.assert_allclose(np.cov(np.asarray(slopes).T), expected, atol=0.15)


def test_regression_losses_have_the_mean_that_metrics_report() -> None:
    task = lopt.tasks.LinearRegression(dim=4, noise=0.5, batch_size=8)
    problem = draw_problem(task, key(0))
    w = draw_params(task, problem, key(1))
    batches = many_losses(task, problem, w, jax.random.split(key(2), 20_000))
    expected = float(task.metrics(problem, w, key(0), "test")["loss"])
    assert abs(float(batches.mean()) - expected) < 4.0 * float(batches.std()) / math.sqrt(20_000)
    best = task.metrics(problem, problem.optimum, key(0), "test")["loss"]
    np.testing.assert_allclose(best, 0.125, rtol=1e-6)
    np.testing.assert_allclose(task.normalize(best), 0.0, atol=1e-6)


def test_tilted_quadratics_have_a_standard_normal_linear_term() -> None:
    task = lopt.tasks.Quadratic(dim=5, low=-3.0, tilted=True)

    def slope_at_zero(k: Array) -> Array:
        problem = task.sample(k)
        return jax.grad(lambda w: task.loss(problem, w, k))(jnp.zeros(5))

    slopes = np.asarray(jax.jit(jax.vmap(slope_at_zero))(jax.random.split(key(0), 10_000)))
    np.testing.assert_allclose(np.cov(slopes.T), np.eye(5), atol=0.07)


def test_influence_is_that_of_the_recurrence_and_its_sign_turns() -> None:
    task = lopt.tasks.InfluenceBalancing(steps=100)
    matrix = 0.5 * (np.eye(23) + np.eye(23, k=1))
    push, state = np.repeat([1.0, -1.0], [10, 13]), np.zeros(23)
    for _ in range(100):
        state = matrix @ state + 0.3 * push
    np.testing.assert_allclose(loss_at(task, (), jnp.float32(0.3)), 0.5 * (state[0] - 1.0) ** 2, rtol=1e-5)
    short = lopt.tasks.InfluenceBalancing(steps=100, truncation=10)
    assert loss_at(short, (), jnp.float32(0.3)) == loss_at(task, (), jnp.float32(0.3))
    whole, cut = (float(jax.grad(lambda x, t=t: t.loss((), x, key(0)))(jnp.float32(0.3))) for t in (task, short))
    assert whole > 0.0 > cut


# Combinators.


def test_combinators_are_their_equations() -> None:
    bowl, squares = lopt.tasks.Bowl(condition=3.0), lopt.tasks.LeastSquares(dim=4)
    problem = draw_problem(squares, key(0))
    w = draw_params(squares, problem, key(1))
    f = loss_at(squares, problem, w)
    logarithm = lopt.tasks.LogObjective(squares)
    np.testing.assert_allclose(loss_at(logarithm, problem, w), math.log(f + 1e-6) - math.log(1e-6), rtol=1e-5)
    assert loss_at(lopt.tasks.LogObjective(bowl), (), jnp.zeros(2)) == 0.0

    larger = lopt.tasks.rescaled(squares, 50.0)
    scaled_problem = draw_problem(larger, key(0))
    scaled = draw_params(larger, scaled_problem, key(1))
    inner = draw_params(squares, scaled_problem.problem, key(1))
    np.testing.assert_allclose(scaled, 50.0 * inner, rtol=1e-5)
    np.testing.assert_allclose(
        loss_at(larger, scaled_problem, scaled), loss_at(squares, scaled_problem.problem, inner), rtol=1e-4
    )

    both = lopt.tasks.SumOfTasks([bowl, squares])
    at = jnp.asarray([1.0, 2.0])
    np.testing.assert_allclose(loss_at(both, ((), problem), (at, w)), loss_at(bowl, (), at) + f, rtol=1e-6)
    np.testing.assert_allclose(both.normalize(jnp.float32(2.0 + 10.0)), 1.0, rtol=1e-5)


def test_normalisation_of_a_sum_goes_to_zero_at_the_sum_of_the_least() -> None:
    task = lopt.tasks.SumOfTasks([lopt.tasks.Landscape("branin"), lopt.tasks.Landscape("styblinski_tang")])
    least = SURFACES["branin"].least + SURFACES["styblinski_tang"].least
    np.testing.assert_allclose(task.normalize(jnp.float32(least)), 0.0, atol=1e-5)


# Points.


@pytest.mark.slow
def test_random_networks_label_as_they_say() -> None:
    task = lopt.tasks.random_network_mlp(inputs=7)
    points = draw_problem(task, key(0))
    assert [getattr(points, s).inputs.shape for s in ("train", "valid", "test")] == [(1000, 7), (250, 7), (250, 7)]
    inputs = np.concatenate([x.inputs for x in points])
    assert len(np.unique(inputs, axis=0)) == 1500  # no point is in two splits
    shares = jax.jit(jax.vmap(lambda k: task.sample(k).train.labels.mean(dtype=jnp.float32)))(
        jax.random.split(key(1), 100)
    )
    assert ((shares >= 0.0) & (shares <= 1.0)).all()
    assert ((shares > 0.05) & (shares < 0.95)).mean() > 0.5  # the others give nearly all points one label
    assert float(shares.std()) > 0.1


@pytest.mark.slow
def test_small_network_is_its_equation() -> None:
    task = lopt.tasks.clusters_mlp(inputs=4, widths=(3,), batch_size=2000)
    params = draw_params(task, (), key(0))
    w, b, v, c = (np.asarray(x, np.float64) for x in jax.tree.leaves(params))
    points = task.points.train
    x, y = np.asarray(points.inputs, np.float64), np.asarray(points.labels)
    assert len(y) == 1000
    hidden = 1.0 / (1.0 + np.exp(-(x @ w.T + b)))
    logit = (hidden @ v.T + c)[:, 0]
    entropy = np.mean(np.logaddexp(0.0, logit) - y * logit)
    penalty = 1e-3 * np.mean([np.sum(p**2) for p in (w, b, v, c)])
    np.testing.assert_allclose(loss_at(task, (), params, "train"), entropy + penalty, rtol=1e-5)
    found = task.metrics((), params, key(0), "train")
    np.testing.assert_allclose(found["accuracy"], np.mean((logit > 0) == y), rtol=1e-6)


@pytest.mark.slow
def test_small_networks_start_as_the_release_starts_them() -> None:
    task = lopt.tasks.random_network_mlp(inputs=64, widths=(100,))
    draw = jax.jit(jax.vmap(lambda k: task.init((), k)))(jax.random.split(key(0), 50))
    w, b, v, c = (float(x.std()) for x in jax.tree.leaves(draw))
    np.testing.assert_allclose([w, b, v], [1.2 / 8.0, 0.12, 0.12], rtol=0.05)
    np.testing.assert_allclose(c, 1.2 / math.sqrt(2.0), rtol=0.25)


def test_two_moons_is_the_whole_set_with_a_penalty_on_the_norm() -> None:
    task = lopt.tasks.two_moons(widths=(4,))
    params = draw_params(task, (), key(0))
    assert len(task.points.train.labels) == 1024
    other = compiled_loss(task, (), params, key(7), split="train")
    assert loss_at(task, (), params, "train") == float(other)
    twice = jax.tree.map(lambda x: 2.0 * x, params)
    strong = eqx.tree_at(lambda t: t.points.train.inputs, task, replace_fn=jnp.zeros_like)
    # All inputs zero and all biases zero at the start: the outputs are zero, the penalty is what is left.
    one, two = (loss_at(strong, (), p, "train") - math.log(2.0) for p in (params, twice))
    np.testing.assert_allclose(two, 2.0 * one, rtol=1e-4)
    np.testing.assert_allclose(one, 5e-3 * float(jnp.linalg.norm(ravel_pytree(params)[0])), rtol=1e-4)


@pytest.mark.slow
def test_both_ways_of_reading_an_embedding_agree() -> None:
    index, products = lopt.tasks.SparseSoftmax(), lopt.tasks.SparseSoftmax(one_hot=True)
    problem = draw_problem(index, key(0))
    params = draw_params(index, problem, key(1))
    found, expected = (
        jax.jit(jax.value_and_grad(lambda p, t=t: t.loss(problem, p, key(2))))(params) for t in (index, products)
    )
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


# Bad input.


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("landscape", {"function": "akley"}, "no landscape named 'akley'; did you mean ackley"),
        ("landscape", {"function": "ackley", "dim": 3}, "dim is 3; it must be 2, or at least 2 for rosenbrock"),
        ("bowl", {"condition": 0.0}, r"condition is 0\.0; it must be positive"),
        ("least_squares", {"dim": 0}, "dim is 0; it must be at least 1"),
        ("p_norm", {"power": 0.5}, r"power is 0\.5; it must be at least 1"),
        ("linear_regression", {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ("noisy_quadratic", {"spectrum": [-1.0]}, r"spectrum is \(-1\.0,\); it must be a row"),
        ("noisy_quadratic", {"covariance": [1.0, 2.0]}, r"covariance has shape \[2\]; for 3 eigenvalues"),
        ("noisy_quadratic", {"covariance": -1.0}, r"covariance is -1\.0; it must be symmetric"),
        ("matmul_search", {"k": 3}, "k is 3; for n = 2 it must be between 4 and 8"),
        ("chaotic", {"curve": "sine"}, "curve is 'sine'; it must be one of log_sine, polynomial"),
        ("influence_balancing", {"truncation": 999}, "truncation 999; truncation must be between 1 and steps"),
        ("data_quadratic", {"examples": 7}, "examples is 7; it must be even"),
        ("outward_snake", {"dim": 1}, "dim is 1; it must be at least 2"),
        ("random_network_mlp", {"widths": (0,)}, r"widths is \[0\]; it must be"),
        ("two_moons", {"activation": "sine"}, "activation is 'sine'; it must be one of relu"),
    ],
)
def test_rejects_bad_arguments(name: str, fields: dict[str, Any], message: str) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=message):
        lopt.tasks.create(name, **fields)


# The ensemble of Wichrowska et al. 2017. What follows is its description, in the words of its tables and from them alone.


def quadratics(*dims: int) -> list[str]:
    return [f"LeastSquares dim={n}" for n in dims]


def with_noise(members: list[str], *deviations: float) -> list[str]:
    each = deviations * len(members) if len(deviations) == 1 else deviations
    return [f"{m} noise={d:g}" if d else m for m, d in zip(members, each, strict=True)]


def total(*members: str) -> str:
    return f"sum({'; '.join(members)})"


BOWLS = ["Bowl condition=0.1", "Bowl condition=1", "Bowl condition=5", f"Bowl angle={math.pi / 4:g} condition=5"]
LOGISTIC = [
    f"clusters_mlp batch_size={batch} inputs={d} separation={sep:g}"
    for d, sep, batch in ((10, 2.0, 100), (100, 1.0, 50), (200, 1.5, 20), (256, 1.5, 100))
]
FUNCTIONS = [
    f"Landscape {name}"
    for name in [
        "ackley",
        "beale",
        "booth",
        "branin",
        "log_sum_exp",
        "matyas",
        "michalewicz",
        "rosenbrock",
        "styblinski_tang",
    ]
]
SUMMED = [
    f"Landscape {name}"
    for name in [
        "rosenbrock",
        "log_sum_exp",
        "ackley",
        "beale",
        "booth",
        "styblinski_tang",
        "matyas",
        "branin",
        "michalewicz",
    ]
]
MLPS = [
    f"random_network_mlp batch_size={batch} inputs={d} widths={widths}"
    for d, widths, batch in (
        *((8, (8, 5), 10), (12, (8, 5, 3), 200), (5, (4, 4, 4, 4), 100)),
        *((11, (4, 5, 6), 64), (9, (8,), 128), (7, (8, 5), 16)),
        *((8, (32, 64), 10), (12, (16, 8, 3), 200), (5, (8, 8, 8, 8), 100)),
        *((11, (10, 12, 12), 64), (9, (32,), 128), (7, (32, 64), 16)),
    )
]
SEVEN = quadratics(11, 3, 9, 7, 5, 13, 12)

DEFAULT_ON: list[tuple[int, list[str]]] = [
    (4, with_noise(quadratics(20, 25, 50, 100), 0.5, 0.0, 1.0, 2.0)),
    (3, quadratics(784, 1024, 2048)),
    (8, [*BOWLS, *with_noise(BOWLS, 0.1)]),
    (8, [*LOGISTIC, *with_noise(LOGISTIC, 0.5, 0.1, 0.1, 0.5)]),
    (18, [*FUNCTIONS, *with_noise(FUNCTIONS, 1.0)]),
    (12, MLPS),
    (10, [*(f"MatMulSearch k={k} n=2" for k in (5, 6, 7, 8)), *(f"MatMulSearch k={k} n=3" for k in range(19, 25))]),
    (6, [f"log({m})" for m in (*quadratics(20, 50, 100), *BOWLS[:3])]),
    (
        9,
        [
            f"{m} scale={c:g}"
            for m, c in (
                *(
                    (f"PNorm dim=18 power={p:g}", c)
                    for p, c in ((2.5, 0.123), (1.5, 8.0), (2.0, 50.0), (3.0, 200.0), (1.0, 1000.0))
                ),
                *zip(quadratics(20, 25, 50, 100), (0.1, 10.0, 350.0, 132.0), strict=True),
            )
        ],
    ),
    (3, [f"PNorm dim={n} power={p}" for n, p in ((27, 1), (25, 2), (22, 3))]),
    (3, with_noise([f"PNorm dim={n} power={p}" for n, p in ((19, 1), (26, 2), (23, 3))], 0.1)),
    (
        8,
        [
            total(*SEVEN),
            total("PNorm dim=18 power=3", *quadratics(25), "Landscape rosenbrock"),
            total(*SUMMED),
            total(*SUMMED, *quadratics(5, 13)),
            total(*quadratics(11, 3)),
            total("Landscape rosenbrock", "Landscape log_sum_exp", "Landscape ackley"),
            total(*with_noise(SEVEN, 0.1)),
            total(*SUMMED, *with_noise(quadratics(5, 13), 0.0, 0.5)),
        ],
    ),
    (9, [f"{m} sparse" for m in (*quadratics(20, 50, 100), *BOWLS[:3], *MLPS[:3])]),
]
SIZES = ((20, 1000, 100), (12, 200, 10), (56, 5000, 100), (64, 1000, 50), (13, 10000, 50))
MORE_SIZES = ((20, 1000, 128), (12, 300, 16), (56, 5000, 128), (64, 1000, 64), (13, 10000, 32))
DEFAULT_OFF: list[tuple[int, list[str]]] = [
    (3, quadratics(20, 50, 100)),
    (2, ["SparseSoftmax", "SparseSoftmax one_hot=True"]),
    (5, [f"DependencyChain dim={n}" for n in (20, 12, 56, 64, 13)]),
    (5, [f"MinMaxWell dim={n}" for n in (20, 12, 56, 64, 13)]),
    (10, [f"OutwardSnake batch_size={b} dim={n} examples={e}" for n, e, b in SIZES + MORE_SIZES]),
    *(
        (
            10,
            [
                f"DataQuadratic {form} batch_size={b} dim={n} examples={100 if n == 12 else e}"
                for n, e, b in SIZES + MORE_SIZES
            ],
        )
        for form in ("projection", "sum")
    ),
]
CLUSTERS = "batch_size=100 examples=10000 inputs={} seed=1234 separation=1"
HELD_OUT = [
    *with_noise(quadratics(20) * 2, 0.0, 1.0),
    *with_noise(["Landscape rosenbrock"] * 2, 0.0, 1.0),
    *with_noise(["clusters_mlp examples=10000 inputs=10 seed=1234"] * 2, 0.0, 1.0),
    "clusters_mlp bias_scale=0.1 examples=10000 inputs=10 seed=1234 weight_scale=1.41421 widths=(32, 64)",
    "clusters_mlp bias_scale=0.1 classes=10 examples=10000 inputs=20 seed=1234 weight_scale=1.41421 widths=(32, 64)",
    "fashion_mlp activation=sigmoid batch_size=64 widths=(64,)",
    "fashion_mlp activation=relu batch_size=64 widths=(64,)",
    "conv_net activation=sigmoid batch_size=64 filters=((3, 3, 8), (5, 5, 8)) images=fashion_28",
    "conv_net activation=relu batch_size=64 filters=((3, 3, 8), (5, 5, 8)) images=fashion_28",
]


SHORT = {"landscape": "function", "data_quadratic": "form"}  # the field that is the first argument


def describe(task: TaskName) -> str:
    """A task in the words of the tables above."""
    kind = lopt.tasks.TASKS[task.name].build.__name__
    given = {k: v for k, v in sorted(task.fields.items()) if k != SHORT.get(task.name)}
    first = [task.fields[SHORT[task.name]]] if task.name in SHORT else []
    said = " ".join([kind, *first, *(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in given.items())])
    for wrapper, fields in task.wrappers:
        match wrapper:
            case "noisy_gradients":
                said = f"{said} noise={fields['deviation']:g}"
            case "sparse_gradients":
                said = f"{said} sparse"
            case "log_objective":
                said = f"log({said})"
            case "rescaled":
                said = f"{said} scale={fields['scale']:g}"
            case _:
                assert wrapper == "sum_with"
                said = total(said, *(describe(TaskName.parse(other)) for other in fields["others"]))
    return said


@pytest.mark.parametrize(
    ("table", "families", "count"),
    [(WICHROWSKA2017, DEFAULT_ON, 101), (WICHROWSKA2017_OFF, DEFAULT_OFF, 45)],
    ids=["on", "off"],
)
def test_the_ensemble_is_that_of_the_paper(table: dict[str, Any], families: list[Any], count: int) -> None:
    for number, members in families:
        assert len(members) == number
    expected = [member for _, members in families for member in members]
    assert sorted(describe(build) for build in table.values()) == sorted(expected)
    assert len(table) == len(set(expected)) == count


def test_the_full_ensemble_is_both_halves_and_the_test_set_is_that_of_the_release() -> None:
    assert not set(WICHROWSKA2017) & set(WICHROWSKA2017_OFF)
    assert {**WICHROWSKA2017, **WICHROWSKA2017_OFF} == WICHROWSKA2017_FULL
    assert [describe(build) for build in WICHROWSKA2017_TEST.values()] == HELD_OUT
    assert inspect.signature(lopt.tasks.clusters_mlp).parameters["separation"].default == 1.0
    assert inspect.signature(lopt.tasks.clusters_mlp).parameters["batch_size"].default == 100


def test_noisy_and_sparse_members_show_other_gradients() -> None:
    sparse, noisy, parts = (
        lopt.tasks.create(WICHROWSKA2017[name])
        for name in ("sparse_bowl_5", "norm_26_p_2_noisy", "sum_7_quadratics_noisy")
    )
    assert isinstance(sparse, SparseGradients)
    assert sparse.probability == 0.99
    assert isinstance(noisy, NoisyGradients)
    assert noisy.deviation == 0.1
    assert isinstance(parts, lopt.tasks.SumOfTasks)
    problem = parts.sample(key(0))
    params = parts.init(problem, key(1))
    _, shown, _ = parts.observe(problem, params, parts.remember(problem, params), key(2))
    plain = jax.grad(lambda p: parts.loss(problem, p, key(2)))(params)
    noise = np.concatenate([np.asarray(s - g) for s, g in zip(shown, plain, strict=True)])
    assert 0.07 < noise.std() < 0.13  # 60 elements of deviation 0.1


def test_the_logarithm_of_a_noisy_task_shows_its_noise() -> None:
    """Of the gradient of the logarithm, not of the loss: divided by it."""
    inner = NoisyGradients(lopt.tasks.Bowl(), 10.0)
    task, params = lopt.tasks.LogObjective(inner), jnp.asarray([1.0, 2.0])
    loss, shown, _ = inner.observe((), params, inner.remember((), params), key(0))
    logarithm, divided, _ = task.observe((), params, task.remember((), params), key(0))
    np.testing.assert_allclose(logarithm, np.log(loss + 1e-6) - np.log(1e-6), rtol=1e-6)
    np.testing.assert_allclose(divided, shown / (loss + 1e-6), rtol=1e-6)


PARAMETERS = {
    "quadratic_2048": 2048,
    "bowl_5_rotated": 2,
    "logistic_256": 514,
    "rosenbrock": 2,
    "mlp_8_8_5_batch_10": 72 + 45 + 12,
    "mlp_12_8_5_3_batch_200": 104 + 45 + 18 + 8,
    "mlp_7_32_64_batch_16": 256 + 2112 + 130,
    "matmul_2_7": 56,
    "matmul_3_23": 414,
    "log_quadratic_100": 100,
    "rescaled_norm_18_p_2.5": 18,
    "sum_9_functions": 18,
    "sum_9_functions_2_quadratics": 36,
    "sum_7_quadratics": 60,
    "sum_norm_quadratic_rosenbrock": 45,
    "sparse_softmax": 22,
    "dependency_chain_20": 21,
    "min_max_well_64": 64,
}


def test_members_have_the_parameters_that_they_should() -> None:
    for name, count in PARAMETERS.items():
        task = lopt.tasks.create(WICHROWSKA2017_FULL[name])
        shapes = jax.eval_shape(lambda k, t=task: t.init(t.sample(k), k), key(0))
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == count, name


# Every member trains.


MEMBERS = {**WICHROWSKA2017_FULL, **WICHROWSKA2017_TEST}
FRESH = [
    name for i, (name, b) in enumerate(MEMBERS.items()) if describe(b) not in map(describe, list(MEMBERS.values())[:i])
]


def train(task: lopt.Task, steps: int, rates: Array) -> tuple[Array, Array, Array]:
    """Losses at the start and at the end and the norm of the first gradient, each `[rates, starts]`; four starts on one problem."""
    problem_key, start_key, steps_key = jax.random.split(key(0), 3)
    problem = task.sample(problem_key)

    def run(rate: Array, start_key: Array) -> tuple[Array, Array, Array]:
        adam = lopt.optimizers.Adam(learning_rate=rate)

        def step(carry: Any, k: Array) -> Any:
            params, state, memory = carry
            loss, grads, memory = task.observe(problem, params, memory, k)
            updates, state = adam.update(grads, state, params, value=loss)
            slope = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
            return (jax.tree.map(jnp.add, params, updates), state, memory), slope

        first = task.init(problem, start_key)
        start = first, adam.init(first), task.remember(problem, first)
        (last, *_), slopes = jax.lax.scan(step, start, jax.random.split(steps_key, steps))
        both = jax.tree.map(lambda x, y: jnp.stack([x, y]), first, last)
        losses = jax.lax.map(lambda p: task.metrics(problem, p, steps_key, "train")["loss"], both)
        return losses[0], losses[1], slopes[0]

    return jax.vmap(jax.vmap(run, (None, 0)), (0, None))(rates, jax.random.split(start_key, 4))


# The compiler's own effort is most of the time that these take.
compiled_train = jax.jit(
    train,
    static_argnames="steps",
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FRESH)
def test_every_member_starts_finite_and_a_tuned_adam_lowers_it(name: str) -> None:
    if "fashion" in name and fashion_mnist_folder() is None:
        pytest.skip("Fashion-MNIST is not installed")
    large = any(str(n) in name for n in (784, 1024, 2048))
    steps = 400 if "sparse_" in name and "softmax" not in name else 20 if large else 100
    with as_users_run_it():  # checks of shapes at every step of every member take longer than the steps
        first, last, slope = compiled_train(lopt.tasks.create(MEMBERS[name]), steps, jnp.logspace(-3.0, 1.0, 5))
    assert np.isfinite(first).all()
    assert np.isfinite(slope).all()
    assert (first >= 0.0).all() or "sum_of_quadratics" in name
    assert float(jnp.nanmin(last.mean(axis=1))) < float(first.mean())


def test_only_losses_with_an_affine_scale_can_be_parts_of_others() -> None:
    for wrap in (lopt.tasks.LogObjective, lambda task: lopt.tasks.SumOfTasks([task])):
        with as_users_run_it(), pytest.raises(InputError, match="DependencyChain, whose normalize is not affine"):
            wrap(lopt.tasks.DependencyChain(dim=3))
