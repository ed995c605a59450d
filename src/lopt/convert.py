"""Turn meta-parameters of other libraries into lopt optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopt.checkpoint import CheckpointError
from lopt.errors import InputError, needs_extra
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.optimizers import STAR, Celo, HierarchicalLSTM, MLPOptimizer, SmallFC, VeLO, create

Arrays = Mapping[str, np.ndarray]
DTYPES = ("float16", "float32", "float64")
ARRAY, SCALAR = 1, 3  # flax's codes for its extensions of msgpack
PIECES = 14  # kinds of features of VeLO's per-parameter network
STATE = ("lstm_init_state/hidden", "lstm_init_state/cell")


def from_learned_optimization(kind: str, arrays: Arrays, **fields: Any) -> Optimizer:
    """An optimizer with the meta-parameters of google/learned_optimization, or of a library that builds on it.

    Args:
        kind: `small_fc` (its AdafacMLPLOpt), `nominal` (its MLPNomLOpt, our `STAR`), `mlp` (its MLPLOpt), `hierarchical_lstm` (its RNNMLPLOpt),
            `velo` (its HyperV2), or `celo` (of amoudgl/celo).
        arrays: its meta-parameters, name to array, as `nn/~/w0` and `momentum_decays`; `read_flax` reads them from a file.
        **fields: arguments of our constructor; the multipliers are not among the meta-parameters. Sizes of LSTM and bank
            are taken from the arrays where they are not given.

    Raises:
        InputError: for an unknown kind.
        CheckpointError: for arrays that are missing, too many, or of another shape.
    """
    if kind not in _KINDS:
        raise InputError(unknown("kind of checkpoint", kind, _KINDS))
    return _KINDS[kind](arrays, fields)


def read_flax(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file written by `flax.serialization.to_bytes`, names joined by `/`.

    The file is data: maps, arrays and numbers are read, and nothing in it is executed.

    Args:
        path: the file.

    Raises:
        CheckpointError: for a file that cannot be read, is damaged or truncated, or holds anything but maps of arrays of floating-point
            numbers.
    """
    with needs_extra("convert"):
        import msgpack

    def extension(code: int, content: bytes) -> np.ndarray:
        if code not in (ARRAY, SCALAR):
            raise CheckpointError(f"{path} holds something that is not an array (extension {code} of msgpack).")
        match msgpack.unpackb(content):
            case [list(shape), str(dtype), bytes(raw)] if all(isinstance(n, int) and n >= 0 for n in shape):
                if dtype not in DTYPES:
                    raise CheckpointError(f"{path} holds an array of type {dtype}; it must be {', '.join(DTYPES)}.")
                if math.prod(shape) * np.dtype(dtype).itemsize == len(raw):
                    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
        raise CheckpointError(f"{path} is damaged: it holds an array whose shape and content disagree.")

    try:
        tree = msgpack.unpackb(Path(path).read_bytes(), ext_hook=extension)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except CheckpointError:
        raise
    except (msgpack.UnpackException, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a flax checkpoint, or is damaged or truncated: {str(error).rstrip('.')}."
        ) from error

    arrays: dict[str, np.ndarray] = {}

    def walk(node: object, name: str) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                walk(child, f"{name}/{key}" if name else str(key))
        elif isinstance(node, np.ndarray) and name:
            arrays[name] = node
        else:
            what = f"{name} is" if name else "it is"
            raise CheckpointError(f"{path} is not a tree of arrays: {what} a {type(node).__name__}.")

    walk(tree, "")
    return arrays


def _adafactor_mlp(name: str) -> Callable[[Arrays, dict[str, Any]], Optimizer]:
    def convert(arrays: Arrays, fields: dict[str, Any]) -> Optimizer:
        optimizer = create(name, **fields)
        assert isinstance(optimizer, SmallFC | STAR)
        layers = _layers("nn/~/w{}", "nn/~/b{}", len(optimizer.rule.net.weights))
        return _fill(optimizer, [*layers, "momentum_decays", "rms_decays", "adafactor_decays"], arrays)

    return convert


