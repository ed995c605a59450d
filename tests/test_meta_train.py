"""The outer loop: progress, checkpoints, and runs that survive whatever stops them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import lopt
from lopt import checkpoint, cli, recipes
from lopt.checkpoint import CheckpointError
from lopt.errors import InputError
from lopt.estimators import ESTIMATORS, PES, ESSingle, Estimator, Growing, HeavyTailed, LogUniform, Unrolls, Widening
from lopt.meta_train import Interrupted, MetaState, Progress, meta_train
from lopt.optimizer import Optimizer
from lopt.optimizers import SGD, Adam, Momentum
from lopt.run_directory import CHECKPOINT, CONFIG, METRICS

KEY = jax.random.key(7)
STEPS = 10


def pes(**fields: Any) -> PES:
    task = lopt.tasks.Quadratic(dim=2, noise=0.1)
    return PES(task, **{"pairs": 2, "truncation": 5, "horizon": (5, 20), **fields})


def run(folder: Path | None = None, **changes: Any) -> MetaState:
    """A small meta-training; writes a checkpoint after every step unless told otherwise."""
    outer = changes.pop("outer", None) or optax.chain(optax.clip(0.1), optax.adam(1e-2))
    arguments: dict[str, Any] = {"steps": STEPS, "key": KEY, "checkpoint_seconds": 0.0, **changes}
    optimizer = arguments.pop("optimizer", Momentum(learning_rate=0.1))
    estimators = arguments.pop("estimators", None) or pes()
    return meta_train(optimizer, estimators, outer, run_dir=folder, **arguments)


class Stopped(Exception):
    """What stops a run in these tests."""


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise Stopped

    return on_step


def assert_same(a: MetaState, b: MetaState) -> None:
    """Bit for bit, the estimators' particles and the outer optimizer's state included."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def without_time(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[MetaState, Path]:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return run(folder), folder


@pytest.mark.parametrize("last", [1, 9])
def test_a_stopped_run_resumes_bit_for_bit(whole: tuple[MetaState, Path], tmp_path: Path, last: int) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, on_step=stop_at(last))
    resumed_at = []
    state = run(tmp_path, on_step=lambda p: resumed_at.append(p.step))
    assert resumed_at == list(range(last + 1, STEPS + 1)), "it continued rather than began again"
    assert_same(state, whole[0])
    assert without_time(lines(tmp_path)) == without_time(lines(whole[1]))
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, STEPS + 1))


class Ahead(Optimizer):
    """Gradient descent that takes its gradients a step further on than the parameters it has found, which are its state."""

    def init(self, params: Any, **_: Any) -> Any:
        return jax.tree.map(jnp.array, params)

    def update(self, updates: Any, state: Any, params: Any, **_: Any) -> tuple[Any, Any]:
        found = jax.tree.map(lambda w, g: w - 0.01 * g, state, updates)
        return jax.tree.map(lambda w, g, held: w - 0.05 * g - held, found, updates, params), found

    def eval_params(self, state: Any, params: Any) -> Any:
        return state


def test_the_result_is_what_an_outer_optimizer_that_looks_ahead_has_found(tmp_path: Path) -> None:
    """While the training runs, and in its checkpoints, it is where the next gradient is taken; so a resumed run is the same."""
    whole = run(outer=Ahead(), steps=3)
    assert checkpoint.to_bytes(whole.optimizer) == checkpoint.to_bytes(whole.outer)
    with pytest.raises(Stopped):
        run(tmp_path, outer=Ahead(), steps=3, on_step=stop_at(2))
    assert_same(run(tmp_path, outer=Ahead(), steps=3), whole)
    held = checkpoint.from_bytes((tmp_path / CHECKPOINT).read_bytes(), whole, "here")
    assert checkpoint.to_bytes(held.outer) == checkpoint.to_bytes(whole.outer)
    assert checkpoint.to_bytes(held.optimizer) != checkpoint.to_bytes(whole.optimizer)
    assert_same(run(tmp_path, outer=Ahead(), steps=3), whole)  # it was done already


