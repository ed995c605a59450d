"""A meta-training on disk: configuration, metrics, checkpoint, resume."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import equinox as eqx
import jax
import optax
from jaxtyping import PRNGKeyArray

from lopt import checkpoint
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator
from lopt.estimators.per_task import fingerprint, transformations
from lopt.optimizer import Optimizer

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.safetensors"

Tree = TypeVar("Tree")


def configuration(
    optimizer: Optimizer,
    estimators: Sequence[Estimator],
    outer: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
    others: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What identifies a meta-training: it must agree for a run to be continued.

    Arrays are identified by a hash of their numbers: meta-parameters, and the data of the tasks. Optax transformations are closures; each
    is identified by the program that it computes.

    Args:
        optimizer: the initial meta-parameters.
        estimators: with their tasks.
        outer: the outer optimizer, as an optax transformation.
        key: draws everything.
        others: what else must agree, as JSON.

    Returns:
        The configuration as JSON gives it back.
    """
    config = {
        **others,
        "optimizer": eqx.tree_pformat(optimizer, width=10_000),
        "estimators": [eqx.tree_pformat(e, width=10_000) for e in estimators],
        "key": jax.random.key_data(key).tolist(),
        "initial meta-parameters": checkpoint.digest(optimizer),
        "digest of the tasks' data": [checkpoint.digest(e) for e in estimators],
        "digest of the outer optimizer": fingerprint(outer, optimizer),
        "digest of the transformations of PerTask": [
            fingerprint(tx, optimizer) for e in estimators for tx in transformations(e)
        ],
    }
    return json.loads(json.dumps(config))


class RunDirectory:
    """A folder with `config.json`, `metrics.jsonl` (a line a meta-step) and `checkpoint.safetensors`.

    Every file is replaced whole or appended to, in an order that a kill at any moment cannot harm.

    Args:
        folder: made where it is missing.
        config: from `configuration`.

    Raises:
        InputError: for a folder of another configuration, or a damaged one.
        OSError: for a folder that cannot be written, or a disk that is full; it names the file.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG
        if path.exists():
            self._compare(path, config)
        else:
            for name in (CHECKPOINT, METRICS):
                if (folder / name).exists():
                    raise InputError(f"{folder} is damaged: it has {name} and no {CONFIG}. Choose another directory.")
            with _writing(path):
                checkpoint.write_text(path, json.dumps(config, indent=2) + "\n")
        self.lines: list[str] = []
        self.seconds_before, self.inner_steps_before = 0.0, 0  # of earlier sessions of this run

    def _compare(self, path: Path, config: Mapping[str, Any]) -> None:
        try:
            known = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}.") from error
        for name in dict.fromkeys((*config, *known)):
            if known.get(name) != config.get(name):
                raise InputError(
                    f"The run directory {self.folder} belongs to another configuration: its {name} is {known.get(name)}, "
                    f"this one's {config.get(name)}. Choose another directory, or the same configuration to resume."
                )

    def resume(self, like: Tree) -> Tree:
        """The last checkpoint, or `like` where there is none; metrics after it are cut off.

        Args:
            like: the state at the beginning, whose `step` counts the meta-steps.

        Raises:
            InputError: for a damaged checkpoint, or metrics that do not lead up to it.
        """
        path, metrics = self.folder / CHECKPOINT, self.folder / METRICS
        state = checkpoint.from_bytes(path.read_bytes(), like, str(path)) if path.exists() else like
        now: Any = state
        count = int(now.step)
        known = metrics.read_bytes().splitlines(keepends=True)[:count] if metrics.exists() else []
        last: dict[str, Any] = {}
        for number, line in enumerate(known, start=1):
            try:
                last = json.loads(line)
                if last["step"] != number or not line.endswith(b"\n"):
                    raise ValueError
                self.seconds_before, self.inner_steps_before = float(last["seconds"]), int(last["inner_steps"])
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{metrics} is damaged: line {number} is not the metrics of that step.") from error
        if len(known) != count:
            raise InputError(f"{metrics} is damaged: it has {len(known)} lines, the checkpoint is of step {count}.")
        with _writing(metrics):
            checkpoint.write_bytes(metrics, b"".join(known))
        return state

    def log(self, line: Mapping[str, Any]) -> None:
        """Keep a line of metrics for the next `save`; it has `step`, counted from 1, `seconds` and `inner_steps`."""
        known = {k: v if math.isfinite(v) else None for k, v in line.items()}  # JSON has no other numbers
        self.lines.append(json.dumps(known) + "\n")

    def save(self, state: Any) -> None:
        """Write the metrics, then the checkpoint: lines without a checkpoint are cut off by `resume`, a checkpoint without lines would be a gap.

        Raises:
            OSError: where that fails, as on a full disk; the checkpoint before stands.
        """
        path = self.folder / METRICS
        with _writing(path), path.open("a") as file:
            file.writelines(self.lines)
        self.lines.clear()
        path = self.folder / CHECKPOINT
        with _writing(path):
            checkpoint.write_bytes(path, checkpoint.to_bytes(state))


REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"),
}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """The error of a full disk names no file; this one does, and says how the run goes on."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "remove the cause")
        reason = f"{error.strerror}; {remedy}, and the same command goes on from the last checkpoint"
        raise OSError(error.errno, reason, str(path)) from error


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; a number that was not finite is `None`."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


__all__ = ["RunDirectory", "configuration", "metrics_of"]
