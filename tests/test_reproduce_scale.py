"""Scale and generalise: what judges the claims, what is refused, and what each arm of the ablation takes away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt.errors import InputError
from lopt.optimizers import Adam, HierarchicalRNN
from lopt.reproduce.scale import (
    PAPER,
    _arms,
    ablations,
    corpus,
    large,
    large_lstm,
    networks,
    networks_with_mlps,
    overhead,
)
from lopt.reproduce.scale._arms import ARMS, WHOLE, train_arm
from lopt.reproduce.scale._versus import Versus, learned_optimizer
from lopt.reproduce.scale.ablations import score
from lopt.reproduce.scale.large import NETWORKS, Course
from lopt.tasks import create
from lopt.zoo import Card

KEY = jax.random.key(0)
TRUNCATED = Path(lopt.__file__).parent / "reproduce" / "scale" / "weights" / "truncated-backpropagation.safetensors"


def test_the_claims_take_the_weights_of_truncated_backpropagation() -> None:
    """They are of the same rule and problems as the saved optimizer, and trained otherwise."""
    ours, card = learned_optimizer(TRUNCATED)
    theirs, other = learned_optimizer("hierarchical-rnn-1")
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert card.tasks == other.tasks
    assert card.fingerprint != other.fingerprint
    shipped, _ = learned_optimizer("hierarchical-rnn-2")  # which draws other initial rates
    for x, y in zip(jax.tree.leaves(shipped), jax.tree.leaves(ours), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("measure", "sizes", "sentence"),
    [
        (corpus, {"problems": ("roosenbrock",)}, "rosenbrock"),
        (corpus, {"problems": ()}, "problems is empty"),
        (corpus, {"weights": "general-1"}, "a relative_mlp; these claims are about a hierarchical_rnn"),
        (networks, {"names": ("digits, reluu",)}, "digits, relu"),
        (networks, {"names": ()}, "names is empty"),
        (networks_with_mlps, {"weights": "general-1"}, "a relative_mlp; these claims are about a hierarchical_rnn"),
        (large, {"names": ("inceptoin",)}, "inception"),
        (large_lstm, {"lstm": "demo-1"}, "a star; it must be an lstm"),
        (overhead, {"batches": (8,)}, "two sizes or more"),
        (overhead, {"batches": (8, 4)}, "larger than the one before"),
        (ablations, {"arms": (WHOLE, "no attenton")}, "no attention"),
        (ablations, {"arms": ("no attention",)}, "must name whole and another"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(measure: Any, sizes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        measure(KEY, **sizes)


@pytest.mark.parametrize(
    ("measure", "sizes", "sentence"),
    [
        (large, {"steps": 10}, "10 steps of 2 networks are too few; it takes 100"),
        (large_lstm, {"steps": 10}, "10 steps of 2 networks are too few; it takes 100"),
        (ablations, {"meta_steps": 3}, "it takes at least 50 from 2"),
        (ablations, {"seeds": 1}, "it takes at least 50 from 2"),
    ],
)
def test_a_claim_without_its_budget_is_not_run(measure: Any, sizes: dict[str, Any], sentence: str) -> None:
    claim = measure(KEY, **sizes)
    assert claim.held is None
    assert claim.found.startswith("Not run: ")
    assert sentence in claim.found


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [((), "tasks that its card does not name"), (({"name": "digits_mlp"},), "meta-trained on digits_mlp")],
)
def test_weights_of_another_meta_training_are_refused(
    tasks: tuple[dict[str, Any], ...], sentence: str, tmp_path: Path
) -> None:
    path = lopt.save(tmp_path / "mine", lopt.create("hierarchical_rnn"), Card(tasks=tasks))
    with pytest.raises(InputError, match=sentence):
        learned_optimizer(path)


def test_weights_that_have_seen_a_network_are_no_evidence(tmp_path: Path) -> None:
    card = Card(tasks=({"name": "wichrowska2017/branin"}, {"name": "wichrowska2017/mlp_9_8_batch_128"}))
    path = lopt.save(tmp_path / "mine", lopt.create("hierarchical_rnn"), card)
    claim = networks(KEY, weights=path)
    assert claim.held is None
    assert "held a network, wichrowska2017/mlp_9_8_batch_128" in claim.found


@pytest.mark.parametrize(
    ("weights", "seen"),
    [("hierarchical-rnn-1", 0), ("hierarchical-rnn-2", 0), (TRUNCATED.with_name("small-mlps.safetensors"), 6)],
)
def test_the_cards_name_the_networks_of_the_meta_training(weights: Any, seen: int) -> None:
    _, card = learned_optimizer(weights)
    assert len([task for task in card.tasks if "mlp" in str(task["name"])]) == seen
    claim = networks(KEY, weights=weights, names=("digits, relu",), steps=1, seeds=1, learning_rates=(0.1,))
    assert (claim.held is None) == bool(seen)


@pytest.mark.parametrize(
    ("learned", "left"), [([0.5], 0.0), ([0.25], -1 / 3), ([0.75], 1 / 3), ([np.inf], np.inf), ([2.0], 2.0)]
)
def test_what_is_left_is_measured_from_the_better_baseline(learned: list[float], left: float) -> None:
    tuned = {"RMSProp": np.array([1.0]), "Adam": np.array([0.5])}
    assert Versus(np.array([1.25]), np.array(learned), tuned, {}).left == pytest.approx(left)


@pytest.mark.parametrize(
    ("losses", "diverged", "trained"),
    [
        ([2.0, 1.0, 0.5], False, True),
        ([2.0, 1.9, 1.8], False, False),
        ([40.0, 2.0, 2.0], True, False),  # it rises at first, and comes back to where it began
        ([2.0, 4.5, 0.5], True, True),
        ([2.0, np.nan, 0.5], True, True),
        ([2.0, 1.0, np.inf], True, False),
    ],
)
def test_a_course_is_judged_by_its_windows(losses: list[float], diverged: bool, trained: bool) -> None:
    course = Course(2.0, np.array(losses), 1)
    assert (course.diverged, course.trained) == (diverged, trained)


def test_a_score_is_the_mean_logarithm_and_at_most_10() -> None:
    losses = np.array([[4.0, 2.0, 1.0], [1.0, np.nan, np.inf]])
    np.testing.assert_allclose(score(losses), [np.log([1, 0.5, 0.25]).mean(), 20 / 3], atol=1e-5)


@pytest.mark.parametrize(("name", "least"), [("inception", 200_000), ("residual", 200_000)])
def test_networks_of_the_claim_are_large(name: str, least: int) -> None:
    named = NETWORKS[name]
    task = create(named.name, **(dict(named.fields) | {"images": "digits"}))  # whose networks have as many parameters
    params = jax.eval_shape(lambda key: task.init(task.sample(key), key), KEY)
    assert sum(x.size for x in jax.tree.leaves(params)) >= least


def _updates(rule: HierarchicalRNN, gradients: list[float]) -> tuple[np.ndarray, Any]:
    """Updates of two tensors by gradients of one number each, and the last state."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    update = jax.jit(lambda g, s: rule.update(g, s, params))
    state, found = rule.init(params), []
    for gradient in gradients:
        updates, state = update({"a": jnp.array([1.0, -2.0]) * gradient, "b": jnp.full(3, gradient)}, state)
        found.append(updates["a"])
    return np.asarray(found), state