def test_the_result_is_the_average_where_one_is_kept(tmp_path: Path) -> None:
    """An average only looks on; it survives a stop; without one the same run gives the last meta-parameters."""
    seen, plain = [], run(steps=4)
    for stop in range(1, 5):
        with pytest.raises(Stopped):
            run(tmp_path / str(stop), steps=5, average=0.75, on_step=stop_at(stop))
        like = run(steps=1, average=0.75)
        seen.append(checkpoint.from_bytes((tmp_path / str(stop) / CHECKPOINT).read_bytes(), like, "here"))
    assert checkpoint.to_bytes(seen[-1].optimizer) == checkpoint.to_bytes(plain.optimizer)
    mean = jax.tree.leaves(Momentum(learning_rate=0.1))
    for after, state in enumerate(seen, start=1):
        decay = min(0.75, after / (after + 10))
        mean = [decay * m + (1 - decay) * x for m, x in zip(mean, jax.tree.leaves(state.optimizer), strict=True)]
        np.testing.assert_allclose(jax.tree.leaves(state.average), mean, rtol=1e-5)
    whole = run(steps=5, average=0.75)
    assert_same(run(tmp_path / "2", steps=5, average=0.75), whole)
    assert checkpoint.to_bytes(whole.optimizer) == checkpoint.to_bytes(whole.average)
    with pytest.raises(InputError, match=r"its average is 0\.75, this one's None"):
        run(tmp_path / "2", steps=5)


@pytest.mark.parametrize("average", [-0.1, 1.0])
def test_an_average_that_is_no_average_is_refused(average: float) -> None:
    with pytest.raises(InputError, match=r"it must be at least 0 and below 1"):
        run(average=average)


def test_steps_after_the_last_checkpoint_are_taken_again(whole: tuple[MetaState, Path], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, on_step=stop_at(4))
    kept = {name: (tmp_path / name).read_bytes() for name in (METRICS, CHECKPOINT)}
    with pytest.raises(Stopped):
        run(tmp_path, on_step=stop_at(7))
    # As after a kill between the two writes of a checkpoint: metrics of step 7 (and half a line), checkpoint of step 4.
    (tmp_path / CHECKPOINT).write_bytes(kept[CHECKPOINT])
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 8, "meta_')
    steps = []
    state = run(tmp_path, on_step=lambda p: steps.append(p.step))
    assert steps[0] == 5
    assert_same(state, whole[0])
    assert without_time(lines(tmp_path)) == without_time(lines(whole[1]))


def test_a_run_killed_before_its_first_checkpoint_begins_again(whole: tuple[MetaState, Path], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, on_step=stop_at(4), checkpoint_seconds=1e9)
    assert (tmp_path / CONFIG).exists()
    assert not (tmp_path / CHECKPOINT).exists()
    assert_same(run(tmp_path), whole[0])


def test_a_finished_run_is_returned_as_it_is(whole: tuple[MetaState, Path]) -> None:
    before = (whole[1] / METRICS).read_bytes()
    assert_same(run(whole[1], on_step=stop_at(1)), whole[0])
    assert (whole[1] / METRICS).read_bytes() == before


def test_a_run_directory_changes_nothing(whole: tuple[MetaState, Path]) -> None:
    assert_same(run(), whole[0])


def test_another_key_gives_other_numbers(whole: tuple[MetaState, Path]) -> None:
    other = run(key=jax.random.key(8))
    assert other.optimizer.log_learning_rate != whole[0].optimizer.log_learning_rate  # pyright: ignore[reportAttributeAccessIssue]


def test_no_temporary_files_are_left(whole: tuple[MetaState, Path]) -> None:
    assert sorted(path.name for path in whole[1].iterdir()) == sorted([CONFIG, METRICS, CHECKPOINT])


