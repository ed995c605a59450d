"""Run a suite: train all optimizers on all tasks in processes, write every unit as it ends, then measure wall-clock in turns."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.baselines import BASELINES
from lopt.evaluate.bench.archive import Archive
from lopt.evaluate.bench.suites import SUITES, Suite, find_suite
from lopt.evaluate.bench.units import Trained, time_task, train_unit
from lopt.evaluate.bench.workers import Job, Worker, work
from lopt.evaluate.contenders import Contender, card_of, contender, contenders
from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.scores.cells import diverged, spreads
from lopt.evaluate.scores.selection import select
from lopt.evaluate.scores.statistics import ranks
from lopt.evaluate.timing import machine
from lopt.machine import cores


class Progress(NamedTuple):
    """Where a bench stands."""

    stage: str  # `training` or `timing`
    done: int  # units of work; of timing, tasks
    total: int
    what: str  # was started or done last


class Standing(NamedTuple):
    """How an optimizer did, in short."""

    optimizer: str
    cells: int  # tasks and horizons on which it was trained
    rank: float  # mean over those on which all optimizers were trained; ties share the mean of their ranks
    firsts: int  # on how many of these nobody had a lower final training loss
    diverged: int  # cells with a seed that diverged, by `lopt.evaluate.scores.cells.diverged`
    relative_time: float  # median over tasks of the time of a step, over Adam's; NaN where nothing was timed


def run_bench(
    suite: Suite | str,
    optimizers: Sequence[str],
    archive: Archive,
    *,
    processes: int | None = None,
    tasks: Sequence[str] = (),
    shortest: int | None = None,
    longest: int | None = None,
    timing: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    kind: Any = Worker,
) -> dict[Unit, str]:
    """Train every optimizer on every task and horizon of a suite that the archive does not have, then time them.

    Adam's grid is also trained to the longer horizons of `Suite.reference_cells`; see `within_suite`.

    The same suite, seed and machine give the same numbers, whatever the number of processes and however often the run was stopped. A unit that raises, or
    whose process dies, is recorded as failed, the rest goes on, and the next call tries it again.

    Args:
        suite: what to train, or a name in `SUITES`.
        optimizers: baselines by name, `baselines` for all of them, saved optimizers by name or path, others as `adam{"learning_rate":0.01}`; empty for those of
            the suite. Tuned Adam, the reference, is always there.
        archive: where the runs go.
        processes: at a time; by default one a core.
        tasks: those of the suite to train; the others are left to another call, as are shorter and longer trainings. All are trained by default.
        shortest: steps of a training, at least.
        longest: steps of a training, at most.
        timing: whether to measure wall-clock when all is trained.
        on_progress: told when a unit starts and when one is done.
        kind: of workers: processes of this machine, or `lopt.evaluate.bench.cluster.RayWorkers`. Times are always measured here.

    Returns:
        What failed, and why.

    Raises:
        InputError: for unknown names, where the suite has no such training, and for an archive of another protocol or with another saved optimizer under one
            of the names.
    """
    suite = find_suite(suite) if isinstance(suite, str) else suite
    tell = on_progress or (lambda _: None)
    who = {c.label: c for c in contenders(optimizers or suite.optimizers)}
    processes = len(cores()) if processes is None else processes
    at_least(1, processes=processes)
    chosen = suite.chosen(tasks, shortest, longest)
    archive.settle(suite.settled())
    _keep_cards(archive, who)
    archive.add_given({label: it.given or label for label, it in who.items()})
    here = machine()
    done = archive.units()
    units = [Unit(task, label, horizon) for task, horizon in suite.cells() for label in who]
    longer = suite.reference_cells()
    units += [Unit(task, "adam", horizon) for task, horizon in longer]
    units = [unit for unit in units if (unit.task, unit.horizon) in chosen]
    missing = [unit for unit in units if unit not in done]
    protocols = {cell: suite.protocol_of(cell[0]) for cell in (*suite.cells(), *longer)}
    for cell in longer:  # evaluated as densely as the others: speed-up is read between evaluations
        protocols[cell] = protocols[cell]._replace(evals=suite.reference_multiple * suite.protocol.evals)
    jobs = [Job(u.task, u, train_unit, (u, who[u.optimizer], protocols[u.task, u.horizon])) for u in missing]
    finished = len(units) - len(missing)

    def starts(unit: Unit) -> None:
        tell(Progress("training", finished, len(units), f"{unit.optimizer} on {unit.task}, {unit.horizon} steps"))

    failed: dict[Unit, str] = {}
    for unit, trained, error in work(jobs, processes, starts, kind):
        finished += 1
        if error is None:
            found: Trained = trained
            archive.add(unit, found.runs, seconds=found.seconds, compile_seconds=found.compile_seconds, machine=here)
        else:
            failed[unit] = error
            archive.add_failure(unit, error, machine=here)
        said = f"{unit.optimizer} on {unit.task}, {unit.horizon} steps: {'failed' if error else 'done'}"
        tell(Progress("training", finished, len(units), said))
    if timing:
        failed |= _time(suite, who, archive, tell, here)
    return failed


def _keep_cards(archive: Archive, who: Mapping[str, Contender]) -> None:
    """Write the cards of saved optimizers; refuse one that is not that under whose name the archive has runs."""
    known = archive.fingerprints()
    for label, it in who.items():
        if label in known and known[label] != it.fingerprint:
            raise InputError(
                f"{archive.path} has runs of another optimizer that is called {label}; rename this one or name another archive."
            )
        if it.fingerprint is not None:
            archive.add_card(it.fingerprint, card_of(it))


def _time(
    suite: Suite,
    who: Mapping[str, Contender],
    archive: Archive,
    tell: Callable[[Progress], None],
    here: Mapping[str, Any],
) -> dict[Unit, str]:
    """Time all optimizers that the archive has on a task, named in this call or not, one task after the other, with nothing beside; tasks where
    all that were named are timed are left alone. What a step takes does not depend on the horizon: those of a task share their times.

    Times compare within one session, so all that were measured before make room. A saved optimizer whose file is gone is left without.
    """
    everyone, gone = _everyone(who, archive)
    chosen = {Unit(r.task, r.optimizer, r.horizon): r.config for r in select(archive.runs())}
    timed = {Unit(*t[:3]) for t in archive.timings()}
    jobs, session = [], secrets.token_hex(6)
    failed: dict[Unit, str] = {}
    horizons: dict[str, list[int]] = {}
    for task, horizon in suite.cells():
        horizons.setdefault(task, []).append(horizon)
    for task, known in horizons.items():
        missing = [u for u in chosen if u.task == task and u.horizon in known and u.optimizer in who and u not in timed]
        if missing:
            settings = {u.optimizer: config for u, config in chosen.items() if u.task == task and u.horizon in known}
            pairs = [(it, settings[label]) for label, it in everyone.items() if label in settings]
            jobs.append(Job(task, task, time_task, (task, known[0], pairs, suite.protocol)))
            absent = {
                Unit(task, label, horizon): f"not timed: {why}" for label, why in gone.items() for horizon in known
            }
            failed |= {unit: why for unit, why in absent.items() if unit in chosen}
    for i, (task, timings, error) in enumerate(work(jobs, 1)):
        if error is None:
            same = [t._replace(session=session, horizon=horizon) for horizon in horizons[task] for t in timings]
            archive.add_timings((t for t in same if Unit(*t[:3]) in chosen), machine=here)
        else:
            failed |= {Unit(task, "all", horizon): f"not timed: {error}" for horizon in horizons[task]}
        tell(Progress("timing", i + 1, len(jobs), task))
    return failed


def _everyone(who: Mapping[str, Contender], archive: Archive) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those named in this call and all others of the archive; and of the latter those that cannot be had any more, with the reason."""
    found, gone = dict(who), {}
    known = archive.fingerprints()
    for label, given in archive.given().items():
        if label in found:
            continue
        try:
            it = contender(given)
        except InputError as error:
            gone[label] = str(error)
            continue
        if (it.label, it.fingerprint) == (label, known[label]):
            found[label] = it
        else:
            gone[label] = f"{given} is another optimizer now."
    return found, gone


