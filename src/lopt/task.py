"""The abstract task: a distribution over optimisation problems of one shape."""

from __future__ import annotations

import abc
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.optimizer import Params

Problem = PyTree[Array]
Memory = PyTree[Array]
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

    def remember(self, problem: Problem, params: Params) -> Memory:
        """What `observe` carries from step to step, at the start: `()` unless a wrapper needs more."""
        del problem, params
        return ()

    def observe(
        self, problem: Problem, params: Params, memory: Memory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Params, Memory]:
        r"""What the optimizer is shown at `params`: a loss and a gradient, those of the training split.

        $$(\ell_t, g_t, m_{t+1}) = \mathrm{observe}(w_t, m_t; \xi_t), \qquad \text{here } \ell_t = f(w_t; \xi_t), \quad g_t = \nabla f(w_t; \xi_t)$$

        Every inner loop takes its gradients from here, so a wrapper can change them and leave the loss alone.

        Args:
            problem: from `sample`.
            params: where to look.
            memory: from `remember` or the previous `observe`.
            key: as for `loss`.

        Returns:
            The loss at `params`, the gradient (structure and dtypes of `params`) and the next memory.
        """
        loss, gradients = jax.value_and_grad(lambda p: self.loss(problem, p, key))(params)
        return loss, gradients, memory

    def metrics(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split) -> dict[str, Float[Array, ""]]:
        """What one reports: at least `loss`, low-noise where the split allows it."""
        return {"loss": self.loss(problem, params, key, split)}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Make losses comparable across tasks: about 1 at the start, about 0 at the best."""
        return jnp.asarray(loss)