def test_arguments_survive_donation() -> None:
    optimizer, key = Momentum(learning_rate=0.1), jax.random.key(3)
    run(optimizer=optimizer, key=key, steps=2)
    assert optimizer.log_learning_rate == np.log(np.float32(0.1))
    assert run(optimizer=optimizer, key=key, steps=2).step == 2


def test_metrics_and_progress(whole: tuple[MetaState, Path]) -> None:
    seen: list[Progress] = []
    state = run(on_step=seen.append)
    found = lines(whole[1])
    assert [line["step"] for line in found] == [p.step for p in seen] == list(range(1, STEPS + 1))
    assert [line["meta_loss"] for line in found] == [p.meta_loss for p in seen]
    average = np.cumsum([p.meta_loss for p in seen]) / np.arange(1, STEPS + 1)
    np.testing.assert_allclose([p.smoothed for p in seen], average, rtol=1e-5)
    assert float(state.smoothed) == pytest.approx(seen[-1].smoothed)
    # Two pairs, two members, five steps.
    assert [line["inner_steps"] for line in found] == [20 * n for n in range(1, STEPS + 1)]
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(found))
    assert seen[-1].seconds_left == 0.0
    assert all(p.steps == STEPS and p.inner_steps_per_second > 0 and p.diverged == 0.0 for p in seen)


def test_the_moving_average_forgets() -> None:
    class Constant(Estimator):
        """A meta-loss of 1 for the first 300 meta-steps, of 0 from then on."""

        @property
        def inner_steps(self) -> int:
            return 1

        def init(self, optimizer: Optimizer, key: Any) -> Any:
            del optimizer, key
            return jnp.zeros((), jnp.int32)

        def estimate(self, optimizer: Optimizer, state: Any, key: Any) -> Any:
            del key
            metrics = {"meta_loss": jnp.where(state < 300, 1.0, 0.0), "diverged": jnp.zeros(())}
            return jax.tree.map(jnp.zeros_like, optimizer), state + 1, metrics

    state = run(estimators=Constant(), steps=500)
    assert float(state.smoothed) == pytest.approx(0.99**200, rel=1e-3)


class Draws(Estimator):
    """Its state is a number drawn from the key, its meta-loss too."""

    @property
    def inner_steps(self) -> int:
        return 1

    def init(self, optimizer: Optimizer, key: Any) -> Any:
        del optimizer
        return jax.random.uniform(key)

    def estimate(self, optimizer: Optimizer, state: Any, key: Any) -> Any:
        del state
        metrics = {"meta_loss": jax.random.uniform(key), "diverged": jnp.zeros(())}
        return jax.tree.map(jnp.zeros_like, optimizer), jax.random.uniform(key), metrics


def test_every_step_and_estimator_has_its_own_key(tmp_path: Path) -> None:
    seen: list[float] = []
    with pytest.raises(Stopped):
        run(tmp_path, estimators=Draws(), steps=30, on_step=stop_at(7))
    run(tmp_path, estimators=Draws(), steps=30, on_step=lambda p: seen.append(p.meta_loss))
    seen += [line["meta_loss"] for line in lines(tmp_path)[:7]]
    assert len(set(seen)) == 30
    state = run(estimators=[Draws()] * 5, steps=1)
    assert len({float(x) for x in state.estimators}) == 5


# --- Every estimator, every schedule. ---

SCHEDULES: dict[str, tuple[Any, Any]] = {
    "constant": (5, (5, 20)),
    "log_uniform": (LogUniform(2, 9), (10, 30)),
    "growing": (Growing(3, 12, over=4), (10, 30)),
    "widening": (Widening(2, 3, 9, over=4), Widening(9, 12, 30, over=4)),
    "heavy_tailed": (HeavyTailed(3, 4.0, limit=20), Unrolls(1, 2.0)),
}


