"""What `ControlledMuon` is: optax's rules before meta-training, the same whatever the scale of the loss, bounded, and averaged."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, PyTree
from optax import contrib

from lopt.blocks.orthogonal import MINIMAX, orthogonalize
from lopt.errors import InputError
from lopt.evaluate.probes.questions import probe
from lopt.optimizers import ControlledMuon

STEPS, HORIZON, EVERY = 20, 14, 8
RATE, VECTOR_RATE, MOMENTUM, SECOND, AVERAGING = 0.2, 2.0, 0.9, 0.98, 0.8
SHAPES: dict[str, tuple[int, ...]] = {
    "wide": (5, 12),
    "tall": (12, 5),
    "square": (4, 4),
    "outputs_last": (3, 3, 2, 8),
    "outputs_first": (8, 2, 3, 3),
    "one_between": (3, 1, 8),
    "column": (6, 1),
    "bias": (12,),
    "number": (),
    "empty": (0, 3),
}
SIDES = {  # of matrices: the shorter and the longer one
    "wide": (5, 12),
    "tall": (5, 12),
    "square": (4, 4),
    "outputs_last": (8, 18),
    "outputs_first": (8, 18),
    "one_between": (3, 8),
}
MATRICES: Any = {
    name: contrib.MuonDimensionNumbers() if name in ("wide", "tall", "square") else None for name in SHAPES
}
MATRICES["outputs_last"] = contrib.MuonDimensionNumbers((0, 1, 2), 3)
MATRICES["outputs_first"] = contrib.MuonDimensionNumbers((1, 2, 3), 0)
MATRICES["one_between"] = contrib.MuonDimensionNumbers((0, 1), 2)
STRETCHED = ("wide", "one_between")  # to which optax gives the root of the ratio of its sides already


def draw(seed: int, scale: float = 1.0) -> dict[str, Array]:
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {name: scale * jax.random.normal(k, s) for k, (name, s) in zip(keys, SHAPES.items(), strict=True)}


def untrained(**fields: Any) -> ControlledMuon:
    return ControlledMuon(
        learning_rate=RATE,
        vector_rate=VECTOR_RATE,
        momentum_decay=MOMENTUM,
        second_decay=SECOND,
        averaging=AVERAGING,
        **fields,
        key=jax.random.key(0),
    )


def with_control(index: int, bias: float) -> ControlledMuon:
    """The untrained rule with one control at tanh(bias) whatever the network sees."""
    return eqx.tree_at(lambda o: o.readout.bias, untrained(), untrained().readout.bias.at[index].set(bias))


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


def at_rates(rate: float, decay: float, horizon: int | None) -> optax.GradientTransformation:
    """Steps of rate 1 times the rates of the class, from the sizes of the parameters, and decay."""

    def sizes(params: Any) -> dict[str, Array]:
        return {n: jnp.sqrt(jnp.mean(jnp.square(p)) * SIDES.get(n, (1, 1))[0]) for n, p in params.items() if p.size}

    def init(params: Any) -> Any:
        found = sizes(params)
        return jnp.zeros(()), jnp.max(jnp.stack([*found.values()])), found

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        step, largest, held = state
        held = jax.tree.map(partial(jnp.where, (step < EVERY) | (step % EVERY == 0)), sizes(params), held)
        warm = jnp.minimum((step + 1) / 10, 1.0)
        left = 1.0 if horizon is None else 1.35 * (1.0 - 0.99 * jnp.minimum(step / horizon, 1.0))
        now = rate / len(SIDES) * warm * left
        of = {n: now * largest**0.25 * jnp.maximum(s, largest / 5) ** 0.75 for n, s in held.items()}
        for n in of:
            short, long = SIDES.get(n, (1, 1))
            of[n] = of[n] * (1.0 if n in STRETCHED else (long / short) ** 0.5 if n in SIDES else VECTOR_RATE)
        steps = {n: u * of.get(n, 0.0) - now * decay * params[n] for n, u in updates.items()}
        return steps, (step + 1, largest, held)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("control", ["none", "rate", "momentum", "weight_decay"])
@pytest.mark.parametrize("horizon", [None, HORIZON])
def test_is_muon_of_optax_where_the_network_is_silent_or_says_a_constant(control: str, horizon: int | None) -> None:
    """Within schedule-free averaging, at rates by depth and size, told on a schedule, also beyond its end; `column` has a side of 1 and is Adam's."""
    index = {"none": 0, "rate": 0, "momentum": 1, "weight_decay": 2}[control]
    said = 0.0 if control == "none" else 0.3
    rate = RATE * math.exp(2.0 * said) if index == 0 else RATE
    gap = math.exp(2.0 * said) if index == 1 else 1.0
    decay = 0.3 * said if index == 2 else 0.0
    muon = contrib.muon(
        1.0,
        ns_coeffs=MINIMAX,
        beta=1.0 - (1.0 - MOMENTUM) * gap,
        adam_b1=0.0,
        adam_b2=SECOND,
        muon_weight_dimension_numbers=MATRICES,
    )
    # Its learning rate is for the weights of the average alone: they grow with the step.
    tx = contrib.schedule_free(
        optax.chain(muon, at_rates(rate, decay, horizon)), lambda t: 1.0 * t, b1=AVERAGING, weight_lr_power=1.0
    )
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        expected, expected_state = follow_optax(tx)
    optimizer = with_control(index, math.atanh(said))
    params, state = follow(optimizer, horizon)[-1]
    assert_close(params, expected, rtol=1e-4)
    expected = contrib.schedule_free_eval_params(expected_state, expected)
    assert_close(optimizer.eval_params(state, params), expected, rtol=1e-4)


