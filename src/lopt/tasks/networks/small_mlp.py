"""Small networks that classify points: labels of a random network, sklearn's clusters, two moons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.checks import at_least, one_of, sizes
from lopt.optimizer import Params
from lopt.task import Split, Task
from lopt.tasks.data.points import (
    EXAMPLES,
    Points,
    PointSplits,
    batch_of,
    clusters,
    moons,
    random_network_points,
)
from lopt.tasks.networks.layers import Activation, draw_normal, function_of, mlp, skeleton_of

Penalty = Literal["mean_square", "norm"]


class PointMLP(Task):
    r"""An MLP that classifies points, with a penalty on its parameters.

    $$f(w; B) = \frac{1}{|B|} \sum_{(x, y) \in B} \mathrm{CE}(\mathrm{MLP}_w(x), y) + \lambda\, r(w)$$

    With two classes the cross-entropy is that of the sigmoid of the *first* output alone, as in the release of Wichrowska et al.: the penalty is then all
    that moves the second. $r$ is the mean over the tensors of their squared norm, or the norm of all parameters. Minibatches are drawn with replacement;
    one that is as large as its split is the split.

    Make one with `random_network_mlp`, `clusters_mlp` or `two_moons`.

    Args:
        points: data for all problems; where `None`, each problem draws its own, labelled by a random network.
        inputs: coordinates of a point.
        classes: number of classes.
        widths: widths of the hidden layers; none for logistic or softmax regression.
        activation: `relu`, `tanh`, `gelu`, `silu` or `sigmoid`.
        batch_size: points a minibatch.
        penalty: $r$: `mean_square` or `norm`.
        strength: $\lambda$.
        weight_scale: weights start as $N(0, 1)$ times this over the root of the fan in.
        bias_scale: biases start as $N(0, 1)$ times this; `None`: `weight_scale` over the root of their number, as in the release.
    """

    points: PointSplits | None
    inputs: int = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    penalty: Penalty = eqx.field(static=True)
    strength: float = eqx.field(static=True)
    weight_scale: float = eqx.field(static=True)
    bias_scale: float | None = eqx.field(static=True)
    start: float = eqx.field(static=True)  # about the loss at the start

    def __init__(
        self,
        points: PointSplits | None = None,
        *,
        inputs: int = 8,
        classes: int = 2,
        widths: Sequence[int] = (8, 5),
        activation: Activation = "sigmoid",
        batch_size: int = 10,
        penalty: Penalty = "mean_square",
        strength: float = 1e-3,
        weight_scale: float = 1.2,
        bias_scale: float | None = None,
    ):
        sizes(inputs=inputs, batch_size=batch_size, widths=widths)
        at_least(2, classes=classes)
        one_of("activation", activation, Activation)
        one_of("penalty", penalty, Penalty)
        self.points = None if points is None else jax.tree.map(jnp.asarray, points)
        self.inputs, self.classes, self.widths = inputs, classes, tuple(widths)
        self.activation, self.batch_size = activation, batch_size
        self.penalty, self.strength = penalty, strength
        self.weight_scale, self.bias_scale = weight_scale, bias_scale
        spread = 1.0 if points is None else float(np.mean(np.square(points.train.inputs)))
        self.start = self._expected_start(spread)

    def _expected_start(self, spread: float) -> float:
        """About the loss at the start; `spread` is the mean square of the coordinates of a point.

        Outputs are taken as normal: exactly so without hidden layers. After sigmoids a unit is taken as 1/2, after others as its input.
        """
        last = spread if not self.widths else 0.25 if self.activation == "sigmoid" else 0.5 * spread
        bias = self.weight_scale / math.sqrt(self.classes) if self.bias_scale is None else self.bias_scale
        deviation = math.sqrt(self.weight_scale**2 * last + bias**2)
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        if self.classes == 2:
            entropy = float(weights @ np.logaddexp(0.0, deviation * nodes) / weights.sum())
        else:
            entropy = math.log(self.classes) + 0.5 * deviation**2 * (1.0 - 1.0 / self.classes)
        return entropy

    def _skeleton(self) -> tuple[PyTree, PyTree]:
        sizes = (self.inputs, *self.widths, self.classes)
        return skeleton_of(lambda key: mlp(sizes, function_of(self.activation), key=key))

    def sample(self, key: PRNGKeyArray) -> PointSplits | tuple[()]:
        """Points and the labels that a random network gives them; nothing where all problems share their data."""
        return random_network_points(key, self.inputs) if self.points is None else ()

    def init(self, problem: PointSplits | tuple[()], key: PRNGKeyArray) -> Params:
        """Draw the network."""
        del problem
        return draw_normal(self._skeleton()[0], key, self.weight_scale, self.bias_scale)

    def _outputs(self, params: Params, inputs: Array) -> Float[Array, "batch classes"]:
        network: Callable[[Array], Array] = eqx.combine(params, self._skeleton()[1])
        return jax.vmap(network)(inputs.astype(jax.tree.leaves(params)[0].dtype)).astype(jnp.float32)

    def _split(self, problem: PointSplits | tuple[()], split: Split) -> Points:
        return getattr(problem if self.points is None else self.points, split)

    def _penalised(self, outputs: Array, labels: Array, params: Params) -> Float[Array, ""]:
        if self.classes == 2:
            entropy = optax.sigmoid_binary_cross_entropy(outputs[:, 0], labels.astype(jnp.float32))
        else:
            entropy = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        squares = jnp.stack([jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(params)])
        size = jnp.mean(squares) if self.penalty == "mean_square" else jnp.sqrt(jnp.sum(squares))
        return jnp.mean(entropy) + self.strength * size

    def loss(
        self, problem: PointSplits | tuple[()], params: Params, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """Mean cross-entropy on a minibatch, nats, and the penalty."""
        points = batch_of(self._split(problem, split), key, self.batch_size)
        return self._penalised(self._outputs(params, points.inputs), points.labels, params)

    def metrics(
        self, problem: PointSplits | tuple[()], params: Params, key: PRNGKeyArray, split: Split
    ) -> dict[str, Float[Array, ""]]:
        """`loss` and `accuracy` on the whole split."""
        del key
        points = self._split(problem, split)
        outputs = self._outputs(params, points.inputs)
        guess = (outputs[:, 0] > 0).astype(jnp.int32) if self.classes == 2 else jnp.argmax(outputs, axis=-1)
        correct = (guess == points.labels).astype(jnp.float32)
        return {"loss": self._penalised(outputs, points.labels, params), "accuracy": jnp.mean(correct)}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by about the cross-entropy at the start."""
        return loss / self.start


