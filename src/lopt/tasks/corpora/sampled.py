"""Thousands of learning problems, each from a number."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from lopt.optimizer import Params
from lopt.task import Split, Task
from lopt.tasks.corpora.sampling import ACTIVATIONS, Config, Recipe, task_recipe
from lopt.tasks.networks.learning import Batch, LearningTask


class Variation(NamedTuple):
    """The sampled part of a task as arrays."""

    activation: Int[Array, "*tasks"]
    init_scale: Float[Array, "*tasks"]
    share: Float[Array, "*tasks"]
    kept: Int[Array, "*tasks classes"]  # filled up by repetition
    kept_count: Int[Array, "*tasks"]
    mapped: Int[Array, "*tasks classes"]
    noise: Float[Array, "*tasks"]
    noise_seed: UInt32[Array, "*tasks"]


class SampledTask(Task):
    r"""Learning problems of one shape that differ in data, labels, activation and start: what `sample_task` returns.

    A minibatch draws its classes uniformly from those kept, then examples of each; `share` of a class's training examples are
    used. The labels are mapped, and on the training split an example keeps its noisy target for ever. `sample` draws one of the
    `variations` uniformly. Initial matrices are those of the family times `init_scale`; vectors are not scaled.

    Args:
        config: the static part.
        variations: the sampled parts, a leading axis.

    Source: in the manner of TaskSet (Metz et al. 2020); the distribution is lopt's own.
    """

    inner: LearningTask
    starts: Int[Array, "splits classes"]  # index of the first example of each class
    counts: Int[Array, "splits classes"]
    variations: Variation
    config: Config = eqx.field(static=True)

    def __init__(self, config: Config, variations: Variation):
        self.config, self.inner, self.variations = config, config.build(), variations
        counts = np.stack([_class_counts(self.inner, config, s) for s in get_args(Split)])
        self.counts = jnp.asarray(counts, jnp.int32)
        self.starts = jnp.asarray(np.cumsum(counts, axis=1) - counts, jnp.int32)

    def sample(self, key: PRNGKeyArray) -> Variation:
        """Draw one of the variations."""
        index = jax.random.randint(key, (), 0, len(self.variations.share))
        return jax.tree.map(lambda x: x[index], self.variations)

    def init(self, problem: Variation, key: PRNGKeyArray) -> Params:
        """The family's start, matrices scaled."""
        params = self.inner.init((), key)
        return jax.tree.map(lambda w: problem.init_scale.astype(w.dtype) * w if w.ndim > 1 else w, params)

    def _draw(self, problem: Variation, key: PRNGKeyArray, split: Split, size: int) -> Batch:
        part = get_args(Split).index(split)
        which, where = jax.random.uniform(key, (2, size))
        kept = problem.kept[jnp.floor(which * problem.kept_count.astype(jnp.float32)).astype(jnp.int32)]
        counts = self.counts[part, kept].astype(jnp.float32)
        used = jnp.maximum(jnp.floor(counts * problem.share.astype(jnp.float32)), 1.0) if split == "train" else counts
        index = self.starts[part, kept] + jnp.floor(where * used).astype(jnp.int32)
        inputs, targets = jax.tree.map(lambda x: x[index], tuple(getattr(self.inner, split)))
        return inputs, self._targets(problem, index, targets, split)

    def _targets(self, problem: Variation, index: Array, targets: Array, split: Split) -> Array:
        """Map labels; disturb targets of the training split."""
        if not self.config.has_labels:
            if jnp.issubdtype(targets.dtype, jnp.integer) or split != "train":
                return targets
            noise = jax.vmap(lambda k: jax.random.normal(k, (), targets.dtype))(_keys(problem, index))
            return targets + problem.noise.astype(targets.dtype) * noise
        labels = problem.mapped[targets.astype(jnp.int32)]
        if split != "train":
            return labels
        luck, other = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(_keys(problem, index)).T
        drawn = problem.kept[jnp.floor(other * problem.kept_count.astype(jnp.float32)).astype(jnp.int32)]
        return jnp.where(luck < problem.noise.astype(jnp.float32), problem.mapped[drawn], labels)

    def _measure(
        self, problem: Variation, params: Params, key: PRNGKeyArray, split: Split, size: int, training: bool
    ) -> dict[str, Float[Array, ""]]:
        draw_key, other_key = jax.random.split(key)
        batch = self._draw(problem, draw_key, split, size)
        functions = [getattr(jax.nn, name) for name in ACTIVATIONS]
        network = self.inner.assemble(params, lambda x: jax.lax.switch(problem.activation, functions, x))
        return self.inner.measure(network, batch, other_key, training)

    def loss(self, problem: Variation, params: Params, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """The family's loss on a minibatch."""
        return self._measure(problem, params, key, split, self.inner.batch_size, split == "train")["loss"]

    def metrics(
        self, problem: Variation, params: Params, key: PRNGKeyArray, split: Split
    ) -> dict[str, Float[Array, ""]]:
        """What the family measures, on `eval_size` examples drawn as minibatches are."""
        return self._measure(problem, params, key, split, self.inner.eval_size, False)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """As the family does."""
        return self.inner.normalize(loss)


def _keys(problem: Variation, index: Array) -> Array:
    """A key for each example of the split, the same at every draw."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(problem.noise_seed)))(index)


def _class_counts(task: LearningTask, config: Config, split: Split) -> np.ndarray:
    targets = np.asarray(getattr(task, split)[1])
    classes = config.classes
    return np.bincount(targets, minlength=classes) if classes > 1 else np.asarray([len(targets)])


def sample_task(seed: int = 0) -> SampledTask:
    """The learning problem of this number: the same seed gives the same task for ever, whatever the version of lopt.

    Over architecture, width, depth, normalisation, batch size, loss and data set (static: `CONFIGS`), and activation, initialisation scale, share of the
    training examples, classes, merged labels and noise (sampled: arrays, so tasks of one `Config` share their compiled programs).
    Families are equally likely, then their configs. Text differs by version of Python.

    Args:
        seed: any number from 0.

    Raises:
        InputError: for a negative seed.
        MissingDataError: if its data are not on this machine.

    Examples:
        >>> import lopt
        >>> lopt.tasks.sample_task(3).config == lopt.tasks.task_recipe(3).config
        True
    """
    return sample_tasks([seed])[task_recipe(seed).config]


def sample_tasks(seeds: Iterable[int]) -> dict[Config, SampledTask]:
    """The tasks of these numbers, those of one static part as one task, whose problems they are: one compiled program each."""
    groups: dict[Config, list[Recipe]] = {}
    for seed in seeds:
        recipe = task_recipe(seed)
        groups.setdefault(recipe.config, []).append(recipe)
    return {config: SampledTask(config, _variations(recipes)) for config, recipes in groups.items()}


def _variations(recipes: list[Recipe]) -> Variation:
    classes = len(recipes[0].mapped)

    def array(values: Any, dtype: Any) -> Array:
        return jnp.asarray(np.asarray(list(values), dtype))

    return Variation(
        array((ACTIVATIONS.index(r.activation) for r in recipes), np.int32),
        array((r.init_scale for r in recipes), np.float32),
        array((r.share for r in recipes), np.float32),
        array(([r.kept[i % len(r.kept)] for i in range(classes)] for r in recipes), np.int32),
        array((len(r.kept) for r in recipes), np.int32),
        array((r.mapped for r in recipes), np.int32),
        array((r.noise for r in recipes), np.float32),
        array((r.noise_seed for r in recipes), np.uint32),
    )