def _mlp(arrays: Arrays, fields: dict[str, Any]) -> Optimizer:
    optimizer = create("mlp", **fields)
    assert isinstance(optimizer, MLPOptimizer)
    layer = "mlp/~/linear_{}/"
    return _fill(optimizer, _layers(layer + "w", layer + "b", len(optimizer.net.weights)), arrays)


def _hierarchical_lstm(arrays: Arrays, fields: dict[str, Any]) -> Optimizer:
    optimizer = create("hierarchical_lstm", **_sizes(arrays, lstm_hidden=STATE[0]) | fields)
    assert isinstance(optimizer, HierarchicalLSTM)
    layer = "ffmod_params/mlp/~/linear_{}/"
    order = [
        *_layers(layer + "w", layer + "b", len(optimizer.net.weights)),
        *_linear("rnn_params/rnn/linear"),
        *STATE,
        *_linear("rnn_to_ff_params/rnn_to_ff"),
        *_linear("rnn_to_in_params/rnn_to_in"),
        "initial_from_mlp",
        "initial_from_lstm",
    ]
    return _fill(optimizer, order, arrays)


def _hyper_network(name: str) -> Callable[[Arrays, dict[str, Any]], Optimizer]:
    def convert(arrays: Arrays, fields: dict[str, Any]) -> Optimizer:
        bank = "ff_mod_stack/~/"
        sizes = _sizes(arrays, lstm_hidden="lstm_init_state/hidden", bank="rnn_params/rnn_to_controls/b")
        optimizer = create(name, **sizes | fields)
        assert isinstance(optimizer, VeLO | Celo)
        # The first layer comes in pieces, one for each kind of feature.
        pieces = [f"{bank}w0__{i}" for i in range(PIECES)]
        for piece in pieces:
            if (
                piece not in arrays
                or arrays[piece].ndim != 3
                or arrays[piece].shape[::2] != arrays[pieces[0]].shape[::2]
            ):
                found = f"has shape {list(arrays[piece].shape)}" if piece in arrays else "is missing"
                raise CheckpointError(f"The checkpoint belongs to another architecture: {piece} {found}.")
        whole = {k: v for k, v in arrays.items() if k not in pieces}
        whole[f"{bank}w0"] = np.concatenate([arrays[piece] for piece in pieces], axis=1)
        order = [
            *_layers(bank + "w{}", bank + "b{}", len(optimizer.rule.net.weights)),
            *(n for layer in ("linear", "linear_1", "linear_2") for n in _linear(f"rnn_params/{layer}")),
            *_linear("rnn_params/rnn/linear"),
            *STATE,
            *_linear("rnn_params/rnn_to_controls"),
            *_linear("rnn_params/step_size"),
        ]
        return _fill(optimizer, order, whole)

    return convert


def _layers(weight: str, bias: str, depth: int) -> list[str]:
    return [name.format(i) for name in (weight, bias) for i in range(depth)]


def _linear(name: str) -> tuple[str, str]:
    return f"{name}/w", f"{name}/b"


def _sizes(arrays: Arrays, **names: str) -> dict[str, Any]:
    """Fields that are the last size of an array."""
    return {field: arrays[name].shape[-1] for field, name in names.items() if name in arrays and arrays[name].ndim}


def _fill(optimizer: Optimizer, order: list[str], arrays: Arrays) -> Optimizer:
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


_KINDS: dict[str, Callable[[Arrays, dict[str, Any]], Optimizer]] = {
    "celo": _hyper_network("celo"),
    "hierarchical_lstm": _hierarchical_lstm,
    "mlp": _mlp,
    "nominal": _adafactor_mlp("star"),
    "small_fc": _adafactor_mlp("small_fc"),
    "velo": _hyper_network("velo"),
}
