"""The pieces of which optimizers are made, each against its definition."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import Array

from lopt.blocks import accumulators, features, nets, orthogonal, per_parameter, readout, tensors
from lopt.blocks.adafactor_mlp import COL_ROWS, DENSE_ROWS, FEATURES, ROW_ROWS, AdafactorMLP
from lopt.checks import at_least
from lopt.errors import InputError

ONE_ULP = 2.0**-23
shapes = st.lists(st.integers(1, 7), min_size=0, max_size=4).map(tuple)


def draw(shape: tuple[int, ...], seed: int) -> Array:
    """Normal numbers, drawn by numpy: a shape that is new costs no compilation."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Accumulators.


@settings(max_examples=50)
@given(st.floats(0.0, 0.9999))
def test_param_to_decay_inverts_decay_to_param(decay: float) -> None:
    found = float(accumulators.param_to_decay(accumulators.decay_to_param(decay)))
    # Rounding of 1 - decay, of its logarithm (up to 10 in size), of the exponential, and of the difference.
    assert abs(found - decay) <= ONE_ULP * (1.0 + 10.0 * (1.0 - decay))


@settings(max_examples=50)
@given(st.floats(-1e6, 1e6, width=32))
def test_any_param_is_a_decay(param: float) -> None:
    assert 0.0 <= float(accumulators.param_to_decay(jnp.float32(param))) <= 1.0


def test_decay_to_param_by_hand() -> None:
    np.testing.assert_allclose(accumulators.decay_to_param((0.9, 0.99)), np.log([0.1, 0.01]) / 10, rtol=1e-6)


def test_ema_by_hand() -> None:
    old, new = jnp.asarray([1.0, 2.0]), jnp.asarray([5.0, -2.0])
    np.testing.assert_allclose(accumulators.ema(old, new, jnp.float32(0.75)), [2.0, 1.0])
    np.testing.assert_array_equal(accumulators.ema(old, new, jnp.float32(0.0)), new)
    np.testing.assert_array_equal(accumulators.ema(old, new, jnp.float32(1.0)), old)


def test_safe_rsqrt_by_hand() -> None:
    found = accumulators.safe_rsqrt(jnp.asarray([4.0, 0.0, -1.0]), floor=0.25)
    np.testing.assert_allclose(found, [0.5, 2.0, 2.0], rtol=1e-6)


@given(shapes)
def test_factored_axes_are_the_two_largest(shape: tuple[int, ...]) -> None:
    axes = accumulators.factored_axes(shape)
    if len(shape) < 2:
        assert axes is None
        return
    assert axes is not None
    second, largest = axes
    assert second != largest
    rest = [n for i, n in enumerate(shape) if i not in axes]
    assert shape[largest] >= shape[second] >= max(rest, default=0)


@settings(max_examples=12)
@given(shapes, st.integers(0, 9))
def test_factored_means_are_means(shape: tuple[int, ...], seed: int) -> None:
    g = draw(shape, seed)
    squares = np.square(np.asarray(g, np.float64))
    row, col = jax.jit(accumulators.factored_means)(g)
    zero_row, zero_col = accumulators.factored_zeros(shape)
    axes = accumulators.factored_axes(shape)
    if axes is None:
        assert col is None
        assert zero_col is None
        np.testing.assert_allclose(row, squares, rtol=1e-5)
    else:
        assert col is not None
        assert zero_col is not None
        np.testing.assert_allclose(row, squares.mean(axes[1], keepdims=True), rtol=1e-5)
        np.testing.assert_allclose(col, squares.mean(axes[0], keepdims=True), rtol=1e-5)
        assert (zero_col.shape, zero_col.dtype) == (col.shape, jnp.float32)
    assert (zero_row.shape, zero_row.dtype) == (row.shape, jnp.float32)
    assert not zero_row.any()


