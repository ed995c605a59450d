"""Tasks made of tasks: the logarithm of one, one in rescaled parameters, the sum of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray

from lopt.errors import InputError
from lopt.optimizer import Params
from lopt.task import Memory, Problem, Split, Task
from lopt.tasks.wrappers.coordinates import Reparametrized, Wrapper

EPSILON = 1e-6


class LogObjective(Wrapper):
    r"""The logarithm of a loss that is never negative.

    $$f'(w) = \log(f(w) + 10^{-6}) - \log 10^{-6}, \qquad g' = \frac{g}{f(w) + 10^{-6}}$$

    Gradients grow as the minimum comes near, and stop at a loss of $10^{-6}$. $g$ is the gradient that the wrapped task shows.

    Args:
        task: the task to wrap; a loss below zero, such as rounding leaves, counts as zero. Its `normalize` must be affine.

    Source: Wichrowska et al. 2017, the released problem generator.
    """

    def __init__(self, task: Task):
        _require_affine(task)
        self.task = task

    def loss(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """The logarithm of the wrapped task's loss."""
        return _log(self.task.loss(problem, params, key, split))

    def observe(
        self, problem: Problem, params: Params, memory: Memory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Params, Memory]:
        """The logarithm of the loss that the wrapped task shows, and its gradient."""
        loss, gradients, memory = self.task.observe(problem, params, memory, key)
        logarithm, slope = jax.value_and_grad(_log)(loss)
        return logarithm, jax.tree.map(lambda g: g * slope.astype(g.dtype), gradients), memory

    def metrics(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split) -> dict[str, Any]:
        """The wrapped task's metrics, its loss as a logarithm."""
        found = self.task.metrics(problem, params, key, split)
        return {**found, "loss": _log(found["loss"])}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """From 1, the logarithm of the wrapped task's start loss, to 0, the logarithm of its least loss."""
        start, least = _start_and_least(self.task)
        return (loss - _log(least)) / (_log(start) - _log(least))


class SumOfTasks(Task):
    r"""Several independent problems at once. Each has its own parameters, and the loss is the sum of theirs.

    $$f(w_1, \dots, w_m) = \sum_i f_i(w_i)$$

    Args:
        tasks: $f_i$; their `normalize` must be affine, as that of most is: neither logarithms nor sums of them.

    Source: Wichrowska et al. 2017, the released problem generator.
    """

    tasks: tuple[Task, ...]

    def __init__(self, tasks: Sequence[Task]):
        if not tasks:
            raise InputError("tasks is empty; it must hold at least one task.")
        for task in tasks:
            _require_affine(task)
        self.tasks = tuple(tasks)

    def sample(self, key: PRNGKeyArray) -> tuple[Problem, ...]:
        """A problem of each task."""
        return tuple(t.sample(k) for t, k in zip(self.tasks, self._keys(key), strict=True))

    def init(self, problem: tuple[Problem, ...], key: PRNGKeyArray) -> tuple[Params, ...]:
        """The start of each task."""
        return tuple(t.init(p, k) for t, p, k in zip(self.tasks, problem, self._keys(key), strict=True))

    def loss(
        self, problem: tuple[Problem, ...], params: tuple[Params, ...], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """The sum of the losses."""
        each = zip(self.tasks, problem, params, self._keys(key), strict=True)
        return jnp.sum(jnp.stack([t.loss(q, p, k, split) for t, q, p, k in each]))

    def remember(self, problem: tuple[Problem, ...], params: tuple[Params, ...]) -> tuple[Memory, ...]:
        """The memory of each task."""
        return tuple(t.remember(q, p) for t, q, p in zip(self.tasks, problem, params, strict=True))

    def observe(
        self, problem: tuple[Problem, ...], params: tuple[Params, ...], memory: tuple[Memory, ...], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Params, ...], tuple[Memory, ...]]:
        """The sum of the losses that the tasks show, and the gradient of each."""
        each = zip(self.tasks, problem, params, memory, self._keys(key), strict=True)
        losses, gradients, memories = zip(*(t.observe(q, p, m, k) for t, q, p, m, k in each), strict=True)
        return jnp.sum(jnp.stack(losses)), gradients, memories

    def metrics(
        self, problem: tuple[Problem, ...], params: tuple[Params, ...], key: PRNGKeyArray, split: Split
    ) -> dict[str, Float[Array, ""]]:
        """The sum of the losses that the tasks report."""
        each = zip(self.tasks, problem, params, self._keys(key), strict=True)
        return {"loss": jnp.sum(jnp.stack([t.metrics(q, p, k, split)["loss"] for t, q, p, k in each]))}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """From 1, the sum of the tasks' start losses, to 0, the sum of their least losses."""
        ends = [_start_and_least(t) for t in self.tasks]
        start, least = (jnp.sum(jnp.stack(x)) for x in zip(*ends, strict=True))
        return (loss - least) / (start - least)

    def _keys(self, key: PRNGKeyArray) -> Key[Array, " tasks"]:
        return jax.random.split(key, len(self.tasks))


def rescaled(task: Task, scale: float) -> Reparametrized:
    r"""The same problems with parameters `scale` times as large: optimise $w' = c\,w$ with loss $f(w' / c)$.

    Args:
        task: the task to wrap.
        scale: $c$, positive.

    Source: Wichrowska et al. 2017, the released problem generator.
    """
    if not 0 < scale < math.inf:
        raise InputError(f"scale is {scale}; it must be positive.")
    return Reparametrized(task, "global", low=1.0 / scale, high=1.0 / scale)


def _log(loss: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.log(jnp.maximum(loss, 0.0) + EPSILON) - math.log(EPSILON)


def _require_affine(task: Task) -> None:
    at = np.asarray([task.normalize(jnp.asarray(x, jnp.float32)) for x in (0.0, 1.0, 2.0)])
    if not math.isclose(at[2] - at[1], at[1] - at[0], rel_tol=1e-3):
        raise InputError(
            f"task is a {type(task).__name__}, whose normalize is not affine; it must be, to be part of another loss."
        )


def _start_and_least(task: Task) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The losses that an affine `normalize` takes to 1 and to 0."""
    zero, one = (task.normalize(jnp.asarray(x, jnp.float32)) for x in (0.0, 1.0))
    slope = one - zero
    return (1.0 - zero) / slope, -zero / slope
