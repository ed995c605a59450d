"""What identifies a run, and what a damaged one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt import checkpoint
from lopt.checkpoint import CheckpointError
from lopt.errors import InputError
from lopt.estimators import ESSingle
from lopt.meta_train import MetaState, meta_train
from lopt.optimizers import SGD, Adam
from lopt.run_directory import CHECKPOINT, CONFIG, METRICS, configuration

KEY = jax.random.key(0)


def run(folder: Path, covariance: float = 0.0, outer: Any = None) -> MetaState:
    """Two meta-steps."""
    estimator = ESSingle(lopt.tasks.NoisyQuadratic(covariance=covariance), pairs=2, truncation=5, horizon=20)
    outer = optax.sgd(1e-2) if outer is None else outer
    return meta_train(SGD(), estimator, outer, steps=2, key=KEY, run_dir=folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MetaState]:
    folder = tmp_path_factory.mktemp("done") / "run"
    return folder, run(folder)


@pytest.fixture
def copy(done: tuple[Path, MetaState], tmp_path: Path) -> Path:
    for path in done[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_the_same_run_is_continued(copy: Path, done: tuple[Path, MetaState]) -> None:
    """Its transformation is built anew; it is identified by what it computes."""
    assert checkpoint.digest(run(copy)) == checkpoint.digest(done[1])


def test_other_data_of_one_shape_are_refused(copy: Path) -> None:
    with pytest.raises(InputError, match=r"its digest of the tasks' data is .*, this one's"):
        run(copy, covariance=9.0)


def test_another_outer_optimizer_of_one_shape_is_refused(copy: Path) -> None:
    with pytest.raises(InputError, match=r"its digest of the outer optimizer is .*, this one's"):
        run(copy, outer=optax.sgd(1e-1))


def test_a_lopt_outer_optimizer_is_identified_by_its_weights() -> None:
    def found(outer: Any) -> dict[str, Any]:
        return configuration(SGD(), (), outer.to_optax(horizon=3), key=KEY)

    weights = lopt.create("small_fc", key=KEY)
    nudged = jax.tree.map(lambda x: jnp.nextafter(x, jnp.inf), weights)
    assert found(weights) == found(lopt.create("small_fc", key=KEY))
    different = [found(o)["digest of the outer optimizer"] for o in (weights, nudged, Adam(), Adam(learning_rate=0.5))]
    assert len(set(different)) == 4


def test_schedules_and_arrays_of_a_transformation_count() -> None:
    def digest(outer: optax.GradientTransformation) -> str:
        return configuration(SGD(), (), outer, key=KEY)["digest of the outer optimizer"]

    def cosine(steps: int) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    assert digest(cosine(100)) == digest(cosine(100)) != digest(cosine(101))


# --- Damage. ---


def test_every_flipped_bit_of_a_checkpoint_is_refused(done: tuple[Path, MetaState]) -> None:
    """The last bits of a byte in every place, one at a time; the file itself is good."""
    content = (done[0] / CHECKPOINT).read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    checkpoint.from_bytes(content, done[1], "here")
    for place in range(head, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        with pytest.raises(CheckpointError, match=r"^here is damaged"):
            checkpoint.from_bytes(bytes(damaged), done[1], "here")


def test_every_bit_of_a_small_tree_counts() -> None:
    tree = {"w": jnp.arange(8.0), "n": jnp.asarray(3), "none": jnp.zeros((0, 2)), "key": KEY}
    content = checkpoint.to_bytes(tree)
    head = 8 + int.from_bytes(content[:8], "little")
    for bit in range(8 * head, 8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CheckpointError, match=r"^x is damaged"):
            checkpoint.from_bytes(bytes(damaged), tree, "x")
    assert checkpoint.digest(checkpoint.from_bytes(content, tree, "x")) == checkpoint.digest(tree)


def test_leaves_of_one_name_are_refused() -> None:
    tree = {"a": {"b": jnp.zeros(2)}, "a.b": jnp.ones(2)}
    for fn in (checkpoint.names, checkpoint.to_bytes, checkpoint.digest):
        with pytest.raises(InputError, match=r"^Two leaves of the tree are called 'a\.b'; rename one of them\.$"):
            fn(tree)


def test_a_digest_sees_names_shapes_dtypes_and_numbers() -> None:
    trees = [
        {"a": np.zeros(4, np.float32)},
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)},
        {"a": -np.zeros(4, np.float32)},
    ]
    assert len({checkpoint.digest(tree) for tree in trees}) == len(trees)


@pytest.mark.parametrize("name", [METRICS, CHECKPOINT])
def test_a_run_without_its_configuration_is_refused(copy: Path, name: str) -> None:
    for other in (CONFIG, {METRICS: CHECKPOINT, CHECKPOINT: METRICS}[name]):
        (copy / other).unlink()
    with pytest.raises(InputError, match=rf"is damaged: it has {name} and no {CONFIG}\. Choose another directory\.$"):
        run(copy)


@pytest.mark.parametrize("name", [CONFIG, METRICS, CHECKPOINT])
def test_damage_is_one_sentence_or_changes_nothing(copy: Path, done: tuple[Path, MetaState], name: str) -> None:
    """Never another exception, and never another result."""
    content, rng = (copy / name).read_bytes(), np.random.default_rng(0)
    said: list[str] = []
    damages = [b"\xff\xfe" + content, content[: len(content) // 2], b"", content + b"\xff"]
    for place in rng.integers(len(content), size=16):
        damages.append(content[:place] + bytes([content[place] ^ (1 << rng.integers(8))]) + content[place + 1 :])
    for damaged in damages:
        for path in done[0].iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        (copy / name).write_bytes(damaged)
        try:
            found = checkpoint.digest(run(copy))
        except InputError as error:
            said.append(str(error))
        else:
            assert found == checkpoint.digest(done[1])
    assert all("\n" not in text and str(copy) in text for text in said)
    assert len(said) > len(damages) // 3


def test_every_line_of_metrics_is_checked(copy: Path) -> None:
    lines = (copy / METRICS).read_bytes().splitlines(keepends=True)
    for bad in ([b"\xff" + lines[0], lines[1]], [lines[1], lines[0]], [lines[0], lines[0]], [b"{}\n", lines[1]]):
        (copy / METRICS).write_bytes(b"".join(bad))
        with pytest.raises(
            InputError, match=r"metrics\.jsonl is damaged: line [12] is not the metrics of that step\.$"
        ):
            run(copy)
