"""Influence balancing: a system whose first steps say the opposite of its last."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.errors import InputError
from lopt.task import Split, Task


class InfluenceBalancing(Task):
    r"""Steer the end of a linear recurrence whose early steps point the wrong way.

    $$s_{t+1} = A s_t + \theta\,(\underbrace{1, \dots, 1}_{p}, \underbrace{-1, \dots, -1}_{n - p}), \quad s_0 = 0, \quad A_{ii} = A_{i,i+1} = \tfrac12$$

    $$f(\theta) = \tfrac12 (s_{T,1} - 1)^2$$

    In the papers $\theta$ is a meta-parameter and the test is of the estimator. The gradient within a short truncation comes from the
    first $p$ coordinates and has the opposite sign of the whole gradient.

    Here $\theta$ is the parameter of a task, and the recurrence is inside the loss. `truncation` cuts the gradient after so many steps.
    This makes a task whose *gradients* are biased, even in sign, while its *losses* are right. An optimizer that sees the loss can notice.

    Args:
        size: $n$; recalled.
        positive: $p$; recalled.
        steps: $T$.
        truncation: steps that the gradient flows back through; `None` for all.

    Source: Vicol et al. 2021 and Vicol 2023, section 4.1; the loss is recalled.
    """

    size: int = eqx.field(static=True)
    positive: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    truncation: int | None = eqx.field(static=True)

    def __init__(self, *, size: int = 23, positive: int = 10, steps: int = 200, truncation: int | None = None):
        if not 0 < positive <= size:
            raise InputError(f"size is {size} and positive {positive}; positive must be at least 1 and at most size.")
        if steps < 1 or (truncation is not None and not 1 <= truncation <= steps):
            raise InputError(f"steps is {steps} and truncation {truncation}; truncation must be between 1 and steps.")
        self.size, self.positive, self.steps, self.truncation = size, positive, steps, truncation

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Float[Array, ""]:
        """$\\theta_0 \\sim N(0, 1)$."""
        del problem
        return jax.random.normal(key, ())

    def loss(
        self, problem: tuple[()], params: Float[Array, ""], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(\\theta)$, the same on all splits."""
        del problem, key, split
        total, recent = self.influence(self.steps), self.influence(self.truncation or self.steps)
        # The recurrence is linear: its end is theta times a number, and so is the part of it that the gradient sees.
        end = (total - recent) * jax.lax.stop_gradient(params) + recent * params
        return 0.5 * jnp.square(end - 1.0)

    def influence(self, steps: int) -> float:
        """The first coordinate after so many steps from zero, a unit of theta."""
        push = np.where(np.arange(self.size) < self.positive, 1.0, -1.0)
        state = np.zeros(self.size)
        for _ in range(steps):
            state = 0.5 * (state + np.append(state[1:], 0.0)) + push
        return float(state[0])

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the expected loss at the start."""
        return loss / (0.5 * (self.influence(self.steps) ** 2 + 1.0))
