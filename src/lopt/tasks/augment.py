"""Wrappers that turn a task into a harder distribution of tasks."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.errors import InputError
from lopt.optimizer import Params
from lopt.task import Problem, Split, Task

Level = Literal["global", "tensor", "parameter"]


class ReparametrizedProblem(NamedTuple):
    """A problem and the scale of each of its parameters."""

    problem: Problem
    scale: PyTree  # arrays that broadcast against the parameters


class Reparametrized(Task):
    r"""The same problems in other coordinates: optimise $w' = w / c$ with loss $f(c\,w')$.

    An optimizer that has only seen one scale of parameters learns that scale; random ones teach it to look. $c$ is log-uniform between
    `low` and `high`, one for the problem, one a tensor, or one a parameter.

    Args:
        task: the task to wrap.
        level: `global`, `tensor` or `parameter`.
        low: least scale.
        high: greatest scale.

    Source: Wichrowska et al. 2017 (rescaled problems); Metz et al. 2022 (task augmentation).
    """

    task: Task
    level: Level = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, task: Task, level: Level = "global", *, low: float = 1e-2, high: float = 1e2):
        if level not in get_args(Level):
            raise InputError(f"level is {level!r}; it must be one of {', '.join(get_args(Level))}.")
        if not 0 < low <= high:
            raise InputError(f"low is {low} and high {high}; they must be positive, low no greater than high.")
        self.task, self.level, self.low, self.high = task, level, low, high

    def sample(self, key: PRNGKeyArray) -> ReparametrizedProblem:
        """Draw a problem and its scales."""
        problem_key, scale_key = jax.random.split(key)
        problem = self.task.sample(problem_key)
        shapes, treedef = jax.tree.flatten(jax.eval_shape(self.task.init, problem, key))
        low, high = math.log(self.low), math.log(self.high)

        def draw(k: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
            return jnp.exp(jax.random.uniform(k, shape, minval=low, maxval=high))

        if self.level == "global":
            scales = [draw(scale_key, ())] * len(shapes)
        else:
            keys = jax.random.split(scale_key, len(shapes))
            scales = [draw(k, s.shape if self.level == "parameter" else ()) for k, s in zip(keys, shapes, strict=True)]
        return ReparametrizedProblem(problem, treedef.unflatten(scales))

    def init(self, problem: ReparametrizedProblem, key: PRNGKeyArray) -> Params:
        """The wrapped task's start in the new coordinates."""
        return jax.tree.map(lambda w, c: w / c.astype(w.dtype), self.task.init(problem.problem, key), problem.scale)

    def loss(
        self, problem: ReparametrizedProblem, params: Params, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """The wrapped task's loss at the original coordinates."""
        return self.task.loss(problem.problem, _original(problem, params), key, split)

    def metrics(
        self, problem: ReparametrizedProblem, params: Params, key: PRNGKeyArray, split: Split
    ) -> dict[str, Any]:
        """The wrapped task's metrics at the original coordinates."""
        return self.task.metrics(problem.problem, _original(problem, params), key, split)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """As the wrapped task does."""
        return self.task.normalize(loss)


def _original(problem: ReparametrizedProblem, params: Params) -> Params:
    return jax.tree.map(lambda w, c: w * c.astype(w.dtype), params, problem.scale)