def scheduled(name: str, schedule: str) -> Estimator:
    """An estimator by its name, on a small noisy quadratic."""
    truncation, horizon = SCHEDULES[schedule]
    task, kind = lopt.tasks.Quadratic(dim=2, noise=0.1), ESTIMATORS[name]
    fields: dict[str, Any] = {"particles": 4} if name == "backprop" else {"pairs": 2}
    if name == "full_es":
        horizon = horizon if schedule == "constant" else truncation  # whole problems, of lengths by the schedule
    else:
        fields["truncation"] = truncation
    return kind(task, horizon=horizon, **fields)


def assert_resumes(folder: Path, mixture: list[Estimator]) -> None:
    arguments: dict[str, Any] = {"estimators": mixture, "steps": 8}
    uninterrupted = run(folder / "whole", **arguments)
    with pytest.raises(Stopped):
        run(folder / "stopped", **arguments, on_step=stop_at(5))
    assert_same(run(folder / "stopped", **arguments), uninterrupted)
    found = lines(folder / "stopped")
    assert without_time(found) == without_time(lines(folder / "whole"))
    assert len(found) == 8
    assert {"meta_loss", "diverged", "inner_steps"} <= found[0].keys()


def test_every_estimator_resumes_bit_for_bit(tmp_path: Path) -> None:
    """All in one mixture, each with another schedule than the next."""
    names = itertools.cycle(SCHEDULES)
    assert_resumes(tmp_path, [scheduled(name, next(names)) for name in ESTIMATORS])
    found = lines(tmp_path / "whole")
    assert {"share_es", "variance_es", "variance_reparam", "finite"} <= found[0].keys()
    taken = np.diff([0, *(line["inner_steps"] for line in found)])
    assert len(set(taken)) > 4, "what is counted are the steps that were taken"


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_estimator_resumes_bit_for_bit_under_every_schedule(tmp_path: Path, schedule: str) -> None:
    assert_resumes(tmp_path, [scheduled(name, schedule) for name in ESTIMATORS])


# --- Mixtures, and outer optimizers. ---


def test_a_mixture_averages_its_estimators() -> None:
    optimizer, key = SGD(learning_rate=0.5), jax.random.key(1)
    mixture = (pes(std=0.1), ESSingle(lopt.tasks.Quadratic(dim=3), pairs=4, truncation=10, horizon=20, std=0.1))
    seen: list[Progress] = []
    state = run(estimators=mixture, optimizer=optimizer, outer=optax.sgd(1.0), steps=1, key=key, on_step=seen.append)
    step_key = jax.random.fold_in(key, 2)
    gradients, losses = [], []
    for i, estimator in enumerate(mixture):
        particles = jax.jit(estimator.init)(optimizer, jax.random.fold_in(key, i))
        gradient, _, metrics = jax.jit(estimator.estimate)(optimizer, particles, jax.random.fold_in(step_key, i))
        gradients.append(gradient.log_learning_rate)
        losses.append(metrics["meta_loss"])
    moved = state.optimizer.log_learning_rate - optimizer.log_learning_rate  # pyright: ignore[reportAttributeAccessIssue]
    assert min(abs(g) for g in gradients) > 1e-3
    assert moved == pytest.approx(-np.mean(gradients), rel=1e-4)
    assert seen[0].meta_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_mixture_resumes(tmp_path: Path) -> None:
    mixture = (pes(), Draws())
    with pytest.raises(Stopped):
        run(tmp_path, estimators=mixture, on_step=stop_at(5))
    assert_same(run(tmp_path, estimators=mixture), run(estimators=mixture))


