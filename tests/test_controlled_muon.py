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

import lopt
from lopt.blocks.orthogonal import MINIMAX, orthogonalize
from lopt.errors import InputError
from lopt.evaluate.probes.questions import probe
from lopt.optimizers import ControlledMuon
from lopt.tasks.data.images import images

STEPS, HORIZON, LONG, EVERY = 20, 14, 600, 8
RATE, VECTOR_RATE, MOMENTUM, SECOND, AVERAGING, DECAY = 0.2, 2.0, 0.9, 0.98, 0.8, 0.05
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


def begin() -> dict[str, Array]:
    """One matrix is so large that its scale matters, and the geometric mean of all."""
    params = draw(0)
    return {**params, "wide": 20.0 * params["wide"]}


def untrained(*, weight_decay: float = DECAY, **fields: Any) -> ControlledMuon:
    return ControlledMuon(
        learning_rate=RATE,
        vector_rate=VECTOR_RATE,
        momentum_decay=MOMENTUM,
        second_decay=SECOND,
        averaging=AVERAGING,
        weight_decay=weight_decay,
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
    params = begin()
    state, found = optimizer.init(params, horizon=horizon), []
    for seed in range(1, STEPS + 1):
        grads = jax.tree.map(lambda g, p: scale * (g + 0.3 * p), draw(seed), params)
        updates, state = update(optimizer, grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append((params, state))
    return found


def follow_optax(tx: optax.GradientTransformation) -> tuple[PyTree[Array], Any]:
    params = begin()
    state, step = tx.init(params), jax.jit(tx.update)
    for seed in range(1, STEPS + 1):
        grads = jax.tree.map(lambda g, p: g + 0.3 * p, draw(seed), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a: PyTree[Array], b: PyTree[Array], *, rtol: float = 1e-5) -> None:
    for name in SHAPES:
        np.testing.assert_allclose(np.asarray(a[name]), np.asarray(b[name]), rtol=rtol, atol=rtol, err_msg=name)


def units(params: dict[str, Array]) -> dict[str, float]:
    """Of the steps of parameters that have matrices: Glorot's size of each, times what the scale at the start makes of it."""
    glorot = {n: (2.0 * short / (short + long)) ** 0.5 for n, (short, long) in SIDES.items()}
    scales = {n: float(jnp.sqrt(jnp.mean(jnp.square(params[n]))) * SIDES[n][0] ** 0.5) / glorot[n] for n in SIDES}
    mean = math.exp(np.mean(np.log([*scales.values()])))
    least = min(4.0 * mean, 1.0)
    return {n: glorot.get(n, VECTOR_RATE) * max(scales.get(n, 0.0) / 4, mean / 4, 1.0) * least for n in params}


def at_rates(rate: float, decay: float, horizon: int | None) -> optax.GradientTransformation:
    """Steps of rate 1 times the rates of the class, and decay."""

    def init(params: Any) -> Any:
        rates = units(params)
        for name, (short, long) in SIDES.items():
            rates[name] *= 1.0 if name in STRETCHED else (long / short) ** 0.5
        return jnp.zeros(()), rates

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        step, rates = state
        warm = jnp.minimum((step + 1) / 10, 1.0)
        left = 1.0 if horizon is None else 1.25 * (1.0 - 0.7 * jnp.minimum(step / horizon, 1.0))
        length = jnp.minimum((300.0 / (horizon or step + 1.0)) ** 0.25, 1.4)
        now = rate / len(SIDES) * warm * left * length
        steps = {n: now * (rates[n] * u - decay * params[n]) for n, u in updates.items()}
        return steps, (step + 1, rates)

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("control", ["none", "rate", "momentum", "weight_decay"])
@pytest.mark.parametrize("horizon", [None, HORIZON, LONG])
def test_is_muon_of_optax_where_the_network_is_silent_or_says_a_constant(control: str, horizon: int | None) -> None:
    """Within schedule-free averaging, at rates by depth, size and length, told on a schedule, also beyond its end; `column` has a side of 1 and is Adam's."""
    index = {"none": 0, "rate": 0, "momentum": 1, "weight_decay": 2}[control]
    said = 0.0 if control == "none" else 0.3
    rate = RATE * math.exp(2.0 * said) if index == 0 else RATE
    gap = math.exp(2.0 * said) if index == 1 else 1.0
    decay = DECAY * math.exp(2.0 * said) if index == 2 else DECAY
    muon = contrib.muon(
        1.0,
        ns_coeffs=MINIMAX,
        beta=1.0 - (1.0 - MOMENTUM) * gap,
        adam_b1=0.0,
        adam_b2=SECOND,
        muon_weight_dimension_numbers=MATRICES,
    )
    # Its learning rate is for the weights of the average alone: they grow with the step, told with its square.
    tx = contrib.schedule_free(
        optax.chain(muon, at_rates(rate, decay, horizon)),
        lambda t: 1.0 * t,
        b1=AVERAGING,
        weight_lr_power=1.0 if horizon is None else 2.0,
    )
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        expected, expected_state = follow_optax(tx)
    optimizer = with_control(index, math.atanh(said))
    params, state = follow(optimizer, horizon)[-1]
    assert_close(params, expected, rtol=1e-4)
    expected = contrib.schedule_free_eval_params(expected_state, expected)
    assert_close(optimizer.eval_params(state, params), expected, rtol=1e-4)


@pytest.mark.parametrize(("scale", "factor", "further"), [(1e-3, 0.1, 0.1), (1e3, 10.0, 10.0), (0.3, 2.0, 1.0)])
def test_moves_as_far_as_the_parameters_are_unusually_large(scale: float, factor: float, further: float) -> None:
    """Parameters of an unusual scale that are all so many times as large move so many times as far for the same gradients."""
    params = {n: scale * p for n, p in draw(0).items() if n in SIDES or n == "bias"}
    grads = draw(1)
    moved = {}
    for by in (1.0, factor):
        optimizer, start = untrained(weight_decay=0.0), {n: by * p for n, p in params.items()}
        _, state = update(optimizer, {n: grads[n] for n in params}, optimizer.init(start), start)
        moved[by] = {n: state.iterate[n] - start[n] for n in params}
    for n in params:
        np.testing.assert_allclose(moved[factor][n], further * moved[1.0][n], rtol=1e-2, atol=1e-4 * factor * scale)


@pytest.mark.parametrize(("gains", "depth"), [(jnp.ones(3), 2**0.6), (jnp.full(3, 0.5), 2.0), (jnp.zeros(3), 2.0)])
def test_sees_normalisation_layers_by_their_gains(gains: Array, depth: float) -> None:
    """With ones at the start the two matrices count as a depth of two to the power 0.6."""
    params = {"first": jnp.eye(3), "gains": gains, "second": jnp.eye(3)}
    state = untrained().init(params)
    np.testing.assert_allclose(state.depth, depth, rtol=1e-6)


@pytest.mark.parametrize(
    ("vector", "matrix", "share"),
    [
        (0.0, 0.0, 0.16),
        (2.0, 0.0, 0.16),
        (0.0, None, 0.16),
        (0.0, 1.0, 1.0),
        (2.0, None, 1.0),
        (2.0, 0.01, 4 * 0.01 * 2**0.5 / (4.0 / 5.0) ** 0.5),
        (0.01, None, 0.04),
    ],
)
def test_decays_less_where_parameters_begin_small(vector: float, matrix: float | None, share: float) -> None:
    """The matrices, where there are some. With gradients of zero in the step, and some before it, the decay alone acts."""
    optimizer, params = untrained(), {"v": jnp.full(2, vector)}
    params |= {} if matrix is None else {"m": jnp.full((2, 3), matrix)}
    state = optimizer.init(params)
    state = state._replace(second=jax.tree.map(jnp.ones_like, state.second))
    grown = jax.tree.map(lambda p: jnp.full(p.shape, 5.0), params)
    _, after = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, grown)
    rate = 0.14 * RATE / (1.0 if matrix is None else 2.0)
    for name in params:
        np.testing.assert_allclose(after.iterate[name] - state.iterate[name], -share * rate * DECAY * 5.0, rtol=1e-4)


@pytest.mark.parametrize(("matrices", "depth"), [(0, 1.0), (1, 2.0), (2, 2.0), (3, 3.0)])
def test_one_matrix_alone_counts_as_two(matrices: int, depth: float) -> None:
    params = {"v": jnp.zeros(3), "row": jnp.ones((1, 3))} | {f"m{i}": jnp.eye(3) for i in range(matrices)}
    assert float(untrained().init(params).depth) == depth


@pytest.mark.parametrize(
    ("vector", "matrix", "unit"),
    [
        (0.0, 0.0, 0.16),  # all are zero: the scale is 0.04, and below a quarter four times it counts
        (9.0, 0.5, 1.0),  # that of a matrix alone counts
        (9.0, 8.0, 8.0 * 2**0.5 / (4.0 / 5.0) ** 0.5 / 4.0),  # beyond four a fourth of it
        (9.0, None, 9.0 / 4.0),
        (0.1, None, 0.4),
    ],
)
def test_steps_go_by_the_scale_of_the_start(vector: float, matrix: float | None, unit: float) -> None:
    """At the first step, a tenth of 1.4 times the rate, the direction of a vector is the sign of the gradient. A matrix beside it halves the rate."""
    optimizer, params = untrained(), {"v": jnp.full(2, vector)}
    params |= {} if matrix is None else {"m": jnp.full((2, 3), matrix)}
    rate = 0.14 * RATE / (1.0 if matrix is None else 2.0)
    state = optimizer.init(params)
    grown = jax.tree.map(lambda p: 50.0 * p, params)  # which no step may see
    grads = {"v": jnp.asarray([3.0, -0.2]), "m": jnp.ones((2, 3))}
    _, after = optimizer.update({n: grads[n] for n in params}, state, grown)
    share = min(4 * vector, 1.0) if matrix is None else 1.0  # what begins small decays less; zeros do not decay at all
    moved = after.iterate["v"] - state.iterate["v"] + rate * share * DECAY * grown["v"]
    np.testing.assert_allclose(moved, rate * VECTOR_RATE * unit * np.array([-1.0, 1.0]), rtol=1e-4)


@pytest.mark.slow
def test_general_2_passes_all_probes() -> None:
    found = probe(lopt.load("general-2"), jax.random.key(0))
    assert [p.name for p in found if not p.passed] == []
    assert len(found) == 27


def test_a_linear_model_grows_from_zeros() -> None:
    """Softmax regression on digits; with the decay of other starts the loss is 0.4 here."""
    examples = images("digits").train
    x, y = jnp.asarray(np.asarray(examples.images) / 16.0, jnp.float32), jnp.asarray(examples.labels)

    def loss(params: dict[str, Array]) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(x @ params["w"], y).mean()

    optimizer, params = ControlledMuon(key=jax.random.key(0)), {"w": jnp.zeros((64, 10))}

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, length=600)
    assert 0.0 < loss(optimizer.eval_params(state, params)) < 0.15