@pytest.mark.parametrize("horizon", [None, HORIZON])
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_moves_as_far_as_the_parameters_are_large(horizon: int | None, factor: float) -> None:
    """Parameters that are all so many times as large move so many times as far for the same gradients."""
    optimizer = trained(3, 0.3)
    expected = follow(optimizer, horizon)[-1][0]
    params = jax.tree.map(lambda p: factor * p, draw(0))
    state = optimizer.init(params, horizon=horizon)
    for seed in range(1, STEPS + 1):
        grads = jax.tree.map(lambda g, p: g + 0.3 * p / factor, draw(seed), params)
        updates, state = update(optimizer, grads, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(jax.tree.map(lambda p: p / factor, params), expected, rtol=1e-3)


@pytest.mark.parametrize(("gains", "depth"), [(jnp.ones(3), 2**0.6), (jnp.full(3, 0.5), 2.0), (jnp.zeros(3), 2.0)])
def test_sees_normalisation_layers_by_their_gains(gains: Array, depth: float) -> None:
    """With ones at the start the two matrices count as a depth of two to the power 0.6."""
    params = {"first": jnp.eye(3), "gains": gains, "second": jnp.eye(3)}
    state = untrained().init(params)
    np.testing.assert_allclose(state.depth, depth, rtol=1e-6)


@pytest.mark.parametrize(
    ("start", "grown", "size"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0.1 * 0.2**0.75),  # all are zero: S is a tenth, and a fifth of it the least size
        ([2.0, -2.0], [2.0, -2.0], 2.0),
        ([2.0, -2.0], [50.0, 50.0], 2.0),  # at most S
        ([2.0, -2.0], [1.0, 1.0], 2.0 * 0.5**0.75),
    ],
)
def test_steps_of_a_vector_go_by_its_size_but_do_not_grow_beyond_the_largest_of_the_start(
    start: list[float], grown: list[float], size: float
) -> None:
    """At the first step, a tenth of the rate, the direction of Adam is the sign of the gradient."""
    optimizer = untrained()
    state = optimizer.init({"v": jnp.asarray(start)})
    _, after = optimizer.update({"v": jnp.asarray([3.0, -0.2])}, state, {"v": jnp.asarray(grown)})
    moved = after.iterate["v"] - state.iterate["v"]
    np.testing.assert_allclose(moved, 0.1 * RATE * VECTOR_RATE * size * np.array([-1.0, 1.0]), rtol=1e-5)


def test_passes_the_probes_that_it_was_changed_for() -> None:
    asked = ("loss_over_1e8", "params_times_1e6", "unscaled_features", "spikes")
    found = probe(ControlledMuon(key=jax.random.key(0)), jax.random.key(0), only=asked)
    assert [p.name for p in found if p.passed] == [p.name for p in found]
    assert len(found) == 4


@pytest.mark.parametrize("horizon", [None, HORIZON])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_does_not_see_the_scale_of_the_loss(horizon: int | None, scale: float) -> None:
    optimizer = trained(3, 0.3)
    assert_close(follow(optimizer, horizon, scale)[-1][0], follow(optimizer, horizon)[-1][0], rtol=1e-4)


@pytest.mark.parametrize("shift", [-1.0, 2.0])
def test_evaluates_the_average_of_its_iterates(shift: float) -> None:
    """It weighs them by the step, also where the network gives each the same other weight."""
    optimizer = with_control(3, shift)
    found = follow(optimizer, None)
    weights = np.arange(1, STEPS + 1) / np.arange(1, STEPS + 1).sum()
    iterates = [state.iterate for _, state in found]
    mean = jax.tree.map(lambda *x: sum(w * z for w, z in zip(weights, x, strict=True)), *iterates)
    params, state = found[-1]
    average = optimizer.eval_params(state, params)
    assert_close(average, mean)
    expected = jax.tree.map(lambda x, z: AVERAGING * x + (1.0 - AVERAGING) * z, average, state.iterate)
    assert_close(params, expected)
    assert not np.allclose(params["wide"], average["wide"], rtol=1e-3)