@pytest.mark.parametrize("trained", ["momentum", pytest.param("small_fc", marks=pytest.mark.slow)])
def test_a_learned_optimizer_meta_trains_an_optimizer(tmp_path: Path, trained: str) -> None:
    outer = lopt.create("small_fc", key=jax.random.key(1))
    optimizer = lopt.create(trained, key=jax.random.key(2))
    arguments = {"optimizer": optimizer, "outer": outer, "steps": 4}
    with pytest.raises(Stopped):
        run(tmp_path, **arguments, on_step=stop_at(2))
    state = run(tmp_path, **arguments)
    assert_same(state, run(**arguments))
    before, after = jax.tree.leaves(optimizer), jax.tree.leaves(state.optimizer)
    assert all((a != b).any() for a, b in zip(before, after, strict=True)), "every leaf moved"
    assert all(np.isfinite(x).all() for x in map(np.asarray, after))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["celo", "hierarchical_lstm"])
def test_an_outer_optimizer_that_needs_loss_and_horizon_gets_them(name: str) -> None:
    state = run(outer=lopt.create(name, lstm_hidden=4), steps=2)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.optimizer))


def test_an_outer_optimizer_takes_the_steps_that_it_would_take_elsewhere() -> None:
    lopt_adam, optax_adam = run(outer=Adam(learning_rate=0.03)), run(outer=optax.adam(0.03))
    for a, b in zip(jax.tree.leaves(lopt_adam.optimizer), jax.tree.leaves(optax_adam.optimizer), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_meta_gradients_that_are_not_finite_are_skipped_by_an_optimizer() -> None:
    class Sick(Estimator):
        """A NaN meta-gradient at the second meta-step, ones at the others."""

        @property
        def inner_steps(self) -> int:
            return 1

        def init(self, optimizer: Optimizer, key: Any) -> Any:
            del optimizer, key
            return jnp.zeros((), jnp.int32)

        def estimate(self, optimizer: Optimizer, state: Any, key: Any) -> Any:
            del key
            value = jnp.where(state == 1, jnp.nan, 1.0)
            metrics = {"meta_loss": jnp.zeros(()), "diverged": jnp.zeros(())}
            return jax.tree.map(lambda x: jnp.full_like(x, value), optimizer), state + 1, metrics

    state = run(optimizer=SGD(learning_rate=1.0), estimators=Sick(), outer=SGD(learning_rate=0.5), steps=3)
    assert state.optimizer.log_learning_rate == pytest.approx(-1.0)  # pyright: ignore[reportAttributeAccessIssue]


def test_meta_training_lowers_the_meta_loss() -> None:
    steps = 300
    recipe = recipes.recipe("smoke", horizon=[20, 100], learning_rate=5e-3)
    optimizer, estimators, outer = recipe.build(jax.random.key(0), steps)
    seen: list[float] = []
    meta_train(optimizer, estimators, outer, steps=steps, key=KEY, on_step=lambda p: seen.append(p.meta_loss))
    # After 10 meta-steps all particles are past their shortened first horizons.
    early, late = np.array(seen[10:60]), np.array(seen[-50:])
    error = np.sqrt(early.var(ddof=1) / len(early) + late.var(ddof=1) / len(late))
    assert late.mean() < early.mean() - 4 * error


# --- Bad input. ---


@pytest.mark.parametrize("steps", [0, -5])
def test_a_number_of_steps_below_one_is_refused(tmp_path: Path, steps: int) -> None:
    with pytest.raises(InputError, match=f"steps is {steps}; it must be at least 1"):
        run(tmp_path / "run", steps=steps)
    assert not (tmp_path / "run").exists()


def test_no_estimators_are_refused() -> None:
    with pytest.raises(InputError, match="estimators is empty"):
        meta_train(SGD(), [], optax.sgd(1.0), steps=1, key=KEY)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 20}, ["steps", "10", "20"]),
        ({"key": jax.random.key(8)}, ["key"]),
        ({"optimizer": SGD(learning_rate=0.1)}, ["optimizer", "Momentum", "SGD"]),
        ({"optimizer": Momentum(learning_rate=0.2)}, ["initial meta-parameters"]),
        ({"estimators": pes(pairs=3)}, ["estimators", "pairs=2", "pairs=3"]),
        ({"estimators": pes(std=0.02)}, ["estimators", "std=0.02"]),
        ({"estimators": (pes(), pes())}, ["estimators"]),
        ({"settings": {"learning_rate": 0.1}}, ["learning_rate", "None", "0.1"]),
        ({"outer": optax.sgd(1e-2)}, ["outer optimizer"]),
        ({"outer": optax.chain(optax.clip(0.1), optax.adam(2e-2))}, ["outer optimizer"]),
        ({"outer": optax.chain(optax.clip(0.2), optax.adam(1e-2))}, ["outer optimizer"]),
        ({"outer": Adam(learning_rate=1e-2)}, ["outer optimizer"]),
    ],
)
def test_a_run_directory_of_another_configuration_is_refused(
    whole: tuple[MetaState, Path], changes: dict[str, Any], words: list[str]
) -> None:
    before = {path.name: path.read_bytes() for path in whole[1].iterdir()}
    with pytest.raises(InputError, match=r"belongs to another (configuration|architecture)") as caught:
        run(whole[1], **changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in whole[1].iterdir()} == before, "the run is as it was"