@settings(max_examples=12)
@given(shapes.filter(lambda s: len(s) > 0), st.integers(0, 9))
def test_factored_scale_is_exact_for_rank_one_squares(shape: tuple[int, ...], seed: int) -> None:
    """Where $g^2$ is an outer product of the two factored axes, the preconditioned gradient is its sign."""
    g = np.sign(np.asarray(draw(shape, seed)))
    for axis in accumulators.factored_axes(shape) or (0,):
        along = [1] * len(shape)
        along[axis] = shape[axis]
        g = g * (0.5 + np.abs(draw(tuple(along), seed + axis)))

    @jax.jit
    def precondition(g: Array) -> Array:
        rho, gamma = accumulators.factored_scale(*accumulators.factored_means(g))
        return g * rho if gamma is None else g * rho * gamma

    np.testing.assert_allclose(precondition(jnp.asarray(g)), np.sign(g), rtol=1e-5)


# Features, networks, readout.


def test_time_embedding_by_hand() -> None:
    for step in (0, 1, 777, 10**6):
        expected = np.tanh(step / np.asarray(features.TIME_SCALES) - 1.0)
        np.testing.assert_allclose(features.time_embedding(jnp.int32(step)), expected, rtol=1e-5, atol=1e-7)


@given(st.floats(-3.0, 8.0))
def test_rms_scale_normalises(exponent: float) -> None:
    x = 10.0**exponent * np.asarray(draw((50,), 0))
    scaled = x * float(features.rms_scale(jnp.float32(np.mean(x**2))))
    mean_square = np.mean(x.astype(np.float64) ** 2)
    np.testing.assert_allclose(np.mean(scaled.astype(np.float64) ** 2), mean_square / (mean_square + 1e-5), rtol=1e-4)


@settings(max_examples=10)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple),
    st.integers(0, 9),
)
def test_mlp_is_a_dense_network(sizes: list[int], shape: tuple[int, ...], seed: int) -> None:
    shapes_only = jax.eval_shape(lambda: nets.MLP(sizes, key=jax.random.key(0)))
    mlp = jax.tree.map(lambda x: draw(x.shape, seed), shapes_only)
    inputs = [draw(shape, seed + i) for i in range(sizes[0])]
    scales = jnp.abs(draw((sizes[0],), seed))

    @jax.jit
    def run(mlp: nets.MLP, inputs: list[Array], scales: Array) -> list[Array]:
        hidden = mlp.first_layer(range(sizes[0]), inputs, scales)
        return mlp.rest([h + b for h, b in zip(hidden, mlp.biases[0], strict=True)])

    outputs = run(mlp, inputs, scales)
    x = np.stack([np.asarray(i, np.float64) for i in inputs], -1) * np.asarray(scales, np.float64)
    for i, (w, b) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        x = (np.maximum(x, 0.0) if i else x) @ np.asarray(w, np.float64) + np.asarray(b, np.float64)
    np.testing.assert_allclose(np.stack(outputs, -1), x, rtol=1e-4, atol=1e-5)


def test_mlp_takes_the_rows_it_is_told_and_broadcasts() -> None:
    mlp = nets.MLP([4, 3, 1], key=jax.random.key(0))
    wide, tall = draw((1, 5), 1), draw((2, 1), 2)
    found = jnp.stack(mlp.first_layer([3, 1], [wide, tall], jnp.asarray([1.0, 2.0])))
    w = mlp.weights[0]
    expected = w[3][:, None, None] * wide[None] + 2.0 * w[1][:, None, None] * tall[None]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_mlp_starts_at_the_scale_of_its_fan_in() -> None:
    mlp = nets.MLP([400, 100, 2], key=jax.random.key(0))
    for w, b in zip(mlp.weights, mlp.biases, strict=True):
        # A normal truncated at two deviations has deviation 0.8796; four standard errors of a deviation.
        assert abs(float(w.std()) * math.sqrt(w.shape[0]) / 0.8796 - 1.0) < 4.0 / math.sqrt(2 * w.size)
        assert not b.any()


