"""A training that keeps what its optimizer was shown, what it answered and what it remembered."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.optimizer import Optimizer, Params, State, Updates
from lopt.task import Task
from lopt.unroll import Inner, start, step


class Recording(NamedTuple):
    """Gradients, updates and states of some parameters of a training.

    Attributes:
        gradients: of each tensor.
        updates: of each tensor.
        states: of each tensor, all numbers of the state that belong to one parameter; no numbers where there are none.
        losses: before each step.
    """

    gradients: list[Float[np.ndarray, "steps elements"]]
    updates: list[Float[np.ndarray, "steps elements"]]
    states: list[Float[np.ndarray, "steps elements numbers"]]
    losses: Float[np.ndarray, " steps"]


class _Noted(NamedTuple):
    state: State
    gradients: Updates
    updates: Updates


class Noting(Optimizer):
    """An optimizer that keeps its last gradients and updates in its state."""

    optimizer: Optimizer

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> _Noted:
        """As the optimizer's."""
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _Noted(self.optimizer.init(params, key=key, horizon=horizon), zeros, zeros)

    def update(self, updates: Updates, state: _Noted, params: Params, **extra: Any) -> tuple[Updates, _Noted]:
        """As the optimizer's."""
        found, after = self.optimizer.update(updates, state.state, params, **extra)
        return found, _Noted(after, updates, found)

    @property
    def validation_every(self) -> int:
        """As the optimizer's."""
        return self.optimizer.validation_every

    def eval_params(self, state: _Noted, params: Params) -> Params:
        """As the optimizer's."""
        return self.optimizer.eval_params(state.state, params)


def record(
    optimizer: Optimizer,
    task: Task,
    key: PRNGKeyArray,
    *,
    steps: int,
    elements: int = 24,
) -> Recording:
    """Train, and keep what some parameters of every tensor saw and did.

    Args:
        optimizer: that trains; it is told the number of steps.
        task: that is trained.
        key: draws the problem, its start, minibatches and which parameters are kept.
        steps: of the training.
        elements: of each tensor, at most.
    """
    begin_key, steps_key = jax.random.split(key)
    begun = start(Noting(optimizer), task, begin_key, steps)
    leaves = jax.tree.leaves(begun.params)
    rng = np.random.default_rng(0)
    chosen = [np.sort(rng.choice(p.size, min(elements, p.size), replace=False)) for p in leaves]
    found = _run(optimizer, task, begun, jax.random.split(steps_key, steps), tuple(jnp.asarray(c) for c in chosen))
    gradients, updates, states, losses = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
    return Recording(gradients, updates, states, losses)


# It compiles far longer than it computes, so the machine code is not optimised.
@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _run(
    optimizer: Optimizer, task: Task, begun: Inner, keys: Array, chosen: tuple[Array, ...]
) -> tuple[list[Array], list[Array], list[Array], Array]:
    def one(inner: Inner, key: PRNGKeyArray) -> tuple[Inner, Any]:
        after, loss = step(Noting(optimizer), task, inner, key)
        noted: Any = after.opt_state

        def taken(tree: Any) -> list[Array]:
            return [x.reshape(-1)[c] for x, c in zip(jax.tree.leaves(tree), chosen, strict=True)]

        states = states_of(noted.state, after.params, chosen)
        return after, (taken(noted.gradients), taken(noted.updates), states, loss)

    return jax.lax.scan(one, begun, keys)[1]


def states_of(state: State, params: Params, chosen: tuple[Array, ...]) -> list[Array]:
    """All floating-point numbers of a state that belong to chosen elements of each tensor, `[elements, numbers]`."""
    treedef = jax.tree.structure(params)
    shapes = [p.shape for p in jax.tree.leaves(params)]
    columns: list[list[Array]] = [[] for _ in shapes]

    def like(tree: Any) -> bool:
        return jax.tree.structure(tree) == treedef

    for part in jax.tree.leaves(state, is_leaf=like):
        if not like(part):
            continue
        leaves = jax.tree.leaves(part)
        if not all(eqx.is_inexact_array(x) and _belongs(x.shape, s) for x, s in zip(leaves, shapes, strict=True)):
            continue
        for column, x, shape, c in zip(columns, leaves, shapes, chosen, strict=True):
            column.append(x.reshape(-1, int(np.prod(shape)))[:, c].astype(jnp.float32).T)
    return [jnp.concatenate(c, axis=1) if c else jnp.zeros((len(n), 0)) for c, n in zip(columns, chosen, strict=True)]


def _belongs(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether an array has a number, or a vector of them in front, for every element of a tensor."""
    return shape[len(shape) - len(of) :] == of and len(shape) <= len(of) + 1


__all__ = ["Noting", "Recording", "record", "states_of"]
