"""The state of a rule as PyTorch keeps it: by parameter, under names that a state dict can hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lopt import checkpoint
from lopt.errors import InputError, needs_extra
from lopt.optimizer import Optimizer
from lopt.optimizers import OPTIMIZERS
from lopt.torch._trace import Layout, as_tree
from lopt.zoo import Card

with needs_extra("torch"):
    import torch
    from torch import Tensor

States = dict[Any, dict[str, Tensor]]
PROGRAM = "digest of the program"


def card_of(rule: Optimizer) -> Card:
    """What decides what a rule does, as a card. Its fingerprint tells rules apart; it is of the weights as they would be written now.

    Fields that are no JSON, such as an optax transformation, count by their type. Where there are any, so does the program of the rule.

    Args:
        rule: the optimizer.
    """
    kinds = {kind: name for name, kind in OPTIMIZERS.items()}
    fields = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule) if f.metadata.get("static")}
    others = []

    def kind(field: Any) -> str:
        others.append(field)
        return f"{type(field).__module__}.{type(field).__qualname__}"

    written = json.loads(json.dumps(fields, default=kind))
    return Card(
        optimizer=kinds.get(type(rule), f"{type(rule).__module__}.{type(rule).__qualname__}"),
        fields=written | ({PROGRAM: _program(rule)} if others else {}),
        sha256=hashlib.sha256(checkpoint.to_bytes(rule)).hexdigest(),
    )


def _program(rule: Optimizer) -> str:
    """The digest of what a rule does with a matrix and a vector."""

    def program(rule: Optimizer, grads: Any, params: Any, value: jax.Array) -> Any:
        state = rule.init(params, horizon=100, key=jax.random.key(0))
        return state, rule.update(grads, state, params, value=value, valid_value=value)

    params = as_tree([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3), (3,))])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rule)
    return checkpoint.digest_of_program(program, like, params, params, jax.ShapeDtypeStruct((), jnp.float32))


def adopt(states: States, layout: Layout, params: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Give parameters that have no state theirs, from what a rule starts them with.

    What belongs to all tensors is one tensor, which all parameters share; those that are there already keep theirs.

    Args:
        states: by parameter.
        layout: of the state of `params`.
        params: the parameters.
        leaves: the leaves of their state.
    """
    elder = next((s for s in states.values() if s), None)
    rows = [p for p in params if p.numel()]
    for leaf, value in zip(layout.leaves, leaves, strict=True):
        if leaf.tensor is not None:
            states[params[leaf.tensor]][leaf.name] = value.clone(memory_format=torch.contiguous_format)
        elif leaf.axis is not None:
            for p, row in zip(rows, value.clone().unbind(leaf.axis), strict=True):
                states[p][leaf.name] = row
        else:
            shared = elder[leaf.name] if elder is not None else value.clone()
            for p in params:
                states[p][leaf.name] = shared


def gather(states: States, layout: Layout, params: Sequence[Tensor]) -> list[Tensor]:
    """The leaves of the state of a rule, in memory that `states` shares: what is written into them is the state.

    Args:
        states: by parameter.
        layout: of the state of `params`.
        params: the parameters.

    Raises:
        InputError: for a state with other names or shapes, as another version of lopt may have saved.
    """
    rows, found = [p for p in params if p.numel()], []
    try:
        for leaf in layout.leaves:
            if leaf.tensor is not None:
                found.append(states[params[leaf.tensor]][leaf.name])
            elif leaf.axis is not None:
                pool = torch.stack([states[p][leaf.name] for p in rows], leaf.axis) if rows else torch.zeros(leaf.shape)
                for p, row in zip(rows, pool.unbind(leaf.axis), strict=True):
                    states[p][leaf.name] = row
                found.append(pool)
            else:
                shared = states[params[0]][leaf.name]
                for state in states.values():
                    if leaf.name in state:
                        state[leaf.name] = shared
                found.append(shared)
    except KeyError as error:
        raise InputError(f"The state has no {error}: another version of lopt saved it.") from error
    for leaf, value in zip(layout.leaves, found, strict=True):
        if tuple(value.shape) != leaf.shape:
            raise InputError(
                f"The state's {leaf.name} has shape {tuple(value.shape)}, expected {leaf.shape}: it is of other parameters."
            )
    return found


def scatter(states: States, layout: Layout, params: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """The reverse of `gather`: give parameters the leaves of their state.

    Args:
        states: by parameter.
        layout: of the state of `params`.
        params: the parameters.
        leaves: the leaves, whose memory `states` shares from then on.
    """
    rows = [p for p in params if p.numel()]
    for leaf, value in zip(layout.leaves, leaves, strict=True):
        if leaf.tensor is not None:
            states[params[leaf.tensor]][leaf.name] = value
        elif leaf.axis is not None:
            for p, row in zip(rows, value.unbind(leaf.axis), strict=True):
                states[p][leaf.name] = row
        else:
            for state in states.values():
                if leaf.name in state:
                    state[leaf.name] = value
