"""The noisy quadratic model in closed form, against simulation and against what the theorem promises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt.analyze import LinearTraining, admissible_box
from lopt.errors import InputError
from lopt.optimizers import SGD

H = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.3]])
SIGMA = np.diag([0.5, 1.0, 2.0])
Q = np.array([[0.35, 0.1, 0.0], [-0.1, 0.5, 0.0], [0.0, 0.2, 0.6]])  # not symmetric


def simulate(training: LinearTraining, steps: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean losses before each step, from starts with identity second moment; and the second moment at the end."""
    n, rng = len(training.hessian), np.random.default_rng(0)
    root, noise = np.linalg.cholesky(training.hessian), np.linalg.cholesky(training.covariance)
    w, losses = rng.standard_normal((repeats, n)), []
    for _ in range(steps):
        away = w - rng.standard_normal((repeats, n)) @ noise.T
        losses.append(0.5 * np.einsum("ri,ij,rj->r", away, training.hessian, away).mean())
        if training.batch_size is None:
            gradient = away @ training.hessian
        else:
            x = rng.standard_normal((repeats, training.batch_size, n)) @ root.T
            gradient = np.einsum("rbi,rbj,rj->ri", x, x, away) / training.batch_size
        w = w - gradient @ training.update.T
    return np.asarray(losses), w.T @ w / repeats


@pytest.mark.parametrize("batch_size", [None, 4])
def test_losses_and_the_stationary_moment_are_those_of_simulations(batch_size: int | None) -> None:
    training = LinearTraining(H, Q, SIGMA, batch_size)
    losses, moment = simulate(training, 60, 40_000)
    np.testing.assert_allclose(training.expected_losses(np.eye(3), 60), losses, rtol=0.05)
    np.testing.assert_allclose(training.stationary(), moment, rtol=0.05, atol=0.05)
    assert abs(training.expected_losses(training.stationary(), 2) @ [1.0, -1.0]) < 1e-9


def test_losses_are_those_of_the_task() -> None:
    h, variances, rate, steps = np.array([1.5, 0.4]), np.array([0.3, 2.0]), 0.9, 12
    task, sgd = lopt.tasks.NoisyQuadratic(spectrum=h, covariance=variances), SGD(learning_rate=rate)

    def losses(key: jax.Array) -> jax.Array:
        return lopt.unroll(sgd, task, lopt.start(sgd, task, key, steps), jax.random.fold_in(key, 1), steps)[1]

    found = jax.jit(jax.vmap(losses))(jax.random.split(jax.random.key(0), 40_000))
    expected = LinearTraining(np.diag(h), rate * np.eye(2), np.diag(variances)).expected_losses(np.eye(2), steps)
    np.testing.assert_allclose(np.asarray(jnp.mean(found, axis=0)), expected, rtol=0.05)


def test_the_second_moment_has_the_radius_of_the_mean_where_the_hessian_is_fixed() -> None:
    training = LinearTraining(H, Q, SIGMA)
    assert training.second_moment_radius == pytest.approx(training.spectral_radius**2)
    assert LinearTraining(H, Q, SIGMA, 10**9).second_moment_radius == pytest.approx(
        training.spectral_radius**2, rel=1e-6
    )


def test_noise_in_the_hessian_can_make_the_second_moment_diverge_where_the_mean_converges() -> None:
    hessian, update = np.eye(1), np.array([[1.0]])  # one step to the minimum
    assert LinearTraining(hessian, update, np.eye(1)).spectral_radius < 1e-12
    # E (1 - x^2)^2 = 2 for one example a batch, 2 / B for B of them.
    assert LinearTraining(hessian, update, np.eye(1), 1).second_moment_radius == pytest.approx(2.0)
    assert LinearTraining(hessian, update, np.eye(1), 4).second_moment_radius == pytest.approx(0.5)
    with pytest.raises(InputError, match="The second moment grows by 2 a step"):
        LinearTraining(hessian, update, np.eye(1), 1).stationary()


