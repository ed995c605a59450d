"""One cycle of a population: every member is trained for a few meta-steps, then evaluated, copied and changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from lopt.checks import at_least, one_of, positive
from lopt.engine import Engine, Gradients, gradients
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, EstimatorState, MetaGradient
from lopt.estimators.objectives import Objective, score
from lopt.meta_train import MetaState, apply, meta_init, step_key
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.unroll import start, unroll

TrainedBy = Literal["snapshot", "itself", "best", "nobody"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How a population is trained and selected.

    The text of the paper was not at hand. It is known to use ten members, meta-gradients that learned optimizers apply, and a form of
    population-based training. The numbers here are a reconstruction.

    Args:
        trained_by: who trains a member: the `snapshot` that it holds of another, `itself`, the `best` of the last evaluation, or `nobody`: then only
            selection acts.
        steps: meta-steps a cycle.
        clip: of the meta-gradient, element by element.
        problems: inner problems of each task in an evaluation, the same for all members.
        horizon: inner steps of an evaluation.
        objective: what makes the meta-loss of an evaluation.
        replaced: the share of members, the worst, that copy one of as many best; 0 for no selection. Where it is less than half a member nothing is
            replaced, and `fall` does nothing.
        fall: a member whose meta-loss is by more than this above the best so far is replaced as well. A copy whose parent has fallen is made of the best
            so far: a population whose trainers have grown too bold goes back to when they had not.
        change_trainer: the chance that a copy draws a new trainer: a fresh snapshot of a member.
        perturb: the deviation of the noise on the meta-parameters of a copy.
        change_factor: the deviation of the noise on the logarithm of a copy's factor. The step that a trainer proposes is multiplied by the factor, which
            is 1 at the start.
        restart: cycles after which the trainers' outer states begin anew, so that a trainer acts within the horizon that it was trained for; 0 for never.

    Raises:
        InputError: for a number that is out of its range.

    Source: Metz et al. 2021, *Training Learned Optimizers with Randomly Initialized Learned Optimizers*; a reconstruction.
    """

    trained_by: TrainedBy = "snapshot"
    steps: int = 20
    clip: float = 0.1
    problems: int = 4
    horizon: int = 100
    objective: Objective = "mean_log"
    replaced: float = 0.2
    fall: float = 1.0
    change_trainer: float = 0.5
    perturb: float = 0.01
    change_factor: float = 0.0
    restart: int = 0

    def __post_init__(self) -> None:
        one_of("trained_by", self.trained_by, TrainedBy)
        one_of("objective", self.objective, get_args(Objective))
        at_least(1, steps=self.steps, problems=self.problems, horizon=self.horizon)
        at_least(0, restart=self.restart)
        at_least(0.0, perturb=self.perturb, change_factor=self.change_factor)
        positive(clip=self.clip, fall=self.fall)
        for name, most in (("replaced", 0.5), ("change_trainer", 1.0)):
            if not 0.0 <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; it must be from 0 to {most:g}.")


class Member(NamedTuple):
    """What a copy takes over."""

    state: MetaState  # an optimizer, its outer state and its inner problems
    trainer: Int[Array, "*members"]  # the member whose snapshot trains it, or which of the outside trainers
    snapshot: Optimizer | None  # the weights that train it; `None` where trainers are from outside
    factor: Float[Array, "*members"]  # on the steps of its trainer


class Population(NamedTuple):
    """Everything that a population is; arrays only."""

    members: Member  # with a leading axis
    losses: Float[Array, " members"]  # at the last evaluation
    best: Member  # the best so far, as it was evaluated
    best_loss: Float[Array, ""]
    key: PRNGKeyArray
    step: Int[Array, ""]  # cycles done


class Members(Estimator):
    """An estimator of all members at once, for an engine with workers: optimizer, states and keys have a leading axis."""

    estimator: Estimator

    @property
    def inner_steps(self) -> int:
        """Those of one member."""
        return self.estimator.inner_steps

    def init(self, optimizer: Optimizer, key: Key[Array, " members"]) -> EstimatorState:
        """Start the inner problems of every member."""
        return jax.vmap(self.estimator.init)(optimizer, key)

    def estimate(
        self, optimizer: Optimizer, state: EstimatorState, key: Key[Array, " members"]
    ) -> tuple[MetaGradient, EstimatorState, dict[str, Float[Array, " members"]]]:
        """One estimate for every member."""
        found = jax.vmap(self.estimator.estimate)(optimizer, state, key)
        taken = jnp.full(key.shape, self.inner_steps, jnp.float32)
        return found[0], found[1], {"inner_steps": taken} | found[2]


