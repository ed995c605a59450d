"""Losses on one scale: 1 at the start, 0 at the best tuned baseline."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopt.errors import InputError
from lopt.task import Task
from lopt.tasks.wrappers.coordinates import Wrapper


class Normalized(Wrapper):
    r"""The same task with losses normalised by measured ones.

    $$\nu(\ell) = \frac{\ell - b}{a - b}$$

    with $a$ the initial loss and $b$ the best of a tuned baseline. So $\nu$ is 1 at the start, 0 at the baseline and negative beyond it. `normalize` alone
    changes; losses, gradients and metrics are the wrapped task's. It takes the place of the wrapped task's own `normalize`.

    Args:
        task: the task to wrap.
        initial: $a$.
        best: $b$, less than `initial`.

    Source: Metz et al. 2020 (TaskSet), where a loss is divided in this way between its start and the best of many optimizers.
    """

    initial: Float[Array, ""]
    best: Float[Array, ""]

    def __init__(self, task: Task, initial: float, best: float):
        if not (math.isfinite(initial) and math.isfinite(best) and best < initial):
            raise InputError(f"initial is {initial} and best {best}; they must be finite, best less than initial.")
        self.task = task
        self.initial, self.best = jnp.asarray(initial, jnp.float32), jnp.asarray(best, jnp.float32)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        r"""$\nu(\ell)$."""
        initial, best = self.initial.astype(loss.dtype), self.best.astype(loss.dtype)
        return (loss - best) / (initial - best)
