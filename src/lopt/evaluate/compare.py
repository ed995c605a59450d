"""Compare optimizers with a tuned Adam on one task, paired over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from lopt.evaluate.baselines import LEARNING_RATES
from lopt.evaluate.grid import Tuned, tune
from lopt.evaluate.scores.resampling import Estimate
from lopt.evaluate.scores.statistics import mean_interval
from lopt.evaluate.timing import Spread, Stretch, in_turns, spread
from lopt.evaluate.training import TrainRecord, as_optimizer, default_key, train
from lopt.optimizer import Optimizer
from lopt.task import Task

TUNED = "Adam, tuned"


class Row(NamedTuple):
    """One optimizer on one task."""

    optimizer: str
    train_loss: Estimate
    test_loss: Estimate
    test_accuracy: Estimate | None
    steps_to_target: tuple[float, ...]  # a seed; infinity where the target was not reached
    milliseconds_per_step: Spread  # of one training, over turns
    times_adam: Spread  # the ratio to the tuned Adam in the same turn
    milliseconds_to_target: tuple[float, ...]  # a seed, at the median time of a step


class Comparison(NamedTuple):
    """Optimizers on one task; the tuned Adam is the last."""

    task: str
    steps: int
    seeds: int
    target: float  # tuned Adam's final training loss, mean over seeds
    adam: Tuned
    records: dict[str, TrainRecord]
    rows: list[Row]


def steps_to(target: float, record: TrainRecord) -> tuple[float, ...]:
    """Per seed, the first evaluated step at which the training loss is at most `target`; infinity if there is none."""
    reached = record.train_loss <= target
    return tuple(float(record.steps[row.argmax()]) if row.any() else float("inf") for row in reached)


def compare(
    optimizers: Mapping[str, Optimizer | optax.GradientTransformation | str],
    task: Task,
    *,
    name: str,
    steps: int,
    key: PRNGKeyArray,
    seeds: int = 5,
    evals: int = 40,
    on_progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Train `task` with each optimizer and with Adam at its best learning rate, on the same seeds.

    Adam's rate is chosen on these very seeds, which favours Adam; so is the setting of any other baseline that is to be tuned. Seconds are measured
    afterwards, of one training with each optimizer, in turns (`in_turns`): whatever else the machine does falls on all.

    Args:
        optimizers: by the name under which they are reported; a key of `BASELINES` is tuned over its grid first.
        task: what to train.
        name: what to call it.
        steps: inner steps.
        key: draws problems, starts and minibatches, the same for all.
        seeds: trainings each.
        evals: evaluations of each training; the resolution of steps to target is `steps / evals`.
        on_progress: told what is being done.
    """
    tell = on_progress or (lambda _: None)
    tell(f"{name}: tuning Adam over {len(LEARNING_RATES)} learning rates")
    adam = tune("adam", task, steps=steps, key=key, seeds=seeds)
    chosen: dict[str, Optimizer] = {}
    for label, optimizer in optimizers.items():
        if isinstance(optimizer, str):
            tell(f"{name}: tuning {label} over its grid")
            chosen[label] = tune(optimizer, task, steps=steps, key=key, seeds=seeds).optimizer
        else:
            chosen[label] = as_optimizer(optimizer)
    tell(f"{name}: training with {TUNED}")
    tuned = train(adam.optimizer, task, steps=steps, key=key, seeds=seeds, evals=evals)
    target = float(tuned.train_loss[:, -1].mean())
    alone = Comparison(name, steps, seeds, target, adam, {TUNED: tuned}, [])
    return add(alone, chosen, task, key=key, evals=evals, on_progress=on_progress)


def add(
    found: Comparison,
    optimizers: Mapping[str, Optimizer | optax.GradientTransformation],
    task: Task,
    *,
    key: PRNGKeyArray,
    evals: int = 40,
    on_progress: Callable[[str], None] | None = None,
) -> Comparison:
    """A comparison with more optimizers, trained on the same seeds and timed in turns with its tuned Adam.

    Args:
        found: from `compare`.
        optimizers: by the name under which they are reported.
        task: that of `found`.
        key: that of `found`.
        evals: as for `compare`.
        on_progress: told what is being done.
    """
    tell = on_progress or (lambda _: None)
    chosen = {label: as_optimizer(optimizer) for label, optimizer in optimizers.items()}
    records = dict(found.records)
    tuned = records.pop(TUNED)
    for label, optimizer in chosen.items():
        tell(f"{found.task}: training with {label}")
        records[label] = train(optimizer, task, steps=found.steps, key=key, seeds=found.seeds, evals=evals)
    records[TUNED] = tuned
    tell(f"{found.task}: timing all in turns")
    timed = {**chosen, TUNED: found.adam.optimizer}
    seconds = in_turns({label: Stretch(optimizer, task, found.steps, key) for label, optimizer in timed.items()})
    known = {row.optimizer: row for row in found.rows}
    rows = [
        summarise(label, record, found.target, seconds[label], seconds[TUNED]) if label in timed else known[label]
        for label, record in records.items()
    ]
    return found._replace(records=records, rows=rows)


def summarise(
    label: str,
    record: TrainRecord,
    target: float,
    seconds: Float[np.ndarray, " turns"],
    adam: Float[np.ndarray, " turns"],
) -> Row:
    """A record as a row: where it ended and when it reached `target`.

    Args:
        label: of the optimizer.
        record: its trainings.
        target: a training loss.
        seconds: a step, in each turn.
        adam: those of the tuned Adam in the same turns.
    """
    accuracy = record.metrics.get("test_accuracy")
    reached = steps_to(target, record)
    milliseconds = 1e3 * seconds
    return Row(
        label,
        mean_interval(record.train_loss[:, -1]),
        mean_interval(record.test_loss[:, -1]),
        None if accuracy is None else mean_interval(accuracy[:, -1]),
        reached,
        spread(milliseconds),
        spread(seconds / adam),
        tuple(steps * float(np.median(milliseconds)) for steps in reached),
    )


COLUMNS = ("optimizer", "train loss", "test loss", "test accuracy", "steps to target", "time, × Adam", "ms to target")


def row_text(row: Row) -> tuple[str, ...]:
    """The cells of a row of the table, in the order of `COLUMNS`."""
    return (
        row.optimizer,
        str(row.train_loss),
        str(row.test_loss),
        "–" if row.test_accuracy is None else str(row.test_accuracy),
        _to_target(row.steps_to_target, digits=0),
        f"{row.times_adam.median:.1f} ({row.times_adam.low:.1f}–{row.times_adam.high:.1f})",
        _to_target(row.milliseconds_to_target, digits=1),
    )


def _to_target(values: tuple[float, ...], digits: int) -> str:
    """Mean and interval where every seed reached the target, else how many did."""
    reached = [v for v in values if np.isfinite(v)]
    if len(reached) < len(values):
        return f"{len(reached)} of {len(values)} seeds"
    found = mean_interval(np.asarray(values))
    return f"{found.value:.{digits}f} ± {found.half:.{digits}f}"


__all__ = [
    "COLUMNS",
    "TUNED",
    "Comparison",
    "Row",
    "add",
    "compare",
    "default_key",
    "row_text",
    "steps_to",
    "summarise",
]