def test_passes_the_probes_that_it_was_changed_for() -> None:
    asked = ("loss_over_1e8", "params_times_1e6", "zero_gradients", "unscaled_features", "spikes")
    found = probe(ControlledMuon(key=jax.random.key(0)), jax.random.key(0), only=asked)
    assert [p.name for p in found if p.passed] == [p.name for p in found]
    assert len(found) == 5


def test_a_scale_counts_by_its_logarithm_if_it_is_no_thousandth_of_the_largest() -> None:
    """The sizes of Glorot's initialisation are 1, of square matrices; each but the last is as large as that, times a number."""
    eye = jnp.eye(4)  # whose size is 1
    params = {"a": 100.0 * eye, "b": 2.0 * eye, "c": 0.01 * eye, "v": jnp.ones(3) / 2.0}
    scale = math.sqrt(100.0 * 2.0)  # the geometric mean
    expected = [100.0 / 4, scale / 4, scale / 4, VECTOR_RATE * scale / 4]
    np.testing.assert_allclose(untrained().init(params).units, expected, rtol=1e-5)


@pytest.mark.parametrize("taken", [0, 77, 999])
def test_rates_fall_with_the_fourth_root_of_the_step(taken: int) -> None:
    optimizer, params = untrained(), {"v": jnp.ones(2)}
    state = optimizer.init(params)._replace(step=jnp.asarray(taken, jnp.int32))
    _, after = optimizer.update({"v": jnp.zeros(2)}, state._replace(second={"v": jnp.ones(2)}), params)
    rate = RATE * min((taken + 1) / 10, 1.0) * min((300 / (taken + 1)) ** 0.25, 1.4)
    np.testing.assert_allclose(after.iterate["v"], 1.0 - rate * DECAY, rtol=1e-6)