def test_the_horizons_of_a_recipe_grow_where_it_has_a_curriculum() -> None:
    _, (estimator,), _ = recipes.recipe("smoke", horizon=[20, 100], curriculum=7).build(jax.random.key(0), 5)
    assert isinstance(estimator, ESSingle | PES)
    assert estimator.horizon == Widening(20, 60, 100, over=7)
    _, (estimator,), _ = recipes.recipe("smoke", horizon=[20, 30], curriculum=7).build(jax.random.key(0), 5)
    assert estimator.horizon == Widening(20, 30, 30, over=7)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="curriculum is -1; it must be at least 0"):
        recipes.recipe("smoke", curriculum=-1).build(jax.random.key(0), 5)


def test_a_recipe_with_another_outer_learning_rate_is_another_configuration(tmp_path: Path) -> None:
    recipe = recipes.recipe("smoke", pairs=1, truncation=5)
    recipes.run(recipe, tmp_path, seed=0, steps=1)
    changed = recipes.recipe("smoke", pairs=1, truncation=5, learning_rate=0.01)
    with pytest.raises(InputError, match=r"its learning_rate is 0.001, this one's 0.01"):
        recipes.run(changed, tmp_path, seed=0, steps=1)


def test_settings_with_tuples_agree_with_themselves(tmp_path: Path) -> None:
    settings = {"horizon": (1, 2), "clip": 0.1}
    with pytest.raises(Stopped):
        run(tmp_path, settings=settings, steps=3, on_step=stop_at(1))
    assert run(tmp_path, settings=settings, steps=3).step == 3


def test_a_file_in_the_place_of_the_run_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(OSError, match="run"):
        run(tmp_path / "run")
    with pytest.raises(OSError, match="run"):
        run(tmp_path / "run" / "below")
    assert (tmp_path / "run").read_text() == "in the way"


class FullDisk:
    """While it is `full`, half of what is written to files of a name gets through, then the error comes that a full disk gives: it names no file.

    Another `error` is that of another fault.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, error: int = errno.ENOSPC):
        self.full, self.name, self.error, self.open = False, name, error, Path.open
        monkeypatch.setattr(Path, "open", lambda path, *args, **kwargs: self.opened(path, *args, **kwargs))

    def opened(self, path: Path, *args: Any, **kwargs: Any) -> Any:
        file: Any = self.open(path, *args, **kwargs)
        return Half(file, self.error) if self.full and self.name in path.name else file


class Half:
    """A file on a full disk."""

    def __init__(self, file: Any, error: int):
        self.file, self.error = file, error

    def __enter__(self) -> Half:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, content: Any) -> None:
        self.file.write(content[: len(content) // 2])
        raise OSError(self.error, os.strerror(self.error))

    def writelines(self, content: list[str]) -> None:
        self.write("".join(content))


@pytest.mark.parametrize("name", [METRICS, CHECKPOINT])
def test_a_disk_that_fills_up_loses_nothing(
    whole: tuple[MetaState, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The error names the file, what was saved stands, and the same call goes on once there is space."""
    disk = FullDisk(monkeypatch, name)

    def on_step(progress: Progress) -> None:
        disk.full = progress.step >= 4

    with pytest.raises(OSError, match=f"No space left on device; free some space, and the same command.*{name}"):
        run(tmp_path, on_step=on_step)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, METRICS, CHECKPOINT}, "no half of a file is left"
    disk.full = False
    resumed_at = []
    state = run(tmp_path, on_step=lambda p: resumed_at.append(p.step))
    assert resumed_at == [*range(5, STEPS + 1)]
    assert_same(state, whole[0])
    assert without_time(lines(tmp_path)) == without_time(lines(whole[1]))


