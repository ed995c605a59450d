"""Baselines are optax's, a grid of one is trained at once, and the setting that is reported is chosen as stated."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import lopt
from lopt.errors import InputError
from lopt.evaluate import TrainRecord, train_batch
from lopt.evaluate.baselines import (
    BASELINES,
    LEARNING_RATES,
    Baseline,
    grid,
    settings,
)
from lopt.evaluate.runs import Run
from lopt.evaluate.scores.selection import finalists, promising, select, select_one_setting

KEY = jax.random.key(3)
TASK = lopt.tasks.create("quadratic", dim=4)
STEPS, SEEDS, EVALS = 30, 2, 1
GOOD = 0.3 / 10  # a rate between two of the grid, at which everything below is compared with optax

# Written out again from optax, apart from the table.
PLAIN = {
    "sgd": lambda: optax.sgd(GOOD),
    "momentum": lambda: optax.sgd(GOOD, momentum=0.9),
    "rmsprop": lambda: optax.rmsprop(GOOD),
    "adam": lambda: optax.adam(GOOD),
    "adamw": lambda: optax.adamw(GOOD, weight_decay=0.1),
    "nadamw": lambda: optax.nadamw(GOOD, weight_decay=0.1),
    "adamw_cosine": lambda: optax.adamw(optax.cosine_decay_schedule(GOOD, STEPS), weight_decay=0.1),
    "nadamw_cosine": lambda: optax.nadamw(optax.cosine_decay_schedule(GOOD, STEPS), weight_decay=0.1),
    "lion": lambda: optax.lion(GOOD),
    "adafactor": lambda: optax.adafactor(GOOD),
    "muon": lambda: optax.contrib.muon(GOOD),
    "muon_cosine": lambda: optax.contrib.muon(optax.cosine_decay_schedule(GOOD, STEPS)),
    "schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(GOOD),
    "prodigy": lambda: optax.contrib.prodigy(GOOD),
}


def setting_of(name: str) -> dict[str, float]:
    return {"learning_rate": GOOD} | ({"weight_decay": 0.1} if BASELINES[name].weight_decays else {})


@functools.cache
def swept(name: str) -> tuple[list[dict[str, float]], TrainRecord]:
    """The grid of a baseline and one setting more."""
    chosen = [*settings(name), setting_of(name)]
    batch = grid(name, chosen)
    return chosen, train_batch(batch, TASK, steps=STEPS, key=KEY, seeds=SEEDS, evals=EVALS, batch=len(chosen))


def test_the_issue_has_its_baselines() -> None:
    assert set(BASELINES) == set(PLAIN)


@pytest.mark.parametrize("name", BASELINES)
def test_a_grid_has_fifteen_learning_rates(name: str) -> None:
    found = settings(name)
    assert {s["learning_rate"] for s in found} == set(LEARNING_RATES)
    assert len(found) == 15 * max(1, len(BASELINES[name].weight_decays))
    assert all(s.keys() == setting_of(name).keys() for s in found)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_converges_at_its_best_setting(name: str) -> None:
    record = swept(name)[1]
    start = record.train_loss[:, :, 0].mean(axis=1)
    final = record.train_loss[:, :, -1].mean(axis=1)
    best = np.nanmin(final)
    assert best < 0.2 * start[0]
    assert best < final[0], "the lowest rate is too low"


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_optax_at_one_setting(name: str) -> None:
    """With the loop written out in plain optax: same problem, start and minibatches; vmapped over rates or not."""
    record = swept(name)[1]
    ours = jax.tree.map(lambda x: x[-1], record.params)
    theirs = _plain(PLAIN[name](), name)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def _plain(tx: optax.GradientTransformation, name: str) -> np.ndarray:
    """Final parameters of plain optax, all seeds."""

    def one(key: jax.Array) -> jax.Array:
        problem_key, params_key, _ = jax.random.split(jax.random.fold_in(key, 0), 3)
        problem = TASK.sample(problem_key)
        params = TASK.init(problem, params_key)
        stream = jax.random.fold_in(key, 1)

        def step(carry: Any, t: jax.Array) -> Any:
            params, state = carry
            grads = jax.grad(lambda p: TASK.loss(problem, p, jax.random.fold_in(stream, t)))(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        with jax.numpy_dtype_promotion("standard"):
            (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(STEPS))
            return optax.contrib.schedule_free_eval_params(state, params) if name.startswith("schedule") else params

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, SEEDS)))


def test_schedule_free_reports_the_average_that_it_deploys() -> None:
    record = swept("schedule_free_adamw")[1]
    end = TASK.metrics(
        TASK.sample(jax.random.split(jax.random.fold_in(jax.random.split(KEY, SEEDS)[0], 0), 3)[0]),
        jnp.asarray(record.params)[-1, 0],
        KEY,
        "train",
    )
    assert float(end["loss"]) == pytest.approx(record.train_loss[-1, 0, -1], rel=1e-5)


def test_a_baseline_works_in_an_optax_loop() -> None:
    tx = Baseline("adamw_cosine", {"learning_rate": 0.1, "weight_decay": 0.0}).to_optax(horizon=10)
    params = jnp.ones(3)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates, -0.1, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("adamm", {"learning_rate": 0.1}, "baseline named 'adamm'; did you mean adam"),
        ("adam", {"learning_rat": 0.1}, "did you mean learning_rate"),
        ("adam", {"learning_rate": 0.1, "weight_decay": 0.1}, "hyper-parameter of adam named 'weight_decay'"),
        ("adamw", {"learning_rate": 0.1}, "adamw needs weight_decay"),
        ("adam", {"learning_rate": -1.0}, "learning_rate of adam is -1.0; it must be a number that is at least 0"),
        ("adam", {"learning_rate": math.nan}, "learning_rate of adam is nan"),
        ("adam", {"learning_rate": "fast"}, "learning_rate of adam is 'fast'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings_are_refused(name: str, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Baseline(name, setting)


def test_a_cosine_needs_the_horizon() -> None:
    with pytest.raises(InputError, match="nadamw_cosine needs the horizon"):
        Baseline("nadamw_cosine", setting_of("nadamw_cosine")).init(jnp.ones(2))


# --- Selection, by hand. ---


def run_of(final: float, rate: float, seed: int = 0, task: str = "a", **changes: Any) -> Run:
    curve = np.asarray([changes.pop("start", 4.0), final], np.float32)
    fields: dict[str, Any] = {
        "train_loss": curve,
        "optimizer": "adam",
        "config": {"learning_rate": rate},
        "fingerprint": None,
        "horizon": 10,
        "steps": np.asarray([0, 10]),
        "valid_loss": curve,
        "test_loss": curve,
        "metrics": {},
    }
    return Run(task=task, seed=seed, **{**fields, **changes})


def chosen(runs: list[Run]) -> list[tuple[str, float]]:
    return [(run.task, run.config["learning_rate"]) for run in runs]


def test_the_lowest_mean_over_seeds_wins() -> None:
    # The third has the lowest single loss, the second the lowest mean.
    runs = [
        run_of(x, rate, seed)
        for rate, xs in ((0.1, (2, 2)), (0.2, (1, 1.5)), (0.3, (0.5, 3)))
        for seed, x in enumerate(xs)
    ]
    assert chosen(select(runs)) == [("a", 0.2)] * 2
    assert [run.seed for run in select(runs[::-1])] == [1, 0], "runs keep their order"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_setting_with_a_seed_that_diverged_is_last(bad: float) -> None:
    runs = [run_of(3.0, 0.1, 0), run_of(3.0, 0.1, 1), run_of(0.0, 0.2, 0), run_of(bad, 0.2, 1)]
    assert chosen(select(runs)) == [("a", 0.1)] * 2


def test_where_all_diverge_the_fewest_seeds_count_and_then_the_rate() -> None:
    losses = {0.3: (math.nan, math.nan), 0.2: (math.nan, 1.0), 0.1: (math.inf, 5.0)}
    runs = [run_of(x, rate, seed) for rate, xs in losses.items() for seed, x in enumerate(xs)]
    assert chosen(select(runs)) == [("a", 0.1)] * 2


def test_ties_go_to_the_smaller_rate_and_then_to_the_smaller_decay() -> None:
    runs = [run_of(1.0, 0.2), run_of(1.0, 0.1), run_of(1.0, 0.3)]
    assert chosen(select(runs)) == [("a", 0.1)]
    runs = [run_of(1.0, 0, config={"learning_rate": 0.1, "weight_decay": d}) for d in (0.1, 0.0, 0.01)]
    assert select(runs)[0].config["weight_decay"] == 0.0


def test_tasks_optimizers_and_horizons_are_apart() -> None:
    runs = [run_of(x, rate, task=task, optimizer=o, horizon=h)
            for i, (task, o, h) in enumerate([("a", "sgd", 10), ("a", "sgd", 20), ("a", "adam", 10), ("b", "sgd", 10)])
            for rate, x in ((0.1, 1.0 + i % 2), (0.2, 2.0 - i % 2))]  # fmt: skip
    assert chosen(select(runs)) == [("a", 0.1), ("a", 0.2), ("a", 0.1), ("b", 0.2)]


def test_settings_with_other_seeds_do_not_compare() -> None:
    with pytest.raises(InputError, match="settings of adam on a do not have the same seeds"):
        select([run_of(1.0, 0.1, 0), run_of(1.0, 0.1, 1), run_of(0.5, 0.2, 2)])


def test_settings_that_dropped_out_after_a_seed_do_not_take_part() -> None:
    runs = [run_of(1.0, 0.1, 0), run_of(1.0, 0.1, 1), run_of(0.5, 0.2, 0), run_of(2.0, 0.3, 0), run_of(2.0, 0.3, 1)]
    assert chosen(select(runs)) == [("a", 0.1)] * 2
    assert chosen(finalists(runs)) == [("a", 0.1)] * 2 + [("a", 0.3)] * 2


def test_what_may_turn_out_best_by_any_loss_trains_on() -> None:
    def curve(rate: float, train: tuple[float, ...], valid: float) -> Run:
        steps, losses = np.arange(len(train)), np.asarray(train, np.float32)
        return run_of(0.0, rate, train_loss=losses, valid_loss=np.full(len(train), valid), steps=steps)

    runs = [
        curve(0.1, (4, 3, 2, 1), 5.0),  # the best end
        curve(0.2, (4, 3, 2.5, 2), 4.0),  # the second best end
        curve(0.3, (4, 1, 3, 3), 3.0),  # the lowest at first
        curve(0.4, (4, 3.5, 3.5, 3.5), 1.0),  # the best validation loss
        curve(0.5, (4, math.nan, math.nan, math.nan), 2.0),  # the second best validation loss
        curve(0.6, (4, 3.5, 3.5, 3.6), 9.0),  # nothing
    ]
    rates = {n: [setting["learning_rate"] for setting in promising(runs, n)] for n in (1, 2)}
    assert rates == {1: [0.1, 0.3, 0.4], 2: [0.1, 0.2, 0.3, 0.4, 0.5]}


def test_one_setting_is_chosen_by_the_seeds_that_all_settings_have() -> None:
    # On each task one of the two dropped out after seed 0. By it 0.2 has the least regret, and of it that seed alone is kept.
    runs = [run_of(1.0, 0.1, 0), run_of(1.0, 0.1, 1), run_of(1.5, 0.2, 0)]
    runs += [run_of(4.0, 0.1, 0, "b"), run_of(0.0, 0.2, 0, "b"), run_of(0.0, 0.2, 1, "b")]
    assert [(r.task, r.config["learning_rate"], r.seed) for r in select_one_setting(runs)] == [
        ("a", 0.2, 0),
        ("b", 0.2, 0),
    ]


def test_one_setting_for_all_tasks_by_hand() -> None:
    # Start 4 everywhere. Regrets of 0.1: 0, 1; of 0.2: 2/3, 1/4, mean 0.458; of 0.3: 1 (diverged), 0, mean 0.5.
    losses = {"a": {0.1: 1.0, 0.2: 3.0, 0.3: math.nan}, "b": {0.1: 4.0, 0.2: 1.0, 0.3: 0.0}}
    runs = [run_of(x, rate, task=task) for task, row in losses.items() for rate, x in row.items()]
    assert chosen(select_one_setting(runs)) == [("a", 0.2), ("b", 0.2)]
    assert chosen(select(runs)) == [("a", 0.1), ("b", 0.3)], "each task its own"


def test_one_task_does_not_decide_for_all() -> None:
    """On `c` the loss explodes by a factor of a million at the setting that is best everywhere else: it counts as 1."""
    losses = {"a": {0.1: 2.0, 0.2: 0.0}, "b": {0.1: 3.0, 0.2: 0.0}, "c": {0.1: 1.0, 0.2: 4e6}}
    runs = [run_of(x, rate, task=task) for task, row in losses.items() for rate, x in row.items()]
    assert chosen(select_one_setting(runs)) == [("a", 0.2), ("b", 0.2), ("c", 0.2)], (
        "regrets 0 + 0 + 1 against 0.5 + 0.75 + 0"
    )


def test_one_setting_leaves_out_what_some_task_lacks() -> None:
    runs = [run_of(0.0, 0.1), run_of(1.0, 0.2), run_of(1.0, 0.2, task="b")]
    assert chosen(select_one_setting(runs)) == [("a", 0.2), ("b", 0.2)]
    with pytest.raises(InputError, match="No setting of adam was run on all tasks and horizons"):
        select_one_setting([run_of(0.0, 0.1), run_of(0.0, 0.2, task="b")])


def test_one_setting_holds_for_tasks_of_different_horizons() -> None:
    """Regrets of 0.1: 0, 1, 1; of 0.2: 1/4, 0, 0. Each horizon for itself would take 0.1 for `a`."""
    losses = {("a", 10): {0.1: 0.0, 0.2: 1.0}, ("b", 20): {0.1: 4.0, 0.2: 0.0}, ("b", 40): {0.1: 4.0, 0.2: 0.0}}
    runs = [run_of(x, rate, task=t, horizon=h) for (t, h), row in losses.items() for rate, x in row.items()]
    assert chosen(select_one_setting(runs)) == [("a", 0.2), ("b", 0.2), ("b", 0.2)]


def test_one_setting_where_nothing_goes_down() -> None:
    runs = [run_of(x, rate) for rate, x in ((0.3, 4.0), (0.1, 5.0), (0.2, 4.0))]
    assert chosen(select_one_setting(runs)) == [("a", 0.2)]
    runs = [run_of(math.nan, rate) for rate in (0.3, 0.1)]
    assert chosen(select_one_setting(runs)) == [("a", 0.1)]
