"""Classify real images with a multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from lopt.errors import InputError
from lopt.optimizer import Params
from lopt.task import Split, Task
from lopt.tasks import data

Activation = Literal["relu", "tanh", "gelu", "silu", "sigmoid"]


class ImageMLP(Task):
    r"""An MLP on an image classification data set, softmax cross-entropy.

    $$f(w; B) = -\frac{1}{|B|} \sum_{(x, y) \in B} \log \mathrm{softmax}(\mathrm{MLP}_w(x))_y$$

    The data are arrays on the device; every loss draws its minibatch $B$ from the key, with replacement, from one split. All problems
    of the task are alike: what differs is the initialisation (equinox's default for `Linear`: uniform within $1/\sqrt{\text{fan in}}$).

    Args:
        images: the data set.
        widths: widths of the hidden layers; none for softmax regression.
        activation: `relu`, `tanh`, `gelu`, `silu` or `sigmoid`.
        batch_size: examples a minibatch.
        eval_size: examples that `metrics` looks at; a split that is smaller is taken whole.
    """

    train: data.Examples
    valid: data.Examples
    test: data.Examples
    classes: int = eqx.field(static=True)
    brightest: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    eval_size: int = eqx.field(static=True)

    def __init__(
        self,
        images: data.Images,
        *,
        widths: Sequence[int] = (32,),
        activation: Activation = "relu",
        batch_size: int = 64,
        eval_size: int = 2_000,
    ):
        for name, sizes in (("batch_size", [batch_size]), ("eval_size", [eval_size]), ("widths", widths)):
            if any(not isinstance(n, int) or n < 1 for n in sizes):
                given = list(sizes) if name == "widths" else sizes[0]
                raise InputError(f"{name} is {given}; it must be of positive whole numbers.")
        if activation not in get_args(Activation):
            raise InputError(f"activation is {activation!r}; it must be one of {', '.join(get_args(Activation))}.")
        self.train, self.valid, self.test = (
            jax.tree.map(jnp.asarray, split) for split in (images.train, images.valid, images.test)
        )
        self.classes, self.brightest = images.classes, images.brightest
        self.widths, self.activation = tuple(widths), activation
        self.batch_size, self.eval_size = batch_size, eval_size

    def _network(self, key: PRNGKeyArray) -> eqx.nn.Sequential:
        sizes = (self.train.images.shape[1], *self.widths, self.classes)
        layers: list[eqx.Module] = []
        for i, k in enumerate(jax.random.split(key, len(sizes) - 1)):
            layers.append(eqx.nn.Linear(sizes[i], sizes[i + 1], key=k))
            if i < len(sizes) - 2:
                layers.append(eqx.nn.Lambda(getattr(jax.nn, self.activation)))
        return eqx.nn.Sequential(layers)  # pyright: ignore[reportArgumentType]

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Params:
        """Draw the network's weights and biases, all at once: a draw each takes much longer to compile."""
        del problem
        shapes, _ = self._skeleton()
        flat, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
        params = unravel(jax.random.uniform(key, flat.shape, flat.dtype, minval=-1.0, maxval=1.0))
        bounds = (1.0 / math.sqrt(fan_in) for fan_in in (self.train.images.shape[1], *self.widths) for _ in range(2))
        leaves, treedef = jax.tree.flatten(params)
        return treedef.unflatten([bound * leaf for bound, leaf in zip(bounds, leaves, strict=True)])

    def _skeleton(self) -> tuple[PyTree, eqx.nn.Sequential]:
        """Shapes of the parameters, and the network without them."""
        network = eqx.filter_eval_shape(self._network, jax.random.key(0))
        return eqx.partition(network, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def _logits(self, params: Params, images: Array) -> Float[Array, "batch classes"]:
        _, static = self._skeleton()
        network: Callable[[Array], Array] = eqx.combine(params, static)
        dtype = jax.tree.leaves(params)[0].dtype
        return jax.vmap(network)(images.astype(dtype) / self.brightest)

    def _draw(self, key: PRNGKeyArray, split: Split, size: int) -> tuple[Array, Int[Array, " size"]]:
        examples: data.Examples = getattr(self, split)
        index = jax.random.randint(key, (size,), 0, len(examples.labels))
        return jnp.asarray(examples.images)[index], jnp.asarray(examples.labels)[index]

    def loss(self, problem: tuple[()], params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """Mean cross-entropy on a minibatch, nats."""
        del problem
        images, labels = self._draw(key, split, self.batch_size)
        return _cross_entropy(self._logits(params, images), labels)

    def metrics(
        self, problem: tuple[()], params: Params, key: PRNGKeyArray, split: Split
    ) -> dict[str, Float[Array, ""]]:
        """`loss` (nats) and `accuracy` on the whole split, or on `eval_size` examples drawn from a larger one."""
        del problem
        examples: data.Examples = getattr(self, split)
        if len(examples.labels) <= self.eval_size:
            images, labels = jnp.asarray(examples.images), jnp.asarray(examples.labels)
        else:
            images, labels = self._draw(key, split, self.eval_size)
        logits = self._logits(params, images)
        correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        return {"loss": _cross_entropy(logits, labels), "accuracy": jnp.mean(correct)}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the loss of a uniform guess, log(classes)."""
        return loss / math.log(self.classes)


def _cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    return jnp.mean(losses)


def digits_mlp(
    *,
    widths: Sequence[int] = (32,),
    activation: Activation = "relu",
    batch_size: int = 64,
    eval_size: int = 2_000,
) -> ImageMLP:
    """MLP on scikit-learn's digits: 64 inputs, 10 classes. Arguments as for `ImageMLP`."""
    return ImageMLP(data.digits(), widths=widths, activation=activation, batch_size=batch_size, eval_size=eval_size)


def fashion_mlp(
    *,
    size: int = 28,
    widths: Sequence[int] = (32,),
    activation: Activation = "relu",
    batch_size: int = 64,
    eval_size: int = 2_000,
) -> ImageMLP:
    """MLP on Fashion-MNIST, `size` pixels a side: 28, 14 or 7. Other arguments as for `ImageMLP`."""
    return ImageMLP(
        data.fashion_mnist(size),
        widths=widths,
        activation=activation,
        batch_size=batch_size,
        eval_size=eval_size,
    )
