"""Tasks and compute: what judges the claims, what is refused, which tasks belong to whom, and the hand-designed rivals."""

from __future__ import annotations

import itertools
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt.errors import InputError
from lopt.evaluate.report.page import png_of
from lopt.meta_train import Interrupted
from lopt.optimizers import Adam
from lopt.reproduce.tasks import (
    PAPER,
    _runs,
    architecture,
    axes,
    clip,
    more_tasks,
    regularisation,
    table,
    validation,
)
from lopt.reproduce.tasks._arms import ARMS, HOME, Trained, blinded, new_rule, train_arm
from lopt.reproduce.tasks._hand_designed import HandDesigned, ordered
from lopt.reproduce.tasks._tasks import LARGEST, PROGRAMS, Pool, by_program, held_out, subset
from lopt.reproduce.tasks.axes import AXES, BATCH, WIDTH
from lopt.reproduce.tasks.regularisation import nearest, paths, ring
from lopt.reproduce.tasks.table import PUBLISHED
from lopt.tasks import task_recipe
from lopt.tasks.corpora.corpus import TEST_SEEDS, VALID_SEEDS
from lopt.tasks.corpora.sampling import task_config

KEY = jax.random.key(0)
NAMES = tuple(PROGRAMS)
SMALL = ("softmax, breast cancer",)
MEASURES = (more_tasks, architecture, clip, regularisation, table, validation, axes)


