"""Every rule does in PyTorch what it does in JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lopt
from lopt.torch import LearnedOptimizer
from registry import OPTIMIZERS
from torch_models import backward, make

STEPS = 50
TOLERANCE = 1e-4  # relative, of the update of a tensor
# VeLO divides differences of averages of losses by others, which at some steps are rounding: JAX itself goes elsewhere if its inputs are
# rounded otherwise. Where JAX differs from itself by more than TOLERANCE, PyTorch may by this multiple of it.
MULTIPLE = 10
HALF = 0.5  # an update of zero differs by 1
TYPICAL = 1e-3  # the median over the steps, whatever rounding does
ROWS = {row.name: row for row in OPTIMIZERS}
SAVED = lopt.zoo.available()


class Step(NamedTuple):
    """What JAX sees at a step, and its updates."""

    params: list[jax.Array]
    grads: list[jax.Array]
    loss: jax.Array
    updates: list[jax.Array]


def rule(name: str) -> lopt.Optimizer:
    """A saved optimizer, or the rule with weights at which it makes progress."""
    return lopt.load(name) if name in SAVED else ROWS[name].create(seed=1)


@jax.jit
def update(optimizer: lopt.Optimizer, grads: Any, state: Any, params: Any, loss: Any) -> Any:
    return optimizer.update(grads, state, params, value=loss, valid_value=loss)


def start(optimizer: lopt.Optimizer, params: Any) -> Any:
    return optimizer.init(params, horizon=STEPS, key=jax.random.key(0))


def in_jax(optimizer: lopt.Optimizer, network: str, steps: int) -> list[Step]:
    """A training by JAX, with gradients from PyTorch."""
    model = make(network, dtype=torch.float64)
    params = [jnp.asarray(p.detach().numpy(), jnp.float32) for p in model.parameters()]
    state, found = start(optimizer, params), []
    for step in range(steps):
        with torch.no_grad():
            for p, x in zip(model.parameters(), params, strict=True):
                p.copy_(torch.from_numpy(np.array(x)))
        loss = jnp.asarray(backward(network, model, step).float().numpy())
        grads = [jnp.asarray(p.grad.numpy(), jnp.float32) for p in model.parameters()]  # pyright: ignore[reportOptionalMemberAccess]
        updates, state = update(optimizer, grads, state, params, loss)
        found.append(Step(params, grads, loss, updates))
        params = jax.tree.map(jnp.add, params, updates)
    return found


def difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest relative difference of the update of a tensor, in the Euclidean norm."""
    pairs = [(np.asarray(u, np.float64), np.asarray(v, np.float64)) for u, v in zip(found, expected, strict=True)]
    return max(float(np.linalg.norm(u - v) / max(np.linalg.norm(v), 1e-30)) for u, v in pairs)


def in_torch(optimizer: lopt.Optimizer, training: Sequence[Step], backend: Any) -> list[float]:
    """How far the updates of PyTorch are from those of JAX at each step of a training by JAX.

    The parameters are float64, where an update is added without rounding and can be read off.
    """
    tensors = [torch.nn.Parameter(torch.from_numpy(np.array(x)).double()) for x in training[0].params]
    ported, found = LearnedOptimizer(tensors, optimizer, horizon=STEPS, backend=backend), []
    for params, grads, loss, updates in training:
        before = [np.asarray(x, np.float64) for x in params]
        for p, x, g in zip(tensors, before, grads, strict=True):
            p.data, p.grad = torch.from_numpy(x.copy()), torch.from_numpy(np.array(g)).double()
        seen = torch.tensor(float(loss))
        ported.step(loss=seen, valid_loss=seen)
        found.append(difference([p.detach().numpy() - x for p, x in zip(tensors, before, strict=True)], updates))
    return found


def of_rounding(optimizer: lopt.Optimizer, training: Sequence[Step], seed: int) -> list[float]:
    """How far the updates of JAX are from its own, if all that it sees and keeps is rounded up or down at random."""
    generator, found = np.random.default_rng(seed), []

    def rounded(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        exact, up = np.asarray(x), generator.random(x.shape) < 0.5
        near = np.nextafter(exact, np.where(up, np.float32(np.inf), np.float32(-np.inf)))
        return jnp.asarray(np.where(exact == 0, exact, near))

    state = start(optimizer, training[0].params)
    for params, grads, loss, updates in training:
        seen = jax.tree.map(rounded, (grads, state, params, loss))
        own, state = update(optimizer, *seen)
        found.append(difference(own, updates))
    return found


@pytest.mark.parametrize(
    "network", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("conv", "transformer"))]
)
@pytest.mark.parametrize("name", [*SAVED, *ROWS])
def test_updates_are_those_of_jax(name: str, network: str, record_property: Any) -> None:
    optimizer = rule(name)
    training = in_jax(optimizer, network, STEPS)
    found, allowed = np.array(in_torch(optimizer, training, "torch")), np.full(STEPS, TOLERANCE)
    record_property("worst", f"{max(found):.1e}, {np.median(found):.1e}")
    if max(found) >= TOLERANCE:
        own = np.max([of_rounding(optimizer, training, seed) for seed in range(3)], 0)
        record_property("rounding", f"{max(own):.1e}, {np.median(own):.1e}")
        allowed = np.clip(MULTIPLE * np.maximum.accumulate(own), TOLERANCE, HALF)
    assert (found < allowed).all(), (found / allowed).round(2)
    assert np.median(found) < TYPICAL


@pytest.mark.parametrize(
    ("name", "network"),
    [
        *(pytest.param(name, "mlp", marks=pytest.mark.slow) for name in (*SAVED, *ROWS)),
        # Equal tensors, which go over as stacks.
        *((name, "equal") for name in ("star", "relative_mlp", "velo", "controlled_muon")),
    ],
)
def test_the_bridge_hands_over_what_jax_computes(name: str, network: str) -> None:
    optimizer = rule(name)
    training = in_jax(optimizer, network, 5)
    own = max(of_rounding(optimizer, training, seed=0))
    assert max(in_torch(optimizer, training, "jax")) < max(TOLERANCE, MULTIPLE * own)