def test_what_has_seen_no_gradient_does_not_decay() -> None:
    """An entry of a vector, and a matrix as a whole."""
    optimizer = untrained()
    params = {"v": jnp.ones(2), "seen": jnp.ones((2, 2)), "unseen": jnp.ones((2, 2))}
    grads = {"v": jnp.asarray([0.0, 1.0]), "seen": jnp.eye(2), "unseen": jnp.zeros((2, 2))}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    assert state.iterate["v"][0] == 1.0
    assert bool((state.iterate["unseen"] == 1.0).all())
    assert bool((state.iterate["seen"] != 1.0).all())  # that beside the diagonal has no gradient, but decays


@pytest.mark.parametrize("said", [-0.5, 0.5])
def test_an_iterate_weighs_what_the_network_says(said: float) -> None:
    """From the second step on; its share in the average of two is then 2 e^{2 o} / (1 + 2 e^{2 o})."""
    params, grads = {"v": jnp.ones(2)}, {"v": jnp.asarray([1.0, -2.0])}
    _, first = untrained().update(grads, untrained().init(params), params)
    _, second = with_control(3, math.atanh(said)).update(grads, first, params)
    share = 2.0 * math.exp(2.0 * said) / (1.0 + 2.0 * math.exp(2.0 * said))
    expected = (1.0 - share) * first.average["v"] + share * second.iterate["v"]
    np.testing.assert_allclose(second.average["v"], expected, rtol=1e-5)


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


