"""Predict classes and numbers from small tables of real data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import one_of, sizes
from lopt.tasks.data import tables
from lopt.tasks.networks.layers import Activation, Function, function_of, mlp
from lopt.tasks.networks.learning import Batch, LearningTask, classified


class Tabular(LearningTask):
    r"""Regression or classification on standardised features, linear or by an MLP.

    Classes by softmax cross-entropy, as in `ImageMLP` (without hidden layers: softmax regression, which for two classes is logistic
    regression with one weight vector too many); numbers by squared error, $f(w; B) = \frac{1}{|B|} \sum_{(x, y) \in B} (\mathrm{net}_w(x) - y)^2$.

    Args:
        table: the data set; its `classes` is 1 for regression.
        widths: widths of the hidden layers; none for a linear model.
        activation: `relu`, `tanh`, `gelu`, `silu` or `sigmoid`.
        batch_size: examples a minibatch.
        eval_size: examples that `metrics` looks at; a split that is smaller is taken whole.
    """

    classes: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        table: tables.Table,
        *,
        widths: Sequence[int] = (16,),
        activation: Activation = "relu",
        batch_size: int = 32,
        eval_size: int = 2_000,
    ):
        sizes(batch_size=batch_size, eval_size=eval_size, widths=widths)
        one_of("activation", activation, Activation)
        super().__init__(table[:3], batch_size, eval_size)
        self.classes, self.widths, self.activation = table.classes, tuple(widths), activation

    def network(self, key: PRNGKeyArray, activation: Function | None = None) -> eqx.nn.Sequential:
        """The MLP."""
        sizes = (self.train[0].shape[1], *self.widths, self.classes)
        return mlp(sizes, activation or function_of(self.activation), key=key)

    def measure(self, network: Any, batch: Batch, key: PRNGKeyArray, training: bool) -> dict[str, Float[Array, ""]]:
        """`loss`, and `accuracy` of a classification."""
        del key, training
        features, targets = batch
        outputs = jax.vmap(network)(features)
        if self.classes > 1:
            return classified(outputs, targets)
        return {"loss": jnp.mean(jnp.square(outputs[:, 0].astype(jnp.float32) - targets))}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the loss of a uniform guess, log(classes); squared error by the variance of the targets, 1."""
        return loss / math.log(self.classes) if self.classes > 1 else loss


def table_mlp(
    *,
    table: str = "breast_cancer",
    widths: Sequence[int] = (16,),
    activation: Activation = "relu",
    batch_size: int = 32,
    eval_size: int = 2_000,
) -> Tabular:
    """Prediction from `breast_cancer`, `wine` (both classes) or `diabetes` (a number). Other arguments as for `Tabular`.

    Source: lopt's own; the tables are scikit-learn's.
    """
    return Tabular(
        tables.table(table), widths=widths, activation=activation, batch_size=batch_size, eval_size=eval_size
    )