def standings(runs: Sequence[Run], timings: Sequence[Timing] = ()) -> list[Standing]:
    """Optimizers, the best mean rank first, by the final training losses of their best settings, averaged over seeds; what diverged ranks last.

    Args:
        runs: of any number of settings.
        timings: of the same.
    """
    final: dict[tuple[str, int], dict[str, list[float]]] = {}
    chosen = select(runs)
    bad = [unit.optimizer for unit, seeds in diverged(chosen, BASELINES).items() if seeds]
    for found in chosen:
        final.setdefault((found.task, found.horizon), {}).setdefault(found.optimizer, []).append(
            float(found.train_loss[-1])
        )
    means = {cell: {o: _mean(losses) for o, losses in row.items()} for cell, row in final.items()}
    names = sorted({o for row in means.values() for o in row})
    complete = [row for row in means.values() if len(row) == len(names)]
    losses = np.array([[row[o] for row in complete] for o in names]).reshape(len(names), len(complete))
    placed = dict(zip(names, ranks(losses), strict=True))
    rows = [
        Standing(
            o,
            sum(o in row for row in means.values()),
            float(placed[o].mean()) if complete else math.nan,
            sum(row[o] == min(row.values()) < math.inf for row in complete),
            bad.count(o),
            _relative_time(o, timings),
        )
        for o in names
    ]
    return sorted(rows, key=lambda row: (math.isnan(row.rank), row.rank, row.optimizer))


def _mean(losses: Sequence[float]) -> float:
    return float(np.mean(losses)) if np.isfinite(losses).all() else math.inf


def _relative_time(optimizer: str, timings: Sequence[Timing]) -> float:
    """Median over tasks of the median over turns of the ratio to Adam in the same turn of the same session."""
    problems = dict.fromkeys((t.task, t.horizon) for t in timings if t.optimizer == optimizer)
    costs = [spreads(task, optimizer, horizon, timings, "adam")[1].median for task, horizon in problems]
    known = [cost for cost in costs if not math.isnan(cost)]
    return float(np.median(known)) if known else math.nan


__all__ = ["SUITES", "Progress", "Standing", "Suite", "run_bench", "standings"]
