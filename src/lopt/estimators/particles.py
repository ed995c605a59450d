"""What all estimators on unrolls share: particles in flight, their truncations, horizons, restarts and meta-losses."""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, MetaGradient
from lopt.estimators.objectives import Objective, score
from lopt.estimators.schedules import Constant, LogUniform, Schedule, Unrolls, multiples
from lopt.optimizer import Optimizer
from lopt.task import Split, Task
from lopt.unroll import Inner, restart, start, unroll

Metrics = dict[str, Float[Array, "..."]]  # with or without an axis of groups

PARTICLES = PartitionSpec("particles")


class Clock(NamedTuple):
    """What a particle knows of time; the same for all particles, but for `left`."""

    estimates: Int[Array, " *particles"]  # so far
    left: Int[Array, " *particles"]  # truncations until the restart, where the horizon is `Unrolls`
    newborn: Bool[Array, " *particles"]  # before the first truncation


class Unroll(NamedTuple):
    """An unroll in progress."""

    inner: Inner
    first: Float[Array, " *particles"]  # the first loss of the inner problem
    total: Float[Array, " *particles"]  # of the scores of this truncation
    lost: Float[Array, " *particles"]  # losses of this truncation that were not finite


def as_truncation(truncation: SupportsIndex | Schedule | None) -> Schedule | None:
    """A truncation as a schedule: a number of steps is `Constant`.

    Raises:
        InputError: for what is no whole number, or below 1.
    """
    if truncation is None or isinstance(truncation, Schedule):
        return truncation
    return Constant(_steps("truncation", truncation))


def as_horizon(horizon: SupportsIndex | Sequence[SupportsIndex] | Schedule | Unrolls) -> Schedule | Unrolls:
    """A horizon as a schedule: a number of steps is `Constant`, a pair of them `LogUniform`.

    Raises:
        InputError: for what is neither, for a number below 1, or a pair whose first exceeds the second.
    """
    if isinstance(horizon, Schedule | Unrolls):
        return horizon
    if not isinstance(horizon, Sequence):
        return Constant(_steps("horizon", horizon))
    if len(horizon) != 2:
        raise InputError(f"horizon is {horizon}; of several numbers there must be two, the least and the greatest.")
    low, high = (_steps("horizon", n) for n in horizon)
    if low > high:
        raise InputError(f"horizon is ({low}, {high}); the first must not exceed the second.")
    return Constant(low) if low == high else LogUniform(low, high)


def _steps(name: str, number: SupportsIndex) -> int:
    """A whole number of at least 1, of whatever library."""
    try:
        steps = operator.index(number)
    except TypeError as error:
        raise InputError(f"{name} is {number!r}; it must be a whole number of steps, or a Schedule.") from error
    if steps < 1:
        raise InputError(f"{name} is {steps}; it must be at least 1.")
    return steps


def horizon_in_units(horizon: Schedule | Unrolls, truncation: Schedule | None) -> Schedule | Unrolls:
    """The horizon as a number of units: truncations where these are of one length, else steps.

    Args:
        horizon: of the estimator.
        truncation: of the estimator.

    Raises:
        InputError: where the horizon may be below the truncation, or no multiple of the truncation is a horizon.
    """
    if isinstance(horizon, Unrolls):
        return horizon
    if not isinstance(truncation, Constant):
        return multiples(horizon, 1)
    if isinstance(horizon, Constant | LogUniform) and horizon.shortest < truncation.length:
        raise InputError(f"horizon is {horizon.shortest}; it must be at least the truncation, {truncation}.")
    return multiples(horizon, truncation.length)


