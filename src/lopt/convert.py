"""Turn meta-parameters of other libraries into lopt optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.checkpoint import CheckpointError
from lopt.errors import InputError
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.optimizers import STAR, MLPOptimizer, SmallFC, create


def from_learned_optimization(kind: str, arrays: Mapping[str, np.ndarray], **fields: Any) -> Optimizer:
    """An optimizer with the meta-parameters of google/learned_optimization.

    Args:
        kind: `small_fc` (its AdafacMLPLOpt), `nominal` (its MLPNomLOpt, our `STAR`) or `mlp` (its MLPLOpt).
        arrays: its meta-parameters, name to array, as `nn/~/w0` and `momentum_decays`.
        **fields: arguments of our constructor; the multipliers are not among the meta-parameters.

    Raises:
        InputError: for an unknown kind.
        CheckpointError: for arrays that are missing, too many, or of another shape.
    """
    if kind not in _KINDS:
        raise InputError(unknown("kind of checkpoint", kind, _KINDS))
    return _KINDS[kind](arrays, fields)


def _adafactor_mlp(name: str) -> Callable[[Mapping[str, np.ndarray], dict[str, Any]], Optimizer]:
    def convert(arrays: Mapping[str, np.ndarray], fields: dict[str, Any]) -> Optimizer:
        optimizer = create(name, **fields)
        assert isinstance(optimizer, SmallFC | STAR)
        depth = len(optimizer.rule.net.weights)
        order = [
            *(f"nn/~/w{i}" for i in range(depth)),
            *(f"nn/~/b{i}" for i in range(depth)),
            "momentum_decays",
            "rms_decays",
            "adafactor_decays",
        ]
        return _fill(optimizer, order, arrays)

    return convert


def _mlp(arrays: Mapping[str, np.ndarray], fields: dict[str, Any]) -> Optimizer:
    optimizer = create("mlp", **fields)
    assert isinstance(optimizer, MLPOptimizer)
    order = [f"mlp/~/linear_{i}/{kind}" for kind in "wb" for i in range(len(optimizer.net.weights))]
    return _fill(optimizer, order, arrays)


def _fill(optimizer: Optimizer, order: list[str], arrays: Mapping[str, np.ndarray]) -> Optimizer:
    """Put named arrays in the place of the leaves, in the order of the leaves."""
    leaves, treedef = jax.tree.flatten(optimizer)
    if set(order) != set(arrays):
        odd = ", ".join(sorted(set(order) ^ set(arrays)))
        raise CheckpointError(
            f"The checkpoint belongs to another architecture: it and {type(optimizer).__name__} differ in {odd}."
        )
    for name, leaf in zip(order, leaves, strict=True):
        if arrays[name].shape != leaf.shape:
            raise CheckpointError(
                f"The checkpoint belongs to another architecture: {name} has shape {list(arrays[name].shape)}, "
                f"{type(optimizer).__name__} expects {list(leaf.shape)}."
            )
    return treedef.unflatten([jnp.asarray(arrays[name], jnp.float32) for name in order])


_KINDS: dict[str, Callable[[Mapping[str, np.ndarray], dict[str, Any]], Optimizer]] = {
    "mlp": _mlp,
    "nominal": _adafactor_mlp("star"),
    "small_fc": _adafactor_mlp("small_fc"),
}
