"""What the analyses of mechanisms put an optimizer to: one tensor whose gradients are chosen, while its parameters stay where they are."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.analyze.problem import Loss, as_task
from lopt.errors import InputError
from lopt.evaluate.training import as_optimizer
from lopt.optimizer import Optimizer, State
from lopt.task import Task

SIDE = 8  # elements of a tensor that are kept along each axis
BATCH = 32  # copies of the tensor that one program moves: all else is loops over it, so that a rule is compiled once
FINE = 1e-2  # of the scale: the gradient at which slopes are taken
NOISE_STEPS = 50  # steps of noise before a rule that divides by its gradients is looked at

Rows = Float[np.ndarray, "rows *shape"]


class Probe(NamedTuple):
    r"""A rule and the tensor that it is put to. States and gradients have a leading axis of rows: copies of the tensor.

    Attributes:
        optimizer: the rule.
        param: the tensor, which stays where it is: one element for a rule that treats every parameter alone, else a corner of the largest tensor.
        scale: the root mean square of the gradient of that tensor at the start of a training, $\sigma$.
        start: the state at the start.
        alone: whether the rule treats every parameter alone.
        quiet: whether the rule has an update function without any gradients before; one that divides by its gradients has none.
    """

    optimizer: Optimizer
    param: Array
    scale: float
    start: State
    alone: bool
    quiet: bool

    def rows(self, count: int) -> State:
        """So many copies of the state at the start."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), self.start)

    def moves(self, states: State, gradients: Rows) -> tuple[Rows, State]:
        """The update of every row, and its next state; the loss that the rule is shown is 1."""
        shown, count = jnp.asarray(gradients, jnp.float32), len(gradients)
        found = []
        for begin in range(0, count, BATCH):
            rows = np.minimum(np.arange(begin, begin + BATCH), count - 1)
            part = jax.tree.map(lambda x, rows=rows: x[rows], (states, shown))
            kept = min(BATCH, count - begin)
            moved = _moves(self.optimizer, self.param, *part)
            found.append(jax.tree.map(lambda x, kept=kept: x[:kept], moved))
        updates, states = jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)
        return np.asarray(updates, np.float64), states

    def follow(self, states: State, gradients: Float[np.ndarray, "steps rows *shape"]) -> tuple[np.ndarray, State]:
        """The first elements' updates over many steps, `[steps, rows]`, and the states at the end."""
        found = []
        for gradient in gradients:
            updates, states = self.moves(states, gradient)
            found.append(first_of(updates))
        return np.asarray(found), states

    def noise(self, steps: int, rows: int, seed: int = 0) -> Float[np.ndarray, "steps rows *shape"]:
        r"""Gradients $N(0, \sigma^2)$."""
        return self.scale * np.random.default_rng(seed).standard_normal((steps, rows, *self.param.shape))

    def settled(self, gradients: Rows, steps: int) -> State:
        """States after so many steps of one gradient each."""
        states = self.rows(len(gradients))
        for _ in range(steps):
            _, states = self.moves(states, gradients)
        return states

    def odd_updates(
        self, state: State, others: Rows, sizes: Float[np.ndarray, " sizes"]
    ) -> Float[np.ndarray, " sizes"]:
        """Half the difference of the first element's updates at a gradient and at its opposite, in one state, with given gradients of all others."""
        both = np.concatenate([sizes, -sizes])
        states = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(both), *jnp.shape(x))), state)
        updates = first_of(
            self.moves(states, with_first(np.broadcast_to(others, (len(both), *self.param.shape)), both))[0]
        )
        return 0.5 * difference(updates[: len(sizes)], updates[len(sizes) :])


