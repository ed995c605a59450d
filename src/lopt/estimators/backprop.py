"""Backpropagation through the unroll, whole or truncated."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from lopt.checks import at_least
from lopt.estimators.estimator import MetaGradient
from lopt.estimators.particles import (
    Clock,
    Metrics,
    Particles,
    Unroll,
    mean_over_groups,
    new_clock,
)
from lopt.optimizer import Optimizer
from lopt.unroll import Inner


class BackpropState(NamedTuple):
    """Particles in flight; every array has a leading axis of particles."""

    inner: Inner
    first: Float[Array, " *particles"]  # the first loss of the problem
    clock: Clock


class Backprop(Particles):
    r"""The derivative of the meta-loss of a truncation, by backpropagation through its inner steps, second derivatives kept.

    $$\hat g = \frac1N \sum_i \nabla_\theta L_K(\theta; w_i, s_i)$$

    Inner parameters and the optimizer's state are carried from one truncation to the next, as constants. So with `truncation=None`, or equal to the
    horizon, this is the exact gradient of the sampled meta-losses; shorter truncations are blind to what a meta-parameter does later, and biased.
    Long unrolls explode: the norm of the gradient can grow exponentially with $K$. Elements that are not finite count as zero, as in Wichrowska et al. 2017.

    Memory grows with the square root of the length: the unroll is cut into about $\sqrt K$ segments of as many steps. The way forward keeps the
    state at the beginning of each; the way back takes the steps of one segment once more, keeps their states, and computes each step anew before it
    is differentiated. The compiled program computes the bounds of these loops. So schedules cost one compilation, and take just the steps that they
    ask for.

    Args:
        particles: $N$.

    Source: Wichrowska et al. 2017; Metz et al. 2019; Chen et al. 2016, *Training Deep Nets with Sublinear Memory Cost*.
    """

    particles: int = eqx.field(static=True, default=16, kw_only=True)

    def __check_init__(self) -> None:
        at_least(1, particles=self.particles)

    @property
    def groups(self) -> int:
        """Particles."""
        return self.particles

    @property
    def inner_steps(self) -> int:
        """Inner steps that one estimate takes: particles x truncation, or the mean of truncations; what is computed anew is not counted."""
        return self.particles * round(self.schedule.mean)

    def begin(self, optimizer: Optimizer, keys: Key[Array, " particles"]) -> BackpropState:
        """Particles that all restart at the first estimate."""
        return jax.vmap(lambda key: BackpropState(self.begin_inner(optimizer, key), jnp.zeros(()), new_clock()))(keys)

    def advance(
        self, optimizer: Optimizer, state: BackpropState, keys: Key[Array, " particles"], length: Int[Array, ""] | None
    ) -> tuple[tuple[MetaGradient, Metrics], BackpropState]:
        """One truncation of some particles; see the class."""

        def particle(state: BackpropState, key: PRNGKeyArray) -> tuple[tuple[MetaGradient, dict[str, Array]], Any]:
            start_key, horizon_key, unroll_key = jax.random.split(key, 3)
            horizon, clock = self.plan(state.inner, state.clock, horizon_key, length)
            now, loss, lost, gradient = unroll_and_differentiate(
                self, optimizer, state.inner, state.first, (start_key, unroll_key), horizon, length
            )
            finite = all_finite(gradient)
            gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, jnp.zeros_like(g)), gradient)
            metrics = {"meta_loss": loss, "diverged": lost, "finite": finite.astype(jnp.float32)}
            return (gradient, metrics), BackpropState(self.settle(now.inner, clock), now.first, clock)

        return jax.vmap(particle)(state, keys)

    def combine(self, contributions: MetaGradient, metrics: Metrics) -> tuple[MetaGradient, Metrics]:
        """Means over particles; `finite` is the share of particles whose gradients were finite throughout."""
        return mean_over_groups((contributions, metrics))


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number of a tree is finite."""
    return jnp.asarray([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def unroll_and_differentiate(
    estimator: Particles,
    optimizer: Optimizer,
    inner: Inner,
    first: Float[Array, ""],
    keys: tuple[PRNGKeyArray, PRNGKeyArray],
    horizon: Int[Array, ""],
    length: Int[Array, ""] | None,
) -> tuple[Unroll, Float[Array, ""], Float[Array, ""], MetaGradient]:
    """One truncation of one particle by an optimizer, and the derivative of its meta-loss.

    The way back is written out rather than left to `jax.grad`, which cannot reverse a loop whose bound is not known when it is compiled.

    Returns:
        The unroll at its end, its meta-loss, the fraction of losses that were not finite, and the gradient.
    """
    (start_key, unroll_key), longest = keys, estimator.schedule.longest
    size, steps = math.ceil(math.sqrt(longest)), longest if length is None else length

    def begun(optimizer: Optimizer) -> tuple[Any, Any]:
        return eqx.partition(estimator.start_unroll(optimizer, inner, first, start_key, horizon), eqx.is_inexact_array)

    moving, fixed, begun_back = _vjp(begun, optimizer)
    # The problem stays what it is: it need not be kept for every segment.
    whole = eqx.combine(moving, fixed)
    problem = whole.inner.problem
    moving, fixed = (_with_problem(now, None) for now in (moving, fixed))

    def step(optimizer: Optimizer, now: tuple[Any, Any], t: Int[Array, ""]) -> tuple[Any, Any]:
        whole = _with_problem(eqx.combine(*now), problem)
        whole = estimator.step_unroll(optimizer, whole, jax.random.fold_in(unroll_key, t))
        return eqx.partition(_with_problem(whole, None), eqx.is_inexact_array)

    # All particles have one length, so `vmap` leaves the loops as they are. Where members of a population have lengths of their own, each turn
    # of a loop copies what it carries.
    def end(i: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.minimum((i + 1) * size, steps)

    def segment(now: tuple[Any, Any], i: Int[Array, ""]) -> tuple[Any, Any]:
        return jax.lax.fori_loop(i * size, end(i), lambda t, now: step(optimizer, now, t), now)

    count = -(-steps // size)
    (moving, fixed), begins = _keep(segment, (moving, fixed), count, most=-(-longest // size))

    def meta_loss(optimizer: Optimizer, moving: Any) -> tuple[Array, Array]:
        now = _with_problem(eqx.combine(moving, fixed), problem)
        return estimator.finish_unroll(optimizer, now, unroll_key, steps)

    (loss, lost), (gradient, back) = jax.value_and_grad(meta_loss, argnums=(0, 1), has_aux=True)(optimizer, moving)

    def rewind(i: Int[Array, ""], carry: tuple[Any, Any]) -> tuple[Any, Any]:
        """The way back through a segment, whose steps are taken once more."""
        i = count - 1 - i
        begin, taken = i * size, end(i) - i * size
        _, states = _keep(lambda now, j: step(optimizer, now, begin + j), _at(begins, i), taken, most=size)

        def rewind_step(j: Int[Array, ""], carry: tuple[Any, Any]) -> tuple[Any, Any]:
            gradient, back = carry
            j = taken - 1 - j
            moving, fixed = _at(states, j)
            _, _, step_back = _vjp(lambda o, m: step(o, (m, fixed), begin + j), optimizer, moving)
            more, back = step_back(back)
            return jax.tree.map(jnp.add, gradient, more), back

        return jax.lax.fori_loop(0, taken, rewind_step, carry)

    gradient, back = jax.lax.fori_loop(0, count, rewind, (gradient, back))
    still = jax.tree.map(jnp.zeros_like, eqx.filter(problem, eqx.is_inexact_array))
    (more,) = begun_back(_with_problem(back, still))
    now = _with_problem(eqx.combine(moving, fixed), problem)
    return now, loss, lost, jax.tree.map(jnp.add, gradient, more)


def _keep(advance: Any, now: Any, count: int | Int[Array, ""], *, most: int) -> tuple[Any, Any]:
    """Apply `advance` `count` times, at most `most`: the end, and each state from which it went on, stacked."""
    kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (most, *x.shape)), now)

    def one(i: Int[Array, ""], carry: tuple[Any, Any]) -> tuple[Any, Any]:
        now, kept = carry
        return advance(now, i), jax.tree.map(lambda k, x: k.at[i].set(x), kept, now)

    return jax.lax.fori_loop(0, count, one, (now, kept))


def _at(kept: Any, i: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda k: k[i], kept)


def _vjp(fn: Any, *args: Any) -> tuple[Any, Any, Any]:
    """`jax.vjp` of the first result of two; the second does not depend on what is differentiated."""
    first, back, second = jax.vjp(fn, *args, has_aux=True)
    return first, second, back


def _with_problem(now: Unroll, problem: Any) -> Unroll:
    return now._replace(inner=now.inner._replace(problem=problem))
