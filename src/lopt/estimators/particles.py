"""What all estimators on unrolls share: particles in flight, their truncations, horizons, restarts and meta-losses."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, MetaGradient
from lopt.estimators.objectives import Objective, score
from lopt.estimators.schedules import Constant, LogUniform, Schedule, Unrolls
from lopt.optimizer import Optimizer
from lopt.task import Split, Task
from lopt.unroll import Inner, restart, start, unroll

Horizon = tuple[int, int] | Schedule | Unrolls
Metrics = dict[str, Float[Array, "..."]]  # with or without an axis of groups

PARTICLES = PartitionSpec("particles")


class Clock(NamedTuple):
    """What a particle knows of time; the same for all particles, but for `left`."""

    estimates: Int[Array, " *particles"]  # so far
    left: Int[Array, " *particles"]  # truncations until the restart, where the horizon is `Unrolls`


class Run(NamedTuple):
    """An unroll in progress."""

    inner: Inner
    first: Float[Array, " *particles"]  # the first loss of the inner problem
    total: Float[Array, " *particles"]  # of the scores of this truncation
    lost: Float[Array, " *particles"]  # losses of this truncation that were not finite


def as_horizon(horizon: int | Horizon) -> Horizon:
    """A number is the least and the greatest horizon."""
    return (horizon, horizon) if isinstance(horizon, int) else horizon


def check_horizon(horizon: tuple[int, int], truncation: int | Schedule | None) -> None:
    """Refuse a pair that cannot be the least and the greatest horizon.

    Args:
        horizon: the pair.
        truncation: of the estimator; a number is the least that a horizon may be.

    Raises:
        InputError: where the first is below the truncation or above the second.
    """
    low, high = horizon
    least = truncation if isinstance(truncation, int) else 1
    if low < least:
        of = "the truncation, " if isinstance(truncation, int) else ""
        raise InputError(f"horizon is {low}; it must be at least {of}{least}.")
    if low > high:
        raise InputError(f"horizon is ({low}, {high}); the first must not exceed the second.")


class Particles(Estimator):
    r"""A meta-gradient from many inner problems, each unrolled by one truncation an estimate. Subclasses say how.

    A particle that has reached its horizon restarts on a fresh problem before the unroll. First horizons are shortened at random so that particles do
    not march in step. Where all truncations have $K$ steps, horizons are multiples of $K$; where they vary, a particle restarts at the first end of a
    truncation at or beyond its horizon. With several devices the particles are spread over them.

    Args:
        task: the distribution over inner problems.
        truncation: inner steps an estimate: a number, a `Schedule`, or `None` for whole problems, as long as the horizon.
        horizon: length of an inner problem: a number, the least and the greatest of log-uniform ones, a `Schedule`, or, in truncations, `Unrolls`.
        objective: what makes the meta-loss of the losses; see `score`.
        tell_horizon: whether the optimizer is told how long the problem lasts; some must be.
        split: the split whose losses make the meta-loss: `train`, or `valid` for optimizers that regularise.
        final_batches: with `objective="last"`, minibatches over which the loss at the end is averaged.
    """

    task: Task
    truncation: int | Schedule | None = eqx.field(static=True, default=20, kw_only=True)
    horizon: Horizon = eqx.field(static=True, converter=as_horizon, default=200, kw_only=True)
    tell_horizon: bool = eqx.field(static=True, default=True, kw_only=True)
    objective: Objective = eqx.field(static=True, default="normalised", kw_only=True)
    split: Split = eqx.field(static=True, default="train", kw_only=True)
    final_batches: int = eqx.field(static=True, default=10, kw_only=True)

    def __check_init__(self) -> None:
        if isinstance(self.truncation, int) and self.truncation < 1:
            raise InputError(f"truncation is {self.truncation}; it must be at least 1.")
        if isinstance(self.horizon, tuple):
            check_horizon(self.horizon, self.truncation)
        if self.truncation is None and isinstance(self.horizon, Unrolls):
            raise InputError("truncation is None and horizon is Unrolls; give the truncation, a number or a Schedule.")
        for name, kind in (("objective", Objective), ("split", Split)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(kind))}.")
        if self.final_batches < 1:
            raise InputError(f"final_batches is {self.final_batches}; it must be at least 1.")

    @property
    def schedule(self) -> Schedule:
        """The lengths of the unrolls."""
        source = self.horizon if self.truncation is None else self.truncation
        if isinstance(source, tuple):
            source = source[0] if source[0] == source[1] else LogUniform(*source)
        return Constant(source) if isinstance(source, int) else source  # pyright: ignore[reportReturnType]

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
        return _over_devices(lambda e, o, k: e.begin(o, k), self.groups, (PARTICLES,))(self, optimizer, keys)

    def estimate(self, optimizer: Optimizer, state: Any, key: PRNGKeyArray) -> tuple[MetaGradient, Any, Metrics]:
        """One truncation of every particle; see the class."""
        keys, length = jax.random.split(key, self.groups), None
        steps = jnp.float32(self.inner_steps)
        if not isinstance(self.schedule, Constant):
            length = self.schedule.draw(jax.random.fold_in(key, self.groups), state.clock.estimates[0])
            steps = length.astype(jnp.float32) * (self.inner_steps / round(self.schedule.mean))
        specs = (PARTICLES, PARTICLES, PartitionSpec())
        advance = _over_devices(lambda e, o, s, k, n: e.advance(o, s, k, n), self.groups, specs)
        (contributions, metrics), state = advance(self, optimizer, state, keys, length)
        state = state._replace(clock=state.clock._replace(estimates=state.clock.estimates + 1))
        gradient, metrics = self.combine(contributions, metrics)
        return gradient, state, metrics | {"inner_steps": steps}


def _over_devices(fn: Callable[..., Any], groups: int, split: tuple[PartitionSpec, ...]) -> Callable[..., Any]:
    """Spread the leading axis of groups over all devices where they divide it; estimator and optimizer go everywhere."""
    devices = jax.device_count()
    if devices == 1 or groups % devices:
        return fn
    mesh = jax.make_mesh((devices,), ("particles",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (PartitionSpec(), PartitionSpec(), *split)
    return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=PARTICLES, check_vma=False)


def new_clock() -> Clock:
    """The clock of a particle that has not begun."""
    return Clock(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def plan(
    estimator: Particles, inner: Inner, clock: Clock, key: PRNGKeyArray, length: Int[Array, ""] | None
) -> tuple[Int[Array, ""], Clock]:
    """The horizon of the particle's next problem, should it restart now, and its clock during the truncation."""
    if estimator.truncation is None:
        return jnp.asarray(estimator.schedule.longest, jnp.int32) if length is None else length, clock
    length_key, stagger_key = jax.random.split(key)
    newborn, done = inner.horizon == 0, inner.step >= inner.horizon
    unit = estimator.truncation if isinstance(estimator.truncation, int) else 1
    if isinstance(estimator.horizon, Unrolls):
        units = estimator.horizon.draw(length_key)
    elif isinstance(estimator.horizon, Schedule):
        units = jnp.maximum(estimator.horizon.draw(length_key, clock.estimates) // unit, 1)
    else:
        units = LogUniform(*(n // unit for n in estimator.horizon)).draw(length_key, clock.estimates)
    stagger = jax.random.randint(stagger_key, (), 0, units)
    units = jnp.where(newborn, units - stagger, units)
    if isinstance(estimator.horizon, Unrolls):
        expected = jnp.round(units.astype(jnp.float32) * estimator.schedule.mean).astype(jnp.int32)
        return expected, clock._replace(left=jnp.where(done, units, clock.left) - 1)
    return unit * units, clock


def settle(estimator: Particles, inner: Inner, clock: Clock) -> Inner:
    """After a truncation: where the horizon is a number of truncations, see to it that the problem ends with the last of them and not before."""
    if not isinstance(estimator.horizon, Unrolls):
        return inner
    return inner._replace(horizon=jnp.where(clock.left > 0, jnp.maximum(inner.horizon, inner.step + 1), inner.step))


def begin_inner(estimator: Particles, optimizer: Optimizer, key: PRNGKeyArray) -> Inner:
    """An inner problem that is replaced at the first estimate."""
    return start(optimizer, estimator.task, key, 0, tell_horizon=estimator.tell_horizon)


def start_run(
    estimator: Particles, optimizer: Optimizer, inner: Inner, first: Float[Array, ""], key: PRNGKeyArray, horizon: Array
) -> Run:
    """`inner`, restarted where it has reached its horizon."""
    zero = jnp.zeros((), jnp.float32)
    fresh = restart(optimizer, estimator.task, inner, key, horizon, tell_horizon=estimator.tell_horizon)
    return Run(fresh, first, zero, zero)


def step_run(estimator: Particles, optimizer: Optimizer, run: Run, key: PRNGKeyArray) -> Run:
    """One inner step."""
    inner, (loss,) = unroll(optimizer, estimator.task, run.inner, key, 1, split=_split_on_the_way(estimator))
    first = jnp.where(run.inner.step == 0, loss, run.first)
    value, lost = score(estimator.objective, estimator.task, loss, first, _over(run.inner, 1))
    return Run(inner, first, run.total + value, run.lost + lost)


def finish_run(
    estimator: Particles, optimizer: Optimizer, run: Run, key: PRNGKeyArray, length: int | Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The meta-loss, and the fraction of losses that were not finite."""
    if estimator.objective != "last":
        count = jnp.asarray(length, jnp.float32)
        return run.total / count, run.lost / count
    inner = run.inner
    at = optimizer.eval_params(inner.opt_state, inner.params)
    keys = jax.random.split(jax.random.fold_in(key, length), estimator.final_batches)
    losses = jax.vmap(lambda k: estimator.task.loss(inner.problem, at, k, estimator.split))(keys)
    return score("last", estimator.task, jnp.mean(losses), run.first, jnp.ones(()))


def unroll_run(
    estimator: Particles, optimizer: Optimizer, run: Run, key: PRNGKeyArray, length: Int[Array, ""] | None
) -> tuple[Run, Float[Array, ""], Float[Array, ""]]:
    """One truncation: the run after it, its meta-loss, the fraction of losses that were not finite."""
    if length is None:
        steps = estimator.schedule.longest
        inner, losses = unroll(optimizer, estimator.task, run.inner, key, steps, split=_split_on_the_way(estimator))
        first = jnp.where(run.inner.step == 0, losses[0], run.first)
        over = _over(run.inner, 1 + jnp.arange(steps, dtype=jnp.int32))
        values, lost = jax.vmap(lambda x, part: score(estimator.objective, estimator.task, x, first, part))(
            losses, over
        )
        run = Run(inner, first, jnp.sum(values), jnp.sum(lost))
    else:
        steps = length
        # The bound is the same for all particles, so `vmap` leaves it one loop of just so many steps.
        run = jax.lax.fori_loop(
            0, length, lambda t, r: step_run(estimator, optimizer, r, jax.random.fold_in(key, t)), run
        )
    return run, *finish_run(estimator, optimizer, run, key, steps)


def _over(inner: Inner, taken: int | Int[Array, " steps"]) -> Float[Array, " *steps"]:
    """The part of the problem that is over after so many more steps."""
    return jnp.minimum((inner.step + taken) / jnp.maximum(inner.horizon, 1), 1.0).astype(jnp.float32)


def _split_on_the_way(estimator: Particles) -> Split:
    """Where losses on the way do not count, their own split need not be evaluated."""
    return "train" if estimator.objective == "last" else estimator.split


def mean_over_groups(tree: PyTree[Array]) -> Any:
    """The mean over the leading axis."""
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), tree)
