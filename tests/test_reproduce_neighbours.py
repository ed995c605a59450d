"""Neighbours of the field: what the methods must agree with, and what the claims refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import lopt
from lopt.errors import InputError
from lopt.optimizers import SGD, Adam
from lopt.reproduce.neighbours import _graphs, _spectra, bend, continuation, default_model, frontier
from lopt.reproduce.neighbours._graphs import BITS, FLOAT, Network, Search, SearchParams, network, uniform
from lopt.reproduce.neighbours._recovery import draw, maximum_entropy, measured, recovery
from lopt.reproduce.neighbours._spectra import NOISES, STEPS, Surrogate, meta_trained, surrogates
from lopt.reproduce.neighbours.continuation import tuned
from lopt.reproduce.neighbours.frontier import interpolated
from lopt.reproduce.neighbours.maximum_entropy import MaximumEntropy
from lopt.tasks.networks.quantized_gnn import QuantizedGNN, QuantizedParams
from lopt.tasks.surfaces.analytic_continuation import AnalyticContinuation
from lopt.zoo import Card

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("measure", "sizes", "sentence"),
    [
        (continuation, {"weights": "general-1"}, "a relative_mlp; this claim is about a gru"),
        (continuation, {"weights": "gru-linear-1"}, "meta-trained on quadratic; this claim needs one"),
        (default_model, {"weights": "gru-liner-1"}, "gru-linear-1"),
        (continuation, {"noises": ()}, "noises is empty"),
        (default_model, {"noises": (0.0,)}, "noise is 0.0; it must be positive"),
        (frontier, {"trainer": "general-11"}, "general-1"),
        (bend, {"trainer": "general-11"}, "general-1"),
        (frontier, {"costs": ()}, "the number of costs is 0; it must be at least 1"),
        (bend, {"tuning": 0}, "tuning is 0; it must be at least 1"),
        (bend, {"hidden": 0}, "hidden is 0; it must be of positive whole numbers"),
        (continuation, {"learning_rates": ()}, "the number of rates is 0; it must be at least 1"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(measure: Any, sizes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        measure(KEY, **sizes)


def test_weights_whose_card_names_no_tasks_are_refused(tmp_path: Path) -> None:
    path = lopt.save(tmp_path / "mine", lopt.create("gru", hidden=2), Card())
    with pytest.raises(InputError, match="tasks that its card does not name"):
        continuation(KEY, weights=path)


@pytest.mark.parametrize(
    ("measure", "sizes", "sentence"),
    [
        (continuation, {"spectra": 15}, "15 spectra are too few; it takes 16"),
        (default_model, {"meta_steps": 49}, "49 meta-steps are too few; it takes 50"),
        (frontier, {"graphs": 15}, "15 graphs and 150 steps are too few; it takes 16 and 50"),
        (bend, {"steps": 49}, "128 graphs and 49 steps are too few"),
    ],
)
def test_a_claim_without_its_budget_is_not_run(measure: Any, sizes: dict[str, Any], sentence: str) -> None:
    claim = measure(KEY, **sizes)
    assert claim.held is None
    assert claim.found.startswith("Not run: ")
    assert sentence in claim.found


# Spectra.


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("weight", [0.5, 30.0])
def test_maximum_entropy_is_the_minimum_by_brute_force(noise: float, weight: float) -> None:
    """On the whole grid, in the logarithm of the spectrum, by a method that knows nothing of singular values."""
    task = Surrogate(AnalyticContinuation(noise=noise, frequencies=21, points=12, cutoff=5.0))
    kernel, model = np.asarray(task.base.kernel, np.float64), np.asarray(task.base.model, np.float64)
    data = draw(task, KEY, 1)[1][0]

    def negative(logs: np.ndarray) -> tuple[float, np.ndarray]:
        spectrum = model * np.exp(logs)
        rest = (kernel @ spectrum - data) / noise
        entropy = np.sum(spectrum - model - spectrum * logs)
        slope = spectrum * (kernel.T @ rest / noise + weight * logs)
        return 0.5 * rest @ rest - weight * entropy, slope

    found, _, _ = maximum_entropy(task).maximum(data, model, weight)
    start = np.log(np.maximum(found, 1e-30) / model) + 0.3 * np.random.default_rng(0).normal(size=len(model))
    brute = minimize(negative, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 20_000})
    assert negative(np.log(np.maximum(found, 1e-300) / model))[0] <= brute.fun * (1 + 1e-6) + 1e-6
    np.testing.assert_allclose(found, model * np.exp(brute.x), atol=2e-3)


def test_the_evidence_is_that_of_the_whole_matrix() -> None:
    rng = np.random.default_rng(0)
    kernel, noise, weight = rng.normal(size=(4, 6)), 0.3, 2.0
    spectrum, model, data = rng.uniform(0.1, 1.0, 6), np.full(6, 1 / 6), rng.normal(size=4)
    root = np.sqrt(spectrum)
    curvature = root[:, None] * (kernel.T @ kernel) * root / noise**2
    chi_square = np.sum(((data - kernel @ spectrum) / noise) ** 2)
    entropy = np.sum(spectrum - model - spectrum * np.log(spectrum / model))
    log_determinant = np.linalg.slogdet(np.eye(6) + curvature / weight)[1]
    found = MaximumEntropy(kernel, noise).evidence(data, model, weight, spectrum)
    np.testing.assert_allclose(found, (-0.5 * log_determinant + weight * entropy - 0.5 * chi_square, chi_square))


@pytest.mark.parametrize(
    ("data", "model", "sentence"),
    [
        ((1.0, 1.0, 1.0), (1.0, 0.0, 1.0), "a default model must be positive"),
        ((1.0, 1.0, 1.0), (1.0, np.nan, 1.0), "a default model must be positive and finite"),
        ((1.0, np.nan, 1.0), (1.0, 1.0, 1.0), "data has an element that is not finite"),
        ((1.0, 1.0), (1.0, 1.0, 1.0), r"data has shape \(2,\); with this kernel it must be \(3,\)"),
    ],
)
def test_maximum_entropy_refuses_what_it_cannot_use(data: Any, model: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        MaximumEntropy(np.eye(3), 0.1)(np.array(data), np.array(model))


def test_maximum_entropy_fits_the_noise_and_no_more() -> None:
    """And it knows more, the less noise there is."""
    errors = []
    for noise in NOISES:
        (task,) = surrogates((noise,))
        spectra, data = draw(task, KEY, 6)
        method, model = maximum_entropy(task), np.asarray(task.base.model)
        found = [method(one, model) for one in data]
        assert 12 < np.mean([x.chi_square for x in found]) < 40  # of 32 points
        errors.append(np.mean([np.abs(x.average - true).sum() for x, true in zip(found, spectra, strict=True)]))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("noise", NOISES)
def test_the_surrogate_is_its_formula_and_well_conditioned(noise: float) -> None:
    task = Surrogate(AnalyticContinuation(noise=noise, points=8, frequencies=9), spread=0.1)
    problem = task.sample(KEY)
    params = jax.random.normal(KEY, (9,))
    kernel = np.asarray(task.base.kernel, np.float64)
    middle = np.linalg.inv(kernel @ kernel.T + (noise / 0.1) ** 2 * np.eye(8))
    rest = kernel @ np.asarray(jax.nn.softmax(params)) - np.asarray(problem.train)
    np.testing.assert_allclose(task.loss(problem, params, KEY), 4.5 * rest @ middle @ rest, rtol=2e-3)
    whitened = np.asarray(task.whitening, np.float64) @ kernel
    assert np.linalg.eigvalsh(whitened.T @ whitened).max() <= 9 * (1 + 1e-5)
    distance = np.abs(jax.nn.softmax(params) - problem.spectrum).sum()
    for split in ("valid", "test"):
        np.testing.assert_allclose(task.loss(problem, params, KEY, split), distance, rtol=1e-5)


def test_the_shipped_optimizer_recovers_spectra_that_it_has_not_seen() -> None:
    optimizer = _spectra.learned(None, None)
    errors = []
    for task in surrogates():
        spectra, data = draw(task, KEY, 8)
        found = [recovery(optimizer, task, STEPS)(one) for one in data]
        errors.append(np.mean([np.abs(x - true).sum() for x, true in zip(found, spectra, strict=True)]))
        assert errors[-1] < 0.7 * np.abs(np.asarray(task.base.model) - spectra).sum(axis=1).mean()
    assert errors == sorted(errors, reverse=True)


def test_adam_is_tuned_on_the_error() -> None:
    """A rate at which it does not move is not chosen."""
    (task,) = surrogates((1e-2,))
    rate, steps = tuned(task, draw(task, KEY, 4), (1e-9, 0.1))
    assert rate == 0.1
    assert steps in (STEPS, 4 * STEPS, 16 * STEPS)


def test_an_error_is_the_distance_to_the_spectrum() -> None:
    spectra, data = np.array([[0.5, 0.5], [1.0, 0.0]]), np.zeros((2, 3))
    errors, seconds = measured(lambda _: np.array([2.0, 2.0]), spectra, data)
    np.testing.assert_allclose(errors, [0.0, 1.0])
    assert (seconds >= 0).all()


@pytest.mark.slow
def test_an_optimizer_that_does_not_move_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[continuation.__module__], "learned", lambda *_: SGD(learning_rate=1e-9))
    claim = continuation(KEY, noises=(1e-3,), spectra=16, tuning=2, learning_rates=(0.1,))
    assert claim.held is False
    assert claim.numbers["levels"]["0.001"]["learned_less"]["maximum entropy"][1] > 0.2


@pytest.mark.slow
def test_meta_training_lowers_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_spectra, "PARTICLES", 4)
    seen: list[float] = []
    meta_trained(60, on_step=lambda p: seen.append(p.meta_loss))
    assert np.mean(seen[-10:]) < 0.8 * np.mean(seen[:5])


# Graph networks.


@pytest.mark.parametrize("bits", BITS)
def test_a_uniform_design_is_the_task_with_that_choice(bits: int) -> None:
    base = QuantizedGNN(bits=BITS, bit_cost=0.0)
    problem = base.sample(KEY)
    params = base.init(problem, KEY)
    design = jax.tree.map(lambda x: x[0], uniform(bits, bits, 1))
    sure = QuantizedParams(params.layers, jnp.broadcast_to(50.0 * jnp.eye(3)[BITS.index(bits)], (2, 2, 3)))
    for split in ("train", "valid", "test"):
        expected = base.loss(problem, sure, KEY, split)
        found = Network(base, design).loss(problem, params.layers, KEY, split)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(design.bits) == bits


def test_a_float_network_is_a_graph_convolution() -> None:
    base = QuantizedGNN()
    problem = base.sample(KEY)
    first, second = base.init(problem, KEY).layers
    a, x = np.asarray(problem.adjacency), np.asarray(problem.features)
    hidden = np.maximum(a @ x @ np.asarray(first.weight).T + np.asarray(first.bias), 0.0)
    expected = a @ hidden @ np.asarray(second.weight).T + np.asarray(second.bias)
    design = jax.tree.map(lambda x: x[0], uniform(FLOAT, FLOAT, 1))
    np.testing.assert_allclose(network(problem, (first, second), design), expected, atol=1e-4)
    far = design._replace(hops=jnp.eye(3)[jnp.array([2, 2])])
    twice = np.maximum(a @ a @ x @ np.asarray(first.weight).T + np.asarray(first.bias), 0.0)
    expected = a @ a @ twice @ np.asarray(second.weight).T + np.asarray(second.bias)
    np.testing.assert_allclose(network(problem, (first, second), far), expected, atol=1e-4)


def test_a_search_trains_weights_and_design_on_labels_of_their_own() -> None:
    base = QuantizedGNN(bits=BITS)
    problem = base.sample(KEY)
    task = Search(base, jnp.asarray(0.3), jnp.asarray(1.0))
    params = task.init(problem, KEY)

    def gradient(labels: Any) -> SearchParams:
        return jax.grad(lambda p: task.loss(problem._replace(labels=labels), p, KEY))(params)

    usual = gradient(problem.labels)
    changed = {s: problem.labels.at[base.nodes_of(s)].set(0) for s in ("train", "valid", "test")}
    for split, labels in changed.items():
        found = gradient(labels)
        same = [np.array_equal(x, y) for x, y in zip(jax.tree.leaves(usual), jax.tree.leaves(found), strict=True)]
        assert same == ([split != "train"] * 4 + [split != "valid"] * 2)


def test_a_high_cost_is_chosen_by_the_fewest_bits() -> None:
    keys = jax.random.split(KEY, 2)
    design = _graphs.search(Adam(learning_rate=0.1), 100.0, keys, 40)
    np.testing.assert_array_equal(design.bits, [2.0, 2.0])
    assert set(np.unique(design.hops)) == {0.0, 1.0}


def test_the_likeliest_choice_is_taken() -> None:
    logits = jnp.zeros((2, 2, 3)).at[0, 0, 1].set(1.0)
    base = QuantizedGNN()
    layers = base.init(base.sample(KEY), KEY).layers
    params = SearchParams(layers, logits, jnp.eye(3)[:2])
    design = Search(base, jnp.asarray(0.3), jnp.asarray(1.0)).chosen(params)
    np.testing.assert_array_equal(design.widths[0, 0], [0, 1, 0, 0])
    np.testing.assert_array_equal(design.hops, np.eye(3)[:2])
    assert float(design.bits) == (4 + 3 * 2) / 4
    plain = Search(base, jnp.asarray(0.3), jnp.asarray(0.0)).chosen(params)
    np.testing.assert_array_equal(plain.hops, np.eye(3)[[1, 1]])  # neighbourhoods are not chosen


def test_a_frontier_is_interpolated_on_each_graph() -> None:
    found = interpolated(
        np.array([3.0, 20.0]), {2: np.array([0.0, 0.5]), 4: np.array([1.0, 0.5]), 8: np.ones(2), 32: np.zeros(2)}
    )
    np.testing.assert_allclose(found, [0.5, 0.5])


def _accuracies(monkeypatch: pytest.MonkeyPatch, module: Any, accuracy: Any) -> None:
    """Two optimizers whose networks have an accuracy by design, with a little noise from graph to graph."""
    noise = 0.001 * np.random.default_rng(0).normal(size=16)
    monkeypatch.setattr(module, "trainers", lambda *_: ({"Adam": None, "other": None}, 0.1))
    monkeypatch.setattr(module, "accuracy", lambda _, design, *__: accuracy(design) + noise)


@pytest.mark.parametrize(("gain", "held"), [(0.0, True), (-0.005, True), (-0.02, False)])
def test_a_frontier_is_judged_by_the_paired_difference(
    gain: float, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searched networks have 2-bit weights and 4-bit activations: 3 bits, where the straight line is at 0.7."""
    module = sys.modules[frontier.__module__]
    known = {2.0: 0.6, 3.0: 0.7 + gain, 4.0: 0.8, 8.0: 0.9, 32.0: 0.9}
    _accuracies(monkeypatch, module, lambda design: np.array([known[float(b)] for b in design.bits]))
    monkeypatch.setattr(module, "search", lambda *_, hops: uniform(2, 4, 16))
    claim = frontier(KEY, graphs=16, costs=(0.3,))
    assert claim.held is held
    found = claim.numbers["trainers"]["other"]["searched"]["0.3"]["above"]
    np.testing.assert_allclose(found[0], gain, atol=1e-3)


@pytest.mark.parametrize(
    ("lost", "held"),
    [
        ({(2, 8): 0.05, (4, 4): 0.05}, True),
        ({(2, 8): 0.05}, False),
        ({(2, 8): 0.05, (4, 4): 0.05, (4, 8): 0.02}, False),
    ],
)
def test_a_bend_needs_a_loss_on_both_sides(
    lost: dict[tuple[int, int], float], held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accuracy(design: Any) -> float:
        weights, activations = (_graphs.WIDTHS[int(i)] for i in np.argmax(design.widths[0, 0], axis=-1))
        return 0.9 - lost.get((weights, activations), 0.0)

    _accuracies(monkeypatch, sys.modules[bend.__module__], accuracy)
    assert bend(KEY, graphs=16).held is held
