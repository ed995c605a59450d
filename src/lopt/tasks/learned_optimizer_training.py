"""Train a learned optimizer: the meta-problem as an optimisation problem like any other."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.optimizer import Optimizer
from lopt.optimizers import OPTIMIZERS, create
from lopt.task import Split, Task
from lopt.tasks.networks.image_mlp import digits_mlp
from lopt.unroll import start, unroll


class LearnedOptimizerTraining(Task):
    r"""The meta-parameters of an optimizer, trained through short unrolls of an inner task with full backpropagation.

    $$f(\theta; \xi) = \frac{1}{B} \sum_{b=1}^{B} \frac{1}{K} \sum_{t=0}^{K-1} \nu(\ell_t(\theta; \xi_b))$$

    with $\ell_t$ the inner losses of `unroll` under $U(\cdot\,; \theta)$, $\nu$ the inner task's `normalize`, and $\xi_b$ the inner problem, its start
    and its minibatches, all drawn from the key. The gradient goes through all $K$ steps and, in them, through the inner gradients.
    On the splits `valid` and `test` inner losses come from that split of the inner task; inner gradients always come from its training split.

    What the inner task shows its optimizer (`observe`) is part of the problem, so an augmented inner task is another one.

    Args:
        optimizer: the kind, and the centre of the starts where its meta-parameters are not random.
        task: the inner task.
        steps: $K$.
        batch_size: $B$, inner trainings a loss.
        spread: deviation of the starts about the given meta-parameters, for kinds whose constructor takes no key; others start at a fresh
            draw of their own.

    Source: the task `lopt` of google/learned_optimization. Its evaluation set has three, on image data that
    are not here: LearnableAdam with 50 steps on CIFAR-10, the per-parameter MLP with 10 and `SmallFC` with 20 on Fashion-MNIST. $B$ and `spread` are ours.
    """

    optimizer: Optimizer
    task: Task
    steps: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    spread: float = eqx.field(static=True)

    def __init__(self, optimizer: Optimizer, task: Task, *, steps: int = 10, batch_size: int = 1, spread: float = 0.1):
        at_least(1, steps=steps, batch_size=batch_size)
        at_least(0, spread=spread)
        if type(optimizer) not in OPTIMIZERS.values():
            raise InputError(
                f"optimizer is a {type(optimizer).__name__}; it must be one of {', '.join(sorted(OPTIMIZERS))}."
            )
        self.optimizer, self.task = optimizer, task
        self.steps, self.batch_size, self.spread = steps, batch_size, spread

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems: inner ones are drawn anew for every loss."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Optimizer:
        """An optimizer with fresh meta-parameters."""
        del problem
        kind = type(self.optimizer)
        name = next(n for n, k in OPTIMIZERS.items() if k is kind)
        if "key" in inspect.signature(kind).parameters:
            static = {
                f.name: getattr(self.optimizer, f.name) for f in dataclasses.fields(kind) if f.metadata.get("static")
            }
            return create(name, key=key, **static)
        flat, unravel = ravel_pytree(self.optimizer)
        return unravel(flat + self.spread * jax.random.normal(key, flat.shape, flat.dtype))

    def loss(
        self, problem: tuple[()], params: Optimizer, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """The mean normalised inner loss; see the class."""
        del problem

        def train(key: PRNGKeyArray) -> Float[Array, ""]:
            start_key, unroll_key = jax.random.split(key)
            inner = start(params, self.task, start_key, self.steps)
            _, losses = unroll(params, self.task, inner, unroll_key, self.steps, split=split)
            return jnp.mean(jax.vmap(self.task.normalize)(losses))

        return jnp.mean(jax.vmap(train)(jax.random.split(key, self.batch_size)))


def learned_optimizer_training(
    *,
    optimizer: str = "mlp",
    widths: Sequence[int] = (32,),
    steps: int = 10,
    batch_size: int = 1,
    spread: float = 0.1,
) -> LearnedOptimizerTraining:
    """Train an optimizer, by name, on an MLP on scikit-learn's digits. Other arguments as for `LearnedOptimizerTraining`.

    Args:
        optimizer: a key of `lopt.optimizers.OPTIMIZERS`, at its defaults.
        widths: of the hidden layers of the MLP.
        steps: inner steps.
        batch_size: inner trainings a loss.
        spread: of the starts of optimizers whose meta-parameters are not random.

    Data: digits.
    """
    return LearnedOptimizerTraining(
        create(optimizer), digits_mlp(widths=widths), steps=steps, batch_size=batch_size, spread=spread
    )