class Selection(NamedTuple):
    """What one cycle did."""

    losses: Float[Array, " members"]  # infinite where a member diverged
    trainers: Int[Array, " members"]  # by whom each was trained
    parents: Int[Array, " members"]  # whom each is a copy of now; itself for most, -1 for the best so far
    chosen: Int[Array, " members"]  # by whom each will be trained
    copied: Bool[Array, " members"]
    meta_loss: Float[Array, ""]  # of the estimators, the mean over members and meta-steps
    diverged: Float[Array, ""]
    inner_steps: Float[Array, ""]


def begin(
    rules: Rules,
    members: Optimizer,
    estimators: Sequence[Estimator],
    tasks: Sequence[Task],
    outside: Optimizer | None,
    key: PRNGKeyArray,
    horizon: int | None = None,
) -> Population:
    """A population before its first cycle, evaluated.

    Args:
        rules: how it is trained and selected.
        members: their leaves stacked along a leading axis.
        estimators: where meta-gradients come from.
        tasks: on which members are evaluated.
        outside: trainers that are no members, stacked; `None` where members train each other.
        key: draws everything.
        horizon: meta-steps in all, which trainers are told.
    """
    n = _length(members)
    pool = members if outside is None else outside
    trainers = jnp.arange(n, dtype=jnp.int32) % _length(pool)
    hired = jax.tree.map(lambda x: x[trainers], pool)

    own, test, later = jax.random.split(key, 3)
    states = _first_states(members, hired, estimators, jax.random.split(own, n), horizon=_told(rules, horizon))
    losses = evaluate(rules, tasks, members, test)
    all_of_it = Member(states, trainers, members if outside is None else None, jnp.ones((n,)))
    first = jnp.argmin(losses)
    return Population(all_of_it, losses, _take(all_of_it, first), losses[first], later, jnp.zeros((), jnp.int32))


def cycle(
    rules: Rules,
    estimators: Sequence[Estimator],
    tasks: Sequence[Task],
    outside: Optimizer | None,
    state: Population,
    engine: Engine | None = None,
) -> tuple[Population, Selection]:
    r"""One cycle: `steps` meta-steps of every member, then selection.

    $$\theta_i \leftarrow \theta_i + U\big(\mathrm{clip}(\hat g_i), s_i, \theta_i; \phi_{o(i)}\big)$$

    with $\phi_{o(i)}$ the snapshot of a member that trains member $i$. Then the worst members copy weights, outer state, inner problems and trainer of one
    of the best. A copy may take a fresh snapshot of another member as its trainer, and its weights are perturbed.

    All members run in vmapped programs, one each for meta-gradients, for the step of the trainers, for evaluation and for selection. Weights are
    arguments, so each is compiled once. Populations that differ in their trainers share that of the meta-gradients, by far the largest.

    Args:
        rules: how the population is trained and selected.
        estimators: those of `begin`.
        tasks: those of `begin`.
        outside: those of `begin`.
        state: before the cycle.
        engine: one with workers that has begun with `Members` of the estimators; meta-gradients come from this process if `None`.
    """
    n = state.losses.shape[0]
    test_key, select_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    trainers, hired = _trainers(rules, state, outside)

    states = state.members.state
    if rules.trained_by == "nobody":
        zero = jnp.zeros(())
        metrics: dict[str, Array] = {"meta_loss": zero, "diverged": zero, "inner_steps": zero}
    else:
        if rules.restart:
            anew = state.step % rules.restart == 0
            states = _anew(states, hired, anew, horizon=_told(rules, None))
        found: list[dict[str, Array]] = []
        for _ in range(rules.steps):
            # In this process the program is the same whoever trains.
            here = engine is None
            ascent = (
                _gradients(estimators, states._replace(outer=None)) if here else _elsewhere(engine, estimators, states)
            )
            held, ascent = ascent.estimators, ascent._replace(estimators=())
            states, seen = _apply(hired, states._replace(estimators=()), ascent, state.members.factor, rules.clip)
            states = states._replace(estimators=held)
            found.append(seen)
        if engine is not None:
            states = states._replace(estimators=engine.gather(states.estimators))
        metrics = jax.tree.map(lambda *each: jnp.stack(each), *found)
    losses = evaluate(rules, tasks, states.optimizer, test_key)
    members = state.members._replace(state=states, trainer=trainers)
    first = jnp.argmin(losses)
    better = losses[first] < state.best_loss
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), _take(members, first), state.best)
    best_loss = jnp.minimum(losses[first], state.best_loss)
    choices = n if outside is None else _length(outside)
    after, parents = _select(rules, members, losses, best, best_loss, choices, select_key)
    mean = {name: jnp.mean(metrics[name]) for name in ("meta_loss", "diverged")}
    steps, copied = jnp.sum(metrics["inner_steps"]), parents != jnp.arange(n)
    done = Population(after, losses, best, best_loss, state.key, state.step + 1)
    return done, Selection(losses, trainers, parents, after.trainer, copied, **mean, inner_steps=steps)


