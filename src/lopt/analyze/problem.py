"""What an analysis looks at: a task or a user's own loss, trained by any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.errors import InputError
from lopt.optimizer import Optimizer, Params, State, Updates
from lopt.task import Memory, Problem, Split, Task
from lopt.tasks.wrappers.coordinates import Wrapper

Loss = Callable[[Params, PRNGKeyArray], Float[Array, ""]]


class LossTask(Task):
    """A user's loss as a task: one problem, which starts at the given parameters; all splits are the same.

    Args:
        function: `function(params, key) -> loss`; the key draws the minibatch, if there is one.
        params: where trainings start.
    """

    params: Params
    function: Loss = eqx.field(static=True)

    def __init__(self, function: Loss, params: Params):
        self.function, self.params = function, jax.tree.map(jnp.asarray, params)

    def sample(self, key: PRNGKeyArray) -> Problem:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: Problem, key: PRNGKeyArray) -> Params:
        """The given parameters."""
        del problem, key
        return self.params

    def loss(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """The user's loss."""
        del problem, split
        return self.function(params, key)


class Bent(Wrapper):
    r"""A task whose gradient is the same and changes faster or slower, for what differentiates it.

    $$g + \xi, \qquad \frac{\partial g}{\partial w} = c\, \nabla^2 f(w)$$

    Args:
        task: gives $f$.
        factor: $c$.
        push: $\xi$, a tree like the parameters.
    """

    factor: Float[Array, ""]
    push: Params

    def observe(
        self, problem: Problem, params: Params, memory: Memory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Params, Memory]:
        """As the task's, with the bent gradient."""
        loss, gradient, after = self.task.observe(problem, params, memory, key)

        def bend(g: Array, push: Array) -> Array:
            fixed = jax.lax.stop_gradient(g)
            # No difference from itself: where a gradient is infinite that would be NaN.
            return jnp.where(jnp.isfinite(fixed), fixed + self.factor.astype(g.dtype) * (g - fixed), g) + push

        return loss, jax.tree.map(bend, gradient, self.push), after


class Multiplied(Optimizer):
    """An optimizer whose updates are multiplied: by 2, it is the same rule at twice its learning rate."""

    optimizer: Optimizer
    factor: Float[Array, ""]

    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> State:
        """As the optimizer's."""
        return self.optimizer.init(params, key=key, horizon=horizon)

    def update(self, updates: Updates, state: State, params: Params, **extra: Any) -> tuple[Updates, State]:
        """The optimizer's update, multiplied."""
        found, state = self.optimizer.update(updates, state, params, **extra)
        return jax.tree.map(lambda u: u * self.factor.astype(u.dtype), found), state

    @property
    def validation_every(self) -> int:
        """As the optimizer's."""
        return self.optimizer.validation_every

    def eval_params(self, state: State, params: Params) -> Params:
        """As the optimizer's."""
        return self.optimizer.eval_params(state, params)


def as_task(loss: Task | Loss, params: Params | None) -> Task:
    """A task, or a user's loss with its parameters as one.

    Raises:
        InputError: for parameters beside a task, a loss without parameters, or parameters that are not floating-point arrays.
    """
    if isinstance(loss, Task):
        if params is not None:
            raise InputError("params was given beside a task, which draws its own; leave it out.")
        return loss
    if params is None:
        raise InputError("A loss needs params, the parameters at which the training starts.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = jnp.asarray(leaf).dtype if hasattr(leaf, "dtype") or isinstance(leaf, (int, float, complex)) else None
        if kind is None or not jnp.issubdtype(kind, jnp.floating):
            where = jax.tree_util.keystr(path, simple=True, separator=".") or "params"
            raise InputError(f"{where} is {kind or type(leaf).__name__}; parameters must be floating-point arrays.")
    return LossTask(loss, params)


__all__ = ["Bent", "LossTask", "Multiplied", "as_task"]
