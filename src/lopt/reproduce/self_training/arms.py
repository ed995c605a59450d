"""The arms that the claims share: populations on two small tasks, each in a run directory of its own."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from lopt import tasks, zoo
from lopt.checks import at_least
from lopt.engine import Engine
from lopt.errors import InputError
from lopt.estimators import PES, Estimator
from lopt.estimators.objectives import WORST
from lopt.machine import cores
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.optimizers import SGD, Adam, create
from lopt.population import Diverged, Report, Rules, best, evolve
from lopt.population.lineage import LINEAGE
from lopt.run_directory import metrics_of
from lopt.task import Task

HORIZON = 50  # inner steps
STEPS = 10  # meta-steps a cycle
MEMBERS = 10
ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SGD_RATES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
RULES = Rules(steps=STEPS, horizon=HORIZON, change_factor=0.5)
LEARNED = dataclasses.replace(RULES, restart=HORIZON // STEPS)  # a learned trainer acts within its own horizon


class Arm(NamedTuple):
    """How a population is trained."""

    label: str
    rules: Rules = LEARNED
    alone: bool = False  # whether each member is a population of its own
    outside: Callable[[PRNGKeyArray], list[Optimizer]] | None = None  # trainers that are no members


class Curves(NamedTuple):
    """What a run found."""

    losses: Float[np.ndarray, "cycles members"]  # log meta-loss at every evaluation; `WORST` where a member diverged
    trainers: Int[np.ndarray, "cycles members"]
    copies: list[tuple[int, int, int]]  # cycle, copy, parent
    best: Optimizer
    alone: bool = False

    @property
    def lowest(self) -> Float[np.ndarray, " cycles"]:
        """The log meta-loss of the best member at every evaluation; where each member is a population of its own, the mean over them."""
        return self.losses.mean(axis=1) if self.alone else self.losses.min(axis=1)


def fresh(key: PRNGKeyArray, number: int) -> list[Optimizer]:
    """`SmallFC` with random weights and a step size at which meta-parameters of order one can move within hundreds of meta-steps."""
    return [create("small_fc", step_mult=0.01, exp_mult=0.1, key=k) for k in jax.random.split(key, number)]


def _adams(key: PRNGKeyArray) -> list[Optimizer]:
    del key
    return [Adam(learning_rate=rate) for rate in ADAM_RATES]


def _sgds(key: PRNGKeyArray) -> list[Optimizer]:
    del key
    return [SGD(learning_rate=rate) for rate in SGD_RATES]


def _strangers(key: PRNGKeyArray) -> list[Optimizer]:
    return fresh(key, MEMBERS)


ARMS: dict[str, Arm] = {
    "self": Arm("self-trained"),
    "adam": Arm("Adam, five rates", rules=RULES, outside=_adams),
    "frozen": Arm("frozen random trainers", outside=_strangers),
    "selection": Arm("selection and mutation alone", dataclasses.replace(LEARNED, trained_by="nobody")),
    "alone": Arm("populations of one", dataclasses.replace(LEARNED, trained_by="itself", replaced=0.0), alone=True),
    "sgd": Arm("SGD, five rates", rules=RULES, outside=_sgds),
}


def training_tasks() -> tuple[Task, ...]:
    """What all arms are trained and evaluated on."""
    return tasks.create("quadratic", dim=10), tasks.create("clusters_mlp")


def estimators() -> tuple[Estimator, ...]:
    """Where the meta-gradients of all arms come from."""
    return tuple(
        PES(task, pairs=2, truncation=10, horizon=HORIZON, std=0.03, objective="mean_log") for task in training_tasks()
    )


@functools.cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """Where runs live that nobody wants to keep; removed with the process."""
    return tempfile.TemporaryDirectory(prefix="lopt-self-training-")


def run_arm(
    name: str,
    *,
    seed: int,
    cycles: int,
    folder: str | Path | None = None,
    where: Path | None = None,
    members: int | None = None,
    engine: Engine | None = None,
    on_cycle: Callable[[Report], None] | None = None,
    must_last: bool = False,
) -> Curves:
    """Train an arm, or read it where it is done already.

    Args:
        name: a key of `ARMS`.
        seed: draws everything.
        cycles: in all.
        folder: in which the run has a directory of its own; a temporary one if `None`.
        where: the run directory itself, instead of one in `folder`.
        members: instead of ten.
        engine: as `evolve` takes it.
        on_cycle: called after each cycle.
        must_last: whether a population that diverges is an error.

    Raises:
        InputError: for an unknown arm, or a population of none.
        Diverged: where all members diverge and none may.
    """
    if name not in ARMS:
        raise InputError(unknown("arm", name, ARMS))
    arm = ARMS[name]
    begin_key, outside_key, key = jax.random.split(jax.random.key(seed), 3)
    outside = None if arm.outside is None else arm.outside(outside_key)
    size = MEMBERS if members is None else members
    at_least(1, members=size)
    where = where or Path(folder or scratch().name) / f"{name}-{cycles}-{seed}"
    given: dict[str, Any] = {
        "cycles": cycles,
        "key": key,
        "where": where,
        "on_cycle": on_cycle,
        "must_last": must_last,
        "engine": engine,
    }
    return train(fresh(begin_key, size), arm.rules, outside, **given)._replace(alone=arm.alone)


def train(
    members: list[Optimizer],
    rules: Rules,
    outside: list[Optimizer] | None,
    *,
    cycles: int,
    key: PRNGKeyArray,
    where: Path,
    engine: Engine | None = None,
    on_cycle: Callable[[Report], None] | None = None,
    must_last: bool = False,
) -> Curves:
    """A population on the tasks of all arms.

    Args:
        members: at the start.
        rules: how they are trained and selected.
        outside: trainers that are no members.
        cycles: in all.
        key: draws everything.
        where: the run directory.
        engine: as `evolve` takes it.
        on_cycle: called after each cycle.
        must_last: whether a population that diverges is an error; else what is missing counts as diverged.
    """
    given: dict[str, Any] = {
        "cycles": cycles,
        "key": key,
        "outside": outside,
        "run_dir": where,
        "on_cycle": on_cycle,
        "engine": engine,
    }
    try:
        found = best(evolve(members, estimators(), training_tasks(), rules, **given))
    except Diverged as stop:
        if must_last:
            raise
        found = stop.best
    losses = np.full((cycles, len(members)), WORST)
    trainers, copies = np.zeros((cycles, len(members)), int), []
    for line in map(json.loads, (where / LINEAGE).read_text().splitlines()):
        place = line["cycle"] - 1, line["member"]
        if line["event"] == "copy":
            copies.append((line["cycle"], line["member"], line["from"]))
        else:
            losses[place], trainers[place] = WORST if line["loss"] is None else line["loss"], line["trainer"]
    return Curves(losses, trainers, copies, found)


def self_train(
    run_dir: Path,
    *,
    members: int = MEMBERS,
    cycles: int = 150,
    seed: int = 0,
    command: str = "",
    engine: Engine | None = None,
    on_cycle: Callable[[Report], None] | None = None,
) -> Path:
    """Let a population train itself, and save its best member with a card.

    Args:
        run_dir: where the run lives; the same call resumes it.
        members: of the population.
        cycles: in all.
        seed: draws everything.
        command: the command line, for the card.
        engine: as `evolve` takes it.
        on_cycle: called after each cycle.

    Returns:
        The path of the weights.
    """
    given: dict[str, Any] = {"engine": engine, "on_cycle": on_cycle, "must_last": True}
    found = run_arm("self", seed=seed, cycles=cycles, where=run_dir, members=members, **given)
    last = metrics_of(run_dir)[-1]
    cycle, member = np.unravel_index(found.losses.argmin(), found.losses.shape)
    line = ancestry(found, int(member), int(cycle) + 1)
    card = zoo.Card(
        description=f"The best of {members} SmallFCs that trained each other, from random weights, on small tasks. Its line, last first: {line}.",
        tasks=(tasks.TaskName("quadratic", {"dim": 10}).to_json(), tasks.TaskName("clusters_mlp").to_json()),
        seed=seed,
        meta_steps=cycles * STEPS,
        inner_steps=last["inner_steps"],
        horizon=(HORIZON, HORIZON),
        seconds=last["seconds"],
        cores=len(cores()),
        command=command,
    )
    return zoo.save(run_dir / "optimizer.safetensors", found.best, card)


def ancestry(found: Curves, member: int, cycle: int) -> str:
    """Whom a member descends from and who trained each, back to a random one, as text.

    A copy of the best so far is taken to be of the best that a line of the lineage names; the start, before the first cycle, has no line.

    Args:
        found: what the run found.
        member: whose line it is.
        cycle: of the evaluation at which it is looked at, from 1; copies of that cycle are later.

    Examples:
        >>> import numpy as np
        >>> from lopt.reproduce.self_training.arms import Curves
        >>> trainers = np.asarray([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 0]])
        >>> found = Curves(np.zeros((4, 3)), trainers, [(1, 1, 0), (3, 2, 1)], None)
        >>> ancestry(found, member=2, cycle=4)
        'member 2 from cycle 4, trained by 0; member 1 from cycle 2, trained by 1; member 0 from cycle 1, trained by 0'
    """
    parents = {(when, copy): parent for when, copy, parent in found.copies}
    line = []
    while cycle:
        trainer = found.trainers[cycle - 1, member]
        while cycle > 1 and (cycle - 1, member) not in parents:
            cycle -= 1
        line.append(f"member {member} from cycle {cycle}, trained by {trainer}")
        cycle -= 1
        if cycle and parents[cycle, member] >= 0:
            member = parents[cycle, member]
        elif cycle:  # a copy of the best so far
            before, champion = np.unravel_index(found.losses[:cycle].argmin(), found.losses[:cycle].shape)
            cycle, member = int(before) + 1, int(champion)
    return "; ".join(line)


def smooth(curve: Float[np.ndarray, " cycles"], width: int) -> Float[np.ndarray, " cycles"]:
    """The mean over the last so many cycles, of fewer at the start: evaluations draw their problems anew."""
    total = np.cumsum(np.concatenate(([0.0], curve)))
    ends = np.arange(1, len(curve) + 1)
    begins = np.maximum(ends - width, 0)
    return (total[ends] - total[begins]) / (ends - begins)


def lowest(name: str, *, seeds: int, cycles: int, arms: str | None) -> Float[np.ndarray, "seeds cycles"]:
    """The smoothed log meta-loss of the best member of an arm, for every seed."""
    width = max(1, cycles // 10)
    found = [run_arm(name, seed=seed, cycles=cycles, folder=arms) for seed in range(seeds)]
    return np.stack([smooth(curves.lowest, width) for curves in found])


def stacked_adams(rates: Float[np.ndarray, " rates"]) -> Optimizer:
    """An Adam for every rate, stacked."""
    return jax.vmap(lambda rate: Adam(learning_rate=rate))(jnp.asarray(rates, jnp.float32))


__all__ = [
    "ARMS",
    "Arm",
    "Curves",
    "ancestry",
    "fresh",
    "lowest",
    "run_arm",
    "self_train",
    "smooth",
    "stacked_adams",
    "train",
]
