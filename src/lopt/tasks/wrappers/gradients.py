"""Wrappers that change the gradient that the optimizer is shown, and leave the loss alone. They compose in any order."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.optimizer import Params
from lopt.task import Memory, Problem, Task
from lopt.tasks.wrappers.coordinates import Wrapper

# Streams of the wrappers' own randomness lie beyond any number that a task is likely to fold into its key.
STREAM = 0x6C6F7074


class GradientMemory(NamedTuple):
    """The memory of a wrapper, behind the memory of the wrapped task."""

    task: Memory
    own: Memory


class GradientWrapper(Wrapper):
    r"""Shows the optimizer $h(g)$ in place of the gradient $g$ that the wrapped task shows. Subclasses define $h$.

    The wrapped task's loss gets its key unchanged, so losses and minibatches are those of the wrapped task; randomness of $h$
    comes from a stream of its own, one for each level of nesting.
    """

    @abc.abstractmethod
    def show(self, gradients: Params, memory: Memory, key: PRNGKeyArray) -> tuple[Params, Memory]:
        """$h$: the gradients to show in place of `gradients`, same structure and dtypes, and the next memory."""

    def begin(self, params: Params) -> Memory:
        """The memory of $h$ at the start; `()` where it needs none."""
        del params
        return ()

    def remember(self, problem: Problem, params: Params) -> GradientMemory:
        """The wrapped task's memory and that of $h$."""
        return GradientMemory(self.task.remember(problem, params), self.begin(params))

    def observe(
        self, problem: Problem, params: Params, memory: GradientMemory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Params, GradientMemory]:
        """The wrapped task's loss, and $h$ of its gradient."""
        loss, gradients, inner = self.task.observe(problem, params, memory.task, key)
        shown, own = self.show(gradients, memory.own, jax.random.fold_in(key, STREAM + _depth(self.task)))
        return loss, shown, GradientMemory(inner, own)


class NoisyGradients(GradientWrapper):
    r"""Gaussian noise on every element of the gradient.

    $$h(g)_i = g_i + \sigma\, n_i, \qquad n_i \sim N(0, 1) \text{ anew at every step}$$

    Args:
        task: the task to wrap.
        deviation: $\sigma$, in the units of the gradient.

    Source: Wichrowska et al. 2017 (`noise_stdev`).
    """

    deviation: float = eqx.field(static=True)

    def __init__(self, task: Task, deviation: float):
        at_least(0, deviation=deviation)
        self.task, self.deviation = task, deviation

    def show(self, gradients: Params, memory: Memory, key: PRNGKeyArray) -> tuple[Params, Memory]:
        """Add the noise."""
        noise = _draw_like(key, gradients, jax.random.normal)
        return jax.tree.map(lambda g, n: g + (self.deviation * n).astype(g.dtype), gradients, noise), memory


class SparseGradients(GradientWrapper):
    r"""Every element of the gradient is zeroed with a probability, the rest shown as they are.

    $$h(g)_i = b_i\, g_i, \qquad b_i \sim \mathrm{Bernoulli}(1 - p) \text{ anew at every step}$$

    Args:
        task: the task to wrap.
        probability: $p$, of being zeroed.

    Source: Wichrowska et al. 2017, where $p$ = 0.99.
    """

    probability: float = eqx.field(static=True)

    def __init__(self, task: Task, probability: float):
        if not 0 <= probability <= 1:
            raise InputError(f"probability is {probability}; it must lie between 0 and 1.")
        self.task, self.probability = task, probability

    def show(self, gradients: Params, memory: Memory, key: PRNGKeyArray) -> tuple[Params, Memory]:
        """Zero the elements that are drawn; a NaN as well."""
        uniform = _draw_like(key, gradients, jax.random.uniform)
        return jax.tree.map(
            lambda g, u: jnp.where(u < self.probability, jnp.zeros_like(g), g), gradients, uniform
        ), memory


class DelayedGradients(GradientWrapper):
    r"""The gradient of some steps ago, as an asynchronous training sees it.

    $$h(g_t) = g_{t-d}, \qquad g_{<0} = 0$$

    Costs `steps` copies of the parameters in memory, shifted at every step.

    Args:
        task: the task to wrap.
        steps: $d$.

    Source: Metz et al. 2022 (VeLO), task augmentation.
    """

    steps: int = eqx.field(static=True)

    def __init__(self, task: Task, steps: int):
        at_least(1, steps=steps)
        self.task, self.steps = task, steps

    def begin(self, params: Params) -> PyTree[Float[Array, "steps ..."]]:
        """A queue of zeros, the oldest first."""
        return jax.tree.map(lambda w: jnp.zeros((self.steps, *w.shape), w.dtype), params)

    def show(self, gradients: Params, memory: Memory, key: PRNGKeyArray) -> tuple[Params, Memory]:
        """Show the oldest of the queue and append the newest."""
        del key
        # A shift, not a ring: under vmap every problem has its own position, and writing there would be a scatter.
        queue = jax.tree.map(lambda q, g: jnp.concatenate([q[1:], g[None]]), memory, gradients)
        return jax.tree.map(lambda q: q[0], memory), queue


class NormalizedGradients(GradientWrapper):
    r"""Only the direction of the gradient.

    $$h(g) = g / \lVert g \rVert, \qquad h(0) = 0$$

    with the norm over all tensors together.

    Args:
        task: the task to wrap.

    Source: Metz et al. 2022 (VeLO), task augmentation.
    """

    def show(self, gradients: Params, memory: Memory, key: PRNGKeyArray) -> tuple[Params, Memory]:
        """Divide by the norm; a gradient that is not finite stays so."""
        del key
        leaves = [g.astype(jnp.float32) for g in jax.tree.leaves(gradients) if g.size]
        # Squares of what has been divided by the greatest element neither overflow nor vanish. No gradient passes through it:
        # it cancels.
        largest = jax.lax.stop_gradient(jnp.max(jnp.asarray([jnp.max(jnp.abs(g)) for g in leaves])))
        zero = largest == 0
        largest = jnp.where(zero, 1.0, largest)
        squares = sum((jnp.sum(jnp.square(g / largest)) for g in leaves), jnp.float32(0.0))
        norm = jnp.sqrt(jnp.where(zero, 1.0, squares))
        return jax.tree.map(lambda g: (g.astype(jnp.float32) / largest / norm).astype(g.dtype), gradients), memory


def _depth(task: Task | None) -> int:
    """How many tasks are wrapped in one another."""
    return 0 if task is None else 1 + _depth(getattr(task, "task", None))


def _draw_like(
    key: PRNGKeyArray, tree: Params, draw: Callable[[PRNGKeyArray, tuple[int, ...]], Array]
) -> PyTree[Array]:
    """Random float32 in the shapes of a tree, by one draw: one a leaf takes longer to compile."""
    leaves, treedef = jax.tree.flatten(tree)
    sizes = [math.prod(x.shape) for x in leaves]
    flat, at, found = draw(key, (sum(sizes),)), 0, []
    for leaf, size in zip(leaves, sizes, strict=True):
        found.append(flat[at : at + size].reshape(leaf.shape))
        at += size
    return treedef.unflatten(found)