@pytest.mark.parametrize(
    ("error", "remedy"),
    [(errno.EDQUOT, "free some space"), (errno.EROFS, "make it writable"), (errno.EIO, "remove the cause")],
    ids=["quota", "read-only", "broken"],
)
def test_what_stops_the_writing_has_its_own_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, remedy: str
) -> None:
    FullDisk(monkeypatch, METRICS, error).full = True
    with pytest.raises(OSError, match=f"{os.strerror(error)}; {remedy}, and the same command"):
        run(tmp_path)


def test_a_full_disk_is_one_sentence_at_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FullDisk(monkeypatch, CHECKPOINT).full = True
    with pytest.raises(SystemExit) as stop:
        cli.main(["meta-train", "--recipe", "smoke", "--steps", "2", "--run-dir", str(tmp_path)])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    remedy = "free some space, and the same command goes on from the last checkpoint"
    assert said == f"lopt: {tmp_path / CHECKPOINT}: No space left on device; {remedy}"


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_truncated_checkpoint_is_refused(whole: tuple[MetaState, Path], tmp_path: Path) -> None:
    folder = copy(whole[1], tmp_path / "run")
    content = (folder / CHECKPOINT).read_bytes()
    for length in (0, len(content) - 1):
        (folder / CHECKPOINT).write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors is damaged or truncated"):
            run(folder)
    for length in range(0, len(content), 7):
        with pytest.raises(CheckpointError, match="here is damaged or truncated"):
            checkpoint.from_bytes(content[:length], whole[0], "here")


def test_a_damaged_checkpoint_is_refused(whole: tuple[MetaState, Path], tmp_path: Path) -> None:
    folder = copy(whole[1], tmp_path / "run")
    content = (folder / CHECKPOINT).read_bytes()
    (folder / CHECKPOINT).write_bytes(content[:20] + b"\xff" + content[21:])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors is damaged"):
        run(folder)
    head = 8 + int.from_bytes(content[:8], "little")
    assert checkpoint.names(checkpoint.from_bytes(content, whole[0], "here")) == checkpoint.names(whole[0])
    for place in range(len(content[:head].rstrip())):  # where damage can be seen
        with pytest.raises(CheckpointError, match=r"^here "):
            checkpoint.from_bytes(content[:place] + b"\xff" + content[place + 1 :], whole[0], "here")


@pytest.mark.parametrize("text", ["", "{", "[]x", "[1, 2]", "null", "3", "\x00"])
def test_a_damaged_configuration_is_refused(whole: tuple[MetaState, Path], tmp_path: Path, text: str) -> None:
    folder = copy(whole[1], tmp_path / "run")
    (folder / CONFIG).write_text(text)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        run(folder)


def test_damaged_metrics_are_refused(whole: tuple[MetaState, Path], tmp_path: Path) -> None:
    folder = copy(whole[1], tmp_path / "run")
    good = (folder / METRICS).read_text().splitlines(keepends=True)
    for bad in (good[:3], [], [*good[:-1], "garbage\n"], [*good[:-1], "[]\n"]):
        (folder / METRICS).write_text("".join(bad))
        with pytest.raises(InputError, match=r"metrics\.jsonl is damaged"):
            run(folder)


