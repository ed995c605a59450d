"""Wrappers that compute the loss with less: fewer bits, fewer examples."""

from __future__ import annotations

import copy
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import one_of
from lopt.errors import InputError
from lopt.optimizer import Params
from lopt.task import Memory, Problem, Split, Task
from lopt.tasks.wrappers.coordinates import Wrapper

LowDtype = Literal["bfloat16", "float16"]


class LowPrecision(Wrapper):
    r"""The same problems computed in 16 bits.

    Parameters, problem and data are cast before the wrapped task computes its loss. The loss comes back in float32 and the gradient
    in the dtype of the parameters, which the optimizer keeps, as in mixed-precision training. A task computes in 16 bits as far as
    it follows the dtype of its parameters. All tasks of lopt do, except
    `LearnedOptimizerTraining`: the accumulators of optimizers are float32.

    Args:
        task: the task to wrap.
        dtype: `bfloat16` or `float16`.

    Source: Metz et al. 2022 (VeLO), task augmentation.
    """

    dtype: LowDtype = eqx.field(static=True)

    def __init__(self, task: Task, dtype: LowDtype = "bfloat16"):
        one_of("dtype", dtype, LowDtype)
        self.task, self.dtype = task, dtype

    def _cast(self, tree: Any) -> Any:
        return jax.tree.map(
            lambda x: self._round(x).astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
        )

    def _round(self, x: Array) -> Array:
        """To a number of the low precision. XLA may leave out a cast there and back, but not this."""
        precision = jnp.finfo(self.dtype)
        return jax.lax.reduce_precision(x, int(precision.nexp), int(precision.nmant))

    def loss(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """The wrapped task's loss in 16 bits."""
        task, problem, params = self._cast((self.task, problem, params))
        return task.loss(problem, params, key, split).astype(jnp.float32)

    def remember(self, problem: Problem, params: Params) -> Memory:
        """As the wrapped task does, in 16 bits."""
        task, problem, params = self._cast((self.task, problem, params))
        return task.remember(problem, params)

    def observe(
        self, problem: Problem, params: Params, memory: Memory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Params, Memory]:
        """The loss and gradient that the wrapped task shows in 16 bits; the gradient in the dtype of `params`."""
        task, low_problem, low = self._cast((self.task, problem, params))
        loss, gradients, memory = task.observe(low_problem, low, memory, key)
        shown = jax.tree.map(lambda g, w: self._round(g).astype(w.dtype), gradients, params)
        return loss.astype(jnp.float32), shown, memory

    def metrics(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split) -> dict[str, Float[Array, ""]]:
        """The wrapped task's metrics in 16 bits, reported in float32."""
        task, problem, params = self._cast((self.task, problem, params))
        found = task.metrics(problem, params, key, split)
        return {name: value.astype(jnp.float32) for name, value in found.items()}


class ReducedBatch(Wrapper):
    r"""The same problems with minibatches of a fraction of the size.

    $$B' = \max(1, \mathrm{round}(\phi B))$$

    Args:
        task: the task to wrap; it, or the task that it wraps, has a `batch_size`.
        fraction: $\phi$, above 0 and at most 1.

    Source: Metz et al. 2022 (VeLO), task augmentation.
    """

    fraction: float = eqx.field(static=True)

    def __init__(self, task: Task, fraction: float):
        if not 0 < fraction <= 1:
            raise InputError(f"fraction is {fraction}; it must be above 0 and at most 1.")
        self.task, self.fraction = _with_batch(task, fraction), fraction


def _with_batch(task: Task, fraction: float) -> Task:
    """A copy of the task with a smaller `batch_size` in the innermost task that has one."""
    batch_size = getattr(task, "batch_size", None)
    parts = {name: part for name in ("task", "inner") if isinstance(part := getattr(task, name, None), Task)}
    change: dict[str, Any] = {}
    if batch_size is not None:
        change = {"batch_size": max(1, round(fraction * batch_size))}
    elif parts:
        change = {name: _with_batch(part, fraction) for name, part in parts.items()}
    else:
        raise InputError(f"task is a {type(task).__name__}, which has no batch_size; it must have one to be reduced.")
    smaller = copy.copy(task)
    for name, value in change.items():  # static fields cannot be exchanged by `tree_at`
        object.__setattr__(smaller, name, value)
    return smaller
