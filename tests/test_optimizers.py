"""Every optimizer has every property; then what only some of them have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

import lopt
from lopt.blocks.orthogonal import orthogonalize
from lopt.errors import InputError
from lopt.optimizer import COUNTED, are_finite
from lopt.optimizers import (
    SGD,
    STAR,
    Adam,
    AdamW,
    FromOptax,
    GRUOptimizer,
    HierarchicalRNN,
    LSTMOptimizer,
    Momentum,
    RMSProp,
    SmallFC,
)
from registry import (
    OPTIMIZERS,
    OptimizerRow,
    annealed_hierarchy,
    as_users_run_it,
    example_params,
    mlp_normalised_descent,
    normalised_descent,
    optimizer_representatives,
    optimizer_rows,
    optimizer_rows_heavy_ones_slow,
    without_black_box,
)

ROWS = {row.name: row for row in OPTIMIZERS}
STEPS = 800  # of every training
LOSS = np.float32(1.5)  # of every step: those that need it get it, the others ignore it


# One compiled program for each optimizer and tree of parameters.


@jax.jit
def update(
    optimizer: lopt.Optimizer, grads: PyTree[Array], state: PyTree[Array], params: PyTree[Array], value: Any = LOSS
) -> Any:
    return optimizer.update(grads, state, params, value=value)


@jax.jit
def guarded_update(optimizer: lopt.Optimizer, grads: PyTree[Array], state: PyTree[Array], params: PyTree[Array]) -> Any:
    return optimizer.to_optax(horizon=STEPS).update(grads, state, params, value=LOSS)


@jax.jit
def settle(optimizer: lopt.Optimizer, task: lopt.Task, keys: Array) -> tuple[Array, Array]:
    """Losses before and after `STEPS` steps."""

    def run(key: Array) -> tuple[Array, Array]:
        inner = lopt.start(optimizer, task, key, STEPS)
        before = task.loss(inner.problem, inner.params, key)
        inner, _ = lopt.unroll(optimizer, task, inner, key, STEPS)
        return before, task.loss(inner.problem, inner.params, key)

    return jax.vmap(run)(keys)


def small_params(seed: int = 0, dtype: Any = jnp.float32) -> PyTree[Array]:
    weight, bias = jax.random.split(jax.random.key(seed))
    return {"w": jax.random.normal(weight, (3, 2)).astype(dtype), "b": jax.random.normal(bias, (2,)).astype(dtype)}


def random_like(tree: PyTree[Array], seed: int) -> PyTree[Array]:
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([jax.random.normal(k, x.shape).astype(x.dtype) for k, x in zip(keys, leaves, strict=True)])


def draw(shape: tuple[int, ...], seed: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


def perturbed(optimizer: lopt.Optimizer, seed: int, std: float = 0.05) -> lopt.Optimizer:
    """The optimizer with noise on every leaf: no leaf is left at a special value."""
    noise = random_like(optimizer, seed)
    return jax.tree.map(lambda x, n: x + std * n, optimizer, noise)


def assert_same(a: PyTree[Array], b: PyTree[Array]) -> None:
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_close(a: PyTree[Array], b: PyTree[Array], *, rtol: float = 1e-5) -> None:
    """Same structure; every tensor within `rtol` of its largest number."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max(initial=0.0))


def all_finite(tree: PyTree[Array]) -> bool:
    return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