def probe_of(
    optimizer: Optimizer | optax.GradientTransformation,
    loss: Task | Loss,
    params: Any = None,
    *,
    key: PRNGKeyArray,
    horizon: int = 1_000,
) -> Probe:
    """What to put a rule to, on a task.

    Args:
        optimizer: of lopt or of optax.
        loss: a task, or `loss(params, key)`.
        params: where the training of a loss starts.
        key: draws the problem, its start and the rule's.
        horizon: what the rule is told.

    Raises:
        InputError: as `as_task`; for a task whose gradient at the start is zero or not finite.
    """
    rule, task = as_optimizer(optimizer), as_task(loss, params)
    problem_key, params_key, batch_key, own = jax.random.split(key, 4)
    problem = task.sample(problem_key)
    begun = task.init(problem, params_key)
    _, gradients, _ = task.observe(problem, begun, task.remember(problem, begun), batch_key)
    pairs = list(zip(jax.tree.leaves(begun), jax.tree.leaves(gradients), strict=True))
    param, gradient = max(pairs, key=lambda pair: pair[0].size)
    scale = float(jnp.sqrt(jnp.mean(jnp.square(gradient.astype(jnp.float32)))))
    if not 0.0 < scale < float("inf"):
        raise InputError(f"The gradient at the start has size {scale}; a probe needs one that is finite and not zero.")
    param = jnp.asarray(param[tuple(slice(SIDE) for _ in range(param.ndim))], jnp.float32)

    def on(param: Array) -> Probe:
        start = rule.init({"probe": param}, key=own, horizon=horizon)
        return Probe(rule, param, scale, start, alone=False, quiet=True)

    probe = on(param)
    if _is_alone(probe):
        probe = on(param.reshape(-1)[:1])._replace(alone=True)
    return probe._replace(quiet=_is_quiet(probe))


def with_first(gradients: Rows, sizes: Float[np.ndarray, " rows"]) -> Rows:
    """The same gradients with another first element in each row."""
    flat = np.array(gradients).reshape(len(gradients), -1)
    flat[:, 0] = sizes
    return flat.reshape(np.shape(gradients))


def difference(x: Any, y: Any) -> Any:
    """`x - y`, NaN without a warning where both are infinite: a rule that diverges is a finding."""
    with np.errstate(invalid="ignore", over="ignore"):
        return x - y


def first_of(updates: Rows) -> Float[np.ndarray, " rows"]:
    """The first element of each row."""
    return updates.reshape(len(updates), -1)[:, 0]


def row_of(states: State, row: int) -> State:
    """The state of one row."""
    return jax.tree.map(lambda x: x[row], states)


def move(optimizer: Optimizer, param: Array, state: State, gradient: Array) -> tuple[Array, State]:
    """One step of the rule on the tensor; the loss that it is shown is 1."""
    updates, state = optimizer.update({"probe": gradient}, state, {"probe": param}, value=jnp.ones((), jnp.float32))
    return updates["probe"], state


# It compiles far longer than it computes, so the machine code is not optimised.
@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _moves(optimizer: Optimizer, param: Array, states: State, gradients: Array) -> tuple[Array, State]:
    return jax.vmap(lambda state, gradient: move(optimizer, param, state, gradient))(states, gradients)


def moving(state: State) -> tuple[Array, Any]:
    """The floating-point numbers of a state as a vector, and what makes a state of such a vector."""
    floats, others = eqx.partition(state, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(floats)
    return vector, lambda x: eqx.combine(unravel(x), others)


def _is_alone(probe: Probe) -> bool:
    """Whether the first element moves as before where the others have gradients a hundredth, three times and a hundred times as large, over three steps."""
    if probe.param.size == 1:
        return True
    factors = np.asarray([1.0, 0.01, 3.0, 100.0]).reshape(-1, *[1] * probe.param.ndim)
    alike = np.repeat(probe.noise(3, 1), len(factors), axis=1)
    gradients = np.stack([with_first(each * factors, first_of(each)) for each in alike])
    updates, _ = probe.follow(probe.rows(len(factors)), gradients)
    return bool(np.allclose(updates, updates[:, :1], rtol=1e-4, atol=1e-12))


def _is_quiet(probe: Probe) -> bool:
    r"""Whether updates go to zero with the gradient after three steps without any: the slope over $10^{-4} \sigma$ is not 10 times that over $10^{-2} \sigma$.

    A rule that divides by its gradients takes steps of one size for both, so its slopes differ by a factor near 100. Both are far below $\sigma$,
    where the clipping of a rule that does not divide seldom begins.
    """
    zero = np.zeros((1, *probe.param.shape))
    sizes = probe.scale * np.asarray([1e-4, 1e-2])
    rates = np.abs(probe.odd_updates(row_of(probe.settled(zero, 3), 0), zero, sizes) / sizes)
    return bool(np.isfinite(rates).all() and rates[0] < 10.0 * max(rates[1], 1e-30))


__all__ = ["Probe", "difference", "first_of", "move", "moving", "probe_of", "row_of", "with_first"]
