"""What `ControlledMuon` is: optax's rules before meta-training, the same whatever the scale of the loss, bounded, and averaged."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, PyTree
from optax import contrib

from lopt.blocks.orthogonal import MINIMAX
from lopt.optimizers import ControlledMuon

RATE, STEPS, HORIZON = 0.03, 8, 6
SHAPES: dict[str, tuple[int, ...]] = {
    "wide": (5, 12),
    "tall": (12, 5),
    "square": (4, 4),
    "outputs_last": (3, 3, 2, 8),
    "outputs_first": (8, 2, 3, 3),
    "column": (6, 1),
    "bias": (12,),
    "number": (),
    "empty": (0, 3),
}
MATRICES: Any = {
    name: contrib.MuonDimensionNumbers() if name in ("wide", "tall", "square") else None for name in SHAPES
}
MATRICES["outputs_last"] = contrib.MuonDimensionNumbers((0, 1, 2), 3)
MATRICES["outputs_first"] = contrib.MuonDimensionNumbers(0, (1, 2, 3))


def draw(seed: int, scale: float = 1.0) -> dict[str, Array]:
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {name: scale * jax.random.normal(k, s) for k, (name, s) in zip(keys, SHAPES.items(), strict=True)}


def with_control(index: int, bias: float) -> ControlledMuon:
    """The untrained rule with one control at tanh(bias) whatever the network sees."""
    optimizer = ControlledMuon(learning_rate=RATE, key=jax.random.key(0))
    return eqx.tree_at(lambda o: o.readout.bias, optimizer, optimizer.readout.bias.at[index].set(bias))


def trained(seed: int, std: float) -> ControlledMuon:
    """One whose network does something else for every tensor."""
    optimizer = ControlledMuon(key=jax.random.key(seed))
    weight = std * jax.random.normal(jax.random.key(seed + 1), optimizer.readout.weight.shape)
    return eqx.tree_at(lambda o: o.readout.weight, optimizer, weight)


@jax.jit
def update(optimizer: ControlledMuon, grads: Any, state: Any, params: Any) -> Any:
    return optimizer.update(grads, state, params)


def follow(optimizer: ControlledMuon, horizon: int | None, scale: float = 1.0) -> list[tuple[Any, Any]]:
    """Parameters and state after each of some steps; gradients depend on the parameters."""
    params = draw(0)
    state, found = optimizer.init(params, horizon=horizon), []
    for seed in range(1, STEPS + 1):
        grads = jax.tree.map(lambda g, p: scale * (g + 0.3 * p), draw(seed), params)
        updates, state = update(optimizer, grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append((params, state))
    return found


def follow_optax(tx: optax.GradientTransformation) -> tuple[PyTree[Array], Any]:
    params = draw(0)
    state, step = tx.init(params), jax.jit(tx.update)
    for seed in range(1, STEPS + 1):
        grads = jax.tree.map(lambda g, p: g + 0.3 * p, draw(seed), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a: PyTree[Array], b: PyTree[Array], *, rtol: float = 1e-5) -> None:
    for name in SHAPES:
        np.testing.assert_allclose(np.asarray(a[name]), np.asarray(b[name]), rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("control", ["none", "rate", "momentum", "weight_decay"])
@pytest.mark.parametrize("horizon", [None, HORIZON])
def test_is_muon_of_optax_where_the_network_is_silent_or_says_a_constant(control: str, horizon: int | None) -> None:
    """Untold within schedule-free averaging, told on a linear schedule, also beyond its end; `column` has a side of 1 and is Adam's."""
    index = {"none": 0, "rate": 0, "momentum": 1, "weight_decay": 2}[control]
    bias = {"none": 0.0, "rate": 0.1}.get(control, 0.3)  # a rate below the bound
    said = math.tanh(bias)
    rate = RATE * math.exp(3.0 * said) if index == 0 else RATE
    gap = math.exp(2.0 * said) if index == 1 else 1.0
    decay = 0.1 * said if index == 2 else 0.0
    schedule = rate if horizon is None else optax.linear_schedule(rate, 0.01 * rate, horizon)
    tx = contrib.muon(
        schedule,
        ns_coeffs=MINIMAX,
        beta=1.0 - 0.1 * gap,
        adam_b1=0.0 if horizon is None else 1.0 - 0.1 * gap,
        weight_decay=decay,
        adam_weight_decay=decay,
        muon_weight_dimension_numbers=MATRICES,
    )
    if horizon is None:
        tx = contrib.schedule_free(tx, rate, b1=0.9)
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        expected, expected_state = follow_optax(tx)
    optimizer = with_control(index, bias)
    params, state = follow(optimizer, horizon)[-1]
    assert_close(params, expected)
    if horizon is None:
        expected = contrib.schedule_free_eval_params(expected_state, expected)
    assert_close(optimizer.eval_params(state, params), expected)


@pytest.mark.parametrize("horizon", [None, HORIZON])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_does_not_see_the_scale_of_the_loss(horizon: int | None, scale: float) -> None:
    optimizer = trained(3, 0.3)
    assert_close(follow(optimizer, horizon, scale)[-1][0], follow(optimizer, horizon)[-1][0], rtol=1e-4)


@pytest.mark.parametrize("shift", [-1.0, 2.0])
def test_evaluates_the_average_of_its_iterates(shift: float) -> None:
    """All weigh the same, also where the network gives each the same other weight."""
    optimizer = with_control(4, shift)
    found = follow(optimizer, None)
    mean = jax.tree.map(lambda *x: jnp.mean(jnp.stack(x), 0), *(state.iterate for _, state in found))
    params, state = found[-1]
    average = optimizer.eval_params(state, params)
    assert_close(average, mean)
    assert_close(params, jax.tree.map(lambda x, z: 0.9 * x + 0.1 * z, average, state.iterate))
    assert not np.allclose(params["wide"], average["wide"], rtol=1e-3)


@pytest.mark.parametrize("std", [0.3, 1e6])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_no_step_is_larger_than_its_bound(std: float, scale: float) -> None:
    """Half the size of the tensor, or of a size of 0.2 if it is smaller, besides what decay takes."""
    optimizer, params = trained(5, std), draw(0)
    for (new, _), old in zip(
        follow(optimizer, 1_000, scale), [params, *(p for p, _ in follow(optimizer, 1_000, scale))], strict=False
    ):
        for name in SHAPES:
            if not old[name].size:
                continue
            size = max(float(jnp.sqrt(jnp.mean(jnp.square(old[name])))), 0.2)
            step = np.abs(np.asarray(new[name] - old[name]))
            assert np.isfinite(step).all()
            assert (step <= 1e-5 + 0.5 * size + 0.5 * np.abs(np.asarray(old[name]))).all(), name


def test_the_network_sees_what_it_is_said_to_see() -> None:
    """Its rates differ between tensors, and between a training that goes on and one that turns at each step."""
    optimizer = trained(7, 0.3)
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((3, 4)), "c": jnp.ones(4)}
    grads = draw(1)["wide"][:3, :4]

    def hidden(sign: float) -> Array:
        state = optimizer.init(params)
        for t in range(4):
            given = {"a": grads, "b": grads * sign**t, "c": jnp.ones(4)}
            _, state = update(optimizer, given, state, params)
        return state.hidden

    same, turning = hidden(1.0), hidden(-1.0)
    np.testing.assert_allclose(same[:, 0], same[:, 1], rtol=1e-6)
    assert float(jnp.abs(turning[:, 0] - turning[:, 1]).max()) > 0.05
    assert float(jnp.abs(same[:, 0] - same[:, 2]).max()) > 0.05
