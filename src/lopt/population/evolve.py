"""The loop over cycles of a population, with progress, lineage, checkpoint and resume."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt import checkpoint
from lopt.checks import at_least
from lopt.engine import Engine, Unreachable
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator
from lopt.meta_train import Interrupted, interruptible
from lopt.optimizer import Optimizer
from lopt.population.cycle import Members, Population, Rules, begin, cycle
from lopt.population.lineage import Lineage
from lopt.run_directory import RunDirectory
from lopt.task import Task


class Report(NamedTuple):
    """What a population reports after each cycle."""

    cycle: int
    cycles: int
    losses: np.ndarray  # of the members; infinite where one diverged
    trainers: np.ndarray  # by whom each was trained
    copies: int
    seconds_left: float


class Diverged(InputError):
    """All members of a population diverged."""

    def __init__(self, message: str, best: Optimizer):
        self.best = best  # of the last good cycle
        super().__init__(message)


def stack(members: Sequence[Optimizer], name: str = "members") -> Optimizer:
    """Optimizers of one architecture as one whose leaves have a leading axis.

    Args:
        members: at least one.
        name: what an error calls them.

    Raises:
        InputError: for none, or where two are of different architectures or sizes.
    """
    if not members:
        raise InputError(f"{name} is empty; give at least one optimizer.")

    def shape(optimizer: Optimizer) -> Any:
        return jax.tree.structure(optimizer), [(x.shape, x.dtype) for x in jax.tree.leaves(optimizer)]

    for i, member in enumerate(members):
        if shape(member) != shape(members[0]):
            raise InputError(
                f"{name}[{i}] differs from {name}[0] in architecture, fields or sizes; all must be alike, for they run as one program."
            )
    return jax.tree.map(lambda *xs: jnp.stack(xs), *members)


def evolve(
    members: Sequence[Optimizer],
    estimators: Estimator | Sequence[Estimator],
    tasks: Sequence[Task],
    rules: Rules,
    *,
    cycles: int,
    key: PRNGKeyArray,
    outside: Sequence[Optimizer] | None = None,
    run_dir: str | Path | None = None,
    checkpoint_seconds: float = 20.0,
    settings: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    on_cycle: Callable[[Report], None] | None = None,
) -> Population:
    """Train a population, by its own members or by trainers from outside.

    With a run directory a training is resumable bit for bit, as that of `meta_train`. Its `lineage.jsonl` has a line for each evaluation and each copy.

    Args:
        members: the initial optimizers, of one architecture.
        estimators: where meta-gradients come from.
        tasks: on which members are evaluated, at least one.
        rules: how members are trained and selected.
        cycles: in all.
        key: draws everything.
        outside: trainers that are no members, of one architecture; `None` where members train each other.
        run_dir: where to keep the run.
        checkpoint_seconds: time between checkpoints.
        settings: extra JSON that must match before a run directory is resumed.
        engine: where meta-gradients are computed: a synchronous one with workers, or this process if `None`. Evaluation and selection stay here.
        on_cycle: called after each cycle.

    Returns:
        The population at the end; `best` gives its best member.

    Raises:
        InputError: for no members, members that are not alike, a trainer that wants a validation loss, an asynchronous engine, or a run directory
            that is damaged or belongs to another configuration.
        Diverged: where all members have diverged. The run directory keeps the last good cycle.
        Interrupted: after Ctrl-C.
        Unreachable: where an engine has lost all its workers. The run directory keeps the last whole cycle.

    Examples:
        >>> import jax, lopt
        >>> from lopt.population import Rules, best, evolve
        >>> task = lopt.tasks.Quadratic(dim=2)
        >>> pes = lopt.estimators.PES(task, pairs=1, truncation=5, horizon=10)
        >>> members = [lopt.create("small_fc", key=jax.random.key(i)) for i in range(2)]
        >>> rules = Rules(steps=2, horizon=10, replaced=0.5)
        >>> found = evolve(members, pes, [task], rules, cycles=2, key=jax.random.key(0))
        >>> int(found.step), type(best(found)).__name__
        (2, 'SmallFC')

    Source: Metz et al. 2021, *Training Learned Optimizers with Randomly Initialized Learned Optimizers*; a reconstruction.
    """
    estimators = (estimators,) if isinstance(estimators, Estimator) else tuple(estimators)
    tasks = tuple(tasks)
    at_least(1, cycles=cycles)
    stacked = stack(members)
    coaches = None if outside is None else stack(outside, "outside")
    for name, given in (("estimators", estimators), ("tasks", tasks)):
        if not given:
            raise InputError(f"{name} is empty; give at least one.")
    trainer = (outside or members)[0]
    if trainer.validation_every and rules.trained_by != "nobody":
        raise InputError(
            f"A {type(trainer).__name__} as a trainer wants a validation loss, which a meta-training has not; choose another trainer."
        )
    if coaches is not None and rules.trained_by in ("itself", "best"):
        raise InputError(
            f"trained_by is {rules.trained_by!r} with trainers from outside; it must be 'snapshot' or 'nobody'."
        )
    if engine is not None:
        _must_serve(engine)
    state = begin(rules, stacked, estimators, tasks, coaches, key, horizon=cycles * rules.steps)
    run = lineage = None
    if run_dir is not None:
        config = {
            **(settings or {}),
            "cycles": cycles,
            "rules": dataclasses.asdict(rules),
            "members": eqx.tree_pformat(stacked, width=10_000),
            "trainers from outside": eqx.tree_pformat(coaches, width=10_000),
            "estimators": [eqx.tree_pformat(e, width=10_000) for e in estimators],
            "tasks": [eqx.tree_pformat(task, width=10_000) for task in tasks],
            "key": jax.random.key_data(key).tolist(),
            "digest": checkpoint.digest((stacked, coaches, estimators, tasks)),
            **({} if engine is None else {"engine": engine.describe(estimators)}),
        }
        run = RunDirectory(Path(run_dir), json.loads(json.dumps(config)))
        state, lineage = run.resume(state), Lineage(Path(run_dir))
        lineage.resume(int(state.step), len(members))
    first = int(state.step)
    inner_steps = 0 if run is None else run.inner_steps_before
    began = saved = time.perf_counter()

    def save(state: Population) -> None:
        if run is not None and lineage is not None:
            lineage.save()
            run.save(state)

    if engine is not None and first < cycles:
        engine.begin(
            stacked, [Members(e) for e in estimators], state.members.state.key
        )  # then it takes the states that it gets
    with interruptible() as interrupted:
        for step in range(first + 1, cycles + 1):
            try:
                after, found = cycle(rules, estimators, tasks, coaches, state, engine)
            except Unreachable:
                save(state)
                raise
            found = jax.device_get(found)
            if not np.isfinite(found.losses).any():
                save(state)
                kept = f"; {run_dir} keeps cycle {step - 1}" if run_dir is not None and step > 1 else ""
                raise Diverged(f"All {len(members)} members diverged in cycle {step} of {cycles}{kept}.", best(state))
            state, now, stop = after, time.perf_counter(), interrupted.is_set() and step < cycles
            inner_steps += round(float(found.inner_steps))
            if run is not None and lineage is not None:
                lineage.log(step, found)
                line = {"step": step, "best": found.losses.min(), "median": np.median(found.losses)}
                line |= {"meta_loss": found.meta_loss, "diverged": found.diverged}
                line = {name: float(value) for name, value in line.items()} | {"step": step}
                spent = run.seconds_before + now - began
                run.log({**line, "inner_steps": inner_steps, "seconds": round(spent, 3)})
                if step == cycles or stop or now - saved >= checkpoint_seconds:
                    save(state)
                    saved = now
            if on_cycle is not None:
                left = (cycles - step) * (now - began) / (step - first)
                on_cycle(Report(step, cycles, found.losses, found.trainers, int(found.copied.sum()), left))
            if stop:
                raise Interrupted(state, cycles, "cycle")
    return state


def _must_serve(engine: Engine) -> None:
    """Refuse an engine that cannot train a population."""
    if engine.traceable:
        raise InputError(f"engine is {engine}; a population takes one with workers, or None for this process.")
    if not engine.synchronous:
        raise InputError(
            "engine leaves out some estimates; all members of a population take their meta-steps together, on all tasks."
        )


def best(state: Population) -> Optimizer:
    """The member with the lowest meta-loss of all evaluations, as it was then."""
    return state.best.state.optimizer


__all__ = ["Diverged", "Report", "best", "evolve", "stack"]