def random_network_mlp(*, inputs: int = 8, widths: Sequence[int] = (8, 5), batch_size: int = 10) -> PointMLP:
    """A small sigmoid MLP on points labelled by a random ReLU network, each problem with its own.

    Source: Wichrowska et al. 2017, the released data sets.
    """
    return PointMLP(inputs=inputs, widths=widths, batch_size=batch_size)


def clusters_mlp(
    *,
    inputs: int = 10,
    classes: int = 2,
    widths: Sequence[int] = (),
    separation: float = 1.0,
    examples: int = EXAMPLES,
    batch_size: int = 100,
    seed: int = 123,
    weight_scale: float = 1.2,
    bias_scale: float | None = None,
) -> PointMLP:
    """Classify the clusters of sklearn's `make_classification`; with no hidden layer this is logistic or softmax regression.

    All coordinates are informative. 500 examples beyond `examples` validate and test; the source has none, so its very numbers are others.

    Args:
        inputs: coordinates of a point.
        classes: number of classes.
        widths: widths of the hidden sigmoid layers.
        separation: of the classes, `class_sep`.
        examples: to train on.
        batch_size: points a minibatch.
        seed: of the data.
        weight_scale: see `PointMLP`.
        bias_scale: see `PointMLP`.

    Source: Wichrowska et al. 2017, the released data sets.
    """
    return PointMLP(
        clusters(inputs, classes, separation, examples, seed),
        inputs=inputs,
        classes=classes,
        widths=widths,
        batch_size=batch_size,
        weight_scale=weight_scale,
        bias_scale=bias_scale,
    )


def two_moons(
    *, widths: Sequence[int] = (32, 32), activation: Activation = "tanh", batch_size: int = 1024, noise: float = 0.1
) -> PointMLP:
    r"""Tell two interleaved half-circles apart: 1,024 points, logistic loss and $5 \cdot 10^{-3} \lVert w \rVert$; the whole set a step by default.

    Args:
        widths: widths of the hidden layers; those of the paper are not known.
        activation: of the hidden layers; that of the paper is not known.
        batch_size: points a minibatch.
        noise: deviation of the points from the half-circles.

    Source: Maheswaranathan et al. 2020, the released tasks.
    """
    return PointMLP(
        moons(noise),
        inputs=2,
        widths=widths,
        activation=activation,
        batch_size=batch_size,
        penalty="norm",
        strength=5e-3,
        weight_scale=1.0,
        bias_scale=0.0,
    )