def test_direction_magnitude_by_hand() -> None:
    found = readout.direction_magnitude(jnp.asarray([1.0, -2.0]), jnp.asarray([0.0, 3.0]), 0.1, 0.5)
    np.testing.assert_allclose(found, [0.1, -0.2 * math.exp(1.5)], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (2, 6, 3), (1, 7)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("coefficients", [orthogonal.MINIMAX, 5 * (orthogonal.JORDAN,)])
def test_orthogonalize_keeps_singular_vectors_and_evens_out_singular_values(
    shape: tuple[int, ...], scale: float, coefficients: Any
) -> None:
    axes = accumulators.factored_axes(shape)
    assert axes is not None
    x = scale * draw(shape, 3)
    found = jnp.moveaxis(orthogonal.orthogonalize(x, axes, coefficients), axes, (-2, -1))
    u, s, v = np.linalg.svd(np.asarray(jnp.moveaxis(x, axes, (-2, -1)), np.float64), full_matrices=False)
    assert s.min() / s.max() > 0.02  # well within reach
    of_vectors = np.einsum("...ik,...ij,...kj->...k", u, np.asarray(found, np.float64), v)
    assert of_vectors.min() > 0.6
    assert of_vectors.max() < 1.3
    np.testing.assert_allclose(np.asarray(found), np.einsum("...ik,...k,...kj->...ij", u, of_vectors, v), atol=1e-4)


@pytest.mark.parametrize("coefficients", [orthogonal.MINIMAX, 3 * (orthogonal.JORDAN,), (orthogonal.JORDAN,)])
def test_orthogonalize_by_gram_matrices_changes_nothing(coefficients: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw((3, 7, 16), 4)
    found = orthogonal.orthogonalize(x, (1, 2), coefficients)
    monkeypatch.setattr(orthogonal, "LONG", 3)  # 16 columns are more than twice, not three times 7 rows
    np.testing.assert_allclose(found, orthogonal.orthogonalize(x, (1, 2), coefficients), rtol=1e-4, atol=1e-5)


def test_orthogonalize_leaves_zero_alone() -> None:
    assert not orthogonal.orthogonalize(jnp.zeros((3, 4)), (0, 1)).any()


def test_every_row_of_the_first_matrix_has_one_kind_of_feature() -> None:
    assert sorted((*DENSE_ROWS, *ROW_ROWS, *COL_ROWS)) == list(range(FEATURES))


# Chunks.


def elementwise(overwrite: Any, read: Any) -> Any:
    a, b = overwrite
    c, d = read
    return (a * c + d, b - a), jnp.stack([jnp.sum(a * d + 0.0 * c), jnp.sum(b)])


@settings(max_examples=15)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    st.integers(1, 60),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
@example((5,), 4, [False] * 4)  # a remainder of one row
@example((11, 2), 9, [False, True, False, False])  # a remainder of several
@example((3, 7), 5, [True, False, False, False])  # a row that is too large, and leaves a remainder
@example((2, 3, 5), 4, [False, True, True, False])  # two levels down
@example((6, 2), 6, [False] * 4)  # no remainder
def test_chunked_equals_unchunked(shape: tuple[int, ...], chunk: int, reduced: list[bool]) -> None:
    """For any shape and size of chunk, with an input that is reduced to 1 along any axes."""
    broadcast = tuple(1 if r else n for n, r in zip(shape, reduced, strict=False))
    overwrite = (draw(shape, 0), draw(shape, 1))
    read = (draw(shape, 2), draw(broadcast, 3))
    run = jax.jit(partial(tensors.chunked, elementwise), static_argnames="chunk")
    found, sums = run(overwrite, read, chunk=chunk)
    expected, expected_sums = elementwise(overwrite, read)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-5, atol=1e-4)


def test_no_chunk_is_larger_than_asked() -> None:
    seen = []

    def note(overwrite: Any, read: Any) -> Any:
        seen.append(overwrite[0].size)
        return elementwise(overwrite, read)

    for shape in ((97,), (7, 50), (3, 41, 2), (1, 1, 97)):
        a = draw(shape, 0)
        tensors.chunked(note, (a, a), (a, a), chunk=16)
    assert max(seen) <= 16
    assert min(seen) > 0


# The shared per-parameter network.

SHAPES = [(13, 11), (3, 5, 2, 7)]
LARGER_THAN_A_CHUNK = [(32_771,), (181, 191), (2, 3, 73, 79)]  # primes


@pytest.fixture(scope="module")
def rule() -> AdafactorMLP:
    rule = AdafactorMLP((4, 4), 2, (0.9, 0.99, 0.999), 0.999, (0.9, 0.99, 0.999), key=jax.random.key(0))
    leaves, treedef = jax.tree.flatten(rule)
    return treedef.unflatten([x + 0.1 * draw(x.shape, i) for i, x in enumerate(leaves)])


def two_steps(
    monkeypatch: pytest.MonkeyPatch, rule: AdafactorMLP, shape: tuple[int, ...], chunk: int, average: tuple[int, ...]
) -> Any:
    monkeypatch.setattr(per_parameter, "chunked", lambda *args, **kw: tensors.chunked(*args, **kw | {"chunk": chunk}))

    @jax.jit
    def run(rule: AdafactorMLP, w: Array, grads: Array) -> Any:
        def step(state: Any, g: Array) -> Any:
            time = features.time_embedding(jnp.int32(3))
            update, state = rule.update(
                g, state, w, time, lambda out, s: out[0] * jnp.exp(0.1 * out[1]) + s.momentum[0] - s.param, average
            )
            return state, update

        return jax.lax.scan(step, rule.init(w), grads)

    return run(rule, draw(shape, 0), draw((2, *shape), 1))


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [*((s, 10) for s in SHAPES), *((s, tensors.CHUNK) for s in LARGER_THAN_A_CHUNK)],
    ids=str,
)
def test_chunks_do_not_change_the_rule(
    monkeypatch: pytest.MonkeyPatch, rule: AdafactorMLP, shape: tuple[int, ...], chunk: int
) -> None:
    assert math.prod(shape) > chunk
    average = (1,) if len(shape) != 4 else ()
    state, update = two_steps(monkeypatch, rule, shape, chunk, average)
    whole_state, whole_update = two_steps(monkeypatch, rule, shape, 10**9, average)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(whole_state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    # Means over the tensor are summed in another order, and the network divides by some of them.
    np.testing.assert_allclose(update, whole_update, rtol=1e-4, atol=1e-5)


def test_averaged_outputs_are_constant_over_the_tensor(rule: AdafactorMLP) -> None:
    w = draw((3, 4), 0)
    time = features.time_embedding(jnp.int32(0))

    def run(average: tuple[int, ...]) -> Array:
        return rule.update(draw((3, 4), 1), rule.init(w), w, time, lambda out, _: out[1], average)[0]

    each, mean = run(()), run((1,))
    assert float(each.std()) > 1e-3
    np.testing.assert_allclose(mean, np.full((3, 4), float(each.mean())), rtol=1e-5)


# Trees.


def test_map_tensors_calls_the_rule_in_float32_and_casts_back() -> None:
    params = {
        "a": jnp.ones((2,), jnp.bfloat16),
        "b": None,
        "c": jnp.zeros((0, 3), jnp.float16),
        "d": jnp.float32(2.0),
    }
    grads = {"a": jnp.full((2,), 3.0, jnp.float32), "b": None, "c": params["c"], "d": jnp.float32(5.0)}
    first, second = ({"a": f"{n} of a", "b": None, "c": f"{n} of c", "d": f"{n} of d"} for n in ("first", "second"))
    seen = []

    def rule(g: Array, state: Any, p: Array) -> Any:
        seen.append((g.dtype, p.dtype, state))
        return g * p, {"x": state["y"][0], "y": ("next",)}

    updates, new_states = tensors.map_tensors(rule, grads, {"x": first, "y": (second,)}, params)
    assert seen == [
        (jnp.float32, jnp.float32, {"x": "first of a", "y": ("second of a",)}),
        (jnp.float32, jnp.float32, {"x": "first of d", "y": ("second of d",)}),
    ]
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, params)
    assert updates["a"].tolist() == [3.0, 3.0]
    assert float(updates["d"]) == 10.0
    assert new_states == {
        "x": {"a": "second of a", "b": None, "c": "first of c", "d": "second of d"},
        "y": ({"a": "next", "b": None, "c": "second of c", "d": "next"},),
    }


