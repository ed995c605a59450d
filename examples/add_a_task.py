"""A complete new task, a random teacher network to imitate, trained by Adam, by a batch of Adams, and by STAR.

python examples/add_a_task.py

To make it part of lopt, move the class to src/lopt/tasks/networks/teacher.py and follow CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import lopt
from lopt.errors import InputError
from lopt.task import Split


class TeacherProblem(NamedTuple):
    """One teacher, and its answers on points of three splits."""

    inputs: dict[str, Float[Array, "points dim"]]
    targets: dict[str, Float[Array, " points"]]


class Teacher(lopt.Task):
    r"""Imitate a random network with one tanh layer by a network of the same shape.

    $$f(w; B) = \frac{1}{|B|} \sum_{x \in B} (\mathrm{net}_w(x) - y(x))^2, \qquad y = \mathrm{net}_{w^*}, \quad x \sim N(0, I)$$

    A problem is a teacher $w^*$ and fixed points of each split; a minibatch $B$ is drawn from the key, with replacement.

    Args:
        dim: inputs.
        width: hidden units.
        points: of each split.
        batch_size: points a minibatch.
    """

    dim: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    points: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def __init__(self, *, dim: int = 8, width: int = 16, points: int = 256, batch_size: int = 32):
        for name, given in (("dim", dim), ("width", width), ("points", points), ("batch_size", batch_size)):
            if given < 1:
                raise InputError(f"{name} is {given}; it must be at least 1.")
        self.dim, self.width, self.points, self.batch_size = dim, width, points, batch_size

    def sample(self, key: PRNGKeyArray) -> TeacherProblem:
        """Draw a teacher and the points."""
        teacher_key, *keys = jax.random.split(key, 4)
        teacher = self._draw(teacher_key)
        splits = zip(("train", "valid", "test"), keys, strict=True)
        inputs = {split: jax.random.normal(k, (self.points, self.dim)) for split, k in splits}
        return TeacherProblem(inputs, {split: _network(teacher, x) for split, x in inputs.items()})

    def init(self, problem: TeacherProblem, key: PRNGKeyArray) -> dict[str, Array]:
        """Draw a student."""
        del problem
        return self._draw(key)

    def loss(
        self, problem: TeacherProblem, params: dict[str, Array], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """Mean squared error on a minibatch."""
        batch = jax.random.randint(key, (self.batch_size,), 0, self.points)
        answers = _network(params, problem.inputs[split][batch])
        return jnp.mean(jnp.square(answers - problem.targets[split][batch]))

    def metrics(
        self, problem: TeacherProblem, params: dict[str, Array], key: PRNGKeyArray, split: Split
    ) -> dict[str, Float[Array, ""]]:
        """`loss` on the whole split."""
        del key
        return {"loss": jnp.mean(jnp.square(_network(params, problem.inputs[split]) - problem.targets[split]))}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the error of two independent networks, about twice a network's variance of 0.4."""
        return loss / 0.8

    def _draw(self, key: PRNGKeyArray) -> dict[str, Array]:
        first, second = jax.random.split(key)
        return {
            "w": jax.random.normal(first, (self.dim, self.width)) / jnp.sqrt(self.dim),
            "b": jnp.zeros(self.width),
            "out": jax.random.normal(second, (self.width,)) / jnp.sqrt(self.width),
        }


def _network(weights: dict[str, Array], inputs: Float[Array, "points dim"]) -> Float[Array, " points"]:
    return jnp.tanh(inputs @ weights["w"] + weights["b"]) @ weights["out"]


def main() -> None:
    """Train the task in three ways and print."""
    parser = argparse.ArgumentParser(description="Train a task defined in this file with several optimizers.")
    parser.add_argument("--steps", type=int, default=300, help="inner steps")
    args = parser.parse_args()

    task, key = Teacher(), jax.random.key(0)
    star = lopt.create("star", key=jax.random.key(1))
    for name, optimizer in {"optax.adam(0.01)": optax.adam(1e-2), "STAR, not meta-trained": star}.items():
        record = lopt.train(optimizer, task, steps=args.steps, key=key, seeds=4)
        print(f"{name:>24}: train {record.train_loss[:, -1].mean():.4f}, test {record.test_loss[:, -1].mean():.4f}")
    adam = lopt.evaluate.tune("adam", task, steps=args.steps, key=key, seeds=4)
    rate, tried = adam.setting["learning_rate"], len(lopt.evaluate.LEARNING_RATES)
    print(f"{'Adam tuned':>24}: train {adam.train_loss.mean():.4f} at a learning rate of {rate:g}, one of {tried}")


if __name__ == "__main__":
    main()
