"""Wrappers that turn a task into a harder distribution of tasks: their base class, and those that change coordinates.

Those that change the gradient alone are in `gradients.py`, those that compute with less in `reduced.py`. Wrappers compose: each
hands all that it does not change to the wrapped task, `remember` and `observe` included.
"""

from __future__ import annotations

import abc
import math
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.checks import at_least, one_of
from lopt.errors import InputError
from lopt.optimizer import Params
from lopt.task import Memory, Problem, Split, Task

Level = Literal["global", "tensor", "parameter"]


class Wrapper(Task):
    """A task that hands everything to the task that it wraps. Subclasses override the parts that they change."""

    task: Task

    def sample(self, key: PRNGKeyArray) -> Problem:
        """As the wrapped task does."""
        return self.task.sample(key)

    def init(self, problem: Problem, key: PRNGKeyArray) -> Params:
        """As the wrapped task does."""
        return self.task.init(problem, key)

    def loss(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """As the wrapped task does."""
        return self.task.loss(problem, params, key, split)

    def remember(self, problem: Problem, params: Params) -> Memory:
        """As the wrapped task does."""
        return self.task.remember(problem, params)

    def observe(
        self, problem: Problem, params: Params, memory: Memory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Params, Memory]:
        """As the wrapped task does."""
        return self.task.observe(problem, params, memory, key)

    def metrics(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split) -> dict[str, Float[Array, ""]]:
        """As the wrapped task does."""
        return self.task.metrics(problem, params, key, split)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """As the wrapped task does."""
        return self.task.normalize(loss)


class Coordinates(Wrapper):
    r"""The same problems in other coordinates: optimise $z$ in $w = T(z)$ with loss $f(T(z))$. Subclasses define $T$.

    The gradient that the wrapped task shows is pulled back through $T$, so wrappers inside it act at $w$. Problems hold the
    wrapped task's problem as `problem`.
    """

    @abc.abstractmethod
    def original(self, problem: Any, params: Params) -> Params:
        r"""$T(z)$: the wrapped task's parameters."""

    def loss(self, problem: Any, params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """The wrapped task's loss at the original coordinates."""
        return self.task.loss(problem.problem, self.original(problem, params), key, split)

    def remember(self, problem: Any, params: Params) -> Memory:
        """As the wrapped task does at the original coordinates."""
        return self.task.remember(problem.problem, self.original(problem, params))

    def observe(
        self, problem: Any, params: Params, memory: Memory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Params, Memory]:
        """The loss and gradient that the wrapped task shows, the gradient in the new coordinates."""
        original, pull_back = jax.vjp(lambda p: self.original(problem, p), params)
        loss, gradients, memory = self.task.observe(problem.problem, original, memory, key)
        return loss, pull_back(gradients)[0], memory

    def metrics(self, problem: Any, params: Params, key: PRNGKeyArray, split: Split) -> dict[str, Float[Array, ""]]:
        """The wrapped task's metrics at the original coordinates."""
        return self.task.metrics(problem.problem, self.original(problem, params), key, split)


class ReparametrizedProblem(NamedTuple):
    """A problem and the scale of each of its parameters."""

    problem: Problem
    scale: PyTree  # arrays that broadcast against the parameters


class Reparametrized(Coordinates):
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

    level: Level = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, task: Task, level: Level = "global", *, low: float = 1e-2, high: float = 1e2):
        one_of("level", level, Level)
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

    def original(self, problem: ReparametrizedProblem, params: Params) -> Params:
        """$c\\,w'$."""
        return jax.tree.map(lambda w, c: w * c.astype(w.dtype), params, problem.scale)


class SubspaceProblem(NamedTuple):
    """A problem, a point of the subspace and the directions that span it."""

    problem: Problem
    origin: Params
    coordinate: Int[Array, " parameters"]  # below `dim`: which coordinate moves each parameter
    weight: Float[Array, " parameters"]  # and how far


class RandomSubspace(Coordinates):
    r"""The same problems in a random subspace: optimise $z$ in $w = w_0 + P z$.

    Every problem draws $w_0$, a start of the wrapped task, and $P$, whose `dim` columns are orthonormal. To keep $P$ cheap a column
    has its support to itself: the parameters are dealt at random into `dim` equal hands, and a column is a uniformly random
    direction within its hand. So $P$ is one integer and one number a parameter, and $Pz$ a look-up.

    $z_0 = P^\top (w_1 - w_0)$ with $w_1$ another start, so a start has the wrapped task's scale and depends on the key.

    Args:
        task: the task to wrap.
        dim: dimension of the subspace, no more than the task has parameters.

    Source: Li et al. 2018, *Measuring the Intrinsic Dimension of Objective Landscapes* (there with dense or Fastfood $P$; the hands are
    ours). The direction subsampling of Metz et al. 2022 (VeLO) draws anew at every step.
    """

    dim: int = eqx.field(static=True)

    def __init__(self, task: Task, dim: int):
        at_least(1, dim=dim)
        self.task, self.dim = task, dim

    def sample(self, key: PRNGKeyArray) -> SubspaceProblem:
        """Draw a problem, a start and the subspace through it."""
        problem_key, origin_key, deal_key, weight_key = jax.random.split(key, 4)
        problem = self.task.sample(problem_key)
        origin = self.task.init(problem, origin_key)
        flat, _ = ravel_pytree(origin)
        if self.dim > flat.size:
            raise InputError(f"dim is {self.dim}; it must be at most the number of parameters, {flat.size}.")
        coordinate = jax.random.permutation(deal_key, jnp.arange(flat.size, dtype=jnp.int32) % self.dim)
        weight = jax.random.normal(weight_key, flat.shape)
        length = jnp.sqrt(jax.ops.segment_sum(jnp.square(weight), coordinate, self.dim))
        return SubspaceProblem(problem, origin, coordinate, (weight / length[coordinate]).astype(flat.dtype))

    def init(self, problem: SubspaceProblem, key: PRNGKeyArray) -> Float[Array, " dim"]:
        """The projection of a start of the wrapped task."""
        start, origin = (ravel_pytree(w)[0] for w in (self.task.init(problem.problem, key), problem.origin))
        return jax.ops.segment_sum(problem.weight * (start - origin), problem.coordinate, self.dim)

    def original(self, problem: SubspaceProblem, params: Float[Array, " dim"]) -> Params:
        """$w_0 + P z$."""
        flat, unravel = ravel_pytree(problem.origin)
        return unravel(flat + problem.weight * params[problem.coordinate])
