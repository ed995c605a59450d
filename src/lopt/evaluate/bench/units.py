"""The work of a bench: train one optimizer at all its settings on one task, and time the chosen ones in turns."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.baselines import LEARNING_RATES
from lopt.evaluate.contenders import Contender, Fields, task_named
from lopt.evaluate.probes.rules import Guarded
from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.scores.selection import promising, select
from lopt.evaluate.training import default_key, train_batch
from lopt.machine import cores
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.unroll import Inner, start, unroll

TURNS = 10  # of a timing
STRETCH_SECONDS = 0.03  # about what each optimizer works in a turn


class Protocol(NamedTuple):
    """What all runs of a bench share."""

    seeds: int = 3
    evals: int = 10
    seed: int = 0  # draws everything
    eval_size: int | None = None  # examples that an evaluation looks at, at most; None: as many as the task says
    learning_rates: tuple[float, ...] = LEARNING_RATES
    finalists: int | None = (
        None  # settings of a grid that train all seeds, the best after one seed of each; None: all settings do
    )


class Trained(NamedTuple):
    """A unit of work, done."""

    runs: list[Run]
    seconds: float
    compile_seconds: float


def train_unit(unit: Unit, who: Contender, protocol: Protocol) -> Trained:
    """Train a contender at all its settings and seeds on one task to one horizon.

    As many settings as there are learning rates run at once; a grid that has more, over weight decays, takes several turns of one compiled
    program, which bounds the memory.

    Args:
        unit: the task, the label and the horizon.
        who: what trains.
        protocol: seeds, evaluations, rates.
    """
    began = time.perf_counter()
    task = fewer_examples(task_named(unit.task), protocol.eval_size)
    runs, compile_seconds = train_settings(task, unit, who, protocol, default_key(protocol.seed))
    return Trained(runs, time.perf_counter() - began, compile_seconds)


def train_settings(
    task: Task, unit: Unit, who: Contender, protocol: Protocol, key: PRNGKeyArray
) -> tuple[list[Run], float]:
    """The runs of `train_unit` and their seconds of compilation, for a task that is there already. Arguments as there.

    Args:
        task: what to train.
        unit: what to call it, and the horizon.
        who: what trains.
        protocol: seeds, evaluations, rates.
        key: draws problems, starts and minibatches.
    """
    if protocol.finalists is not None and protocol.finalists < 1:
        raise InputError(f"finalists is {protocol.finalists}; it must be at least 1, or None.")
    tried = who.settings(protocol.learning_rates)
    if protocol.finalists is None or len(tried) <= protocol.finalists or protocol.seeds == 1:
        return _train_all(task, unit, who, protocol, key, tried)
    first, compile_seconds = _train_all(task, unit, who, protocol._replace(seeds=1), key, tried)
    best = promising(first, protocol.finalists)
    runs, seconds = _train_all(task, unit, who, protocol, key, [config for config in tried if config in best])
    return [*runs, *(run for run in first if run.config not in best)], compile_seconds + seconds


def _train_all(
    task: Task, unit: Unit, who: Contender, protocol: Protocol, key: PRNGKeyArray, tried: Sequence[Fields]
) -> tuple[list[Run], float]:
    """Every setting with every seed."""
    size = min(len(tried), len(protocol.learning_rates))
    runs, compile_seconds = [], 0.0
    for i in range(0, len(tried), size):
        chosen = tried[i : i + size]
        record = train_batch(
            who.optimizers(chosen),
            task,
            steps=unit.horizon,
            key=key,
            seeds=protocol.seeds,
            evals=protocol.evals,
            batch=len(chosen),
            tell_horizon=who.tell_horizon,
        )
        compile_seconds += record.compile_seconds
        curves = (record.train_loss, record.valid_loss, record.test_loss)
        for j, config in enumerate(chosen):
            for seed in range(protocol.seeds):
                train, valid, test = (np.asarray(curve[j, seed], np.float32) for curve in curves)
                metrics = {n: np.asarray(c[j, seed], np.float32) for n, c in record.metrics.items()}
                whose = (unit.task, who.label, config, who.fingerprint, unit.horizon, seed)
                runs.append(Run(*whose, np.asarray(record.steps), train, valid, test, metrics))
    return runs, compile_seconds


def tune_baseline(name: str, task: Task, *, steps: int, key: PRNGKeyArray, protocol: Protocol) -> Fields:
    """The best setting of a baseline on a task, of its whole grid, by `select`.

    Args:
        name: a key of `BASELINES`.
        task: what to train.
        steps: inner steps.
        key: draws problems, starts and minibatches, the same for all settings.
        protocol: seeds and rates.

    Raises:
        InputError: for an unknown name, or where every setting diverged.
    """
    unit = Unit("the task", name, steps)
    found = select(train_settings(task, unit, Contender(name, name, None, None), protocol, key)[0])
    if not all(np.isfinite(run.train_loss[-1]) for run in found):
        raise InputError(f"{name} diverged at every setting of its grid on this task.")
    return found[0].config


def fewer_examples(task: Task, size: int | None) -> Task:
    """The same task, its evaluations on at most so many examples, drawn by the key as always; wrapped tasks too."""
    if size is None:
        return task
    changes: Fields = {}
    for field in dataclasses.fields(task):
        value = getattr(task, field.name)
        if field.name == "eval_size":
            changes[field.name] = min(value, size)
        elif isinstance(value, Task):
            changes[field.name] = fewer_examples(value, size)
    changed = copy.copy(task)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)  # frozen; not built anew, because the arguments are not kept
    return changed


def time_task(
    name: str, horizon: int, chosen: Sequence[tuple[Contender, Fields]], protocol: Protocol, turns: int = TURNS
) -> list[Timing]:
    """Seconds a step of one training with each optimizer, in turns: all of them once, then all of them again, so that whatever else the
    machine does falls on all. Every turn begins with the next of them.

    Args:
        name: the task.
        horizon: inner steps of a whole training.
        chosen: optimizers and their settings.
        protocol: gives the seed.
        turns: how many.
    """
    settings = {who.label: who.optimizer(setting) for who, setting in chosen}
    seconds = in_turns(settings, task_named(name), horizon, default_key(protocol.seed), turns)
    return [
        Timing(name, label, horizon, turn, float(found[turn]))
        for turn in range(turns)
        for label, found in seconds.items()
    ]


def in_turns(
    optimizers: Mapping[str, Optimizer], task: Task, horizon: int, key: PRNGKeyArray, turns: int = TURNS
) -> dict[str, Float[np.ndarray, " turns"]]:
    """Seconds a step of one training with each optimizer, all of them in every turn.

    Args:
        optimizers: by label.
        task: what is trained.
        horizon: inner steps of a whole training.
        key: draws problem, start and minibatches.
        turns: how many.
    """
    labels = list(optimizers)
    # Guarded as trainings are: the guard looks at every gradient, which is part of a step's time.
    stretches = [_Stretch(task, Guarded(optimizer), horizon, key) for optimizer in optimizers.values()]
    with ThreadPoolExecutor(len(cores())) as pool:
        list(pool.map(_Stretch.compile, stretches))
    for stretch in stretches:
        stretch.calibrate()
    found = {label: np.zeros(turns) for label in labels}
    for turn in range(turns):
        for i in _order(turn, len(labels)):
            found[labels[i]][turn] = stretches[i]()
    return found


def _order(turn: int, count: int) -> list[int]:
    """Each turn begins with another one, so that none always follows the same or always finds the caches as the last turn left them."""
    return [(turn + i) % count for i in range(count)]


class _Stretch:
    """Inner steps of one training, as many as take about `STRETCH_SECONDS`."""

    def __init__(self, task: Task, optimizer: Optimizer, horizon: int, key: PRNGKeyArray):
        self.task, self.optimizer, self.horizon, self.key = task, optimizer, horizon, key
        self.length = 1
        self.inner: Any = None
        self.program: Callable[..., Inner] | None = None

    def compile(self) -> None:
        """Do what may be done beside other work."""
        self.inner = jax.jit(start, static_argnums=3)(self.optimizer, self.task, self.key, self.horizon)
        self.program = jax.jit(_steps).lower(self.optimizer, self.task, self.inner, self.key, 1).compile()

    def calibrate(self) -> None:
        """Find the length."""
        self()
        self.length = 4
        self.length = int(np.clip(STRETCH_SECONDS / self(), 1, self.horizon))

    def __call__(self) -> float:
        """Seconds a step."""
        assert self.program is not None
        began = time.perf_counter()
        jax.block_until_ready(self.program(self.optimizer, self.task, self.inner, self.key, self.length))
        return (time.perf_counter() - began) / self.length


def _steps(optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, length: Int[Array, ""]) -> Inner:
    """As `unroll`, with a length that is an argument: one program for all lengths."""

    def step(i: Int[Array, ""], inner: Inner) -> Inner:
        return unroll(optimizer, task, inner, jax.random.fold_in(key, i), 1)[0]

    return jax.lax.fori_loop(0, length, step, inner)


__all__ = [
    "Protocol",
    "Trained",
    "fewer_examples",
    "in_turns",
    "time_task",
    "train_settings",
    "train_unit",
    "tune_baseline",
]
