"""Train a grid of settings on one task, and choose the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.baselines import LEARNING_RATES, Baseline
from lopt.evaluate.contenders import Contender, Fields
from lopt.evaluate.runs import Run, Unit
from lopt.evaluate.scores.selection import promising, select
from lopt.evaluate.training import train_batch
from lopt.task import Task


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


class Tuned(NamedTuple):
    """The grid of a baseline on one task, trained."""

    baseline: str
    runs: list[Run]  # of every setting and seed
    setting: Fields  # of the lowest final training loss, mean over seeds
    setting_by_valid: Fields  # of the lowest final validation loss

    @property
    def chosen(self) -> list[Run]:
        """The runs of the best setting, in the order of seeds."""
        return [run for run in self.runs if run.config == self.setting]

    @property
    def train_loss(self) -> Float[np.ndarray, " seeds"]:
        """The final training losses of the best setting."""
        return np.array([run.train_loss[-1] for run in self.chosen])

    @property
    def optimizer(self) -> Baseline:
        """The baseline at its best setting."""
        return Baseline(self.baseline, self.setting)


def train_settings(
    task: Task, unit: Unit, who: Contender, protocol: Protocol, key: PRNGKeyArray
) -> tuple[list[Run], float]:
    """Train a contender at all its settings and seeds on one task to one horizon.

    As many settings as there are learning rates run at once; a grid that has more, over weight decays, takes several turns of one compiled
    program, which bounds the memory.

    Args:
        task: what to train.
        unit: what to call it, and the horizon.
        who: what trains.
        protocol: seeds, evaluations, rates.
        key: draws problems, starts and minibatches.

    Returns:
        The runs, and the seconds of compilation.
    """
    if protocol.finalists is not None:
        at_least(1, finalists=protocol.finalists)
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


def tune(
    name: str,
    task: Task,
    *,
    steps: int,
    key: PRNGKeyArray,
    seeds: int = 5,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Tuned:
    """Tune a baseline on a task over its whole grid. The best setting is that of `select`; it is the one that a bench chooses.

    Args:
        name: a key of `BASELINES`.
        task: what to train.
        steps: inner steps.
        key: draws problems, starts and minibatches, the same for all settings.
        seeds: trainings of a setting.
        learning_rates: of the grid.

    Raises:
        InputError: for an unknown name, or where every setting diverged.

    Examples:
        >>> import jax, lopt
        >>> task = lopt.tasks.create("quadratic", dim=3)
        >>> tuned = lopt.evaluate.tune("adam", task, steps=20, key=jax.random.key(0), seeds=2, learning_rates=(1e-3, 0.1))
        >>> tuned.setting
        {'learning_rate': 0.1}
    """
    protocol = Protocol(seeds=seeds, evals=1, learning_rates=tuple(learning_rates))
    runs, _ = train_settings(task, Unit("the task", name, steps), Contender(name, name, None, None), protocol, key)
    best, best_by_valid = (select(runs, by=by) for by in ("train", "valid"))
    if not all(np.isfinite(run.train_loss[-1]) for run in best):
        raise InputError(f"{name} diverged at every setting of its grid on this task.")
    return Tuned(name, runs, best[0].config, best_by_valid[0].config)


__all__ = ["Protocol", "Tuned", "train_settings", "tune"]