@pytest.mark.parametrize(
    "params", [np.ones(2), (), {}, None, (np.ones(2), np.ones(3)), [{"a": np.ones(())}, None, (np.ones(1),)]], ids=str
)
def test_states_are_trees_like_the_parameters(params: Any) -> None:
    """Also where the tree of one tensor looks like that of the parameters, and where there is no tensor."""
    states = tensors.init_tensors(lambda p: (jnp.sum(p), {"twice": 2.0 * jnp.sum(p)}), params)
    plain, double = (jax.tree.map(lambda p, n=n: jnp.float32(n * np.sum(p)), params) for n in (1, 2))
    assert jax.tree.structure(states) == jax.tree.structure((plain, {"twice": double}))
    assert jax.tree.leaves(states) == jax.tree.leaves((plain, double))
    kind, split = tensors.split_tensors(states, jax.tree.structure(params))
    assert [s[1]["twice"] for s in split] == jax.tree.leaves(double)
    joined = tensors.join_tensors(kind, split, jax.tree.structure(params))
    assert jax.tree.structure(joined) == jax.tree.structure(states)
    assert jax.tree.leaves(joined) == jax.tree.leaves(states)


def test_weighted_sums_have_the_derivatives_of_sums() -> None:
    """They are given by a rule of their own, forward and backward, for inputs that broadcast too."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((3, 1), (1, 4), (3, 4))
    inputs = [jax.random.normal(k, s) for k, s in zip(keys[:3], shapes, strict=True)]
    weight = jax.random.normal(keys[3], (3, 2))

    def squares(inputs: list[Array], weight: Array) -> Array:
        return sum(jnp.sum(x**2) for x in nets.weighted_sums(inputs, weight))  # pyright: ignore[reportReturnType]

    def plainly(inputs: list[Array], weight: Array) -> Array:
        stacked = jnp.stack([jnp.broadcast_to(x, (3, 4)) for x in inputs])
        return jnp.sum(jnp.einsum("iab,ij->jab", stacked, weight) ** 2)

    expected = jax.tree.leaves(jax.grad(plainly, argnums=(0, 1))(inputs, weight))
    for mode in (jax.jacrev, jax.jacfwd):
        for found, right in zip(jax.tree.leaves(mode(squares, argnums=(0, 1))(inputs, weight)), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def test_map_tensors_traces_a_rule_once_for_tensors_of_one_shape() -> None:
    """And gives what the rule gives of each alone, in its place, whatever its neighbours are."""
    calls = []

    def rule(g: Array, s: tuple[Array, Array], p: Array) -> tuple[Array, tuple[Array, Array]]:
        calls.append(g.shape)
        return g * s[0] + jnp.sum(p), (jnp.sin(s[0] + g), s[1] + 1)

    sizes: list[tuple[int, ...]] = [(3, 2), (4,), (3, 2), (0, 2), (), (2, 3), (4,), (600, 200), (600, 200), (), (0, 2)]
    grads = [draw(shape, i) for i, shape in enumerate(sizes)]
    params = [draw(shape, 50 + i) for i, shape in enumerate(sizes)]
    params[6] = params[6].astype(jnp.bfloat16)  # of the same shape as another, and not alike
    states = [(draw(shape, 100 + i), jnp.asarray(i)) for i, shape in enumerate(sizes)]
    fields = tuple([s[i] for s in states] for i in range(2))
    updates, new_fields = jax.jit(partial(tensors.map_tensors, rule))(grads, fields, params)
    assert sorted(calls) == sorted([(3, 2), (4,), (), (2, 3), (4,), (600, 200)])
    new = list(zip(*new_fields, strict=True))
    for i, (g, s, p) in enumerate(zip(grads, states, params, strict=True)):
        assert updates[i].dtype == p.dtype
        if p.size == 0:
            assert new[i][1] == s[1]
            continue
        update, (state, count) = rule(g, s, p.astype(jnp.float32))
        np.testing.assert_allclose(updates[i], update.astype(p.dtype), rtol=1e-2 if p.dtype == jnp.bfloat16 else 1e-5)
        np.testing.assert_allclose(new[i][0], state, rtol=1e-5, atol=1e-6)
        assert new[i][1] == count


def test_a_word_is_no_number() -> None:
    with pytest.raises(InputError, match=r"tuning is 'many'; it must be a number that is at least 1\."):
        at_least(1, tuning="many")