def rotation(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def radius(hessian: np.ndarray, update: np.ndarray) -> float:
    return LinearTraining(hessian, update, np.eye(len(hessian))).spectral_radius


def draws(count: int = 400, n: int = 4, alpha: float = 0.1):
    """Hessians, their eigenvectors, and eigenvalues for black boxes around the box."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        basis, values = rotation(rng, n), rng.uniform(0.2, 2.0, n)
        box = admissible_box((basis * values) @ basis.T, alpha)
        yield rng, basis, (basis * values) @ basis.T, box, rng.uniform(1.3 * box.low, 1.15 * box.high, n)


def test_theorem_1_is_exact_where_the_black_box_shares_the_eigenvectors() -> None:
    outcomes = set()
    for _, basis, hessian, _, _ in draws():
        top = np.linalg.eigvalsh(hessian)[-1]
        for low, high in ((-0.09, 2 / top - 0.11), (-0.11, 0.0), (0.0, 2 / top - 0.09)):
            order = np.argsort(np.diag(basis.T @ hessian @ basis))
            values = np.zeros(4)
            values[order[0]], values[order[-1]] = low, high  # the largest along the sharpest direction
            black_box = (basis * values) @ basis.T
            inside = admissible_box(hessian, 0.1).admits(black_box)
            assert (radius(hessian, 0.1 * np.eye(4) + black_box) <= 1.0) == inside
            outcomes.add(inside)
    assert outcomes == {True, False}


def test_for_symmetric_black_boxes_the_box_is_sufficient_and_its_lower_bound_necessary() -> None:
    admitted = only_sufficient = 0
    for rng, _, hessian, box, values in draws():
        other = rotation(rng, 4)
        black_box = (other * values) @ other.T
        stable = radius(hessian, 0.1 * np.eye(4) + black_box) <= 1.0
        if box.admits(black_box):
            admitted += 1
            assert stable
        else:
            only_sufficient += stable
        if values.min() < box.low:
            assert not stable
    assert admitted > 50
    assert only_sufficient > 10


def test_for_black_boxes_that_are_not_symmetric_the_box_admits_unstable_ones() -> None:
    wrong = 0
    for rng, _, hessian, box, values in draws():
        basis = rng.standard_normal((4, 4))
        black_box = basis @ np.diag(values) @ np.linalg.inv(basis)
        wrong += box.admits(black_box) and radius(hessian, 0.1 * np.eye(4) + black_box) > 1.0
    assert wrong > 10


@pytest.mark.parametrize("top", [4.0, 0.25])
def test_lemma_2_moves_the_upper_bound_to_that_of_the_root(top: float) -> None:
    hessian = np.diag([top, 0.1])
    box = admissible_box(hessian, 0.1, preconditioned=True)
    assert (box.high > admissible_box(hessian, 0.1).high) == (top > 1)
    root = np.diag(np.diag(hessian) ** -0.5)
    for share, stable in ((0.99, True), (1.01, False)):
        black_box = np.diag([box.high * share + 0.1 * (share - 1), 0.0])
        assert (radius(hessian, root @ (0.1 * np.eye(2) + black_box)) <= 1.0) == stable


def test_lemma_3_holds_for_all_errors_up_to_the_largest() -> None:
    box, rng = admissible_box(np.diag([2.0, 0.5]), 0.1, largest_error=1.5), np.random.default_rng(0)
    for _ in range(200):
        intended, errors = rng.uniform(box.low, box.high, 2), rng.uniform(0.01, 1.5, 2)
        assert radius(np.diag([2.0, 0.5]), np.diag(0.1 + errors * intended)) <= 1.0 + 1e-12
    worst = np.diag([0.1 + 1.5 * 1.01 * box.high, 0.1])
    assert radius(np.diag([2.0, 0.5]), worst) > 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((np.array([[1.0, 2.0], [0.0, 1.0]]), np.eye(2), np.eye(2)), "not symmetric"),
        ((np.diag([1.0, 0.0]), np.eye(2), np.eye(2)), "hessian has an eigenvalue that is not positive"),
        ((np.eye(2), np.eye(3), np.eye(2)), "they must be alike"),
        ((np.eye(2), np.eye(2), np.array([[1.0, 1.0], [0.0, 1.0]])), "covariance is not symmetric"),
        ((np.eye(2), np.eye(2), np.eye(2), 0), "batch_size is 0; it must be at least 1"),
    ],
)
def test_matrices_that_make_no_model_are_refused(given: tuple, says: str) -> None:
    with pytest.raises(InputError, match=says):
        LinearTraining(*given)


def test_a_box_needs_a_nominal_step_and_a_positive_error() -> None:
    with pytest.raises(InputError, match=r"nominal is -1\.0; it must be at least 0"):
        admissible_box(np.eye(2), -1.0)
    with pytest.raises(InputError, match=r"largest_error is 0\.0; it must be positive"):
        admissible_box(np.eye(2), 0.1, largest_error=0.0)
