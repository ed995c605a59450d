"""Optimizers, one file each (or one family). `create` builds any of them by name."""

from __future__ import annotations

import inspect
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from lopt.names import build
from lopt.optimizer import Optimizer
from lopt.optimizers.celo import Celo
from lopt.optimizers.celo2 import Celo2
from lopt.optimizers.controlled_muon import ControlledMuon
from lopt.optimizers.from_optax import FromOptax
from lopt.optimizers.gru import GRUOptimizer
from lopt.optimizers.hand_designed import SGD, Adam, AdamW, Momentum, RMSProp
from lopt.optimizers.hierarchical_lstm import HierarchicalLSTM
from lopt.optimizers.hierarchical_rnn import HierarchicalRNN
from lopt.optimizers.lstm import LSTMOptimizer
from lopt.optimizers.mlp import MLPOptimizer
from lopt.optimizers.relative_mlp import RelativeMLP
from lopt.optimizers.small_fc import SmallFC
from lopt.optimizers.star import STAR
from lopt.optimizers.velo import VeLO

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "celo": Celo,
    "celo2": Celo2,
    "controlled_muon": ControlledMuon,
    "gru": GRUOptimizer,
    "hierarchical_lstm": HierarchicalLSTM,
    "hierarchical_rnn": HierarchicalRNN,
    "lstm": LSTMOptimizer,
    "mlp": MLPOptimizer,
    "momentum": Momentum,
    "relative_mlp": RelativeMLP,
    "rmsprop": RMSProp,
    "sgd": SGD,
    "small_fc": SmallFC,
    "star": STAR,
    "velo": VeLO,
}


def create(name: str, /, *, key: PRNGKeyArray | None = None, **fields: Any) -> Optimizer:
    """Build an optimizer by the name that `lopt list` prints.

    Args:
        name: a key of `OPTIMIZERS`.
        key: draws the initial meta-parameters where they are random; `jax.random.key(0)` if not given.
        **fields: arguments of its constructor.

    Raises:
        InputError: for an unknown name or field, with the nearest ones.

    Examples:
        >>> import jax, lopt
        >>> lopt.create("small_fc", key=jax.random.key(0), step_mult=1e-2).hidden
        (4, 4)
    """
    if name in OPTIMIZERS and "key" in inspect.signature(OPTIMIZERS[name]).parameters:
        fields["key"] = jax.random.key(0) if key is None else key
    return build("optimizer", OPTIMIZERS, name, **fields)


__all__ = [
    "OPTIMIZERS",
    "SGD",
    "STAR",
    "Adam",
    "AdamW",
    "Celo",
    "Celo2",
    "ControlledMuon",
    "FromOptax",
    "GRUOptimizer",
    "HierarchicalLSTM",
    "HierarchicalRNN",
    "LSTMOptimizer",
    "MLPOptimizer",
    "Momentum",
    "RMSProp",
    "RelativeMLP",
    "SmallFC",
    "VeLO",
    "create",
]