def warmed_up(optimizer: lopt.Optimizer, params: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
    """Parameters and state after two steps, so that no accumulator is zero."""
    state = optimizer.init(params, horizon=STEPS)
    for seed in (1, 2):
        updates, state = update(optimizer, random_like(params, seed), state, params, LOSS * np.float32(1 + seed))
        params = optax.apply_updates(params, updates)
    return params, state


# Every optimizer.


@optimizer_rows
def test_has_the_stated_number_of_meta_parameters(row: OptimizerRow) -> None:
    optimizer = row.create()
    leaves = jax.tree.leaves(optimizer)
    assert type(optimizer) is row.kind
    assert sum(leaf.size for leaf in leaves) == row.meta_parameters
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    assert lopt.optimizers.OPTIMIZERS[row.name] is row.kind


@optimizer_rows
def test_is_drawn_from_its_key(row: OptimizerRow) -> None:
    one, same, other = row.create(seed=1), row.create(seed=1), row.create(seed=2)
    assert_same(one, same)
    assert bool(eqx.tree_equal(one, other)) != row.learned


@optimizer_rows
def test_converges_on_a_quadratic(row: OptimizerRow) -> None:
    task = lopt.tasks.Quadratic(dim=5, low=-1.0)
    before, after = settle(row.create_converging(), task, jax.random.split(jax.random.key(0), 8))
    assert (after < 1e-6 * before).all(), after / before


@optimizer_rows_heavy_ones_slow
def test_jit_equals_no_jit(row: OptimizerRow) -> None:
    optimizer, params = perturbed(row.create(), 3), small_params()
    params, state = warmed_up(optimizer, params)
    grads = random_like(params, 5)
    assert_close(update(optimizer, grads, state, params), optimizer.update(grads, state, params, value=LOSS))


@optimizer_rows
def test_compiles_once(row: OptimizerRow) -> None:
    """Not again for the next state, for other numbers, nor for other meta-parameters."""
    traces = 0

    @jax.jit
    def step(optimizer: lopt.Optimizer, grads: Any, state: Any, params: Any) -> Any:
        nonlocal traces
        traces += 1
        updates, state = optimizer.to_optax(horizon=STEPS).update(grads, state, params, value=LOSS)
        return optax.apply_updates(params, updates), state

    params = small_params()
    state = row.create().init(params, horizon=STEPS)
    for seed in range(3):
        params, state = step(row.create(seed=seed), random_like(params, seed), state, params)
    assert traces == 1


@optimizer_rows_heavy_ones_slow
def test_an_update_without_jit_is_one_compiled_program(row: OptimizerRow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled again for the next state nor for other meta-parameters."""
    traces, untouched = [], row.kind.update

    def counted(self: lopt.Optimizer, *args: Any, **extra: Any) -> Any:
        traces.append(self)
        return untouched(self, *args, **extra)

    monkeypatch.setattr(row.kind, "update", counted)
    params = {"w": draw((8, 4), 0), "b": draw((3,), 1)}
    state = row.create().init(params, horizon=STEPS)
    for seed in (0, 0, 1, 1, 1):
        tx = row.create(seed=seed).to_optax(horizon=STEPS)
        updates, state = tx.update(params, state, params, value=LOSS)
    assert len(traces) == 1
    assert all_finite(updates)


@optimizer_rows
def test_state_is_trees_like_the_parameters(row: OptimizerRow) -> None:
    """So that `optax.tree_map_params`, Flax and sharding by parameter find what belongs to a parameter: all but numbers and rows."""
    tx = row.create().to_optax(horizon=STEPS)
    params = {"w": jnp.ones((7, 5)), "nest": {"b": jnp.ones(6)}}
    state = tx.init(params)
    names = {"w": "w", "nest": {"b": "b"}}
    marked = optax.tree_map_params(tx, lambda _, name: name, state, names, transform_non_params=lambda _: None)
    of_params = optax.tree_map_params(tx, lambda x: x, state, transform_non_params=lambda _: None)
    found = jax.tree.leaves(marked)
    assert found.count("w") == found.count("b")
    assert (len(found) > 0) == (row.name != "sgd")
    sizes = [
        (name, x.shape)
        for name, x in zip(found, jax.tree.leaves(of_params), strict=True)
        if x.shape[-2:] == (7, 5) or x.shape[-1:] == (6,)
    ]
    assert all(shape[-1] == {"w": 5, "b": 6}[name] for name, shape in sizes)
    rest = sum(x.size for x in jax.tree.leaves(state)) - sum(x.size for x in jax.tree.leaves(of_params))
    assert rest == sum(x.size for x in jax.tree.leaves(tx.init({}))) or row.sees_other_tensors


@pytest.mark.parametrize(
    ("name", "steps"), [("momentum", 3), ("small_fc", 3), pytest.param("relative_mlp", 3, marks=pytest.mark.slow)]
)
def test_gradients_flow_back_through_updates(name: str, steps: int) -> None:
    """As forward-mode derivatives and as differences say."""
    optimizer, params = perturbed(ROWS[name].create(), 3), small_params()
    weights = random_like(params, 8)

    @jax.jit
    def loss(start: PyTree[Array]) -> Array:
        tx, params = optimizer.to_optax(horizon=STEPS), start
        state, total = tx.init(params), jnp.zeros(())
        for _ in range(steps):
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params, value=LOSS)
            params = optax.apply_updates(params, updates)
            total = total + sum(jnp.vdot(u, weights[n]) for n, u in updates.items())
        return total

    direction = random_like(params, 9)
    _, forward = jax.jvp(loss, (params,), (direction,))
    back = jax.grad(loss)(params)
    slope = sum(jnp.vdot(back[n], direction[n]) for n in params)
    ahead, behind = (loss(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (1e-2, -1e-2))
    assert float(jnp.abs(forward)) > 0
    np.testing.assert_allclose(slope, forward, rtol=1e-4)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.ones(3, np.complex64), r"layer\.w is complex64; parameters must be real"),
        (np.ones(3, np.int32), r"layer\.w is int32; parameters must be floating-point"),
        (np.ones(3, np.bool_), r"layer\.w is bool; parameters must be floating-point"),
        (jax.nn.relu, r"layer\.w is a .* and no array; .* give eqx\.filter"),
        (1.0, r"layer\.w is a float and no array"),
    ],
    ids=["complex", "integer", "boolean", "function", "number"],
)
@pytest.mark.parametrize("name", ["adam", "small_fc"])
def test_refuses_parameters_that_are_no_floating_point_arrays(name: str, leaf: Any, message: str) -> None:
    tx, params = ROWS[name].create().to_optax(), {"layer": {"w": jnp.ones(3)}}
    state, other = tx.init(params), {"layer": {"w": leaf}}
    with as_users_run_it():
        for call in (lambda: tx.init(other), lambda: tx.update(params, state, other)):
            with pytest.raises(InputError, match=f"^{message}"):
                call()


@pytest.mark.parametrize("name", ["adam", "small_fc"])
def test_a_gradient_that_is_none_leaves_its_parameter_alone(name: str) -> None:
    tx, params = ROWS[name].create().to_optax(), small_params()
    grads = random_like(params, 5)
    updates, state = tx.update(grads | {"b": None}, tx.init(params), params)
    assert_same(optax.apply_updates(params, updates)["b"], params["b"])
    zero, its_state = tx.update(grads | {"b": jnp.zeros_like(grads["b"])}, tx.init(params), params)
    assert_same((updates["w"], state), (zero["w"], its_state))


@optimizer_rows_heavy_ones_slow
def test_skips_a_step_whose_parameters_cannot_be_squared(row: OptimizerRow) -> None:
    optimizer = perturbed(row.create(), 3)
    params, state = warmed_up(optimizer, example_params())
    grads, huge = random_like(params, 5), params | {"matrix": params["matrix"].at[0, 0].set(2e19)}
    updates, after = guarded_update(optimizer, grads, state, huge)
    assert_same(updates, jax.tree.map(jnp.zeros_like, params))
    assert_same(after, state)


def test_skipped_steps_are_counted_by_apply_if_finite() -> None:
    tx, params = optax.apply_if_finite(ROWS["small_fc"].create().to_optax(), 2), small_params()
    state, bad = tx.init(params), jax.tree.map(lambda p: math.nan * p, params)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        for _ in range(4):  # two more than it holds back
            updates, state = tx.update(bad, state, params)
            assert_same(updates, jax.tree.map(jnp.zeros_like, params))
    assert int(state.total_notfinite) == int(state.notfinite_count) == 4


@pytest.mark.parametrize("name", ["velo", "celo", "hierarchical_lstm"])
def test_names_the_keyword_that_was_given_in_place_of_the_loss(name: str) -> None:
    tx, params = ROWS[name].create(**ROWS[name].converging).to_optax(horizon=STEPS), small_params()
    with pytest.raises(InputError, match=r"needs the training loss: .*value=loss.*; loss= was given instead\."):
        tx.update(params, tx.init(params), params, loss=LOSS)
    with pytest.raises(InputError, match=r"value=loss\)\."):
        tx.update(params, tx.init(params), params)


def test_to_optax_hands_the_key_to_init() -> None:
    optimizer, params, key = ROWS["hierarchical_rnn"].create(), small_params(), jax.random.key(7)
    found = optimizer.to_optax(key=key).init(params)
    assert_same(found, optimizer.init(params, key=key))
    assert bool((found.tensors.log_rate["w"] != optimizer.to_optax().init(params).tensors.log_rate["w"]).any())


def test_from_optax_computes_in_the_precision_of_the_parameters() -> None:
    with jax.enable_x64(True):
        params = {"w": jnp.asarray([1.0, 1.0 / 3.0], jnp.float64)}
        ours, theirs = FromOptax(optax.adam(0.1)), optax.adam(0.1)
        updates, state = ours.update(params, ours.init(params), params)
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
            expected, their_state = theirs.update(params, theirs.init(params), params)
        assert_same((updates, state), (expected, their_state))
        assert updates["w"].dtype == jnp.float64


def loops(row: OptimizerRow, size: int, platforms: Sequence[str]) -> int:
    """How many loops the program of an update has, guard excepted, for platforms that need not be here."""
    optimizer = row.create(**({"lstm_hidden": 8, "bank": 4} if row.name == "velo" else {}))
    params = {
        "w": jnp.zeros((size, size)),
        "b": jnp.zeros(size),
        "c": jnp.zeros(size),
        "wide": jnp.zeros((2, size * size)),
    }
    state = jax.eval_shape(partial(optimizer.init, horizon=STEPS), params)
    program = jax.export.export(jax.jit(partial(optimizer.update, value=LOSS)), platforms=platforms)
    with lopt.blocks.tensors.for_all_platforms():
        return program(params, state, params).mlir_module().count("stablehlo.while")


@optimizer_rows_heavy_ones_slow
def test_has_no_loop_over_a_tensor_on_accelerators(row: OptimizerRow) -> None:
    """A program for a GPU or TPU passes over every tensor as a whole, and over equal tensors at once."""
    assert loops(row, 200, ("cuda", "tpu")) == 0
    hand_designed = not row.learned
    assert (
        loops(row, 200, ("cpu",)) == 0
    ) == hand_designed  # two equal vectors take turns, or a large tensor has chunks


@optimizer_rows
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("grads_dtype", ["same", "float32"])
def test_dtype_in_is_dtype_out_and_accumulators_are_float32(row: OptimizerRow, dtype: str, grads_dtype: str) -> None:
    optimizer, params = row.create(), example_params(dtype=jnp.dtype(dtype))
    grads = params if grads_dtype == "same" else jax.tree.map(lambda p: p.astype(grads_dtype), params)
    state = jax.eval_shape(partial(optimizer.init, horizon=STEPS), params)
    for step in (optimizer.update, optimizer.to_optax(horizon=STEPS).update):
        updates, new_state = jax.eval_shape(partial(step, value=LOSS), grads, state, params)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
    floating = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.float32 for x in floating)


@optimizer_rows_heavy_ones_slow
def test_low_precision_is_only_a_rounding_of_the_ends(row: OptimizerRow) -> None:
    """With bfloat16 parameters the arithmetic is that of float32, rounded once."""
    optimizer = perturbed(row.create(), 3)
    params, grads = small_params(0, jnp.bfloat16), small_params(1, jnp.bfloat16)
    wide_params, wide_grads = (jax.tree.map(lambda x: x.astype(jnp.float32), t) for t in (params, grads))
    updates, state = update(optimizer, grads, optimizer.init(params, horizon=STEPS), params)
    wide_updates, wide_state = update(optimizer, wide_grads, optimizer.init(wide_params, horizon=STEPS), wide_params)
    assert_close(state, wide_state)
    for narrow, wide in zip(jax.tree.leaves(updates), jax.tree.leaves(wide_updates), strict=True):
        narrow, wide = np.asarray(narrow, np.float64), np.asarray(wide, np.float64)
        np.testing.assert_allclose(narrow, wide, rtol=2.0**-8 + 1e-5, atol=1e-7 * np.abs(wide).max())


@optimizer_rows
def test_takes_tensors_of_any_rank_empty_ones_and_none(row: OptimizerRow) -> None:
    optimizer, params = perturbed(row.create(), 3), example_params()
    state = optimizer.init(params, horizon=STEPS)
    for seed in range(2):
        updates, state = guarded_update(optimizer, random_like(params, seed), state, params)
    assert updates["absent"] is None
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert all_finite((updates, state))
    for name in ("scalar", "bias", "matrix", "conv"):
        assert bool((updates[name] != 0).all()), name


@optimizer_representatives
@pytest.mark.parametrize("params", [{}, {"absent": None}, {"empty": np.zeros((0,), np.float32)}], ids=str)
def test_takes_trees_without_numbers(row: OptimizerRow, params: Any) -> None:
    params = jax.tree.map(jnp.asarray, params)
    tx = row.create().to_optax(horizon=STEPS)
    updates, _ = tx.update(params, tx.init(params), params, value=LOSS)
    assert_same(updates, params)


@optimizer_rows
def test_tensors_see_each_other_only_where_they_should(row: OptimizerRow) -> None:
    optimizer, params = perturbed(row.create(), 3), small_params()
    params, state = warmed_up(optimizer, params)
    grads = random_like(params, 5)
    updates, state_after = update(optimizer, grads, state, params)
    other, other_state = update(optimizer, grads | {"w": 100.0 * grads["w"]}, state, params)
    # At once, or by what is remembered of this step.
    one, two = (update(optimizer, grads, s, params)[0] for s in (state_after, other_state))
    seen = any(bool((a["b"] != b["b"]).any()) for a, b in ((updates, other), (one, two)))
    assert seen == row.sees_other_tensors
    assert bool((updates["w"] != other["w"]).any())


@optimizer_rows_heavy_ones_slow
def test_ignores_extra_arguments(row: OptimizerRow) -> None:
    optimizer, params = row.create(), small_params()
    grads, state = random_like(params, 5), row.create().init(params, horizon=STEPS)

    @jax.jit
    def both(optimizer: lopt.Optimizer, grads: Any, state: Any, params: Any, value: Array) -> Any:
        # Not a number is no validation loss.
        extra = {"value": value, "valid_value": math.nan * value, "no_such_argument": value, "optimizer": value}
        direct = optimizer.update(grads, state, params, **extra)
        return direct, optimizer.to_optax(horizon=STEPS).update(grads, state, params, **extra)

    direct, guarded = both(optimizer, grads, state, params, jnp.asarray(LOSS))
    assert_close(direct, update(optimizer, grads, state, params))
    assert_close(guarded, direct)


@optimizer_rows_heavy_ones_slow
def test_vmaps_over_its_own_leaves(row: OptimizerRow) -> None:
    members = [perturbed(row.create(), seed) for seed in range(3)]
    params = small_params()
    state = warmed_up(members[0], params)[1]
    grads = random_like(params, 5)
    batch = jax.tree.map(lambda *xs: jnp.stack(xs), *members)
    together = jax.jit(jax.vmap(lambda o: o.update(grads, state, params, value=LOSS)))(batch)
    alone = jax.tree.map(lambda *xs: jnp.stack(xs), *(update(o, grads, state, params) for o in members))
    assert_close(together, alone)
    first, second, _ = jax.tree.leaves(together)[0]
    assert bool((first != second).any())


@optimizer_representatives
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_skips_a_step_that_cannot_be_used(row: OptimizerRow, bad: float) -> None:
    """Updates are zero and the state is the old one, bit for bit; the next good step is as if the bad one had not been."""
    optimizer = perturbed(row.create(), 3)
    params, state = warmed_up(optimizer, example_params())
    grads = random_like(params, 5)
    poisoned = grads | {"conv": grads["conv"].at[1, 2, 0, 3].set(bad)}
    updates, after = guarded_update(optimizer, poisoned, state, params)
    assert_same(updates, jax.tree.map(jnp.zeros_like, params))
    assert_same(after, state)
    moved = optax.apply_updates(params, updates)
    assert_same(moved, params)
    assert_same(guarded_update(optimizer, grads, after, moved), guarded_update(optimizer, grads, state, params))
    good, _ = guarded_update(optimizer, grads, state, params)
    assert bool((good["conv"] != 0).all())


@pytest.mark.parametrize("size", [COUNTED, COUNTED + 1, 1_000_000])
@pytest.mark.parametrize(
    ("number", "usable"),
    [(math.nan, False), (math.inf, False), (-math.inf, False), (-2e15, False), (2e15, False), (-0.9e15, True)],
)
def test_sees_one_number_that_cannot_be_used_among_many(size: int, number: float, usable: bool) -> None:
    check = jax.jit(are_finite)
    for at in (0, size // 2, size - 1):
        assert bool(check({"a": jnp.ones(3), "b": jnp.ones(size).at[at].set(number)})) == usable, at


@optimizer_rows_heavy_ones_slow
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-15, 1e8, 1e14, 1e30])
def test_stays_finite_whatever_the_scale_of_gradients(row: OptimizerRow, scale: float) -> None:
    optimizer, params = perturbed(row.create(), 3), example_params()
    state = optimizer.init(params, horizon=STEPS)
    for seed in range(4):  # the scale, then back to normal
        grads = jax.tree.map(lambda g, s=(scale if seed < 2 else 1.0): s * g, random_like(params, seed))
        updates, state = guarded_update(optimizer, grads, state, params)
        assert all_finite((updates, state)), f"step {seed}"


@optimizer_rows_heavy_ones_slow
def test_state_can_be_donated(row: OptimizerRow) -> None:
    """No two of its arrays share memory, with each other or with the optimizer."""
    optimizer, params = row.create(), small_params()
    step = jax.jit(lambda o, g, s, p: o.update(g, s, p, value=LOSS), donate_argnums=2)
    _, expected = update(optimizer, random_like(params, 1), optimizer.init(params, horizon=STEPS), params)
    _, state = step(optimizer, random_like(params, 1), optimizer.init(params, horizon=STEPS), params)
    assert_same(state, expected)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((optimizer, params)))


@optimizer_representatives
def test_works_in_a_chain_with_clipping_and_a_schedule(row: OptimizerRow) -> None:
    optimizer, params = perturbed(row.create(), 3), small_params()
    tx = optax.chain(
        optax.clip_by_global_norm(0.5),
        optimizer.to_optax(horizon=STEPS),
        optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 4)),
    )
    chained = jax.jit(lambda g, s, p: tx.update(g, s, p, value=LOSS))
    state, own_state = tx.init(params), optimizer.init(params, horizon=STEPS)
    for step in range(3):
        grads = random_like(params, step)
        clip = jnp.minimum(1.0, 0.5 / optax.tree.norm(grads))
        updates, state = chained(grads, state, params)
        own, own_state = update(optimizer, jax.tree.map(lambda g, c=clip: c * g, grads), own_state, params)
        assert_close(updates, jax.tree.map(lambda u, t=step: (1.0 - t / 4.0) * u, own), rtol=1e-4)


@optimizer_representatives
def test_works_in_multi_steps(row: OptimizerRow) -> None:
    """Two gradients are averaged before the optimizer sees them."""
    optimizer, params = perturbed(row.create(), 3), small_params()
    tx = optax.MultiSteps(optimizer.to_optax(horizon=STEPS), every_k_schedule=2)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        step = jax.jit(tx.update)
        state = tx.init(params)
        grads = [random_like(params, seed) for seed in range(2)]
        first, state = step(grads[0], state, params, value=LOSS)
        second, state = step(grads[1], state, params, value=LOSS)
    assert all(bool((u == 0).all()) for u in jax.tree.leaves(first))
    mean = jax.tree.map(lambda a, b: (a + b) / 2.0, *grads)
    assert_close(second, update(optimizer, mean, optimizer.init(params, horizon=STEPS), params)[0], rtol=1e-4)


@optimizer_representatives
def test_works_in_multi_transform(row: OptimizerRow) -> None:
    optimizer, params = perturbed(row.create(), 3), small_params()
    labels = {"w": "ours", "b": "theirs"}
    tx = optax.multi_transform({"ours": optimizer.to_optax(horizon=STEPS), "theirs": optax.sgd(0.1)}, labels)
    grads = random_like(params, 5)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params, value=LOSS)
    alone, own_grads = {"w": params["w"]}, {"w": grads["w"]}
    own, _ = update(optimizer, own_grads, optimizer.init(alone, horizon=STEPS), alone)
    assert_close(updates, {"w": own["w"], "b": -0.1 * grads["b"]})


@optimizer_rows_heavy_ones_slow
@pytest.mark.parametrize("fields", ["defaults", "converging"])
def test_saves_and_loads_bit_for_bit(row: OptimizerRow, fields: str, tmp_path: Path) -> None:
    optimizer = perturbed(row.create(**(row.converging if fields == "converging" else {})), 3)
    loaded = lopt.load(lopt.save(tmp_path / "it", optimizer))
    assert type(loaded) is row.kind
    assert_same(loaded, optimizer)  # the structure holds the static fields


@optimizer_representatives
def test_needs_the_parameters(row: OptimizerRow) -> None:
    tx, params = row.create().to_optax(horizon=STEPS), small_params()
    with pytest.raises(InputError, match=f"^{row.kind.__name__} needs the parameters"):
        tx.update(params, tx.init(params))


@optimizer_representatives
def test_names_the_nearest_field(row: OptimizerRow) -> None:
    known = next(iter(row.converging))
    with pytest.raises(InputError, match=f"'{known[:-1]}'; did you mean .*{known}"):
        row.create(**{known[:-1]: 1.0})


@optimizer_rows_heavy_ones_slow
@settings(max_examples=10)
@given(data=st.data())
def test_permuting_entries_permutes_the_update(row: OptimizerRow, data: st.DataObject) -> None:
    assert row.per_parameter
    optimizer, params = perturbed(row.create(), 3), {"conv": example_params()["conv"]}
    axis = data.draw(st.integers(0, 3))
    order = jnp.asarray(data.draw(st.permutations(range(params["conv"].shape[axis]))))

    def permuted(tree: PyTree[Array]) -> PyTree[Array]:
        at = axis - 4  # from the end: a state may have hidden units in front
        return jax.tree.map(lambda x: x if x.ndim < 4 or x.shape[at] == 1 else jnp.take(x, order, at), tree)

    params, state = warmed_up(optimizer, params)
    grads = random_like(params, 5)
    expected = permuted(update(optimizer, grads, state, params))
    assert_close(update(optimizer, permuted(grads), permuted(state), permuted(params)), expected)


@optimizer_rows_heavy_ones_slow
def test_transposing_a_tensor_transposes_the_update(row: OptimizerRow) -> None:
    """No axis is special but by its size, save where the rule says so."""
    optimizer = perturbed(row.create(**row.converging), 3)  # with which none starts at random
    params = jax.random.normal(jax.random.key(0), (2, 5, 3))
    grads = [jax.random.normal(jax.random.key(seed), params.shape) for seed in range(2)]

    def run(axes: tuple[int, ...]) -> Array:
        at = params.transpose(axes)
        state = optimizer.init(at, horizon=STEPS)
        for g in grads:
            updates, state = update(optimizer, g.transpose(axes), state, at)
        return updates.transpose(np.argsort(axes).tolist())

    if row.sees_axes:
        assert not np.allclose(run((2, 0, 1)), run((0, 1, 2)), rtol=1e-5, atol=0.0)
    else:
        assert_close(run((2, 0, 1)), run((0, 1, 2)))


# The hand-designed ones against their originals.

ORIGINALS = {
    "sgd": (SGD(learning_rate=0.03), optax.sgd(0.03)),
    "momentum": (Momentum(learning_rate=0.03, decay=0.8), optax.sgd(0.03, momentum=0.8)),
    "rmsprop": (RMSProp(learning_rate=0.03, decay=0.8, eps=1e-4), optax.rmsprop(0.03, decay=0.8, eps=1e-4)),
    "rmsprop_defaults": (RMSProp(), optax.rmsprop(1e-3)),
    "adam": (Adam(learning_rate=0.03, b1=0.8, b2=0.95, eps=1e-4), optax.adam(0.03, b1=0.8, b2=0.95, eps=1e-4)),
    "adam_defaults": (Adam(), optax.adam(1e-3)),
    "adamw": (AdamW(learning_rate=0.03, b1=0.8, weight_decay=0.1), optax.adamw(0.03, b1=0.8, weight_decay=0.1)),
    "adamw_defaults": (AdamW(), optax.adamw(1e-3)),
}


def test_every_hand_designed_optimizer_has_an_original() -> None:
    assert {type(ours) for ours, _ in ORIGINALS.values()} == {row.kind for row in OPTIMIZERS if not row.learned}


@pytest.mark.parametrize("name", ORIGINALS)
def test_is_its_original(name: str) -> None:
    ours, original = ORIGINALS[name]
    params = their_params = example_params()
    state, their_state = ours.init(params, horizon=STEPS), original.init(params)
    step = jax.jit(original.update)
    for seed in range(10):
        grads = random_like(params, seed)
        updates, state = update(ours, grads, state, params)
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
            their_updates, their_state = step(grads, their_state, their_params)
        # Decays near one are stored as log(1 - decay) in float32, good to 3e-5 of 1 - decay.
        assert_close(ravel_pytree(updates)[0], ravel_pytree(their_updates)[0], rtol=3e-5)
        params, their_params = optax.apply_updates(params, updates), optax.apply_updates(their_params, their_updates)
    assert_close(params, their_params)


def test_from_optax_is_the_transformation_itself() -> None:
    tx = optax.chain(optax.clip(0.3), optax.lion(0.01))
    ours, params = FromOptax(tx), small_params()
    assert jax.tree.leaves(ours) == []
    state, their_state = ours.init(params, horizon=STEPS), tx.init(params)
    for seed in range(3):
        grads = random_like(params, seed)
        updates, state = ours.update(grads, state, params)
        their_updates, their_state = tx.update(grads, their_state, params)
        assert_same((updates, state), (their_updates, their_state))


def test_a_learning_rate_sweep_is_a_vmap() -> None:
    rates, params = jnp.asarray([1e-3, 1e-2, 1e-1]), small_params()
    grads = random_like(params, 1)
    sweep = jax.vmap(lambda rate: Adam(learning_rate=rate))(rates)
    updates, _ = jax.vmap(lambda o: o.update(grads, o.init(params, horizon=STEPS), params))(sweep)
    for i, rate in enumerate(rates.tolist()):
        alone, _ = update(Adam(learning_rate=rate), grads, Adam().init(params, horizon=STEPS), params)
        assert_close(jax.tree.map(lambda u, i=i: u[i], updates), alone)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (SGD, {"learning_rate": -1.0}, r"learning_rate is -1\.0; it must be positive"),
        (Momentum, {"decay": 1.0}, r"decay is 1\.0; it must be at least 0 and below 1"),
        (Adam, {"learning_rate": 0.0}, r"learning_rate is 0\.0; it must be positive"),
        (Adam, {"b1": -0.1}, r"b1 is -0\.1; it must be at least 0"),
        (Adam, {"b2": 1.5}, r"b2 is 1\.5; it must be at least 0 and below 1"),
        (Adam, {"eps": 0.0}, r"eps is 0\.0; it must be positive"),
        (AdamW, {"weight_decay": -1e-4}, r"weight_decay is -0\.0001; it must be positive"),
    ],
)
def test_rejects_bad_hyper_parameters(kind: Any, fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        kind(**fields)


# The learned ones.


def test_small_fc_is_bounded_whatever_the_gradients() -> None:
    """Every feature has root mean square at most 1, so each number at most $\\sqrt n$; intervals through the network bound the step."""
    optimizer, params = ROWS["small_fc"].create(seed=7, step_mult=0.1, exp_mult=0.1), small_params()
    assert isinstance(optimizer, SmallFC)

    def bound(size: int) -> float:
        weights, biases = (
            [np.abs(np.asarray(x)) for x in xs] for xs in (optimizer.rule.net.weights, optimizer.rule.net.biases)
        )
        most = np.concatenate([np.full(28, math.sqrt(size)), np.ones(11)])
        for w, b in zip(weights, biases, strict=True):
            most = most @ w + b
        return 0.1 * most[0] * math.exp(0.1 * most[1])

    for scale in (1e-8, 1.0, 1e8):
        state = optimizer.init(params, horizon=STEPS)
        for seed in range(5):
            grads = jax.tree.map(lambda g, s=scale: s * g, random_like(params, seed))
            updates, state = update(optimizer, grads, state, params)
            for name, u in updates.items():
                largest = float(jnp.abs(u).max())
                assert 0.0 < largest <= bound(u.size), (name, scale)


def test_small_fc_contains_normalised_descent() -> None:
    optimizer, params = normalised_descent(ROWS["small_fc"].create(step_mult=0.1)), example_params()
    grads = random_like(params, 1)
    updates, _ = update(optimizer, grads, optimizer.init(params, horizon=STEPS), params)
    expected = jax.tree.map(lambda g: -0.1 * g / jnp.sqrt(1e-5 + jnp.mean(jnp.square(g))) if g.size else g, grads)
    assert_close(updates, expected)


@pytest.mark.parametrize("nominal", ["sgd", "momentum", "aggmo", "adam", "adam_aggmo"])
def test_star_without_black_box_is_its_nominal_term(nominal: str) -> None:
    """Three steps of one vector by hand."""
    decays, second_decay, step, shrinkage = np.asarray([0.9, 0.99, 0.999]), 0.999, 0.1, 0.03
    optimizer = without_black_box(ROWS["star"].create(nominal=nominal, nominal_step=step, shrinkage=shrinkage))
    params = jnp.asarray([0.5, -1.0, 2.0])
    state = optimizer.init(params, horizon=STEPS)
    w, m, v = np.asarray(params, np.float64), np.zeros((3, 3)), np.zeros(3)
    for seed in range(3):
        grads = jax.random.normal(jax.random.key(seed), (3,))
        updates, state = update(optimizer, grads, state, params)
        params = params + updates
        g = np.asarray(grads, np.float64)
        m = decays[:, None] * m + (1 - decays)[:, None] * g
        v = second_decay * v + (1 - second_decay) * g**2
        root = np.sqrt(v + 1e-6)
        direction = {
            "sgd": g,
            "momentum": m[-1],
            "aggmo": m.mean(0),
            "adam": m[-1] / root,
            "adam_aggmo": m.mean(0) / root,
        }[nominal]
        w = w - step * direction - shrinkage * w
        np.testing.assert_allclose(np.asarray(params), w, rtol=1e-4)


def test_star_switches() -> None:
    """Controllers and aggregation change the update where the network has an opinion."""
    params = {"b": example_params()["bias"]}
    found = {}
    for on in itertools.product([False, True], repeat=2):
        fields = {
            "nominal_controller": on[0],
            "aggregate_nominal": on[1],
            "exp_mult": (1.0, 1.0, 1.0),
            "nominal_step": 0.1,
        }
        optimizer = ROWS["star"].create(seed=4, **fields)
        updates, _ = update(optimizer, random_like(params, 1), optimizer.init(params, horizon=STEPS), params)
        found[on] = updates["b"]
    assert bool((found[False, False] == found[False, True]).all())  # nothing to average: the controller is off
    assert not np.allclose(found[True, False], found[False, False], rtol=1e-3)
    assert not np.allclose(found[True, False], found[True, True], rtol=1e-3)


def test_star_rejects_an_unknown_nominal_term() -> None:
    message = "nominal is 'adamw'; it must be one of sgd, momentum, aggmo, adam, adam_aggmo"
    with as_users_run_it(), pytest.raises(InputError, match=message):
        STAR(nominal="adamw", key=jax.random.key(0))  # pyright: ignore[reportArgumentType]


def test_star_rejects_multipliers_that_are_not_three() -> None:
    with pytest.raises(InputError, match=r"exp_mult is \[0.1\]; it must be three numbers"):
        ROWS["star"].create(exp_mult=[0.1])


@pytest.mark.parametrize(("share", "told_power"), [(0.0, 0.5), (0.3, 0.0), (1.0, 0.75)])
@pytest.mark.parametrize(("up_to", "horizon"), [(2, 10), (256, 10), (256, 30), (256, None)])
def test_relative_mlp_without_black_box_is_its_nominal_term(
    share: float, told_power: float, up_to: int, horizon: int | None
) -> None:
    """Three steps by hand: a matrix, where it is not too large, partly or wholly along its orthogonal factor; vectors of all sizes; horizon told or not."""
    decays, second_decay = np.asarray([0.8, 0.95, 0.98]), 0.99
    optimizer = ROWS["relative_mlp"].create(
        orthogonal_share=share,
        orthogonalize_up_to=up_to,
        told_power=told_power,
        told_up_to=20.0,
        untold_power=0.9,
        decay_time=10.0,
    )
    optimizer = without_black_box(optimizer)
    params = {
        "matrix": draw((3, 5), 1),
        "small": 0.01 * draw((4,), 2),
        "vector": 0.3 * draw((4,), 2),
        "large": 9.0 * draw((4,), 2),
    }
    state = optimizer.init(params, horizon=horizon)
    m, v = ({n: np.zeros((k, *p.shape)) for n, p in params.items()} for k in (3, 1))
    for t in range(3):
        grads = random_like(params, t)
        updates, state = update(optimizer, grads, state, params)
        for name, gradient in grads.items():
            g, w = np.asarray(gradient, np.float64), np.asarray(params[name], np.float64)
            beta = decays.reshape(3, *[1] * g.ndim)
            m[name] = beta * m[name] + (1 - beta) * g
            v[name] = second_decay * v[name] + (1 - second_decay) * g**2
            mean = (m[name] / (1 - beta ** (t + 1))).mean(0)
            adam = mean / (np.sqrt(v[name][0] / (1 - second_decay ** (t + 1))) + 1e-8)
            if share and name == "matrix" and up_to >= 3:
                turned = np.asarray(orthogonalize(jnp.asarray(mean, jnp.float32), (0, 1)), np.float64)
                grafted = turned * np.sqrt((adam**2).mean() / (turned**2).mean())
                adam = (1 - share) * adam + share * grafted
            size = np.clip(np.sqrt((w**2).mean()), 0.1, 1.0)
            schedule = (1 + t / 10) ** -(told_power if horizon == 10 else 0.9)
            schedule *= 1.0 if horizon is None else 1 - t / horizon
            step = 0.1 * size * schedule * adam
            np.testing.assert_allclose(-np.asarray(updates[name]), step, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_float32_stays_float32_where_jax_is_allowed_more(name: str) -> None:
    optimizer, params = ROWS[name].create(), example_params()
    with jax.enable_x64(True):
        state = jax.eval_shape(lambda p: optimizer.init(p, key=jax.random.key(0), horizon=3), params)
        loss = jnp.ones((), jnp.float32)
        step = partial(optimizer.update, value=loss, valid_value=loss)
        updates, after = jax.eval_shape(lambda g, s, p: step(g, s, p), params, state, params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {np.dtype("float32")}
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("adam", "small_fc", "gru") else pytest.mark.slow) for n in ROWS]
)
def test_tensors_of_one_shape_are_updated_as_if_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `jit` they share a loop, in which every tensor must meet its own gradient, state and features."""
    optimizer, shapes = (
        ROWS[name].create(),
        {"a": (3, 4), "b": (3, 4), "c": (2,), "d": (2,), "e": (), "f": (), "g": (3, 4)},
    )
    optimizer = perturbed(optimizer, 7, 0.02)
    params = {name: draw(shape, i) for i, (name, shape) in enumerate(shapes.items())}

    def run() -> Any:
        @jax.jit
        def step(optimizer: lopt.Optimizer, grads: PyTree, state: Any, params: PyTree) -> Any:
            updates, state = optimizer.update(grads, state, params, value=LOSS, valid_value=LOSS)
            return optax.apply_updates(params, updates), state

        now, state = params, optimizer.init(params, key=jax.random.key(0), horizon=5)
        for seed in (11, 12, 13):
            grads = {name: draw(shape, 100 * seed + i) for i, (name, shape) in enumerate(shapes.items())}
            now, state = step(optimizer, grads, state, now)
        return now, state

    in_turns = run()
    with monkeypatch.context() as as_elsewhere:
        as_elsewhere.setattr(lopt.blocks.tensors, "per_platform", lambda *given, cpu, default: default(*given))
        assert_close(in_turns, run(), rtol=1e-4)
    monkeypatch.setattr(lopt.blocks.tensors, "STACKED", 0)
    assert_close(in_turns, run(), rtol=1e-4)


@pytest.mark.parametrize(("greatest_size", "exponential"), [(1.0, False), (math.inf, True)])
def test_relative_mlp_has_a_greatest_size_lest_tensors_grow_exponentially(
    greatest_size: float, exponential: bool
) -> None:
    """A gradient that never changes, as of a loss without a minimum: from the greatest size on a tensor gains the same with every step."""
    optimizer = without_black_box(ROWS["relative_mlp"].create(greatest_size=greatest_size, scheduled=False))
    params = {"bias": jnp.full(4, 0.1)}

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
        params, state = carry
        updates, state = optimizer.update({"bias": -jnp.ones(4)}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["bias"][0]

    _, path = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
    assert path[-1] > 10.0  # it is not held back
    gains = path[-50:] / path[-51:-1]
    assert bool((gains > 1.05).all()) == exponential
    assert bool((jnp.diff(path[-50:]) <= 0.5).all()) != exponential


def test_relative_mlp_told_of_too_long_a_training_is_as_untold_but_for_its_end() -> None:
    """Its network sees nothing of a horizon that is longer than it may be; the linear part of the schedule is all that is left of it."""
    optimizer = perturbed(ROWS["relative_mlp"].create(told_power=0.75), 3, 0.1)  # the power is the same, told or not
    params, step = small_params(), 40
    found = {}
    for horizon in (5_000, 5_001, None):
        state = optimizer.init(params, horizon=horizon)._replace(step=jnp.asarray(step, jnp.int32))
        found[horizon], _ = update(optimizer, random_like(params, 1), state, params)
    for name, untold in found[None].items():
        np.testing.assert_allclose(found[5_001][name], (1 - step / 5_001) * untold, rtol=1e-5)
        assert float(jnp.abs(found[5_000][name] / ((1 - step / 5_000) * untold) - 1).max()) > 0.05


def test_relative_mlp_may_be_told_of_any_training_and_knows_one_that_is_untold() -> None:
    """Infinity is no limit, and no horizon."""
    optimizers = [perturbed(ROWS["relative_mlp"].create(told_up_to=most), 3, 0.1) for most in (5_000.0, math.inf)]
    params, step = small_params(), jnp.asarray(300, jnp.int32)

    def steps(optimizer: Any, horizon: int | None) -> Any:
        return update(
            optimizer, random_like(params, 1), optimizer.init(params, horizon=horizon)._replace(step=step), params
        )

    for horizon, same in ((None, True), (5_000, True), (5_001, False)):
        limited, free = (steps(optimizer, horizon) for optimizer in optimizers)
        assert eqx.tree_equal(limited, free).item() == same


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("steps", [0, 9, 10, 100])
def test_relative_mlp_is_bounded_and_descends(told: bool, steps: int) -> None:
    """Whatever gradient and network: within $b s c_t$, which a large network reaches; without a network, against the gradient, beyond the horizon too."""
    plain = without_black_box(ROWS["relative_mlp"].create())
    drawn = ROWS["relative_mlp"].create()
    many_times = tuple(1e3 * w for w in drawn.rule.net.weights)  # pyright: ignore[reportAttributeAccessIssue]
    wild = eqx.tree_at(lambda o: o.rule.net.weights, drawn, many_times)
    params = {
        "matrix": draw((30, 50), 1),
        "small": 1e-3 * draw((4,), 2),
        "large": 1e3 * draw((4,), 3),
        "scalar": draw((), 4),
    }
    schedule = max(1 - steps / 10, 0.01) * (1 + steps / 100) ** -0.5 if told else (1 + steps / 100) ** -0.75
    sparse = jax.tree.map(lambda p: jnp.zeros_like(p).at[(0,) * p.ndim].set(1.0), params)
    largest = 0.0
    for optimizer, scale in itertools.product((plain, wild), (1e-8, 1.0, 1e12)):
        state = optimizer.init(params, horizon=10 if told else None)._replace(step=jnp.asarray(steps, jnp.int32))
        for direction in (random_like(params, 5), sparse):
            grads = jax.tree.map(lambda d, s=scale: s * d, direction)
            updates, _ = update(optimizer, grads, state, params)
            for name, u in updates.items():
                size = float(jnp.clip(jnp.sqrt(jnp.mean(jnp.square(params[name]))), 0.1, 1.0))
                assert bool(jnp.isfinite(u).all())
                largest = max(largest, float(jnp.abs(u).max()) / (0.5 * size * schedule))
                if optimizer is plain and params[name].ndim < 2:
                    # Below 1e-8 the epsilon takes over, and accumulators that are corrected for late steps hold a part of the gradient.
                    assert bool((u * grads[name] <= 0).all())
                    assert float(jnp.abs(u).max()) > 0
    assert largest == pytest.approx(1.0, rel=1e-5)


def test_relative_mlp_sees_the_tensor() -> None:
    """All eight features of a tensor, read through a linear path, against numpy."""
    params = {"matrix": draw((3, 5), 1)}
    grads = [np.asarray(draw((3, 5), seed), np.float64) for seed in (2, 3, 4)]
    given = ROWS["relative_mlp"].create(nominal_step=0.0, scheduled=False, relative=False)

    def seen(row: int) -> float:
        total = 0.0
        for sign in (1.0, -1.0):  # the path is rectified
            weights = [jnp.zeros_like(w) for w in given.rule.net.weights]  # pyright: ignore[reportAttributeAccessIssue]
            weights[0] = weights[0].at[row - 8, 0].set(sign)
            weights[1], weights[2] = (w.at[0, 0].set(1.0) for w in weights[1:])
            optimizer = eqx.tree_at(lambda o: o.rule.net.weights, given, tuple(weights))
            state = optimizer.init(params)
            for g in grads:
                updates, state = update(optimizer, {"matrix": jnp.asarray(g, jnp.float32)}, state, params)
            total -= sign * float(updates["matrix"][0, 0])
        return total / (0.1 * given.step_mult)  # pyright: ignore[reportAttributeAccessIssue]

    decays, m, v = np.asarray([0.8, 0.95, 0.98]), np.zeros((3, 3, 5)), np.zeros((3, 5))
    for g in grads[:2]:
        m = decays[:, None, None] * m + (1 - decays[:, None, None]) * g
        v = 0.99 * v + 0.01 * g**2
    norms = np.sqrt((m**2).sum((1, 2)))
    cosines = (m * grads[2]).sum((1, 2)) / norms / np.sqrt((grads[2] ** 2).sum())
    ratios = norms / (1 - decays**2) / np.sqrt(v.sum() / (1 - 0.99**2))
    size = np.sqrt(np.mean(np.asarray(params["matrix"]) ** 2))
    expected = [*cosines, *np.log(ratios + 1e-3) / 3, np.log(size / 0.1 + 1e-3) / 3, 1.0]
    np.testing.assert_allclose([seen(row) for row in range(8)], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["small_fc", "star", "relative_mlp", "controlled_muon", "hierarchical_lstm"])
def test_meta_gradients_are_finite_where_there_is_no_gradient(name: str) -> None:
    """Dead units, biases at zero and tensors that the loss does not see have roots of zero in many places."""
    params = {"matrix": draw((3, 4), 1), "bias": jnp.zeros(3), "unseen": draw((2, 3), 2)}

    def loss(params: PyTree) -> Array:
        return jnp.sum(jnp.square(params["matrix"][1:])) + jnp.sum(jnp.square(params["bias"][1:] - 1.0))

    def after(optimizer: Any) -> Array:
        now, state = params, optimizer.init(params)
        for _ in range(2):
            value, grads = jax.value_and_grad(loss)(now)
            updates, state = optimizer.update(grads, state, now, value=value)
            now = optax.apply_updates(now, updates)
        return loss(now)

    slopes = eqx.filter_jit(eqx.filter_grad(after))(ROWS[name].create())
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert bool(jnp.isfinite(slope).all()), path
    assert any(float(jnp.abs(slope).max()) > 0 for slope in jax.tree.leaves(slopes))


def test_mlp_contains_normalised_descent() -> None:
    optimizer, params = mlp_normalised_descent(ROWS["mlp"].create(step_mult=0.1)), example_params()
    grads = random_like(params, 1)
    updates, _ = update(optimizer, grads, optimizer.init(params), params)
    expected = jax.tree.map(lambda g: -0.1 * g / jnp.sqrt(1e-5 + jnp.mean(jnp.square(g))) if g.size else g, grads)
    assert_close(updates, expected)


def test_mlp_of_the_paper_has_one_hidden_layer() -> None:
    optimizer = ROWS["mlp"].create(hidden=(32,), decays=(0.5, 0.9, 0.99, 0.999, 0.9999))
    assert sum(x.size for x in jax.tree.leaves(optimizer)) == 18 * 32 + 32 + 32 * 2 + 2


CHUNKED = {
    "mlp": {},
    "gru": {"hidden": 5},
    "lstm": {"hidden": 3},
    "hierarchical_rnn": {"use_attention": True},
    "small_fc": {"hidden": (9,)},
}


@pytest.mark.parametrize("shape", [(1, 997), (23, 41), (2, 3, 5, 29)], ids=str)
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_do_not_change_the_update(monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...]) -> None:
    optimizer, params = perturbed(ROWS[name].create(**CHUNKED[name]), 3), draw(shape, 0)

    def run(chunk: int) -> Any:
        monkeypatch.setattr(lopt.blocks.tensors, "CHUNK", chunk)

        @jax.jit
        def two(optimizer: lopt.Optimizer, params: Array) -> Any:
            state = optimizer.init(params)
            _, state = optimizer.update(draw(shape, 1), state, params)
            return optimizer.update(draw(shape, 2), state, params)

        return two(optimizer, params)

    assert_close(run(64), run(10**6), rtol=1e-4)


def test_gru_is_its_equations() -> None:
    """Two steps of a scalar by hand."""
    optimizer = perturbed(ROWS["gru"].create(hidden=3, log_sign=True, input_scale=2.0, output_scale=0.5), 1, 0.3)
    assert isinstance(optimizer, GRUOptimizer)
    cell = jax.tree.map(lambda x: np.asarray(x, np.float64), optimizer.cell)
    params = jnp.asarray(1.0)
    state, h = optimizer.init(params), np.asarray(optimizer.start, np.float64)
    for g in (0.7, -3.0):
        updates, state = update(optimizer, jnp.asarray(g), state, params)
        x = np.asarray([np.log1p(abs(2.0 * g)), np.sign(g)])
        gates = 1.0 / (1.0 + np.exp(-(np.concatenate([x, h]) @ cell.gates + cell.gates_bias)))
        candidate = np.tanh(np.concatenate([x, gates[:3] * h]) @ cell.candidate + cell.candidate_bias)
        h = gates[3:] * h + (1.0 - gates[3:]) * candidate
        expected = 0.5 * (h @ np.asarray(optimizer.readout)[:, 0] + float(optimizer.bias))
        np.testing.assert_allclose(float(updates), expected, rtol=1e-5)


def test_gru_stands_still_before_meta_training() -> None:
    optimizer, params = ROWS["gru"].create(), small_params()
    updates, _ = update(optimizer, random_like(params, 1), optimizer.init(params), params)
    assert all(bool((u == 0).all()) for u in jax.tree.leaves(updates))


def test_lstm_is_its_equations() -> None:
    """Two steps of a scalar by hand, one of them below the edge of the logarithm."""
    optimizer = perturbed(ROWS["lstm"].create(hidden=3, p=2.0, output_scale=0.5), 1, 0.3)
    assert isinstance(optimizer, LSTMOptimizer)
    params, layers = jnp.asarray(1.0), [np.zeros(3) for _ in range(4)]
    state = optimizer.init(params)
    for g in (-0.7, 0.1):
        updates, state = update(optimizer, jnp.asarray(g), state, params)
        x = np.asarray([math.log(abs(g)) / 2.0, np.sign(g)] if abs(g) >= math.exp(-2.0) else [-1.0, math.exp(2.0) * g])
        for i, cell in enumerate(optimizer.cells):
            h, c = layers[2 * i : 2 * i + 2]
            write, candidate, forget, read = np.split(
                np.concatenate([x, h]) @ np.asarray(cell.weight, np.float64) + np.asarray(cell.bias), 4
            )
            c = c / (1.0 + np.exp(-forget - 1.0)) + np.tanh(candidate) / (1.0 + np.exp(-write))
            x = np.tanh(c) / (1.0 + np.exp(-read))
            layers[2 * i : 2 * i + 2] = x, c
        readout = optimizer.readout
        expected = 0.5 * (x @ np.asarray(readout.weight)[:, 0] + float(readout.bias[0]))
        np.testing.assert_allclose(float(updates), expected, rtol=1e-5)


def test_hierarchical_rnn_has_the_parts_of_the_paper() -> None:
    def count(tree: PyTree[Array]) -> int:
        return sum(x.size for x in jax.tree.leaves(tree))

    o = ROWS["hierarchical_rnn"].create()
    assert isinstance(o, HierarchicalRNN)
    assert count((o.parameter_rnn, o.tensor_to_parameter, o.global_to_parameter)) == 1_950
    assert count((o.tensor_rnn, o.global_to_tensor)) == 3_840
    assert count(o.global_rnn) == 2_460
    readouts = (o.direction, o.shortcut, o.rate, o.momentum_decay, o.scale_decay, o.log_step, o.rate_decay)
    assert count(readouts) == 49
    assert count(o.starts) == 50
    assert count(ROWS["hierarchical_rnn"].create(use_attention=True)) == 8_349 + 14
    state = jax.eval_shape(o.init, jnp.zeros((7, 11)))
    assert count(state) - 1 - 40 == 19 * 77


def test_hierarchical_rnn_is_its_equations() -> None:
    """Two steps of two tensors by hand, at every level."""
    optimizer = perturbed(ROWS["hierarchical_rnn"].create(use_attention=True), 1, 0.2)
    assert isinstance(optimizer, HierarchicalRNN)
    o = jax.tree.map(lambda x: np.asarray(x, np.float64), optimizer)

    def sigmoid(x: Any) -> Any:
        return 1.0 / (1.0 + np.exp(-x))

    def gru(cell: Any, x: Any, h: Any, beta: Any) -> Any:  # units last
        n = h.shape[-1]
        gates = sigmoid(np.concatenate([x, h], -1) @ cell.gates + cell.gates_bias + beta[: 2 * n])
        reset, keep = gates[..., :n], gates[..., n:]
        candidate = np.concatenate([x, reset * h], -1) @ cell.candidate + cell.candidate_bias + beta[2 * n :]
        return keep * h + (1.0 - keep) * np.tanh(candidate)

    def affine(map: Any, x: Any) -> Any:
        return x @ map.weight + map.bias

    params = {"a": draw((3, 2), 0), "b": draw((4,), 1)}
    state = optimizer.init(params, key=jax.random.key(5))
    rates = {n: np.asarray(s, np.float64).ravel() for n, s in state.tensors.log_rate.items()}
    true = {n: np.asarray(p, np.float64).ravel() for n, p in params.items()}
    hidden = {n: np.tile(o.starts[0], (len(w), 1)) for n, w in true.items()}
    tensor, whole = dict.fromkeys(true, o.starts[1]), o.starts[2]
    momentum = {n: np.zeros((len(w), 4)) for n, w in true.items()}
    square = {n: np.zeros((len(w), 4)) for n, w in true.items()}
    for t in range(2):
        grads = {"a": draw((3, 2), 10 + t), "b": draw((4,), 20 + t)}
        updates, state = update(optimizer, grads, state, params)
        params = optax.apply_updates(params, updates)
        mean_rate, next_tensor = np.concatenate([*rates.values()]).mean(), {}
        for n in true:
            g, h = np.asarray(grads[n], np.float64).ravel(), hidden[n]
            d = np.stack([sigmoid(affine(o.momentum_decay, h)[:, 0]) ** (0.5**s) for s in range(4)], -1) * (t > 0)
            gamma = sigmoid(affine(o.scale_decay, h)) * (t > 0)
            momentum[n] = d * momentum[n] + (1.0 - d) * g[:, None]
            square[n] = gamma * square[n] + (1.0 - gamma) * (momentum[n] ** 2 + 1e-12)
            x, log = np.arcsinh(momentum[n] / np.sqrt(square[n] + 1e-16)), np.log(square[n] + 1e-16)
            inputs = [x, x[:, :-1] * x[:, 1:], log - log.mean(-1, keepdims=True), (rates[n] - mean_rate)[:, None]]
            inputs = np.concatenate(inputs, -1)
            beta = affine(o.tensor_to_parameter, tensor[n]) + affine(o.global_to_parameter, whole)
            hidden[n] = h = gru(o.parameter_rnn, inputs, h, beta)
            seen = np.concatenate([h, inputs], -1).mean(0)
            next_tensor[n] = gru(o.tensor_rnn, seen, tensor[n], affine(o.global_to_tensor, whole))
            directions = h @ o.direction + x @ o.shortcut
            step, look = (directions / np.sqrt((directions**2).mean(0) + 1e-16)).T
            proposal = rates[n] + affine(o.rate, h)[:, 0]
            attended = true[n] - np.exp(proposal) * look
            true[n] = true[n] - np.exp(proposal + o.log_step) * step
            rates[n] = sigmoid(o.rate_decay) * rates[n] + (1.0 - sigmoid(o.rate_decay)) * proposal
            np.testing.assert_allclose(np.ravel(params[n]), attended, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(np.ravel(optimizer.eval_params(state, params)[n]), true[n], rtol=1e-4, atol=1e-6)
        tensor = next_tensor
        whole = gru(o.global_rnn, np.mean([*tensor.values()], 0), whole, np.zeros(60))
        np.testing.assert_allclose(state.global_hidden, whole, rtol=1e-4, atol=1e-5)


def test_hierarchical_rnn_quirk_shows_the_global_rnn_the_last_tensor_alone() -> None:
    params = small_params()
    grads = random_like(params, 1)
    found = {}
    for quirk in (False, True):
        optimizer = ROWS["hierarchical_rnn"].create(last_tensor_only=quirk)
        for scale in (1.0, 100.0):  # of the first tensor
            _, state = update(optimizer, grads | {"b": scale * grads["b"]}, optimizer.init(params), params)
            _, state = update(optimizer, random_like(params, 2), state, params)
            found[quirk, scale] = state.global_hidden
    assert bool((found[True, 1.0] == found[True, 100.0]).all())
    assert bool((found[False, 1.0] != found[False, 100.0]).any())


def test_hierarchical_rnn_draws_its_rates_from_the_key() -> None:
    optimizer, params = ROWS["hierarchical_rnn"].create(), {"w": jnp.zeros((50, 40)), "b": jnp.zeros((3,))}
    one, same, default = (optimizer.init(params, key=k) for k in (jax.random.key(1), jax.random.key(1), None))
    assert_same(one, same)
    assert_same(default, optimizer.init(params, key=jax.random.key(0)))
    rates = one.tensors.log_rate["w"]
    assert bool((rates != default.tensors.log_rate["w"]).all())
    assert math.log(1e-6) <= float(rates.min()) < float(rates.max()) <= math.log(1e-2)
    # Half the logarithm each for the tensor and the parameter: within one tensor the range is half as wide.
    assert 0.95 < float(rates.max() - rates.min()) / (0.5 * math.log(1e4)) <= 1.0


def test_attention_takes_gradients_elsewhere_and_evaluates_the_true_parameters() -> None:
    """In any loop: `params` are the point of attention; losses that count are those of the true parameters."""
    optimizer = annealed_hierarchy(ROWS["hierarchical_rnn"].create(use_attention=True, initial_rates=(0.1, 0.1)))
    task = lopt.tasks.Quadratic(dim=4)
    inner = lopt.start(optimizer, task, jax.random.key(0), 20)
    start = inner.params
    assert_same(optimizer.eval_params(inner.opt_state, start), start)
    after, losses = lopt.unroll(optimizer, task, inner, jax.random.key(1), 20)
    params, state, expected = start, inner.opt_state, []
    for key in jax.random.split(jax.random.key(1), 20):
        expected.append(task.loss(inner.problem, optimizer.eval_params(state, params), key))
        grads = jax.grad(lambda p, k=key: task.loss(inner.problem, p, k))(params)
        updates, state = update(optimizer, grads, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(after.params, params, rtol=1e-4)
    np.testing.assert_allclose(losses, jnp.stack(expected), rtol=1e-3)
    true = optimizer.eval_params(state, params)
    assert float(jnp.abs(true - params).max()) > 1e-3
    assert float(task.loss(inner.problem, true, jax.random.key(2))) < 0.7 * float(losses[0])
    record = lopt.train(optimizer, task, steps=20, key=jax.random.key(0), evals=4)
    found = lopt.start(optimizer, task, jax.random.fold_in(jax.random.split(jax.random.key(0), 1)[0], 0), 20)
    np.testing.assert_allclose(
        record.train_loss[0, -1], task.loss(found.problem, record.params[0], jax.random.key(2)), rtol=1e-5
    )


@pytest.mark.parametrize(("name", "fields"), [("controlled_muon", {}), ("hierarchical_rnn", {"use_attention": True})])
def test_evaluation_refuses_the_state_of_a_chain_or_a_wrapper(name: str, fields: dict[str, Any]) -> None:
    optimizer, params = ROWS[name].create(**fields), small_params(0)
    chain = optax.chain(optax.clip(1.0), optimizer.to_optax()).init(params)
    several = optax.MultiSteps(optimizer.to_optax(), 2).init(params)
    for state, kind in ((chain, "tuple"), (several, "MultiStepsState")):
        with pytest.raises(
            InputError, match=rf"The state is of the class {kind}, not \w+State; of a chain .* as state\[1\]"
        ):
            optimizer.eval_params(state, params)
    for own in (chain[1], several.inner_opt_state):
        assert_same(optimizer.eval_params(own, params), params)


def test_attention_keeps_the_true_parameters_in_float32() -> None:
    optimizer, params = ROWS["hierarchical_rnn"].create(use_attention=True), small_params(0, jnp.bfloat16)
    state = optimizer.init(params)
    for seed in range(3):
        updates, state = update(optimizer, random_like(params, seed), state, params)
        params = optax.apply_updates(params, updates)
    assert state.tensors.param["w"].dtype == jnp.float32
    assert optimizer.eval_params(state, params)["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["gru", "hierarchical_rnn"])
def test_a_donated_state_leaves_the_meta_parameters_alone(name: str) -> None:
    optimizer, params = ROWS[name].create(use_attention=True) if name[0] == "h" else ROWS[name].create(), jnp.ones(())
    step = jax.jit(lambda s, p: optimizer.update(p, s, p), donate_argnums=0)
    step(optimizer.init(params), params)
    step(optimizer.init(params), params)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mlp", {"hidden": ()}, r"hidden is \(\); it must hold at least one width"),
        ("mlp", {"hidden": (4, 0)}, r"hidden is \(4, 0\); .* each at least 1"),
        ("mlp", {"decays": (0.9, 1.0)}, r"decays is \(0.9, 1.0\); .* below 1"),
        ("gru", {"hidden": 0}, "hidden is 0; it must be at least 1"),
        ("lstm", {"layers": 0}, "layers is 0; it must be at least 1"),
        ("lstm", {"p": 0.0}, "p is 0.0; it must be positive"),
        ("velo", {"hidden": (4, 0)}, r"hidden is \(4, 0\); .* each at least 1"),
        ("velo", {"lstm_hidden": 0}, "lstm_hidden is 0; it must be at least 1"),
        ("velo", {"bank": 0}, "bank is 0; it must be at least 1"),
        ("velo", {"second_decay": 1.0}, "second_decay is 1.0; it must be at least 0 and below 1"),
        ("celo", {"hidden": ()}, r"hidden is \(\); it must hold at least one width"),
        ("celo", {"lstm_hidden": -1}, "lstm_hidden is -1; it must be at least 1"),
        ("celo", {"momentum_decays": (0.9, 0.99)}, r"momentum_decays is \(0.9, 0.99\); it must hold three"),
        ("celo2", {"hidden": (0,)}, r"hidden is \(0,\); .* each at least 1"),
        ("celo2", {"factored_decays": (0.9, 0.99, -0.1)}, r"factored_decays is .*-0.1\); .* at least 0"),
        ("celo2", {"orthogonalize_steps": -1}, "orthogonalize_steps is -1; it must be at least 0"),
        ("controlled_muon", {"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ("controlled_muon", {"averaging": 1.0}, "averaging is 1.0; it must be at least 0 and below 1"),
        ("controlled_muon", {"hidden": 0}, "hidden is 0; it must be at least 1"),
        ("relative_mlp", {"orthogonal_share": 1.5}, "orthogonal_share is 1.5; it must be between 0 and 1"),
        ("relative_mlp", {"least_size": 0.0}, "least_size is 0.0; it must be positive"),
        ("relative_mlp", {"untold_power": -0.5}, "untold_power is -0.5; it must be at least 0"),
        ("relative_mlp", {"greatest_size": 0.05}, "greatest_size is 0.05; it must be at least least_size, 0.1"),
        ("hierarchical_lstm", {"hidden": ()}, r"hidden is \(\); it must hold at least one width"),
        ("hierarchical_lstm", {"to_mlp": 0}, "to_mlp is 0; it must be at least 1"),
        ("hierarchical_lstm", {"decays": ()}, r"decays is \(\); it must hold at least one"),
        ("hierarchical_lstm", {"clip_decay": 1.5}, "clip_decay is 1.5; it must be at least 0 and below 1"),
        ("small_fc", {"momentum_decays": (0.9, 0.99, 1.0)}, r"momentum_decays is .*1.0\); .* below 1"),
        ("hierarchical_rnn", {"sizes": (10, 0, 20)}, r"sizes is \(10, 0, 20\) and timescales 4; each"),
        ("hierarchical_rnn", {"initial_rates": (0.1, 0.01)}, r"initial_rates is \(0.1, 0.01\); both must be positive"),
    ],
)
def test_learned_optimizers_reject_bad_fields(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ROWS[name].create(**fields)


@pytest.mark.parametrize("name", ["small_fc", "star"])
def test_hidden_layers_can_be_chosen(name: str, tmp_path: Path) -> None:
    optimizer, params = ROWS[name].create(hidden=[3, 5, 2]), small_params()
    outputs = {"small_fc": 2, "star": 4}[name]
    assert sum(x.size for x in jax.tree.leaves(optimizer)) == 40 * 3 + 4 * 5 + 6 * 2 + 3 * outputs + 7
    updates, _ = update(optimizer, random_like(params, 1), optimizer.init(params, horizon=STEPS), params)
    assert all_finite(updates)
    assert_same(lopt.load(lopt.save(tmp_path / "it", optimizer)), optimizer)


@pytest.mark.parametrize("name", ["hierarchical_lstm", "velo", "celo"])
def test_says_that_it_needs_the_loss(name: str) -> None:
    optimizer, params = ROWS[name].create(lstm_hidden=4), small_params()
    state = optimizer.init(params, horizon=STEPS)
    with pytest.raises(InputError, match=rf"^{ROWS[name].kind.__name__} needs the training loss: .*value=loss"):
        optimizer.update(params, state, params)


@pytest.mark.parametrize("name", ["velo", "celo"])
def test_says_that_it_needs_the_horizon(name: str) -> None:
    optimizer, params = ROWS[name].create(lstm_hidden=4), small_params()
    with pytest.raises(InputError, match=rf"^{ROWS[name].kind.__name__} needs the length of the training .*horizon=st"):
        optimizer.to_optax().init(params)


@pytest.mark.usefixtures("unchecked")
def test_says_which_parameter_is_no_array() -> None:
    """As a whole Equinox model, its activation among the leaves."""
    tx = ROWS["relative_mlp"].create().to_optax()
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    with pytest.raises(
        InputError, match=r"^activation is a \w+ and no array; .* eqx\.filter\(model, eqx\.is_inexact_array\)"
    ):
        tx.init(model)
    with pytest.raises(InputError, match=r"^params is a float and no array"):
        tx.init(1.0)
    tx.init(eqx.filter(model, eqx.is_inexact_array))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["velo", "celo", "relative_mlp"])
def test_takes_a_horizon_of_any_numeric_type_from_one_step_on(name: str) -> None:
    """At 0 the first step would be NaN, and below it steps would grow."""
    optimizer, params = ROWS[name].create(), small_params()
    expected = optimizer.init(params, horizon=100)
    for good in (100.0, np.int64(100), np.float32(100), jnp.asarray(100)):
        assert eqx.tree_equal(optimizer.init(params, horizon=good), expected)
    assert eqx.tree_equal(jax.jit(lambda h: optimizer.init(params, horizon=h))(100), expected)
    for bad in (0, -5.0, 0.5, math.nan, np.int64(0), jnp.asarray(0), "100", True, (100,), np.ones(1)):
        with pytest.raises(InputError, match=r"^horizon is .*; it must be a number of steps, at least 1\.$"):
            optimizer.to_optax(horizon=bad).init(params)


@pytest.mark.parametrize("name", ["hierarchical_lstm", "velo", "celo"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_survives_a_loss_that_cannot_be_used(name: str, bad: float) -> None:
    """Gradients can be finite where the loss is not; what follows must be too."""
    optimizer, params = perturbed(ROWS[name].create(lstm_hidden=4), 3), small_params()
    step = jax.jit(partial(type(optimizer).update, optimizer))
    for at in range(3):
        state, losses = optimizer.init(params, horizon=STEPS), [1.0, 0.9, 0.8, 0.7, 0.6]
        losses[at] = bad
        for seed, loss in enumerate(losses):
            updates, state = step(random_like(params, seed), state, params, value=jnp.float32(loss))
            assert all_finite((updates, state)), (at, seed)


def test_loops_hand_the_validation_loss_to_those_that_ask_for_it() -> None:
    """Every ten steps of the problem, whatever the cuts between unrolls; others are never asked to pay for it."""
    optimizer = ROWS["hierarchical_lstm"].create(lstm_hidden=4, hidden=(4,))
    task, key = lopt.tasks.Quadratic(dim=2), jax.random.key(0)
    assert [row.name for row in OPTIMIZERS if row.create().validation_every] == ["hierarchical_lstm"]
    inner = lopt.start(optimizer, task, key, STEPS)
    cut: Any = jax.jit(lambda inner: lopt.unroll(optimizer, task, inner, key, 7)[0])
    counts = []
    for _ in range(3):
        inner = cut(inner)
        counts.append(int(inner.opt_state.valid.recorded))
    assert counts == [1, 2, 3]  # steps 0, 10 and 20


def test_hierarchical_lstm_hears_the_validation_loss() -> None:
    optimizer, params = perturbed(ROWS["hierarchical_lstm"].create(lstm_hidden=4), 3), small_params()
    params, state = warmed_up(optimizer, params)
    grads = random_like(params, 5)
    step = jax.jit(partial(type(optimizer).update, optimizer))
    silent, after = step(grads, state, params, value=LOSS)
    low, after_low = step(grads, state, params, value=LOSS, valid_value=LOSS)
    high, _ = step(grads, state, params, value=LOSS, valid_value=2.0 * LOSS)
    assert not np.allclose(low["w"], high["w"], rtol=1e-6, atol=0.0)
    assert not np.allclose(low["w"], silent["w"], rtol=1e-6, atol=0.0)
    assert_same(step(grads, state, params, value=LOSS, valid_value=np.float32(np.nan)), (silent, after))
    assert int(after.step) == 3  # pyright: ignore[reportAttributeAccessIssue]
    assert int(after_low.step) == 4  # pyright: ignore[reportAttributeAccessIssue]
    once = ROWS["hierarchical_lstm"].create(lstm_hidden=4, count_validation=False)
    assert int(once.update(grads, state, params, value=LOSS, valid_value=LOSS)[1].step) == 3  # pyright: ignore


def test_celo2_is_a_direction_of_unit_root_mean_square() -> None:
    optimizer, params = ROWS["celo2"].create(seed=1, learning_rate=0.03), example_params()
    updates, _ = update(optimizer, random_like(params, 1), optimizer.init(params), params)
    for name, axes in {"scalar": None, "bias": None, "matrix": (0, 1), "conv": (1, 3)}.items():
        rms = np.sqrt(np.mean(np.square(np.asarray(updates[name])), axis=axes))
        np.testing.assert_allclose(rms, 0.03, rtol=2e-2)


def test_celo2_uses_directions_only() -> None:
    optimizer, params = ROWS["celo2"].create(seed=1), small_params()
    other = eqx.tree_at(lambda o: o.rule.net.biases[-1], optimizer, replace_fn=lambda b: b.at[1:].add(1.0))
    grads, state = random_like(params, 1), optimizer.init(params)
    assert_same(update(optimizer, grads, state, params), update(other, grads, state, params))
    loud = ROWS["celo2"].create(seed=1, exp_mult=1.0)
    updates, _ = update(loud, grads, state, params)
    assert not np.allclose(updates["w"], update(optimizer, grads, state, params)[0]["w"], rtol=1e-3)


def test_celo2_can_orthogonalize() -> None:
    """Newton-Schulz brings singular values to within about 0.7 to 1.2 of one another's size."""
    params = {"wide": jnp.ones((4, 6)), "tall": jnp.ones((6, 4)), "bias": jnp.ones(3)}
    found = {}
    for steps in (0, 5):
        optimizer = ROWS["celo2"].create(seed=1, orthogonalize_steps=steps)
        found[steps], _ = update(optimizer, random_like(params, 1), optimizer.init(params), params)
    assert_same(found[0]["bias"], found[5]["bias"])
    for name in ("wide", "tall"):
        before, after = (np.linalg.svd(np.asarray(found[s][name]), compute_uv=False) for s in (0, 5))
        assert before.max() / before.min() > 3.0
        assert after.max() / after.min() < 2.0


def test_celo_without_schedule_ignores_the_loss_and_with_it_only_scales() -> None:
    params = small_params()
    grads = random_like(params, 1)
    updates = {}
    for scheduled in (False, True):
        optimizer = perturbed(ROWS["celo"].create(lstm_hidden=4, scheduled=scheduled), 3)
        for fraction in (0.0, 0.9):
            state = optimizer.init(params, horizon=100)
            state = state._replace(step=jnp.asarray(int(100 * fraction), jnp.int32))  # pyright: ignore
            updates[scheduled, fraction], _ = update(optimizer, grads, state, params)
    assert_same(updates[False, 0.0], updates[False, 0.9])
    ratios = [np.asarray(a / b).ravel() for a, b in zip(*(updates[True, f].values() for f in (0.0, 0.9)), strict=True)]
    assert not np.allclose(ratios[0], 1.0, rtol=1e-4)
    np.testing.assert_allclose(np.concatenate(ratios), ratios[0][0], rtol=1e-4)


def test_create_names_the_nearest_optimizer() -> None:
    with pytest.raises(InputError, match="no optimizer named 'smallfc'; did you mean small_fc"):
        lopt.create("smallfc")