class Particles(Estimator):
    r"""A meta-gradient from many inner problems, each unrolled by one truncation an estimate. Subclasses say how.

    A particle that has reached its horizon restarts on a fresh problem before the unroll. First horizons are shortened at random so that particles do
    not march in step. Where all truncations have $K$ steps, horizons are multiples of $K$; where they vary, a particle restarts at the first end of a
    truncation at or beyond its horizon.

    Args:
        task: the distribution over inner problems.
        truncation: inner steps an estimate: a number, a `Schedule`, or `None` for whole problems, as long as the horizon. Kept as a `Schedule`.
        horizon: length of an inner problem: a number, the least and the greatest of log-uniform ones, a `Schedule`, or, in truncations, `Unrolls`.
            Kept as a `Schedule`. Some multiple of a truncation that is a number must be among the lengths.
        objective: what makes the meta-loss of the losses; see `score`.
        tell_horizon: whether the optimizer is told how long the problem lasts; some must be.
        split: the split whose losses make the meta-loss: `train`, or `valid` for optimizers that regularise.
        final_batches: with `objective="last"`, minibatches over which the loss at the end is averaged.
        devices: the first so many devices share the groups evenly. An engine sets this.
    """

    task: Task
    truncation: Schedule | None = eqx.field(static=True, converter=as_truncation, default=20, kw_only=True)
    horizon: Schedule | Unrolls = eqx.field(static=True, converter=as_horizon, default=200, kw_only=True)
    tell_horizon: bool = eqx.field(static=True, default=True, kw_only=True)
    objective: Objective = eqx.field(static=True, default="normalised", kw_only=True)
    split: Split = eqx.field(static=True, default="train", kw_only=True)
    final_batches: int = eqx.field(static=True, default=10, kw_only=True)
    devices: int = eqx.field(static=True, default=1, kw_only=True)

    def __check_init__(self) -> None:
        horizon_in_units(self.horizon, self.truncation)
        if self.truncation is None and isinstance(self.horizon, Unrolls):
            raise InputError("truncation is None and horizon is Unrolls; give the truncation, a number or a Schedule.")
        for name, kind in (("objective", Objective), ("split", Split)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(kind))}.")
        at_least(1, final_batches=self.final_batches)
        if self.devices < 1 or self.groups % self.devices:
            raise InputError(f"devices is {self.devices}; it must divide the groups, of which there are {self.groups}.")

    @property
    def schedule(self) -> Schedule:
        """The lengths of the unrolls."""
        lengths = self.horizon if self.truncation is None else self.truncation
        assert isinstance(lengths, Schedule), "checked by __check_init__"
        return lengths

    @property
    @abc.abstractmethod
    def groups(self) -> int:
        """The length of the leading axis of the state: particles, or pairs of them."""

    @property
    @abc.abstractmethod
    def inner_steps(self) -> int:
        """Inner steps that one estimate takes, over all particles; their mean where the truncation varies."""

    @abc.abstractmethod
    def begin(self, optimizer: Optimizer, keys: Key[Array, " groups"]) -> Any:
        """Particles that all restart at the first estimate; every array has a leading axis of groups, and one is a `Clock` named `clock`."""

    @abc.abstractmethod
    def advance(
        self, optimizer: Optimizer, state: Any, keys: Key[Array, " groups"], length: Int[Array, ""] | None
    ) -> tuple[tuple[PyTree[Array], Metrics], Any]:
        """One truncation of some of the groups: what each contributes to the meta-gradient, its metrics, its next state.

        Args:
            optimizer: the meta-parameters.
            state: from `begin` or `advance`.
            keys: one a group.
            length: inner steps; `None` where they are always the same.
        """

    @abc.abstractmethod
    def combine(self, contributions: PyTree[Array], metrics: Metrics) -> tuple[MetaGradient, Metrics]:
        """The meta-gradient and the metrics, from those of all groups."""

    def init(self, optimizer: Optimizer, key: PRNGKeyArray) -> Any:
        """Particles that all restart at the first estimate."""
        keys = jax.random.split(key, self.groups)
        return self._over_devices(lambda e, o, k: e.begin(o, k), (PARTICLES,))(self, optimizer, keys)

    def estimate(self, optimizer: Optimizer, state: Any, key: PRNGKeyArray) -> tuple[MetaGradient, Any, Metrics]:
        """One truncation of every particle, of a length that the schedule draws; see the class."""
        length = None
        if not isinstance(self.schedule, Constant):
            length = self.schedule.draw(jax.random.fold_in(key, self.groups), state.clock.estimates[0])
        return self.take(optimizer, state, key, length)

    def take(
        self, optimizer: Optimizer, state: Any, key: PRNGKeyArray, length: Int[Array, ""] | None
    ) -> tuple[MetaGradient, Any, Metrics]:
        """One truncation of every particle, of a given length.

        Args:
            optimizer: the meta-parameters.
            state: from `init`, `estimate` or `take`.
            key: draws noise, minibatches and new problems.
            length: inner steps, at most `schedule.longest`; `None` where they are always the same.
        """
        keys, steps = jax.random.split(key, self.groups), jnp.float32(self.inner_steps)
        if length is not None:
            steps = length.astype(jnp.float32) * (self.inner_steps / round(self.schedule.mean))
        specs = (PARTICLES, PARTICLES, PartitionSpec())
        advance = self._over_devices(lambda e, o, s, k, n: e.advance(o, s, k, n), specs)
        (contributions, metrics), state = advance(self, optimizer, state, keys, length)
        state = state._replace(clock=state.clock._replace(estimates=state.clock.estimates + 1))
        gradient, metrics = self.combine(contributions, metrics)
        return gradient, state, metrics | {"inner_steps": steps}

    def _over_devices(self, fn: Callable[..., Any], split: tuple[PartitionSpec, ...]) -> Callable[..., Any]:
        """Spread the leading axis of groups over the devices; estimator and optimizer go to each."""
        if self.devices == 1:
            return fn
        kind = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((self.devices,), ("particles",), kind, devices=jax.devices()[: self.devices])
        specs = (PartitionSpec(), PartitionSpec(), *split)
        return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=PARTICLES, check_vma=False)

    # What subclasses make `begin` and `advance` of, each for one particle.

    def begin_inner(self, optimizer: Optimizer, key: PRNGKeyArray) -> Inner:
        """An inner problem of one step that is over, so that the first estimate replaces it."""
        inner = start(optimizer, self.task, key, 1, tell_horizon=self.tell_horizon)
        return inner._replace(step=inner.horizon)

    def plan(
        self, inner: Inner, clock: Clock, key: PRNGKeyArray, length: Int[Array, ""] | None
    ) -> tuple[Int[Array, ""], Clock]:
        """The horizon of the particle's next problem, should it restart now, and its clock during the truncation."""
        newborn, clock = clock.newborn, clock._replace(newborn=jnp.zeros_like(clock.newborn))
        if self.truncation is None:
            return jnp.asarray(self.schedule.longest, jnp.int32) if length is None else length, clock
        length_key, stagger_key = jax.random.split(key)
        unit = self.truncation.length if isinstance(self.truncation, Constant) else 1
        units = horizon_in_units(self.horizon, self.truncation).draw(length_key, clock.estimates)
        stagger = jax.random.randint(stagger_key, (), 0, units)
        units = jnp.where(newborn, units - stagger, units)
        if isinstance(self.horizon, Unrolls):
            expected = jnp.round(units.astype(jnp.float32) * self.schedule.mean).astype(jnp.int32)
            done = inner.step >= inner.horizon
            return expected, clock._replace(left=jnp.where(done, units, clock.left) - 1)
        return unit * units, clock

    def settle(self, inner: Inner, clock: Clock) -> Inner:
        """After a truncation: a problem whose horizon is a number of truncations ends with the last of them and not before."""
        if not isinstance(self.horizon, Unrolls):
            return inner
        return inner._replace(horizon=jnp.where(clock.left > 0, jnp.maximum(inner.horizon, inner.step + 1), inner.step))

    def start_unroll(
        self, optimizer: Optimizer, inner: Inner, first: Float[Array, ""], key: PRNGKeyArray, horizon: Array
    ) -> Unroll:
        """`inner`, restarted where it has reached its horizon."""
        zero = jnp.zeros((), jnp.float32)
        fresh = restart(optimizer, self.task, inner, key, horizon, tell_horizon=self.tell_horizon)
        return Unroll(fresh, first, zero, zero)

    def step_unroll(self, optimizer: Optimizer, before: Unroll, key: PRNGKeyArray) -> Unroll:
        """One inner step."""
        inner, (loss,) = unroll(optimizer, self.task, before.inner, key, 1, split=self._split_on_the_way)
        first = jnp.where(before.inner.step == 0, loss, before.first)
        value, lost = score(self.objective, self.task, loss, first, _over(before.inner, 1))
        return Unroll(inner, first, before.total + value, before.lost + lost)

    def finish_unroll(
        self, optimizer: Optimizer, after: Unroll, key: PRNGKeyArray, length: int | Array
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The meta-loss, and the fraction of losses that were not finite."""
        if self.objective != "last":
            count = jnp.asarray(length, jnp.float32)
            return after.total / count, after.lost / count
        inner = after.inner
        at = optimizer.eval_params(inner.opt_state, inner.params)
        keys = jax.random.split(jax.random.fold_in(key, length), self.final_batches)
        losses = jax.vmap(lambda k: self.task.loss(inner.problem, at, k, self.split))(keys)
        return score("last", self.task, jnp.mean(losses), after.first, jnp.ones(()))

    def whole_unroll(
        self, optimizer: Optimizer, begun: Unroll, key: PRNGKeyArray, length: Int[Array, ""] | None
    ) -> tuple[Unroll, Float[Array, ""], Float[Array, ""]]:
        """One truncation: the unroll at its end, its meta-loss, the fraction of losses that were not finite."""
        if length is None:
            steps = self.schedule.longest
            inner, losses = unroll(optimizer, self.task, begun.inner, key, steps, split=self._split_on_the_way)
            first = jnp.where(begun.inner.step == 0, losses[0], begun.first)
            over = _over(begun.inner, 1 + jnp.arange(steps, dtype=jnp.int32))
            values, lost = jax.vmap(lambda x, part: score(self.objective, self.task, x, first, part))(losses, over)
            after = Unroll(inner, first, jnp.sum(values), jnp.sum(lost))
        else:
            steps = length
            # The bound is the same for all particles, so `vmap` leaves it one loop of just so many steps.
            after = jax.lax.fori_loop(
                0, length, lambda t, u: self.step_unroll(optimizer, u, jax.random.fold_in(key, t)), begun
            )
        return after, *self.finish_unroll(optimizer, after, key, steps)

    @property
    def _split_on_the_way(self) -> Split:
        """Where losses on the way do not count, their own split need not be evaluated."""
        return "train" if self.objective == "last" else self.split


def new_clock() -> Clock:
    """The clock of a particle that has not begun."""
    return Clock(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.ones((), bool))


def _over(inner: Inner, taken: int | Int[Array, " steps"]) -> Float[Array, " *steps"]:
    """The part of the problem that is over after so many more steps."""
    return jnp.minimum((inner.step + taken) / jnp.maximum(inner.horizon, 1), 1.0).astype(jnp.float32)


def mean_over_groups(tree: PyTree[Array]) -> Any:
    """The mean over the leading axis."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), tree)
