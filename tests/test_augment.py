"""What each augmentation promises, alone and composed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

import lopt
from lopt import checkpoint
from lopt.errors import InputError
from lopt.task import Split
from lopt.tasks import (
    DelayedGradients,
    LearnedOptimizerTraining,
    LowPrecision,
    NoisyGradients,
    NormalizedGradients,
    Quadratic,
    RandomSubspace,
    ReducedBatch,
    Reparametrized,
    SparseGradients,
)
from lopt.tasks.data.images import fashion_mnist_folder
from registry import as_users_run_it

SHAPES = {"matrix": (60, 70), "vector": (799,), "scalar": ()}
SIZE = 5_000


class Slope(lopt.Task):
    """A plane whose slope the key draws anew at every step: the gradient is known, and shows its step."""

    def sample(self, key: Array) -> Array:
        """A factor of the slope."""
        return jax.random.uniform(key, (), minval=1.0, maxval=2.0)

    def init(self, problem: Array, key: Array) -> dict[str, Array]:
        """Standard normal."""
        return {n: jax.random.normal(jax.random.fold_in(key, i), s) for i, (n, s) in enumerate(SHAPES.items())}

    def slope(self, problem: Array, key: Array) -> dict[str, Array]:
        """The gradient."""
        return jax.tree.map(lambda x: problem * x, self.init(problem, key))

    def loss(self, problem: Array, params: dict[str, Array], key: Array, split: Split = "train") -> Array:
        """Linear in the parameters."""
        slopes = self.slope(problem, key)
        return sum((jnp.sum(slopes[n] * params[n]) for n in SHAPES), jnp.float32(0.0)) / SIZE


def flat(tree: PyTree[Array]) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)


@jax.jit
def watch(task: lopt.Task, keys: Array) -> tuple[Any, Any]:
    """Losses and gradients that the task shows at one point, step by step, and those of the plain task."""
    problem = task.sample(jax.random.key(0))
    params = task.init(problem, jax.random.key(1))

    def step(memory: Any, key: Array) -> tuple[Any, Any]:
        loss, gradients, memory = task.observe(problem, params, memory, key)
        return memory, ((loss, gradients), jax.value_and_grad(lambda p: task.loss(problem, p, key))(params))

    return jax.lax.scan(step, task.remember(problem, params), keys)[1]


def shown(task: lopt.Task, steps: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Gradients shown and gradients of the loss, `[steps, parameters]`; the losses must be the same."""
    (losses, gradients), (plain_losses, plain) = watch(task, jax.random.split(jax.random.key(2), steps))
    np.testing.assert_array_equal(losses, plain_losses)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), gradients) == jax.tree.map(lambda x: (x.shape, x.dtype), plain)
    both = ([np.asarray(x).reshape(steps, -1) for x in jax.tree.leaves(tree)] for tree in (gradients, plain))
    found, expected = (np.concatenate(leaves, axis=1) for leaves in both)
    return found, expected


# The gradient alone.


def test_noise_has_its_deviation_and_no_mean() -> None:
    # In one stream the two noises would be alike and add up to 0.7.
    gradients, plain = shown(NoisyGradients(NoisyGradients(Slope(), 0.3), 0.4))
    noise = gradients.astype(np.float64) - plain
    for at in noise:
        assert abs(at.mean()) < 4.0 * 0.5 / np.sqrt(SIZE)
        assert abs(at.std() - 0.5) < 4.0 * 0.5 / np.sqrt(2 * SIZE)
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 4.0 / np.sqrt(SIZE)
    assert abs(np.corrcoef(noise[0], plain[0])[0, 1]) < 4.0 / np.sqrt(SIZE)


def test_sparse_gradients_have_their_rate() -> None:
    probability = 0.7
    gradients, plain = shown(SparseGradients(Slope(), probability))
    kept = gradients != 0.0
    np.testing.assert_array_equal(gradients, np.where(kept, plain, 0.0))
    deviation = np.sqrt(probability * (1 - probability) / SIZE)
    for at in kept:
        assert abs(at.mean() - (1 - probability)) < 4.0 * deviation
    assert (kept[0] != kept[1]).any()