@pytest.mark.parametrize(
    ("measure", "sizes", "sentence"),
    [
        (more_tasks, {"sizes": (1, 50)}, "A subset of 50 tasks was asked for; there are those of 1, 10, 100, 1000"),
        (more_tasks, {"sizes": (10, 1)}, "each larger than the one before"),
        (more_tasks, {"programs": ("softmax, digit",)}, "softmax, digits"),
        (architecture, {"programs": ()}, "programs is empty"),
        (architecture, {"rivals": ("GRU",)}, "feed-forward, LSTM and nothing else"),
        (clip, {"programs": ("softmax",)}, "softmax, digits"),
        (regularisation, {"starts": 6}, "must be a multiple of four"),
        (axes, {"names": ("depth",)}, "There is no axis named 'depth'"),
        (axes, {"names": ()}, "names is empty; name at least one of width, batch, share"),
        (axes, {"starts": 0}, "starts is 0; it must be at least 1"),
        (table, {"trials": 3}, "trials is 3 and candidates 28; each must be at least 10"),
        (table, {"arm": "100 task"}, "100 tasks"),
        *((m, {"runs": "folder"}, "runs is folder, but .* give meta_steps too") for m in MEASURES),
        *(
            (m, {"programs": NAMES[:1]}, "were meta-trained on all; give meta_steps too")
            for m in (clip, regularisation, axes)
        ),
        (validation, {"programs": ("wine",)}, "There is no program named .wine.; did you mean MLP, wine"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(measure: Any, sizes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        measure(KEY, **sizes)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("sizes", [{"meta_steps": 3}, {"seeds": 1}, {"seeds": 99}])
def test_a_claim_without_its_budget_is_not_run(measure: Any, sizes: dict[str, Any]) -> None:
    claim = measure(KEY, **sizes)
    assert claim.held is None
    assert claim.found.startswith("Not run: ")
    assert ("give meta_steps" if sizes.get("seeds") == 99 else "it takes at least 50 from 2") in claim.found


@pytest.mark.parametrize("size", [0, LARGEST + 1])
def test_a_subset_that_there_is_not_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="it must have 1 to 1,000"):
        subset(size, 0, NAMES)


def test_subsets_of_a_seed_are_nested_and_seeds_differ() -> None:
    sizes = (1, 10, 100, LARGEST)
    found = [subset(size, 0, NAMES) for size in sizes]
    assert [len(set(x)) for x in found] == list(sizes)
    for small, large in itertools.pairwise(found):
        assert large[: len(small)] == small
    assert subset(10, 1, NAMES) != found[1]


def test_held_out_tasks_are_in_no_subset_and_of_the_split_for_testing_first() -> None:
    judged, met = held_out(100, NAMES), set(subset(LARGEST, 0, NAMES))
    assert not met & set(judged)
    assert not met & {*VALID_SEEDS, *TEST_SEEDS}
    in_split = [s for s in TEST_SEEDS if task_config(s) in PROGRAMS.values()]
    assert list(judged[: len(in_split)]) == in_split


def test_a_pool_draws_all_its_tasks_and_no_other() -> None:
    (pool,) = by_program(subset(3, 0, SMALL), rows=8).values()
    assert isinstance(pool, Pool)
    drawn = {int(pool.sample(key).noise_seed) for key in jax.random.split(KEY, 64)}
    wanted = [task_recipe(seed).noise_seed for seed in subset(3, 0, SMALL)]
    assert drawn == set(wanted)
    assert [int(pool.only(jnp.asarray(i)).sample(KEY).noise_seed) for i in range(3)] == wanted


@pytest.mark.parametrize(
    ("rule", "known"),
    [
        (HandDesigned({"learning_rate": 0.1, "b1": 0.8}), optax.adam(0.1, b1=0.8)),
        (HandDesigned({"learning_rate": 0.1, "weight_decay": 0.3}, nesterov=True), optax.nadamw(0.1, weight_decay=0.3)),
        (HandDesigned({"l2": 0.5}), optax.chain(optax.add_decayed_weights(0.5), optax.adam(1e-3))),
        (HandDesigned({"cosine": 1.0}), optax.adam(optax.cosine_decay_schedule(1e-3, 4))),
        (HandDesigned({"warmup": 0.5}), optax.adam(lambda t: 1e-3 * jnp.minimum((t + 1.0) / 2.0, 1.0))),
        (
            HandDesigned({"linear": 0.3, "exponential": 0.2}),
            optax.adam(lambda t: 1e-3 * (1 - 0.3 * t) * jnp.exp(-0.2 * t)),
        ),
    ],
)
def test_hand_designed_rivals_are_those_of_optax(rule: HandDesigned, known: optax.GradientTransformation) -> None:
    params = {"w": jnp.array([1.0, -2.0])}
    state, theirs = rule.init(params, horizon=4), known.init(params)
    for gradient in (1.0, -0.5, 2.0):
        gradients = {"w": jnp.array([gradient, 3.0 * gradient])}
        found, state = rule.update(gradients, state, params)
        with jax.numpy_dtype_promotion("standard"):
            wanted, theirs = known.update(gradients, theirs, params)
        np.testing.assert_allclose(found["w"], wanted["w"], rtol=2e-5)


def test_a_list_is_ordered_by_what_each_adds() -> None:
    losses = np.array([[0.4, 0.4, 0.4], [0.0, 0.9, 0.9], [0.9, 0.3, 0.9], [0.5, 0.5, 0.5]])
    assert ordered(losses, 3) == [0, 1, 2]


def test_adam_goes_to_the_nearest_solution() -> None:
    begin = ring(8)
    assert np.abs(np.diff(begin)).min() > 0.1  # none is a solution
    ends = paths(Adam(learning_rate=0.01), jnp.asarray(begin, jnp.float32), jnp.asarray(500))
    np.testing.assert_allclose(ends, nearest(begin), atol=1e-3)


@pytest.mark.parametrize("size", ["10 tasks", "LSTM"])
def test_weights_that_do_not_fit_are_refused(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runs, "WEIGHTS", tmp_path)
    wrong = lopt.create("mlp") if size == "LSTM" else lopt.create("hierarchical_lstm", lstm_hidden=4)
    for seed in (0, 1):
        lopt.save(tmp_path / f"{size.replace(' ', '-')}-{seed}", wrong)
    with pytest.raises(InputError, match=f"does not fit the arm {size}: it must be a .*lstm of its sizes"):
        _runs.trained_arm(size, 0)


def test_arms_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runs, "WEIGHTS", tmp_path)
    monkeypatch.setattr(_runs, "_trained_arm", _runs._trained_arm.__wrapped__)
    rule = blinded(new_rule("hierarchical_lstm", KEY))
    _runs.write_arms({("blind", 0): Trained(rule, np.arange(100.0), 100, 2.5, 1000.0)}, tmp_path, parts=10)
    found = _runs.trained_arm("blind", 0)
    assert found.optimizer.validation_every == 0
    assert jax.tree.structure(found.optimizer) == jax.tree.structure(rule)
    np.testing.assert_allclose(found.meta_loss, np.arange(10) * 10 + 4.5)
    assert found[2:] == (100, 2.5, 1000.0)


def test_every_shipped_arm_fits() -> None:
    for name in ARMS:
        for seed in range(2):
            found = _runs.trained_arm(name, seed)
            assert found.meta_steps >= _runs.LEAST
            assert np.isfinite(found.meta_loss).all()


class Held:
    """Eight held-out tasks. A rule on its own has its learning rate as its mean loss; hand-designed rivals have 0.3."""

    spread = np.linspace(-0.1, 0.1, 8)
    kept = np.ones(8, bool)
    pools: ClassVar = {"one": SimpleNamespace(variations=SimpleNamespace(share=np.full(8, 0.1)))}
    adam: ClassVar = dict.fromkeys(("train", "test"), np.full((14, 8), 0.3))

    def losses(self, rules: Any) -> dict[str, np.ndarray]:
        """The loss that the rule stands for."""
        if len(rules) > 1:
            return {s: x[: len(rules)] for s, x in self.adam.items()}
        mean = float(jnp.exp(rules[0].log_learning_rate))
        return {s: mean * (1.0 + self.spread[None]) for s in self.adam}

    def normalised(self, losses: np.ndarray, split: str, best: np.ndarray | None = None) -> np.ndarray:
        """As they are."""
        del split, best
        return losses


def fake(monkeypatch: pytest.MonkeyPatch, module: str, means: dict[str, tuple[float, float]]) -> None:
    """Arms whose scores have these means, one a seed, on eight tasks, and whose meta-losses fall to them from 1."""
    found = sys.modules[f"lopt.reproduce.tasks.{module}"]
    spread = Held.spread

    def trained(name: str, seed: int, *_: Any, **__: Any) -> Trained:
        mean = means[name][seed]
        return Trained(Adam(learning_rate=mean), np.linspace(1.0, mean, 100), 100, 1.0, 10.0)

    def scores(names: Any, seeds: int, *_: Any, **__: Any) -> dict[str, np.ndarray]:
        return {n: np.stack([means[n][s] * (1.0 + spread) for s in range(seeds)]) for n in names}

    def ends(pools: Any, rules: Any, *_: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        del pools
        means = [float(jnp.exp(r.log_learning_rate)) for r in rules] if len(rules) <= 2 else [0.3] * len(rules)
        last = np.array(means)[:, None] * (1.0 + spread)
        return {"train": (np.ones_like(last), last)}

    monkeypatch.setattr(found, "final_losses", ends, raising=False)
    monkeypatch.setattr(found, "trained_arm", trained, raising=False)
    monkeypatch.setattr(found, "all_scores", scores, raising=False)
    monkeypatch.setattr(found, "held_out_tasks", lambda *_: Held(), raising=False)
    monkeypatch.setattr(found, "tuning_losses", lambda *given: np.full((len(given[-1]), 4), 0.5), raising=False)


@pytest.mark.parametrize(
    ("name", "means", "held"),
    [
        ("more_tasks", {"1 task": (0.9, 0.8), "100 tasks": (0.5, 0.6)}, True),
        ("more_tasks", {"1 task": (0.9, 0.5), "100 tasks": (0.5, 0.6)}, False),
        ("architecture", {HOME: (0.2, 0.3), "feed-forward": (0.4, 0.4), "LSTM": (0.5, 0.5)}, True),
        ("architecture", {HOME: (0.2, 0.3), "feed-forward": (0.1, 0.4), "LSTM": (0.5, 0.5)}, False),
        ("clip", {HOME: (0.2, 0.3), "no clip": (1.0, 0.99)}, True),
        ("clip", {HOME: (0.2, 0.3), "no clip": (1.0, 0.3)}, False),
        ("clip", {HOME: (0.2, 1.3), "no clip": (1.0, 1.3)}, False),
        ("validation", {HOME: (0.2, 0.3), "blind": (0.4, 0.5)}, True),
        ("validation", {HOME: (0.2, 0.3), "blind": (0.1, 0.9)}, False),
        ("validation", {HOME: (0.2, 0.3), "blind": (0.2, 0.3)}, False),
        ("axes", {HOME: (0.2, 0.33)}, True),
        ("axes", {HOME: (0.2, 0.34)}, False),
        ("table", {HOME: (0.1, 0.1)}, True),
        ("table", {HOME: (0.3, 0.3)}, False),
        ("table", {HOME: (0.4, 0.5)}, False),
    ],
)
def test_claims_are_judged_by_their_criteria(
    name: str, means: dict[str, tuple[float, float]], held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, name, means)
    sizes = {"sizes": (1, 100)} if name == "more_tasks" else {}
    spec = PAPER.claims[name]
    claim = spec.measure(KEY, meta_steps=100, **sizes)
    assert claim.held is held
    assert claim.rows
    assert png_of(spec.draw(claim)).startswith(b"\x89PNG")


def test_claims_meta_train_each_arm_of_a_seed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    def counted(name: str, seed: int, **_: Any) -> Trained:
        made.append((name, seed))
        return Trained(Adam(learning_rate=0.1), np.linspace(1.0, 0.5, 60), 60, 1.0, 10.0)

    monkeypatch.setattr(_runs, "train_arm", counted)
    monkeypatch.setattr(_runs, "held_out_tasks", lambda *_: Held())
    given: dict[str, Any] = {"seeds": 2, "meta_steps": 60, "runs": str(tmp_path)}
    for measure in (more_tasks, architecture, clip):
        assert measure(KEY, **given).held is not None
    names = ("1 task", "10 tasks", HOME, "1000 tasks", "feed-forward", "LSTM", "no clip")
    assert sorted(made) == sorted(itertools.product(names, (0, 1)))


@pytest.mark.parametrize("trials", [10, 14, 100])
def test_the_labels_of_the_table_follow_its_trials(trials: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "table", {HOME: (0.1, 0.1)})
    claim = table(KEY, meta_steps=100, trials=trials)
    labels = list(claim.numbers["losses"])
    assert [row["optimizer"] for row in claim.rows] == labels
    assert {n for n in labels if "trials" in n} == {f"Adam8p, {t} trials for each task" for t in (10, trials)}
    assert all(("(" in row["test mean"]) == (row["optimizer"] in PUBLISHED) for row in claim.rows)


def test_a_bias_takes_both_sides_of_the_origin_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Biased(HandDesigned):
        def update(self, updates: Any, state: Any, params: Any, **extra: Any) -> Any:
            found, state = super().update(updates, state, params, **extra)
            return jax.tree.map(lambda u: u + 0.1, found), state

    rule = Biased({"learning_rate": 0.01})
    monkeypatch.setattr(
        sys.modules[regularisation.__module__], "trained_arm", lambda *_, **__: Trained(rule, np.ones(9), 9, 0.0, 0.0)
    )
    claim = regularisation(KEY, starts=8, steps=500)
    begin = {"above": 0.46, "below": -0.46}  # of the nearest solutions; a step of 0.1, 500 times, adds 50
    assert claim.numbers["place"]["Adam"] == pytest.approx(begin, abs=0.01)
    assert claim.numbers["place"]["seed 0"] == pytest.approx({n: x + 50.0 for n, x in begin.items()}, abs=0.05)
    assert claim.held is False
    (axes, *_) = PAPER.claims["regularisation"].draw(claim).axes
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < -1.0 + 0.1
        assert high > claim.numbers["ends"]["seed 0"].max()


def test_every_axis_passes_through_the_meta_training() -> None:
    config = PROGRAMS["MLP, digits"]
    assert dict(config.fields)["widths"] == (WIDTH,)
    assert dict(config.fields)["batch_size"] == BATCH
    home = {"width": WIDTH, "batch": BATCH, "share": 1.0}
    for name, axis in AXES.items():
        assert set(axis.within) | {home[name]} <= set(axis.points)
        assert axis.within[0] <= home[name] <= axis.within[1]


@pytest.mark.slow
def test_an_arm_resumes_and_refuses_another_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given: dict[str, Any] = {"meta_steps": 4, "programs": SMALL}
    whole = train_arm("feed-forward", 0, **given)

    def stop(step: int, _: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train_arm("feed-forward", 0, **given, folder=folder, on_step=stop)
    taken: list[int] = []
    resumed = train_arm("feed-forward", 0, **given, folder=folder, on_step=lambda step, _: taken.append(step))
    assert taken[0] > 2
    np.testing.assert_array_equal(resumed.meta_loss, whole.meta_loss)
    for x, y in zip(jax.tree.leaves(resumed.optimizer), jax.tree.leaves(whole.optimizer), strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(InputError, match="belongs to another configuration"):
        train_arm("feed-forward", 1, **given, folder=folder)
