"""The outer step as functions, and the engines that compute its meta-gradients."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt.engine import Drawn, Engine, Gradients, Local
from lopt.errors import InputError
from lopt.estimators import PES, Estimator, PerTask
from lopt.meta_train import Interrupted, apply, as_outer, gradients, meta_init, meta_step, meta_train, result, step_key
from lopt.optimizer import Optimizer
from lopt.optimizers import SGD, Adam, Momentum

KEY = jax.random.key(5)


def pes(**fields: Any) -> PES:
    return PES(lopt.tasks.Quadratic(dim=2, noise=0.1), **{"pairs": 2, "truncation": 5, "horizon": (5, 20), **fields})


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("outer", [optax.chain(optax.clip(0.1), optax.adam(1e-2)), Adam(learning_rate=1e-2)])
def test_meta_train_is_its_meta_steps(outer: Any) -> None:
    optimizer, estimators, tx = Momentum(learning_rate=0.1), (pes(), pes(std=0.1)), as_outer(outer)
    state = jax.jit(lambda o, e, k: meta_init(o, e, tx, k, steps=4))(optimizer, estimators, KEY)
    step = jax.jit(meta_step)
    for _ in range(4):
        state, metrics = step(estimators, tx, state)
    trained = meta_train(optimizer, estimators, outer, steps=4, key=KEY)
    assert_same(result(tx, state), trained)
    assert metrics["smoothed"] == state.smoothed


class Counted(Estimator):
    """Counts how often Python runs its estimate; its meta-gradient is one everywhere."""

    traces: Any

    def __init__(self) -> None:
        self.traces = ()

    @property
    def inner_steps(self) -> int:
        return 1

    def init(self, optimizer: Optimizer, key: Any) -> Any:
        del optimizer, key
        return jnp.zeros(())

    def estimate(self, optimizer: Optimizer, state: Any, key: Any) -> Any:
        del key
        TRACES.append(1)
        metrics = {"meta_loss": jnp.zeros(()), "diverged": jnp.zeros(())}
        return jax.tree.map(jnp.ones_like, optimizer), state, metrics


TRACES: list[int] = []


def test_an_outer_optimizer_with_other_weights_shares_the_program() -> None:
    """Its weights are arguments, so a population whose outer optimizers change never recompiles."""
    TRACES.clear()
    ends = []
    for rate in (0.1, 0.2, 0.4):
        state = meta_train(SGD(learning_rate=1.0), Counted(), SGD(learning_rate=rate), steps=3, key=KEY)
        ends.append(float(jax.tree.leaves(state.optimizer)[0]))
    np.testing.assert_allclose(ends, [-0.3, -0.6, -1.2], rtol=1e-5)
    assert len(TRACES) == 1
    # One transformation that is used again shares it too.
    tx = optax.sgd(0.1)
    for _ in range(2):
        meta_train(SGD(learning_rate=1.0), Counted(), tx, steps=3, key=KEY)
    assert len(TRACES) == 2


def test_an_outer_optimizer_may_change_between_meta_steps() -> None:
    """As in self-training, where the optimizer that trains is a copy of the one that is trained."""
    TRACES.clear()
    step = jax.jit(meta_step)
    optimizer: Any = SGD(learning_rate=0.5)
    state = meta_init(optimizer, (Counted(),), optimizer, KEY)
    rate, expected = state.optimizer, float(np.log(0.5))
    for _ in range(4):
        state, _ = step((Counted(),), rate, state)
        expected -= float(np.exp(expected))
        rate = state.optimizer
        assert float(jax.tree.leaves(rate)[0]) == pytest.approx(expected, rel=1e-5)
    assert len(TRACES) == 1


def test_gradients_are_the_means_of_the_estimators() -> None:
    optimizer, estimators = SGD(learning_rate=0.5), (pes(), pes(std=0.1))
    outer = as_outer(optax.sgd(1.0))
    state = jax.jit(lambda o, e: meta_init(o, e, outer, KEY))(optimizer, estimators)
    key = step_key(state)
    found = jax.jit(gradients)(optimizer, estimators, state.estimators, key)
    each = [
        jax.jit(e.estimate)(optimizer, s, jax.random.fold_in(key, i))
        for i, (e, s) in enumerate(zip(estimators, state.estimators, strict=True))
    ]
    for name, of in (("gradient", lambda e: jax.tree.leaves(e[0])[0]), ("meta_loss", lambda e: e[2]["meta_loss"])):
        value = jax.tree.leaves(found.gradient)[0] if name == "gradient" else found.metrics[name]
        np.testing.assert_allclose(value, np.mean([of(e) for e in each]), rtol=1e-5)
    assert found.metrics["inner_steps"] == 2 * 20
    after, _ = apply(outer, state, found)
    np.testing.assert_allclose(after.optimizer.log_learning_rate, optimizer.log_learning_rate - found.gradient.log_learning_rate)  # fmt: skip  # pyright: ignore[reportAttributeAccessIssue]


class Elsewhere(Engine):
    """As an engine with workers: it holds the states itself, hands out tickets, and no program can hold it."""

    def __init__(self) -> None:
        self.held: tuple[Any, ...] = ()
        self.gathered = 0

    @property
    def traceable(self) -> bool:
        return False

    def begin(self, optimizer: Optimizer, estimators: Sequence[Estimator], key: Any) -> tuple[Any, ...]:
        return jax.jit(Local().begin)(optimizer, tuple(estimators), key)

    def gradients(
        self, optimizer: Optimizer, estimators: Sequence[Estimator], states: tuple[Any, ...], key: Any
    ) -> Gradients:
        if isinstance(states[0], str):
            states = self.held
        found = jax.jit(gradients)(optimizer, tuple(estimators), states, key)
        self.held = found.estimators
        return found._replace(estimators=("ticket",) * len(states))

    def gather(self, states: tuple[Any, ...]) -> tuple[Any, ...]:
        self.gathered += 1
        return self.held if isinstance(states[0], str) else states

    def describe(self, estimators: Sequence[Estimator]) -> dict[str, Any]:
        return {"engine": "elsewhere", "estimators": len(estimators)}


class Stopped(Exception):
    """What stops a run in these tests."""


def stop(progress: Any) -> None:
    if progress.step == 2:
        raise Stopped


@pytest.mark.usefixtures("unchecked")
def test_an_engine_outside_of_the_program_gives_the_same_numbers_and_resumes(tmp_path: Any) -> None:
    arguments: Any = (Momentum(learning_rate=0.1), (pes(), pes(std=0.1)), optax.adam(1e-2))
    here = meta_train(*arguments, steps=4, key=KEY)
    engine = Elsewhere()
    there = meta_train(*arguments, steps=4, key=KEY, engine=engine)
    for x, y in zip(jax.tree.leaves(here.optimizer), jax.tree.leaves(there.optimizer), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
    assert engine.gathered == 0
    with pytest.raises(Stopped):
        meta_train(*arguments, steps=4, key=KEY, engine=engine, run_dir=tmp_path, checkpoint_seconds=0.0, on_step=stop)
    assert engine.gathered == 2
    resumed = meta_train(*arguments, steps=4, key=KEY, engine=Elsewhere(), run_dir=tmp_path)
    assert_same(resumed.optimizer, there.optimizer)
    with pytest.raises(InputError, match=r"its engine is .*elsewhere.*, this one's .*local"):
        meta_train(*arguments, steps=4, key=KEY, run_dir=tmp_path)


def test_as_many_devices_are_used_as_divide_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    wrapped = PerTask(pes(pairs=4), optax.identity())
    for estimators, used in (([pes(pairs=8), wrapped], 4), ([wrapped, Counted()], 4), ([Counted()], 1)):
        assert Local().used(estimators) == used
    for estimators, used in (
        ([pes(pairs=2)], 2),
        ([wrapped, pes(pairs=6)], 2),
        ([pes(pairs=3)], 3),
        ([pes(pairs=5)], 1),
    ):
        with pytest.warns(UserWarning, match=f"{used} of 4 devices are used"):
            assert Local().describe(estimators) == {"engine": "local", "devices": used}
    placed = Local().place([wrapped, Counted()])[0]
    assert (placed.estimator.devices, wrapped.estimator.devices) == (4, 1)  # pyright: ignore[reportAttributeAccessIssue]
    assert Local(devices=2).used([pes(pairs=8)]) == 2
    with pytest.raises(InputError, match="devices is 5; JAX has 4"):
        Local(devices=5).used([pes(pairs=8)])
    with pytest.raises(InputError, match="devices is 0; it must be at least 1"):
        Local(devices=0)


# --- One estimator a meta-step. ---


def mixture() -> list[PES]:
    return [PES(lopt.tasks.Quadratic(dim=d), pairs=2, truncation=5, horizon=20, std=0.1) for d in (2, 3)]


def test_one_estimator_is_drawn_as_often_as_its_share() -> None:
    """Its estimate is the one that `gradients` takes of it, and the others rest."""
    engine, estimators, optimizer = Drawn([3, 1]), mixture(), Momentum(learning_rate=0.1)
    estimate = jax.jit(lambda e, *given: e.estimate(*given))
    states = engine.begin(optimizer, estimators, KEY)
    drawn = []
    for step in range(80):
        key = jax.random.fold_in(KEY, step)
        found = engine.gradients(optimizer, estimators, states, key)
        moved = [a is not b for a, b in zip(found.estimators, states, strict=True)]
        assert sum(moved) == 1
        which = moved.index(True)
        own = jax.random.fold_in(key, which)
        gradient, state, _ = estimate(estimators[which], optimizer, states[which], own)
        assert_same((found.gradient, found.estimators[which]), (gradient, state))
        assert found.metrics["inner_steps"] == estimators[which].inner_steps
        drawn.append(which)
        states = found.estimators
    # Of 80 draws with probability 1/4, 20 are expected with a standard deviation of 3.9.
    assert 8 <= sum(drawn) <= 32


def test_a_drawn_meta_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(stop: int | None = None, **given: Any) -> tuple[Any, list[int]]:
        taken: list[int] = []

        def note(progress: Any) -> None:
            taken.append(progress.step)
            if progress.step == stop:
                signal.raise_signal(signal.SIGINT)

        engine, tx = Drawn([1, 2]), optax.adam(1e-2)
        return meta_train(Momentum(), mixture(), tx, steps=6, key=KEY, engine=engine, on_step=note, **given), taken

    with pytest.raises(Interrupted):
        run(stop=2, run_dir=tmp_path)
    resumed, taken = run(run_dir=tmp_path)
    assert taken[0] > 2
    assert_same(resumed, run()[0])


@pytest.mark.parametrize("shares", [(), (1, 0), (1, -1), (1, float("nan"))])
def test_shares_must_be_positive(shares: Any) -> None:
    with pytest.raises(InputError, match="give a positive number for each estimator"):
        Drawn(shares)


def test_there_are_as_many_shares_as_estimators() -> None:
    with pytest.raises(InputError, match="shares has 3 numbers; there are 2 estimators"):
        meta_train(Momentum(), mixture(), optax.adam(1e-2), steps=1, key=KEY, engine=Drawn([1, 1, 1]))
