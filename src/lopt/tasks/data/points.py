"""Points with labels, and minibatches of them."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.errors import needs_extra

Arrays = TypeVar("Arrays", bound=tuple[Array, ...])

TEACHER_WIDTHS = (20,) * 6
EXAMPLES, HELD_OUT = 1000, 500


class Points(NamedTuple):
    """Points with labels."""

    inputs: Float[Array, "examples inputs"]
    labels: Int[Array, " examples"]


class PointSplits(NamedTuple):
    """Disjoint points to train on, to validate and to test."""

    train: Points
    valid: Points
    test: Points


def rows_of(examples: Any, key: PRNGKeyArray, size: int) -> Any:
    """The same `size` random rows of all arrays of a tuple, with replacement."""
    index = jax.random.randint(key, (size,), 0, len(examples[-1]))
    return jax.tree.map(lambda x: jnp.asarray(x)[index], examples)


def batch_of(arrays: Arrays, key: PRNGKeyArray, size: int) -> Arrays:
    """The same random rows of all arrays, with replacement; all rows where `size` is not less than their number."""
    return arrays if size >= len(arrays[0]) else rows_of(arrays, key, size)


def split_points(points: Points, train: int) -> PointSplits:
    """The first `train` points to train on, half of the rest to validate, the other half to test."""
    cut = train + (len(points.labels) - train) // 2
    return PointSplits(
        Points(points.inputs[:train], points.labels[:train]),
        Points(points.inputs[train:cut], points.labels[train:cut]),
        Points(points.inputs[cut:], points.labels[cut:]),
    )


def random_network_points(key: PRNGKeyArray, inputs: int) -> PointSplits:
    r"""Standard normal points, labelled by a random ReLU network: six layers of width 20, weights $N(0, 2/\text{inputs})$, no biases.

    The label is 1 where the first unit of the last layer is active. Some networks give all points one label.

    Args:
        key: draws points and network.
        inputs: coordinates of a point.

    Returns:
        1,000 points to train on, as in the source, and 250 each to validate and to test, which it has not.

    Source: Wichrowska et al. 2017, the released data sets.
    """
    inputs_key, network_key = jax.random.split(key)
    x = jax.random.normal(inputs_key, (EXAMPLES + HELD_OUT, inputs))
    sizes = (inputs, *TEACHER_WIDTHS)
    counts = [m * n for m, n in itertools.pairwise(sizes)]
    numbers = jax.random.normal(network_key, (sum(counts),)) * math.sqrt(2.0 / inputs)
    y, at = x, 0
    for m, n, count in zip(sizes[:-1], sizes[1:], counts, strict=True):
        y = jax.nn.relu(y @ numbers[at : at + count].reshape(m, n))
        at += count
    return split_points(Points(x, (y[:, 0] > 0).astype(jnp.int32)), EXAMPLES)


@functools.lru_cache(maxsize=16)
def clusters(inputs: int, classes: int, separation: float, examples: int, seed: int) -> PointSplits:
    """Clusters of sklearn's `make_classification`, all coordinates informative."""
    with needs_extra("data"):
        from sklearn.datasets import make_classification

    x, y = make_classification(
        n_samples=examples + HELD_OUT,
        n_features=inputs,
        n_informative=inputs,
        n_redundant=0,
        n_classes=classes,
        class_sep=separation,
        random_state=seed,
    )
    return split_points(Points(np.asarray(x, np.float32), np.asarray(y, np.int32)), examples)  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=4)
def moons(noise: float) -> PointSplits:
    """Two interleaved half-circles."""
    with needs_extra("data"):
        from sklearn.datasets import make_moons

    x, y = make_moons(n_samples=1024 + HELD_OUT, noise=noise, random_state=0)
    return split_points(Points(np.asarray(x, np.float32), np.asarray(y, np.int32)), 1024)  # pyright: ignore[reportArgumentType]