@pytest.mark.parametrize("low_memory", [False, True])
def test_evaluates_the_trained_part_of_a_partition(low_memory: bool) -> None:
    """What is frozen stays, the rest is what it is without the frozen part beside it."""
    optimizer, params, grads = untrained(low_memory=low_memory), draw(0), draw(1)
    mine = {"wide": params["wide"]}
    labels = {n: "train" if n in mine else "freeze" for n in params}
    tx = optax.partition({"train": optimizer.to_optax(), "freeze": optax.set_to_zero()}, labels)
    updates, state = tx.update(grads, tx.init(params), params)
    found = optimizer.eval_params(state.inner_states["train"].inner_state, optax.apply_updates(params, updates))
    alone, own = update(optimizer, {"wide": grads["wide"]}, optimizer.init(mine), mine)
    expected = optimizer.eval_params(own, optax.apply_updates(mine, alone))
    assert_close(found, params | expected)


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
    optimizer, params = trained(5, std), begin()
    units_of = units(params)
    before = params
    for now, state in follow(optimizer, 1_000, scale):
        for name, param in params.items():
            if not param.size:
                continue
            relative = optimizer.learning_rate / len(SIDES) * 1.25 * (300 / 1_000) ** 0.25 * math.exp(2.0)
            unit = units_of[name] * (
                1.3 / SIDES[name][0] ** 0.5
                if name in SIDES
                else (optimizer.vector_rate / VECTOR_RATE / math.sqrt(1.0 - 0.985))
            )
            taken = optimizer.weight_decay * math.exp(2.0) * float(jnp.sqrt(jnp.mean(jnp.square(param))))
            moved = float(jnp.sqrt(jnp.mean(jnp.square(state.iterate[name] - before[name]))))
            assert np.isfinite(moved)
            assert moved <= 1e-5 + relative * (unit + taken), name
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