def evaluate(rules: Rules, tasks: Sequence[Task], members: Optimizer, key: PRNGKeyArray) -> Float[Array, " members"]:
    """The meta-loss of every member on fresh problems, the same for all; infinite where a loss was not finite.

    Args:
        rules: `problems`, `horizon` and `objective` are used.
        tasks: over which the mean is taken.
        members: stacked.
        key: draws the problems.
    """

    return _evaluate(tasks, members, key, problems=rules.problems, horizon=rules.horizon, objective=rules.objective)


@partial(jax.jit, static_argnames=("problems", "horizon", "objective"))
def _evaluate(
    tasks: Sequence[Task], members: Optimizer, key: PRNGKeyArray, *, problems: int, horizon: int, objective: Objective
) -> Float[Array, " members"]:
    def trained(optimizer: Optimizer, task: Task, key: PRNGKeyArray) -> Array:
        begin_key, unroll_key = jax.random.split(key)
        inner = start(optimizer, task, begin_key, horizon)
        _, losses = unroll(optimizer, task, inner, unroll_key, horizon)
        over = (1.0 + jnp.arange(horizon, dtype=jnp.float32)) / horizon
        values, lost = jax.vmap(lambda x, part: score(objective, task, x, losses[0], part))(losses, over)
        return jnp.where(jnp.any(lost > 0), jnp.inf, jnp.mean(values))

    def one(optimizer: Optimizer) -> Array:
        found = []
        for i, task in enumerate(tasks):
            keys = jax.random.split(jax.random.fold_in(key, i), problems)
            found.append(jnp.mean(jax.vmap(lambda k, task=task: trained(optimizer, task, k))(keys)))
        healthy = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(optimizer)]
        return jnp.where(jnp.asarray(healthy).all(), jnp.mean(jnp.stack(found)), jnp.inf)

    return jax.vmap(one)(members)


@partial(jax.jit, static_argnames="horizon")
def _first_states(
    members: Optimizer,
    trainers: Optimizer,
    estimators: Sequence[Estimator],
    keys: Key[Array, " members"],
    *,
    horizon: int | None,
) -> MetaState:
    def one(optimizer: Optimizer, outer: Optimizer, key: PRNGKeyArray) -> MetaState:
        return meta_init(optimizer, estimators, outer, key, steps=horizon)

    return jax.vmap(one)(members, trainers, keys)


@partial(jax.jit, static_argnames="horizon")
def _anew(states: MetaState, trainers: Optimizer, anew: Bool[Array, ""], *, horizon: int | None) -> MetaState:
    """The states with the outer states of the first meta-step, where the flag says so."""

    def one(outer: Optimizer, state: MetaState) -> Any:
        return outer.init(state.optimizer, key=jax.random.fold_in(state.key, 2**31 - 1), horizon=horizon)

    first = jax.vmap(one)(trainers, states)
    return states._replace(outer=jax.tree.map(lambda new, old: jnp.where(anew, new, old), first, states.outer))


@jax.jit
def _gradients(estimators: Sequence[Estimator], states: MetaState) -> Gradients:
    """The meta-gradient of every member."""
    return jax.vmap(lambda s: gradients(s.optimizer, estimators, s.estimators, step_key(s)))(states)


def _elsewhere(engine: Engine, estimators: Sequence[Estimator], states: MetaState) -> Gradients:
    """The meta-gradient of every member, from the workers of an engine."""
    keys = jax.vmap(step_key)(states._replace(outer=None, estimators=tuple(() for _ in estimators)))
    found = engine.gradients(states.optimizer, [Members(e) for e in estimators], states.estimators, keys)
    own = {name: x for name, x in found.metrics.items() if x.ndim}  # those of the engine have no member
    return found._replace(metrics=own)


