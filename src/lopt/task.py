"""The abstract task: a distribution over optimisation problems of one shape."""

from __future__ import annotations

import abc
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.optimizer import Params

Problem = PyTree[Array]
Split = Literal["train", "valid", "test"]


class Task(eqx.Module):
    """A distribution over optimisation problems of one shape. Its array leaves are data shared by all its problems.

    Everything runs on the device: `loss` draws its own minibatch from the key, so a whole training is one `scan` and many of
    them one `vmap`. Splits never mix: `split="train"` reads training examples only.
    """

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> Problem:
        """Draw what differs between problems: a PyTree of arrays, `()` where nothing does."""

    @abc.abstractmethod
    def init(self, problem: Problem, key: PRNGKeyArray) -> Params:
        """Draw initial parameters."""

    @abc.abstractmethod
    def loss(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """The loss on a minibatch that `key` draws from `split`."""

    def metrics(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split) -> dict[str, Float[Array, ""]]:
        """What one reports: at least `loss`, low-noise where the split allows it."""
        return {"loss": self.loss(problem, params, key, split)}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Make losses comparable across tasks: about 1 at the start, about 0 at the best."""
        return jnp.asarray(loss)