def test_delayed_gradients_are_those_of_some_steps_ago() -> None:
    delay = 3
    gradients, plain = shown(DelayedGradients(Slope(), delay), steps=6)
    np.testing.assert_array_equal(gradients[delay:], plain[:-delay])
    assert not gradients[:delay].any()


def test_normalized_gradients_have_norm_one() -> None:
    gradients, plain = shown(NormalizedGradients(Slope()))
    norms = np.linalg.norm(np.asarray(plain, np.float64), axis=1)
    np.testing.assert_allclose(gradients, plain / norms[:, None], rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_normalizing_neither_overflows_nor_divides_by_zero(scale: float) -> None:
    gradients = {"a": jnp.asarray([3.0, 0.0]) * scale, "b": jnp.asarray(-4.0) * scale, "empty": jnp.zeros((0, 2))}
    found, _ = NormalizedGradients(Slope()).show(gradients, (), jax.random.key(0))
    expected = {"a": [0.6, 0.0], "b": -0.8} if scale else {"a": [0.0, 0.0], "b": 0.0}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_a_plain_task_remembers_nothing() -> None:
    inner = lopt.start(lopt.create("sgd"), Quadratic(dim=2), jax.random.key(0), 3)
    assert inner.memory == ()


def test_both_inner_loops_take_what_is_shown() -> None:
    """Parameters stay where they are as long as the delay, and then move."""
    sgd, task = lopt.create("sgd", learning_rate=0.1), DelayedGradients(Quadratic(dim=3), 3)
    record = lopt.train(sgd, task, steps=4, key=jax.random.key(0), evals=4)
    assert (record.train_loss[0, :4] == record.train_loss[0, 0]).all()
    assert record.train_loss[0, 4] < record.train_loss[0, 0]
    inner = lopt.start(sgd, task, jax.random.key(0), 4)
    go_on = jax.jit(lambda inner, key: lopt.unroll(sgd, task, inner, key, 2)[0])
    two = go_on(inner, jax.random.key(1))
    np.testing.assert_array_equal(two.params, inner.params)
    assert (go_on(two, jax.random.key(2)).params != inner.params).any()


# Coordinates.


def test_a_wrapper_inside_other_coordinates_acts_at_the_original_ones() -> None:
    task = Reparametrized(NormalizedGradients(Slope()), "tensor", low=0.1, high=10.0)
    gradients, _ = shown(task)
    scales = np.concatenate(
        [
            np.full(np.prod(SHAPES[name]).astype(int), s)
            for name, s in sorted(task.sample(jax.random.key(0)).scale.items())
        ]
    )
    np.testing.assert_allclose(np.linalg.norm(gradients / scales, axis=1), 1.0, rtol=1e-5)


def test_random_subspace_is_spanned_by_orthonormal_directions() -> None:
    task, dim = RandomSubspace(Slope(), 7), 7
    problem, other = (task.sample(jax.random.key(seed)) for seed in (0, 1))
    zero = jnp.zeros(dim)
    assert (flat(task.original(problem, zero)) == flat(problem.origin)).all()
    directions = jax.jacobian(lambda z: ravel_pytree(task.original(problem, z))[0])(zero)
    np.testing.assert_allclose(directions.T @ directions, np.eye(dim), atol=1e-5)
    assert (problem.coordinate != other.coordinate).any()
    np.testing.assert_array_equal(np.bincount(problem.coordinate), [715] * 2 + [714] * 5)  # equal hands
    # The start is the projection of one of the wrapped task, and so is the gradient.
    start = flat(Slope().init(problem.problem, jax.random.key(3))) - flat(problem.origin)
    np.testing.assert_allclose(task.init(problem, jax.random.key(3)), directions.T @ start, rtol=1e-4, atol=1e-4)
    _, gradient, _ = task.observe(problem, zero, task.remember(problem, zero), jax.random.key(4))
    slope = flat(Slope().slope(problem.problem, jax.random.key(4))) / SIZE
    np.testing.assert_allclose(gradient, directions.T @ slope, rtol=1e-4, atol=1e-6)


# Less.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_computes_in_it_and_returns_the_dtypes_given(dtype: Any) -> None:
    plain = Quadratic(dim=50)
    tasks = (plain, LowPrecision(plain, dtype), LowPrecision(DelayedGradients(plain, 1), dtype))
    problem = plain.sample(jax.random.key(0))
    params = plain.init(problem, jax.random.key(1))

    @jax.jit
    def look(task: lopt.Task) -> Any:
        key = jax.random.key(2)
        memory = task.remember(problem, params)
        return *task.observe(problem, params, memory, key), task.metrics(problem, params, key, "test")

    found, memory = [], ()
    for task in tasks:
        loss, gradients, memory, metrics = look(task)
        assert loss.dtype == jnp.float32
        assert jax.tree.map(lambda x: (x.shape, x.dtype), gradients) == jax.tree.map(
            lambda x: (x.shape, x.dtype), params
        )
        assert all(value.dtype == jnp.float32 for value in metrics.values())
        found.append((float(loss), flat(gradients)))
    assert {x.dtype for x in jax.tree.leaves(memory)} == {jnp.dtype(dtype)}
    (loss, gradient), (low_loss, low_gradient), (_, delayed) = found
    np.testing.assert_allclose(low_loss, loss, rtol=0.02)
    difference = np.linalg.norm(low_gradient - gradient) / np.linalg.norm(gradient)
    assert 1e-5 < difference < 0.05
    # Every number is one of the low precision's own.
    np.testing.assert_array_equal(low_gradient, low_gradient.astype(jnp.dtype(dtype)).astype(np.float64))
    assert not delayed.any()
    noisy = LowPrecision(Quadratic(dim=50, noise=0.1), dtype)  # whose noise must be of the dtype, too
    assert jax.eval_shape(noisy.loss, problem, params, jax.random.key(2)).dtype == jnp.float32


def test_reduced_batch_reaches_through_wrappers_and_leaves_the_task_alone() -> None:
    def build(batch_size: int) -> lopt.Task:
        return LearnedOptimizerTraining(lopt.create("sgd"), Quadratic(dim=2), steps=1, batch_size=batch_size)

    def program(task: lopt.Task) -> str:
        params = task.init((), jax.random.key(0))
        return str(jax.make_jaxpr(lambda key: task.loss((), params, key))(jax.random.key(1)))

    plain, unchanged = build(30), program(build(30))
    assert program(ReducedBatch(NoisyGradients(plain, 0.1), 0.1)) == program(build(3)) != unchanged
    assert program(ReducedBatch(plain, 0.001)) == program(build(1))
    assert program(plain) == unchanged


# Composition.

ORDERS: dict[str, Callable[[], lopt.Task]] = {
    "noise of delayed": lambda: NoisyGradients(DelayedGradients(Quadratic(dim=3), 2), 0.1),
    "delay of noisy": lambda: DelayedGradients(NoisyGradients(Quadratic(dim=3), 0.1), 2),
    "all": lambda: DelayedGradients(SparseGradients(RandomSubspace(NormalizedGradients(Quadratic(dim=3)), 2), 0.5), 2),
}


@pytest.mark.parametrize("order", ["noise of delayed", "delay of noisy"])
def test_composed_wrappers_resume_bit_exactly_across_restarts(order: str) -> None:
    optimizer = lopt.create("adam", learning_rate=0.1)
    estimator = lopt.estimators.ESSingle(ORDERS[order](), pairs=2, truncation=3, horizon=(3, 6))
    estimate = jax.jit(estimator.estimate)
    keys = jax.random.split(jax.random.key(1), 4)
    state = estimator.init(optimizer, jax.random.key(0))
    states = [state]
    for key in keys:
        states.append(estimate(optimizer, states[-1], key)[1])
    halfway = checkpoint.from_bytes(checkpoint.to_bytes(states[2]), states[2], "memory")
    for key in keys[2:]:
        halfway = estimate(optimizer, halfway, key)[1]
    for x, y in zip(jax.tree.leaves(halfway), jax.tree.leaves(states[-1]), strict=True):
        np.testing.assert_array_equal(x, y)
    assert jax.tree.leaves(halfway.inner.memory)
    assert any((before.inner.step >= after.inner.step).any() for before, after in itertools.pairwise(states[1:]))


def test_composed_wrappers_vmap() -> None:
    task = ORDERS["all"]()

    def first(key: Array) -> PyTree[Array]:
        problem = task.sample(key)
        params = task.init(problem, key)
        memory = jax.tree.map(lambda x: x + 1.0, task.remember(problem, params))
        return task.observe(problem, params, memory, key)

    keys = jax.random.split(jax.random.key(0), 3)
    jitted = jax.jit(jax.vmap(first))
    together, looped = jitted(keys), [jax.tree.map(lambda x: x[0], jitted(keys[i : i + 1])) for i in range(3)]
    for x, *ys in zip(jax.tree.leaves(together), *(jax.tree.leaves(y) for y in looped), strict=True):
        np.testing.assert_allclose(x, np.stack(ys), rtol=1e-5, atol=1e-6)


# Bad input.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda t: NoisyGradients(t, -0.1), r"deviation is -0\.1; it must be at least 0"),
        (lambda t: SparseGradients(t, 1.5), r"probability is 1\.5; it must lie between 0 and 1"),
        (lambda t: DelayedGradients(t, 0), "steps is 0; it must be at least 1"),
        (
            lambda t: LowPrecision(t, "float8"),  # pyright: ignore[reportArgumentType]
            "dtype is 'float8'; it must be one of bfloat16, float16",
        ),
        (lambda t: RandomSubspace(t, 0), "dim is 0; it must be at least 1"),
        (lambda t: RandomSubspace(t, 6).sample(jax.random.key(0)), "dim is 6; it must be at most .* parameters, 5"),
        (lambda t: ReducedBatch(t, 0.5), "task is a Quadratic, which has no batch_size"),
        (lambda t: ReducedBatch(t, 0.0), r"fraction is 0\.0; it must be above 0 and at most 1"),
    ],
)
def test_rejects_bad_arguments(build: Callable[[lopt.Task], Any], message: str) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=message):
        build(Quadratic(dim=5))