# --- Ctrl-C. ---


def test_ctrl_c_saves_and_continues(whole: tuple[MetaState, Path], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(progress: Progress) -> None:
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=rf"Stopped after meta-step \d of {STEPS}") as caught:
        run(tmp_path, on_step=press, checkpoint_seconds=1e9)
    stopped = int(caught.value.state.step)
    assert stopped in (4, 5)
    assert len(lines(tmp_path)) == stopped
    assert signal.getsignal(signal.SIGINT) == before
    resumed_at: list[int] = []
    assert_same(run(tmp_path, on_step=lambda p: resumed_at.append(p.step)), whole[0])
    assert resumed_at[0] == stopped + 1, "what was done is saved, though no checkpoint was due"


def test_ctrl_c_at_the_last_step_lets_it_finish(whole: tuple[MetaState, Path], tmp_path: Path) -> None:
    def press(progress: Progress) -> None:
        if progress.step == STEPS:
            os.kill(os.getpid(), signal.SIGINT)

    assert_same(run(tmp_path, on_step=press), whole[0])


def test_a_second_ctrl_c_stops_at_once() -> None:
    # As in a terminal: what runs in the background of a shell ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []

    def press(progress: Progress) -> None:
        seen.append(progress.step)
        # In this thread: of two signals to the process, both pending, one is lost.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            run(on_step=press)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(caught.value, Interrupted)
    assert seen == [1]


# --- The command, killed for good. ---

# The command as it is, but for the time between checkpoints.
COMMAND = """
import functools, sys
from lopt import cli, recipes
recipes.meta_train = functools.partial(recipes.meta_train, checkpoint_seconds=0.05)
cli.main(sys.argv[1:])
"""


def command(folder: Path, steps: int) -> subprocess.Popen[bytes]:
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    arguments = ["meta-train", "--recipe", "smoke", "--run-dir", str(folder), "--seed", "3", "--steps", str(steps)]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env=kept,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def step_of(folder: Path) -> int:
    """Meta-steps in the checkpoint."""
    path = folder / CHECKPOINT
    return int(safetensors.numpy.load(path.read_bytes())["step"]) if path.exists() else 0


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_no_bit(tmp_path: Path) -> None:
    steps = 1500
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert command(whole, steps).wait(timeout=300) == 0

    moments = random.Random(0)
    reached = [0]
    for first, last in ((0.02, 0.25), (0.3, 0.55), (0.6, 0.85)):
        enough = moments.uniform(first, last) * steps
        process = command(killed, steps)
        try:
            deadline = time.monotonic() + 300
            while step_of(killed) <= max(enough, reached[-1]):  # until it is stepping, and that far
                assert process.poll() is None, "it ended by itself"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(moments.uniform(0.0, 0.2))  # between two checkpoints, or in the middle of one
            assert process.poll() is None, "it ended before it was killed"
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        reached.append(step_of(killed))
        assert not (killed / "optimizer.safetensors").exists()
    assert 0 < reached[1] < reached[2] < reached[3] < steps

    assert command(killed, steps).wait(timeout=300) == 0
    assert (killed / "optimizer.safetensors").read_bytes() == (whole / "optimizer.safetensors").read_bytes()
    assert (killed / CHECKPOINT).read_bytes() == (whole / CHECKPOINT).read_bytes()
    assert without_time(lines(killed)) == without_time(lines(whole))
    assert [line["step"] for line in lines(killed)] == list(range(1, steps + 1))
    initial = recipes.recipe("smoke").build(jax.random.split(jax.random.key(3))[0], steps)[0]
    assert not eqx.tree_equal(lopt.load(killed / "optimizer.safetensors"), initial)
