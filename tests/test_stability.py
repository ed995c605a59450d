"""Certificates against closed forms, against dense matrices, and against what trainings really do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import lopt
from lopt.analyze import (
    amplification,
    certify,
    critical_factor,
    lyapunov_exponent,
    multiplied_losses,
    noise_amplification,
    observed_factor,
    overshoot,
    sharpness,
    spectrum,
)
from lopt.analyze.certificate import write_certificate
from lopt.analyze.eigenvalues import eigenvalues, symmetric_eigenvalues
from lopt.analyze.linear import Linear, flat_step, split
from lopt.analyze.problem import LossTask, Multiplied
from lopt.errors import InputError
from lopt.optimizers import SGD, Adam, Momentum
from lopt.unroll import Inner

KEY = jax.random.key(0)
BOWL = lopt.tasks.NoisyQuadratic(spectrum=[3.0, 1.0, 0.1])
FACTORS = 2.0 ** np.arange(-3.0, 6.01, 0.25)


def bowl(params: jax.Array, key: jax.Array) -> jax.Array:
    """A loss of sharpness 4."""
    del key
    return 2.0 * jnp.sum(jnp.square(params))


def small_network() -> lopt.Task:
    return lopt.tasks.digits_mlp(widths=(4,), batch_size=32, activation="tanh")


def begun(optimizer: lopt.Optimizer, task: lopt.Task, steps: int = 3) -> Inner:
    return jax.jit(lopt.unroll, static_argnums=4)(optimizer, task, lopt.start(optimizer, task, KEY, 100), KEY, steps)[0]


# Closed forms.


@pytest.mark.parametrize(
    ("optimizer", "critical"),
    [
        (SGD(learning_rate=0.1), 2 / 0.1),
        (SGD(learning_rate=0.6), 2 / 0.6),
        (Momentum(learning_rate=0.1, decay=0.9), 2 * 1.9 / 0.1),
        (Momentum(learning_rate=0.02, decay=0.5), 2 * 1.5 / 0.02),
        (optax.sgd(0.3), 2 / 0.3),
    ],
    ids=["sgd", "sgd-near-the-edge", "momentum", "momentum-0.5", "optax"],
)
def test_critical_sharpness_is_that_of_the_closed_form(optimizer: lopt.Optimizer, critical: float) -> None:
    found = certify(optimizer, BOWL, steps=10, key=KEY, checkpoints=2)
    np.testing.assert_allclose(found.sharpness, 3.0, rtol=1e-4)
    np.testing.assert_allclose(found.critical_sharpness, critical, rtol=0.01)
    np.testing.assert_allclose(found.margin, critical / 3.0, rtol=0.01)


def adam_at_rest(rate: float, roots: jax.Array) -> tuple[lopt.Optimizer, Inner]:
    """An Adam at the minimum of `BOWL` after many steps, with chosen roots of its second moment."""
    adam = Adam(learning_rate=rate, b1=0.8)
    inner = lopt.start(adam, BOWL, KEY, 10)
    state = inner.opt_state[0]._replace(count=jnp.int32(1_000_000), mu=jnp.zeros(3), nu=jnp.square(roots))
    return adam, inner._replace(params=jnp.zeros(3), opt_state=(state, *inner.opt_state[1:]))


def test_critical_factor_of_adam_is_that_of_preconditioned_sharpness() -> None:
    roots = jnp.array([0.5, 0.01, 0.1])
    adam, inner = adam_at_rest(0.01, roots)
    preconditioned = float(
        jnp.max(BOWL.spectrum / (jnp.sqrt(0.999) * roots + 1e-8))
    )  # of the second moment after the step
    predicted = 2 * 1.8 / (0.2 * 0.01) / preconditioned
    assert critical_factor(adam, BOWL, inner, KEY) == pytest.approx(predicted, rel=0.01)


def test_the_lyapunov_exponent_of_a_linear_map_is_the_logarithm_of_its_radius() -> None:
    for rate, radius in ((0.9, 1.7), (0.5, 0.95)):  # 1 - 0.9 * 3 and 1 - 0.5 * 0.1
        sgd = SGD(learning_rate=rate)
        inner = lopt.start(sgd, BOWL, KEY, 10)
        assert lyapunov_exponent(sgd, BOWL, inner, KEY, steps=60, settle=30) == pytest.approx(np.log(radius), rel=1e-3)


def test_noise_is_amplified_by_momentum_as_a_sum_of_its_gradients() -> None:
    def flat(params: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.sum(params)

    task = LossTask(flat, jnp.zeros(500))
    for rule, decay in ((SGD(), 0.0), (Momentum(decay=0.8), 0.8)):
        sums = (1 - decay ** np.arange(1, 51)) / (1 - decay)  # how often each gradient has acted
        expected = np.sqrt(np.sum(sums**2) / 50)
        found = noise_amplification(rule, task, lopt.start(rule, task, KEY, 10), KEY)
        assert found == pytest.approx(expected, rel=0.1)


# Dense matrices.


@pytest.mark.parametrize("optimizer", [Adam(learning_rate=0.01), Momentum()], ids=["adam", "momentum"])
def test_products_are_those_of_the_dense_jacobian(optimizer: lopt.Optimizer) -> None:
    task = lopt.tasks.Quadratic(dim=5)
    inner = begun(optimizer, task)
    flat, _ = ravel_pytree(split(inner)[0])
    dense = jax.jacfwd(lambda x: flat_step(optimizer, task, inner, KEY, x)[0])(flat)
    linear = Linear(optimizer, task, inner, KEY)
    np.testing.assert_allclose(linear.matrix()[:5, :5], dense[:5, :5], rtol=1e-4, atol=1e-6)
    moduli = np.sort(np.abs(np.linalg.eigvals(linear.matrix())))
    np.testing.assert_allclose(moduli, np.sort(np.abs(np.linalg.eigvals(np.asarray(dense, np.float64)))), rtol=2e-3)
    power = np.linalg.matrix_power(np.asarray(dense, np.float64), 3)[:5, :5]
    assert amplification(optimizer, task, inner, KEY, steps=3)[-1] == pytest.approx(np.linalg.norm(power, 2), rel=1e-3)


def test_eigenvalues_of_adam_do_not_depend_on_the_scale_of_the_loss() -> None:
    def network(scale: float):
        x, y = jax.random.normal(KEY, (16, 6)), jax.random.normal(jax.random.key(1), (16,))

        def loss(params: dict[str, jax.Array], key: jax.Array) -> jax.Array:
            return scale * jnp.mean(jnp.square(jnp.tanh(x @ params["first"]) @ params["second"] - y))

        return LossTask(loss, {"first": 0.5 * jnp.ones((6, 3)), "second": jnp.arange(3.0)})

    adam = Adam(learning_rate=0.05, eps=1e-20)
    found = [np.linalg.eigvals(Linear(adam, t, begun(adam, t), KEY).matrix()) for t in (network(1.0), network(1e-4))]
    moduli = [np.sort(np.abs(values))[-8:] for values in found]
    np.testing.assert_allclose(moduli[0], moduli[1], rtol=2e-3)


def random_matrix(size: int = 150) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, size)) / np.sqrt(size)


def test_arnoldi_finds_the_eigenvalues_of_a_dense_matrix() -> None:
    matrix = random_matrix()
    found = eigenvalues(lambda v: matrix @ v, 150, 4, tolerance=1e-8)
    np.testing.assert_allclose(np.abs(found.values), np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1][:4], rtol=1e-6)
    assert found.residuals.max() < 1e-6


def test_arnoldi_that_does_not_converge_gives_no_number() -> None:
    matrix = random_matrix()
    found = eigenvalues(lambda v: matrix @ v, 150, 4, tolerance=1e-14, restarts=1, width=10)
    assert np.isnan(found.values).any()
    assert np.isnan(found.residuals[np.isnan(found.values)]).all()


def test_lanczos_finds_the_sharpness_of_the_dense_hessian() -> None:
    task = small_network()
    inner = begun(SGD(), task)
    flat, unravel = ravel_pytree(inner.params)
    hessian = jax.hessian(lambda x: task.loss(inner.problem, unravel(x), KEY))(flat)
    expected = np.linalg.eigvalsh(np.asarray(hessian, np.float64))[::-1][:3]
    np.testing.assert_allclose(sharpness(task, inner, KEY, count=3), expected, rtol=1e-3)
    matrix = random_matrix()
    matrix = matrix + matrix.T
    found = symmetric_eigenvalues(lambda v: matrix @ v, 150, 2)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(matrix)[::-1][:2], rtol=1e-3)


def test_overshoot_is_blind_to_growth_along_negative_curvature() -> None:
    def saddle(params: jax.Array, key: jax.Array) -> jax.Array:
        return 0.5 * (jnp.square(params[0]) - 4.0 * jnp.square(params[1]))

    task, sgd = LossTask(saddle, jnp.ones(2)), SGD(learning_rate=1.5)
    inner = lopt.start(sgd, task, KEY, 10)
    assert spectrum(sgd, task, inner, KEY).radius == pytest.approx(7.0)  # 1 + 1.5 * 4
    assert overshoot(Linear(sgd, task, inner, KEY)) == pytest.approx(0.5)  # 1 - 1.5


# What trainings really do.


@pytest.mark.parametrize(
    "optimizer", [SGD(learning_rate=0.05), Momentum(learning_rate=0.05, decay=0.9)], ids=["sgd", "momentum"]
)
def test_a_training_diverges_where_the_certificate_says(optimizer: lopt.Optimizer) -> None:
    inner = begun(optimizer, BOWL)
    losses = np.asarray(multiplied_losses(optimizer, BOWL, inner, KEY, jnp.asarray(FACTORS, jnp.float32), 200))
    observed = observed_factor(losses[:, -1], FACTORS, 2.0 * float(losses[0, 0]))
    predicted = critical_factor(optimizer, BOWL, inner, KEY)
    assert observed / 2**0.25 <= predicted * 1.01
    assert predicted <= observed * 1.01  # FACTORS are a quarter of an octave apart


def test_observed_factor_is_the_first_from_which_on_all_leave() -> None:
    losses = np.array([1.0, 9.0, 1.0, np.nan, 9.0])
    factors = np.arange(1.0, 6.0)
    assert observed_factor(losses, factors, 2.0) == 4.0
    assert observed_factor(losses[:3], factors[:3], 2.0) == np.inf
    assert observed_factor(losses[3:], factors[3:], 2.0) == 4.0


def test_twice_the_updates_are_twice_the_learning_rate() -> None:
    once, twice = (
        lopt.unroll(rule, BOWL, lopt.start(rule, BOWL, KEY, 10), KEY, 10)[1]
        for rule in (Multiplied(SGD(learning_rate=0.1), jnp.float32(2.0)), SGD(learning_rate=0.2))
    )
    np.testing.assert_allclose(once, twice, rtol=1e-5)


def test_verdicts() -> None:
    stable = certify(optax.sgd(0.1), bowl, jnp.ones(3), steps=20, key=KEY, checkpoints=2)
    assert stable.stable
    assert stable.verdict == "Stable to step 20, smallest margin 5.02."
    unstable = certify(optax.sgd(0.51), bowl, jnp.ones(3), steps=40, key=KEY, checkpoints=3)
    assert unstable.unstable_from == 1
    assert unstable.verdict.startswith("Unstable from step 1 of 40: ")
    np.testing.assert_array_less(unstable.margin, 1.0)
    np.testing.assert_allclose(unstable.exponent, np.log(1.04), rtol=1e-3)
    # Steps of one size on both sides of the minimum: it overshoots at every step and stays where it is.
    edge = certify(optax.rmsprop(0.1, eps=1e-12), bowl, jnp.ones(3), steps=60, key=KEY, checkpoints=4)
    assert edge.stable
    assert edge.overshoots_at.any()
    assert edge.least_margin < 1.0
    assert edge.verdict.startswith("At the edge to step 60, ")


def test_a_loss_below_zero_that_falls_is_stable_and_one_that_rises_is_not() -> None:
    def shifted(params: jax.Array, key: jax.Array) -> jax.Array:
        return bowl(params, key) - 10.0

    falls, rises = (
        certify(optax.sgd(rate), shifted, jnp.ones(3), steps=20, key=KEY, checkpoints=2) for rate in (0.1, 0.6)
    )
    assert falls.initial_loss < 0
    assert falls.stable
    assert not rises.stable


def test_a_certificate_without_eigenvalues_says_so() -> None:
    found = certify(optax.sgd(0.1), bowl, jnp.ones(3), steps=20, key=KEY, checkpoints=2)
    unknown = dataclasses.replace(found, overshoot=np.array([0.5, np.nan]))
    assert found.verdict.startswith("Stable to step 20")
    assert unknown.verdict.startswith("Not certified: ")
    assert "1 of 2 checkpoints" in unknown.verdict


def test_a_training_that_blows_up_is_certified_to_the_end() -> None:
    found = certify(optax.sgd(100.0), bowl, jnp.ones(3), steps=60, key=KEY, checkpoints=3)
    assert found.unstable_from == 1
    assert np.isnan(found.margin[-1])
    assert json.loads(found.to_json())["margin"][-1] is None


def test_parameters_that_the_loss_does_not_see_are_left_out() -> None:
    def loss(params: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        return bowl(params["seen"], key)

    params = {"seen": jnp.ones(3), "unseen": jnp.ones(2)}  # the root of a second moment of zero has no slope
    found = certify(optax.adam(0.01), loss, params, steps=5, key=KEY, checkpoints=2)
    assert np.isfinite(found.margin).all()
    assert np.isfinite(found.exponent).all()


def test_a_certificate_is_written_as_json_and_figure(tmp_path: Path) -> None:
    found = certify(SGD(learning_rate=0.1), BOWL, steps=5, key=KEY, checkpoints=2)
    text, image = write_certificate(found, tmp_path / "new")
    record = json.loads(text.read_text())
    assert record["verdict"] == found.verdict
    assert record["margin"] == found.margin.tolist()
    assert image.read_bytes().startswith(b"\x89PNG")


# Input that cannot be used.


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"checkpoints": 1}, "checkpoints is 1; it must be at least 2"),
        ({"steps": 3}, "steps is 3; a certificate of 5 checkpoints needs at least as many"),
        ({"tolerance": 0.0}, "tolerance is 0.0; it must be positive"),
        ({"params": None}, "A loss needs params"),
        ({"params": {"w": jnp.arange(3)}}, "w is int32; parameters must be floating-point arrays"),
        ({"params": {"w": jnp.ones(2, jnp.complex64)}}, "w is complex64; parameters must be floating-point arrays"),
        ({"loss": BOWL}, "params was given beside a task"),
        ({"params": jnp.array([1.0, jnp.nan])}, "The loss or its gradient is not finite at the start"),
        ({"optimizer": lopt.create("celo", lstm_hidden=4), "tell_horizon": False}, "horizon"),
        ({"optimizer": optax.lbfgs()}, "wants more than the gradient, the loss and the horizon.*'value_fn'"),
        (
            {"optimizer": optax.adam(0.1), "params": jnp.ones(3_000), "memory": 1e-3},
            "eigenvalues of 9,000 numbers need 0.00161 GiB for 24 vectors; memory is 0.001",
        ),
    ],
)
def test_what_cannot_be_certified_is_refused(change: dict, says: str) -> None:
    given = {"optimizer": optax.sgd(0.1), "loss": bowl, "params": jnp.ones(2), "steps": 10, "key": KEY} | change
    with pytest.raises(InputError, match=says):
        certify(given.pop("optimizer"), given.pop("loss"), given.pop("params"), **given)


def test_an_exponent_needs_steps_to_settle_in() -> None:
    with pytest.raises(InputError, match="settle is 20 and steps is 20"):
        lyapunov_exponent(SGD(), BOWL, lopt.start(SGD(), BOWL, KEY, 10), KEY, steps=20)


def test_a_jacobian_that_is_too_large_to_form_is_refused() -> None:
    task = lopt.tasks.digits_mlp()
    with pytest.raises(InputError, match="The step moves 2,410 numbers"):
        amplification(SGD(), task, lopt.start(SGD(), task, KEY, 10), KEY)


def test_vectors_that_do_not_fit_are_refused() -> None:
    task, sgd = lopt.tasks.digits_mlp(), SGD()
    inner = lopt.start(sgd, task, KEY, 10)
    with pytest.raises(InputError, match=r"2,410 numbers need 0.000431 GiB"):
        sharpness(task, inner, KEY, memory=1e-4)
    with pytest.raises(InputError, match=r"2,410 numbers need 0.000431 GiB"):
        spectrum(sgd, task, inner, KEY, memory=1e-4)


def test_a_step_without_derivative_is_refused() -> None:
    def cusp(params: jax.Array, key: jax.Array) -> jax.Array:
        del key
        return jnp.sum(jnp.sqrt(jnp.abs(params)))

    task = LossTask(cusp, jnp.zeros(3))
    with pytest.raises(InputError, match="no finite derivative in most of its 3 coordinates"):
        spectrum(SGD(), task, lopt.start(SGD(), task, KEY, 10), KEY)


@pytest.mark.slow
@pytest.mark.optimised
def test_arnoldi_on_a_hundred_thousand_parameters() -> None:
    task, adam = lopt.tasks.digits_mlp(widths=(1350,)), Adam(learning_rate=1e-3)
    inner = begun(adam, task)
    assert sum(x.size for x in jax.tree.leaves(inner.params)) > 100_000
    found = spectrum(adam, task, inner, KEY)
    assert np.isfinite(found.values).all()
    assert found.residuals.max() < 1e-3