# But for training an optimizer: the accumulators of optimizers are float32, whatever the parameters.
@pytest.mark.parametrize("name", sorted(set(lopt.tasks.TASKS) - {"learned_optimizer_training"}))
def test_every_task_computes_in_16_bits(name: str) -> None:
    """Traced under strict promotion: nothing mixes with float32 by accident. The gradient comes back in the dtype of the parameters."""
    if name == "fashion_mlp" and fashion_mnist_folder() is None:
        pytest.skip("Fashion-MNIST is not installed")
    task = lopt.tasks.LowPrecision(lopt.tasks.create(name), "bfloat16")

    def shown(key: Array) -> Any:
        problem = task.sample(key)
        params = task.init(problem, key)
        return params, task.observe(problem, params, task.remember(problem, params), key)

    with as_users_run_it():
        params, (loss, gradients, _) = jax.eval_shape(shown, jax.random.key(0))
    assert loss.dtype == jnp.float32
    assert jax.tree.map(lambda x: x.dtype, gradients) == jax.tree.map(lambda x: x.dtype, params)


def test_a_sampled_task_can_have_smaller_batches() -> None:
    task: Any = lopt.tasks.ReducedBatch(lopt.tasks.sample_task(3), 0.5)
    assert task.task.inner.batch_size == lopt.tasks.sample_task(3).inner.batch_size // 2
