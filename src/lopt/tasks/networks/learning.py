"""The common part of problems of learning from examples: minibatches, cross-entropy, accuracy."""

from __future__ import annotations

import abc
import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.checks import sizes
from lopt.optimizer import Params
from lopt.task import Problem, Split, Task
from lopt.tasks.data.points import rows_of
from lopt.tasks.networks.layers import Function, draw, skeleton_of

Batch = tuple[Any, Any]  # arrays of inputs and targets, an example a row
# The stream of what is random beside the minibatch. A small number would not do: `fold_in(key, 1)` is `split(key)[1]`, which draws the minibatch.
BESIDE = 0x62657369
Loss = Literal["cross_entropy", "squared_error"]


class LearningTask(Task):
    r"""A network that learns from examples; abstract.

    $$f(w; B) = \frac{1}{|B|} \sum_{(x, y) \in B} \ell(\mathrm{net}_w(x), y)$$

    The data are arrays on the device; every loss draws its minibatch $B$ from the key, with replacement, from one split. All problems
    of the task are alike; only the initialisation differs (`networks.draw`). A family defines its network and its metrics.

    Args:
        examples: inputs and targets of the training, validation and test split.
        batch_size: examples a minibatch.
        eval_size: examples that `metrics` looks at; a split that is smaller is taken whole.
    """

    train: Batch
    valid: Batch
    test: Batch
    batch_size: int = eqx.field(static=True)
    eval_size: int = eqx.field(static=True)

    def __init__(self, examples: tuple[Batch, Batch, Batch], batch_size: int, eval_size: int):
        sizes(batch_size=batch_size, eval_size=eval_size)
        self.train, self.valid, self.test = (jax.tree.map(jnp.asarray, split) for split in examples)
        self.batch_size, self.eval_size = batch_size, eval_size

    @abc.abstractmethod
    def network(self, key: PRNGKeyArray, activation: Function | None = None) -> eqx.Module:
        """The network. Only its shapes count: the weights are drawn by `init`.

        Args:
            key: for equinox's layers.
            activation: instead of the task's own, for tasks that have one.
        """

    @abc.abstractmethod
    def measure(self, network: Any, batch: Batch, key: PRNGKeyArray, training: bool) -> dict[str, Float[Array, ""]]:
        """`loss` and all other metrics on a batch.

        Args:
            network: from `assemble`.
            batch: inputs and targets.
            key: for randomness other than the minibatch.
            training: whether dropout acts.
        """

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: Problem, key: PRNGKeyArray) -> Params:
        """Draw the network's weights and biases, all at once."""
        del problem
        return draw(self._skeleton()[0], key)

    def assemble(self, params: Params, activation: Function | None = None) -> Any:
        """The network with these parameters."""
        return eqx.combine(params, self._skeleton(activation)[1])

    def _skeleton(self, activation: Function | None = None) -> tuple[PyTree, PyTree]:
        """Shapes of the parameters, and the network without them."""
        return skeleton_of(lambda k: self.network(k, activation))

    def _draw(self, key: PRNGKeyArray, split: Split, size: int) -> Batch:
        return rows_of(getattr(self, split), key, size)

    def loss(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """The mean loss of a minibatch; in nats where it is a cross-entropy."""
        del problem
        batch = self._draw(key, split, self.batch_size)
        return self.measure(self.assemble(params), batch, jax.random.fold_in(key, BESIDE), split == "train")["loss"]

    def metrics(self, problem: Problem, params: Params, key: PRNGKeyArray, split: Split) -> dict[str, Float[Array, ""]]:
        """The task's metrics on the whole split, or on `eval_size` examples drawn from a larger one."""
        del problem
        batch: Batch = getattr(self, split)
        batch = batch if len(batch[1]) <= self.eval_size else self._draw(key, split, self.eval_size)
        return self.measure(self.assemble(params), batch, jax.random.fold_in(key, BESIDE), False)


class ClassificationTask(LearningTask):
    """A network that tells classes apart; abstract.

    Args:
        examples: inputs and classes of the training, validation and test split.
        batch_size: as for `LearningTask`.
        eval_size: as for `LearningTask`.
        classes: how many there are.
        objective: `cross_entropy` of the softmax, or `squared_error` against one-hot targets, summed over the classes.
    """

    classes: int = eqx.field(static=True)
    objective: Loss = eqx.field(static=True)

    def __init__(
        self,
        examples: tuple[Batch, Batch, Batch],
        batch_size: int,
        eval_size: int,
        classes: int,
        objective: Loss = "cross_entropy",
    ):
        super().__init__(examples, batch_size, eval_size)
        self.classes, self.objective = classes, objective

    @abc.abstractmethod
    def logits(
        self, network: Any, inputs: Array, key: PRNGKeyArray, training: bool
    ) -> Float[Array, "batch ... classes"]:
        """The logits of a batch of inputs."""

    def measure(self, network: Any, batch: Batch, key: PRNGKeyArray, training: bool) -> dict[str, Float[Array, ""]]:
        """`loss` and `accuracy`."""
        inputs, labels = batch
        return classified(self.logits(network, inputs, key, training), labels.astype(jnp.int32), self.objective)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the loss of a uniform guess, log(classes); squared error by that of zeros, 1."""
        return loss / math.log(self.classes) if self.objective == "cross_entropy" else loss


def classified(
    logits: Float[Array, "*examples classes"], labels: Int[Array, "*examples"], objective: Loss = "cross_entropy"
) -> dict[str, Float[Array, ""]]:
    """`loss` (nats, or summed squares) and `accuracy`, means over all examples."""
    logits = logits.astype(jnp.float32)
    if objective == "cross_entropy":
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        losses = jnp.sum(jnp.square(logits - jax.nn.one_hot(labels, logits.shape[-1])), axis=-1)
    correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {"loss": jnp.mean(losses), "accuracy": jnp.mean(correct)}