@pytest.mark.parametrize("horizon", [None, HORIZON])
def test_low_memory_changes_nothing_but_the_state(horizon: int | None) -> None:
    """The average is computed, so the state has a number for each tensor in its place."""
    found = {}
    for low_memory in (False, True):
        optimizer = eqx.tree_at(
            lambda o: o.readout.weight, untrained(low_memory=low_memory), trained(3, 0.3).readout.weight
        )
        params, state = follow(optimizer, horizon)[-1]
        found[low_memory] = params, optimizer.eval_params(state, params), state
    for kept, computed in zip(found[False][:2], found[True][:2], strict=True):
        assert_close(computed, kept, rtol=1e-4)
    assert not np.allclose(found[True][0]["wide"], found[True][1]["wide"], rtol=1e-3)
    sizes = [sum(x.size for x in jax.tree.leaves(found[low_memory][2].average)) for low_memory in (False, True)]
    assert sizes == [sum(math.prod(s) for s in SHAPES.values()), len(SHAPES)]


def test_low_memory_asks_for_float32() -> None:
    with pytest.raises(InputError, match="A parameter is bfloat16; ControlledMuon with low_memory takes float32 alone"):
        untrained(low_memory=True).init({"a": jnp.ones((3, 4), jnp.bfloat16)})


@pytest.mark.parametrize("std", [0.3, 1e6])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_no_iterate_moves_further_than_its_bound(std: float, scale: float) -> None:
    """Whatever the network says: the greatest rate, and Adam's greatest step of a vector, besides what decay takes."""
    optimizer, params = trained(5, std), draw(0)
    rms = {name: float(jnp.sqrt(jnp.mean(jnp.square(p)))) for name, p in params.items() if p.size}
    largest = max(size * SIDES.get(name, (1, 1))[0] ** 0.5 for name, size in rms.items())
    before, held = params, rms
    for step, (now, state) in enumerate(follow(optimizer, 1_000, scale)):
        found = {name: float(jnp.sqrt(jnp.mean(jnp.square(params[name])))) for name in rms}
        held = found if step < EVERY or step % EVERY == 0 else held
        for name in rms:
            short = SIDES.get(name, (1, 1))[0]
            relative = optimizer.learning_rate / len(SIDES) * 1.35 * math.exp(2.0)
            size = max(held[name] * short**0.5, largest / 5)
            unit = 1.3 / short**0.5 if name in SIDES else optimizer.vector_rate / math.sqrt(1.0 - 0.985)
            moved = float(jnp.sqrt(jnp.mean(jnp.square(state.iterate[name] - before[name]))))
            assert np.isfinite(moved)
            most = relative * (largest**0.25 * size**0.75 * unit + optimizer.weight_decay * found[name])
            assert moved <= 1e-5 + most, name
        before, params = state.iterate, now


@pytest.mark.parametrize("shape", [(130, 200), (200, 130), (129, 129)])
def test_long_matrices_are_orthogonalised_in_blocks(shape: tuple[int, int]) -> None:
    """Of equal length along the shorter side: each is what `orthogonalize` makes of it alone."""
    x = jax.random.normal(jax.random.key(0), shape)
    found = untrained()._orthogonal(x)
    short = x if shape[0] <= shape[1] else x.T
    length = -(-len(short) // 3)
    blocks = [orthogonalize(b, (0, 1)) for b in jnp.split(short, [length, 2 * length])]
    expected = jnp.concatenate(blocks)
    np.testing.assert_allclose(found, expected if shape[0] <= shape[1] else expected.T, atol=1e-5)


def test_a_spike_counts_five_times_the_usual_gradient() -> None:
    """Of a matrix: its momentum then hardly differs from one after a gradient of five times the usual size."""
    optimizer, params = untrained(), {"a": jnp.ones((3, 4))}
    grads = draw(1)["wide"][:3, :4]
    usual = grads / jnp.sqrt(jnp.mean(jnp.square(grads)))

    def momentum(last: float) -> Array:
        state = optimizer.init(params)
        for t in range(5):
            _, state = update(optimizer, {"a": usual * (last if t == 4 else 1.0)}, state, params)
        return state.momentum["a"]

    np.testing.assert_allclose(momentum(1e3), momentum(5.0), rtol=1e-4)
    assert not np.allclose(momentum(5.0), momentum(4.0), rtol=0.05)


@pytest.mark.parametrize("every", [1, 3])
def test_the_network_looks_at_the_first_steps_and_then_at_every_so_many(every: int) -> None:
    weight = 0.3 * jax.random.normal(jax.random.key(1), untrained().readout.weight.shape)
    optimizer = eqx.tree_at(lambda o: o.readout.weight, untrained(renew_every=every), weight)
    controls = [state.controls for _, state in follow(optimizer, None)]
    renewed = [t for t in range(1, STEPS) if not np.array_equal(controls[t], controls[t - 1])]
    assert renewed == [t for t in range(1, STEPS) if t < every or t % every == 0]


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