@jax.jit
def _apply(
    trainers: Optimizer, states: MetaState, found: Gradients, factors: Float[Array, " members"], clip: float | Array
) -> tuple[MetaState, dict[str, Array]]:
    """One meta-step of every member, each with its trainer."""

    def one(trainer: Optimizer, member: MetaState, found: Gradients, factor: Array) -> tuple[MetaState, Any]:
        clipped = jax.tree.map(lambda g: jnp.clip(g, -clip, clip), found.gradient)
        after, metrics = apply(trainer, member, found._replace(gradient=clipped))
        shortened = jax.tree.map(lambda old, new: old + factor * (new - old), member.optimizer, after.optimizer)
        return after._replace(optimizer=shortened), metrics

    return jax.vmap(one)(trainers, states, found, factors)


def _told(rules: Rules, horizon: int | None) -> int | None:
    """The horizon that trainers are told."""
    return rules.restart * rules.steps if rules.restart else horizon


def _trainers(rules: Rules, state: Population, outside: Optimizer | None) -> tuple[Int[Array, " members"], Optimizer]:
    """Who trains each member, and the weights that do."""
    members = state.members
    if outside is not None:
        return members.trainer, jax.tree.map(lambda x: x[members.trainer], outside)
    if rules.trained_by == "snapshot" and members.snapshot is not None:
        return members.trainer, members.snapshot
    who = jnp.arange(state.losses.shape[0], dtype=jnp.int32)
    if rules.trained_by == "best":
        who = jnp.broadcast_to(jnp.argmin(state.losses).astype(jnp.int32), who.shape)
    return who, jax.tree.map(lambda x: x[who], members.state.optimizer)


@partial(jax.jit, static_argnames=("rules", "choices"))
def _select(
    rules: Rules,
    members: Member,
    losses: Float[Array, " members"],
    best: Member,
    best_loss: Float[Array, ""],
    choices: int,
    key: PRNGKeyArray,
) -> tuple[Member, Int[Array, " members"]]:
    """The members after selection, and the parent of each; `choices` trainers are there to draw from."""
    n = losses.shape[0]
    here = jnp.arange(n, dtype=jnp.int32)
    count = min(n // 2, round(n * rules.replaced))
    if not count:
        return members, here
    donor_key, change_key, trainer_key, noise_key, factor_key = jax.random.split(key, 5)
    order = jnp.argsort(losses).astype(jnp.int32)
    fallen = ~(losses <= best_loss + rules.fall)
    donors = order[jax.random.randint(donor_key, (n,), 0, count)]
    donors = jnp.where(fallen[donors], -1, donors)
    worst = jnp.zeros((n,), bool).at[order[n - count :]].set(True)
    parents = jnp.where(worst | fallen, donors, here)

    def inherit(own: Array, champion: Array) -> Array:
        back = (parents < 0).reshape((n,) + (1,) * (own.ndim - 1))
        return jnp.where(back, champion, own[jnp.maximum(parents, 0)])

    copied = parents != here
    after: Any = jax.tree.map(inherit, members, best)
    leaves, structure = jax.tree.flatten(after.state.optimizer)
    noisy = []
    for i, leaf in enumerate(leaves):
        noise = rules.perturb * jax.random.normal(jax.random.fold_in(noise_key, i), leaf.shape, leaf.dtype)
        noisy.append(jnp.where(copied.reshape((n,) + (1,) * (leaf.ndim - 1)), leaf + noise, leaf))
    state = after.state._replace(optimizer=structure.unflatten(noisy), key=members.state.key, step=members.state.step)
    drawn = jax.random.randint(trainer_key, (n,), 0, choices, jnp.int32)
    change = copied & jax.random.bernoulli(change_key, rules.change_trainer, (n,))
    snapshot = after.snapshot
    if snapshot is not None:
        change &= jnp.isfinite(losses[drawn])

        def adopt(old: Array, fresh: Array) -> Array:
            return jnp.where(change.reshape((n,) + (1,) * (old.ndim - 1)), fresh[drawn], old)

        snapshot = jax.tree.map(adopt, snapshot, members.state.optimizer)
    bolder = jnp.exp(rules.change_factor * jax.random.normal(factor_key, (n,)))
    factor = jnp.where(copied, after.factor * bolder, after.factor)
    return Member(state, jnp.where(change, drawn, after.trainer), snapshot, factor), parents


def _take(members: Member, index: Int[Array, ""]) -> Member:
    return jax.tree.map(lambda x: x[index], members)


def _length(stacked: Optimizer) -> int:
    return jax.tree.leaves(stacked)[0].shape[0]


__all__ = ["Member", "Members", "Population", "Rules", "Selection", "TrainedBy", "begin", "cycle", "evaluate"]