@pytest.mark.parametrize("hold", [_arms.without_products, _arms.without_scaling, _arms.without_hierarchy])
def test_what_an_arm_holds_changes_its_updates(hold: _arms.Hold) -> None:
    rule = lopt.load("hierarchical-rnn-1")
    assert isinstance(rule, HierarchicalRNN)
    gradients = [1.0, 3.0, -1.0]
    (whole, _), (without, state) = _updates(rule, gradients), _updates(hold(rule, None), gradients)
    assert not np.allclose(whole[2], without[2], rtol=1e-3)
    if hold is _arms.without_scaling:  # the scale is that of the first gradient
        squares = np.asarray(state.tensors.mean_square["a"])
        np.testing.assert_allclose(squares, np.broadcast_to([1.0, 4.0], squares.shape), rtol=1e-5)


@pytest.mark.slow
def test_what_an_arm_holds_is_never_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_arms, "TASKS", ("bowl_1",))
    monkeypatch.setitem(ARMS, "tiny", ARMS["no products"]._replace(fields={"sizes": (2, 2, 2)}))
    found = train_arm("tiny", KEY, meta_steps=2, particles=1, folder=tmp_path / "run")
    again = _arms.without_products(found, None)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)
    start = HierarchicalRNN(sizes=(2, 2, 2), key=jax.random.split(KEY)[0])
    assert not np.array_equal(found.direction, start.direction)
    with pytest.raises(InputError, match="belongs to another configuration"):
        train_arm("tiny", KEY, meta_steps=3, particles=1, folder=tmp_path / "run")


@pytest.mark.parametrize("rates", [(0.1, 1e-6), (1e-6, 0.1)])
def test_an_ablation_is_judged_by_the_paired_difference(
    rates: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rate_of = dict(zip((WHOLE, "no attention"), rates, strict=True))
    trained = lambda arm, key, **_: Adam(learning_rate=rate_of[arm])  # noqa: E731
    monkeypatch.setattr(sys.modules[score.__module__], "train_arm", trained)
    claim = ablations(KEY, arms=tuple(rate_of), problems=("bowl_1",), meta_steps=50, seeds=2, steps=20, trainings=2)
    assert claim.held is (rates[0] > rates[1])
    mean, low, high = claim.numbers["worth"]["no attention"]
    assert np.sign(mean) == np.sign(rates[0] - rates[1])
    assert [row["arm"] for row in claim.rows] == list(rate_of)
    assert low <= mean <= high
    assert PAPER.claims["ablations"].draw(claim).axes
