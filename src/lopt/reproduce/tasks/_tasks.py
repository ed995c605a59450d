"""The tasks of the claims: members of the corpus `taskset`, and more drawn like them, of six small programs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from lopt.errors import InputError
from lopt.names import unknown
from lopt.tasks.corpora.corpus import TEST_SEEDS, TRAIN_SEEDS
from lopt.tasks.corpora.sampled import SampledTask, Variation, sample_tasks
from lopt.tasks.corpora.sampling import CONFIGS, Config, task_config


def _config(family: str, dataset: str, widths: tuple[int, ...]) -> Config:
    for config in CONFIGS:
        if config[:2] == (family, dataset) and dict(config.fields).get("widths") == widths:
            return config
    raise LookupError(f"The sampled tasks have no {family} of widths {widths} on {dataset}.")


# Tasks of one program differ in scale of the start, share of the examples, classes, labels and noise, which are arrays.
PROGRAMS: dict[str, Config] = {
    "softmax, digits": _config("softmax", "digits", ()),
    "softmax, breast cancer": _config("tabular", "breast_cancer", ()),
    "MLP, digits": _config("mlp", "digits", (32,)),
    "MLP, breast cancer": _config("tabular", "breast_cancer", (32, 32)),
    "MLP, wine": _config("tabular", "wine", (32, 32)),
    "linear autoencoder, digits": _config("autoencoder", "digits", ()),
}
LARGEST = 1000  # tasks of the largest subset
BEYOND = (
    10_000  # seeds of more tasks for meta-training; those between it and the corpus's are kept for the held-out set
)


class Pool(SampledTask):
    """Sampled tasks of one program, of which the first `count` are drawn. Rows beyond are repetitions: pools of all sizes share compiled programs."""

    count: Int[Array, ""]

    def __init__(self, config: Config, variations: Variation, *, rows: int = LARGEST):
        count = len(variations.share)
        index = np.resize(np.arange(count), max(rows, count))
        super().__init__(config, jax.tree.map(lambda x: x[index], variations))
        self.count = jnp.asarray(count, jnp.int32)

    def sample(self, key: PRNGKeyArray) -> Variation:
        """Draw one of the tasks."""
        index = jax.random.randint(key, (), 0, self.count)
        return jax.tree.map(lambda x: x[index], self.variations)

    def only(self, index: Int[Array, ""]) -> Pool:
        """The pool of one of its tasks."""
        one = jax.tree.map(lambda x: x[index][None], self.variations)
        return eqx.tree_at(lambda p: (p.variations, p.count), self, (one, jnp.ones((), jnp.int32)))


def check_programs(programs: Sequence[str]) -> None:
    """Refuse the name of no program, and none.

    Raises:
        InputError: for such.
    """
    if not programs:
        raise InputError(f"programs is empty; name at least one of {'; '.join(PROGRAMS)}.")
    for name in programs:
        if name not in PROGRAMS:
            raise InputError(unknown("program", name, PROGRAMS))


def subset(size: int, seed: int, programs: Sequence[str]) -> tuple[int, ...]:
    """Tasks for a meta-training, as seeds of `sample_task`: the first of a random order, so that subsets of one seed are nested.

    Args:
        size: how many.
        seed: draws the order.
        programs: of `PROGRAMS`.

    Raises:
        InputError: for a size that is not from 1 to `LARGEST`, or an unknown program.
    """
    check_programs(programs)
    if not 1 <= size <= LARGEST:
        raise InputError(f"A subset of {size} tasks was asked for; it must have 1 to {LARGEST:,}.")
    pool = _first(LARGEST, tuple(programs), False)
    return tuple(np.random.default_rng(seed).permutation(pool)[:size].tolist())


def held_out(count: int, programs: Sequence[str]) -> tuple[int, ...]:
    """The tasks on which all are judged: the first in the corpus's split for testing and, where it has too few, of the seeds after it.

    Args:
        count: how many.
        programs: of `PROGRAMS`.
    """
    check_programs(programs)
    return _first(count, tuple(programs), True)


@lru_cache(maxsize=16)
def _first(count: int, programs: tuple[str, ...], testing: bool) -> tuple[int, ...]:
    wanted = {PROGRAMS[name] for name in programs}
    seeds: Iterator[int] = (
        iter(range(TEST_SEEDS.start, BEYOND)) if testing else itertools.chain(TRAIN_SEEDS, itertools.count(BEYOND))
    )
    found = tuple(itertools.islice((s for s in seeds if task_config(s) in wanted), count))
    if len(found) < count:
        raise InputError(f"{count} held-out tasks were asked for; of these programs there are {len(found)}.")
    return found


def by_program(seeds: Sequence[int], *, rows: int = LARGEST) -> Mapping[str, Pool]:
    """The tasks grouped by program, in the order of `PROGRAMS`: one compiled program each.

    Args:
        seeds: of tasks.
        rows: of a pool's arrays.
    """
    groups = {name: [s for s in seeds if task_config(s) == config] for name, config in PROGRAMS.items()}
    return {
        name: Pool(PROGRAMS[name], sample_tasks(own)[PROGRAMS[name]].variations, rows=rows)
        for name, own in groups.items()
        if own
    }


__all__ = ["BEYOND", "LARGEST", "PROGRAMS", "Pool", "by_program", "check_programs", "held_out", "subset"]
