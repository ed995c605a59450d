"""Optimizers compute what their reference implementations compute, step by step; see `golden/README.md`."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lopt
from lopt.checkpoint import CheckpointError
from lopt.convert import from_learned_optimization
from lopt.errors import InputError

FOLDER = Path(__file__).parent / "golden"

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "small_fc": ("small_fc", {"step_mult": 0.1, "exp_mult": 0.1}),
    "mlp": ("mlp", {"step_mult": 0.1, "exp_mult": 0.1}),
    "nominal_adam_aggmo": (
        "nominal",
        {
            "step_mult": 0.1,
            "exp_mult": (0.1, 0.1, 0.1),
            "nominal_step": 0.01,
            "nominal_controller": True,
            "shrinkage": 0.01,
            "shrinkage_controller": True,
            "precondition": True,
        },
    ),
    "nominal_sgdm": (
        "nominal",
        {
            "step_mult": 0.1,
            "exp_mult": (0.1, 0.1, 0.1),
            "nominal": "momentum",
            "nominal_step": 0.01,
            "nominal_controller": True,
            "aggregate_magnitude": True,
            "aggregate_nominal": True,
            "precondition": False,
        },
    ),
    "hierarchical_lstm": ("hierarchical_lstm", {"step_mult": 0.1, "exp_mult": 0.1}),
    "velo": ("velo", {"equal_half_lives": True}),
    "celo": ("celo", {}),
}


class Golden(NamedTuple):
    """A recorded trajectory; arrays of `grads`, `losses` have an axis of steps, those of `params` one more entry."""

    meta_parameters: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    losses: np.ndarray
    valid_losses: np.ndarray  # NaN where there is none


def read(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    assert "params/12/matrix" in arrays
    prefix = "meta_parameters/"
    meta_parameters = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    steps = sum(k.startswith("loss/") for k in arrays)
    tensors = sorted(k.removeprefix("params/0/") for k in arrays if k.startswith("params/0/"))
    return Golden(
        meta_parameters,
        {n: np.stack([arrays[f"params/{t}/{n}"] for t in range(steps + 1)]) for n in tensors},
        {n: np.stack([arrays[f"grads/{t}/{n}"] for t in range(steps)]) for n in tensors},
        np.stack([arrays[f"loss/{t}"] for t in range(steps)]),
        # Recorded after an update, it is given to the next one.
        np.stack([arrays.get(f"valid_loss_after/{t - 1}", np.float32(np.nan)) for t in range(steps)]),
    )


def replay(optimizer: lopt.Optimizer, params: Any, grads: Any, losses: Any, valid_losses: Any) -> Any:
    """Parameters after every update."""
    state, path = optimizer.init(params, horizon=len(valid_losses)), []
    for t in range(len(losses)):
        gradient = jax.tree.map(lambda g, t=t: jnp.asarray(g[t]), grads)
        valid = None if np.isnan(valid_losses[t]) else jnp.asarray(valid_losses[t])
        updates, state = optimizer.update(gradient, state, params, value=jnp.asarray(losses[t]), valid_value=valid)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return jax.tree.map(lambda *xs: jnp.stack(xs), *path)


def scanned(
    optimizer: lopt.Optimizer, params: Any, grads: Any, losses: Any, valid_losses: Any, *, told: bool = True
) -> Any:
    """`replay` in one program; the horizon told or not."""

    def step(carry: Any, given: Any) -> Any:
        params, state = carry
        gradient, loss, valid = given
        updates, state = optimizer.update(gradient, state, params, value=loss, valid_value=valid)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = params, optimizer.init(params, horizon=len(losses) if told else None)
    return jax.lax.scan(step, start, (grads, losses, valid_losses))[1]


def assert_golden(path: Any, golden: Golden) -> None:
    for name, values in golden.params.items():
        expected = values[1 : 1 + len(path[name])]
        error = np.abs(np.asarray(path[name]) - expected) / (1e-5 + 1e-4 * np.abs(expected))
        worst = int(error.reshape(len(error), -1).max(1).argmax())
        assert error.max() <= 1.0, f"{name} is {error.max():.2f} tolerances away after step {worst}"


def start(golden: Golden) -> dict[str, jax.Array]:
    return {name: jnp.asarray(values[0]) for name, values in golden.params.items()}


@pytest.fixture(scope="module", params=ROWS)
def case(request: pytest.FixtureRequest) -> tuple[lopt.Optimizer, Golden]:
    kind, fields = ROWS[request.param]
    golden = read(request.param)
    return from_learned_optimization(kind, golden.meta_parameters, **fields), golden


@pytest.mark.optimised
@pytest.mark.slow
def test_eager(case: tuple[lopt.Optimizer, Golden]) -> None:
    optimizer, golden = case
    assert_golden(replay(optimizer, start(golden), golden.grads, golden.losses, golden.valid_losses), golden)


@pytest.mark.optimised
def test_jitted(case: tuple[lopt.Optimizer, Golden]) -> None:
    optimizer, golden = case
    assert_golden(jax.jit(scanned)(optimizer, start(golden), golden.grads, golden.losses, golden.valid_losses), golden)


def test_vmapped(case: tuple[lopt.Optimizer, Golden]) -> None:
    """A batch of three: the reference's weights, and two neighbours that must not leak into it and must differ from it."""
    optimizer, golden = case
    batch = jax.tree.map(lambda x: jnp.stack([0.5 * x, x, 1.5 * x]), optimizer)
    run = jax.jit(jax.vmap(scanned, in_axes=(0, None, None, None, None)))
    paths = run(batch, start(golden), golden.grads, golden.losses, golden.valid_losses)
    assert_golden(jax.tree.map(lambda x: x[1], paths), golden)
    for other in (0, 2):
        with pytest.raises(AssertionError, match="tolerances away"):
            assert_golden(jax.tree.map(lambda x, other=other: x[other], paths), golden)


# Some of these files leave no room for arithmetic that is not fused.
@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("small_fc", "step_mult", 0.11),
        ("small_fc", "exp_mult", 0.2),
        ("mlp", "step_mult", 0.11),
        ("mlp", "exp_mult", 0.2),
        ("mlp", "decays", (0.1, 0.5, 0.9, 0.99, 0.999, 0.9998)),
        ("nominal_adam_aggmo", "precondition", False),
        ("nominal_adam_aggmo", "nominal", "adam"),
        ("nominal_adam_aggmo", "shrinkage", 0.0),
        ("nominal_adam_aggmo", "shrinkage_controller", False),
        ("nominal_sgdm", "nominal_controller", False),
        ("nominal_sgdm", "aggregate_magnitude", False),
        ("nominal_sgdm", "aggregate_nominal", False),
        ("nominal_sgdm", "nominal", "aggmo"),
    ],
)
def test_every_field_matters(name: str, field: str, value: Any) -> None:
    """The trajectories tell right settings from wrong ones, on one tensor."""
    kind, fields = ROWS[name]
    golden = read(name)
    golden = golden._replace(params={"matrix": golden.params["matrix"]}, grads={"matrix": golden.grads["matrix"]})

    def run(**changed: Any) -> Any:
        optimizer = from_learned_optimization(kind, golden.meta_parameters, **(fields | changed))
        return replay(optimizer, start(golden), golden.grads, golden.losses, golden.valid_losses)

    assert_golden(run(), golden)
    with pytest.raises(AssertionError, match="tolerances away"):
        assert_golden(run(**{field: value}), golden)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("hierarchical_lstm", "step_mult", 0.11),
        ("hierarchical_lstm", "exp_mult", 0.2),
        ("hierarchical_lstm", "train_decay", 0.8),
        ("hierarchical_lstm", "valid_decay", 0.5),
        ("hierarchical_lstm", "clip_mult", 2.0),
        ("hierarchical_lstm", "clip_decay", 0.5),
        ("hierarchical_lstm", "count_validation", False),
        ("velo", "step_mult", 2e-3),
        ("velo", "bank_mult", 50.0),
        ("velo", "gradient_clip", 0.1),
        ("velo", "second_decay", 0.99),
        ("celo", "schedule_mult", 0.2),
        ("celo", "scheduled", False),
        ("celo", "factored_decays", (0.9, 0.99, 0.9)),
    ],
)
def test_every_field_matters_where_tensors_see_each_other(name: str, field: str, value: Any) -> None:
    kind, fields = ROWS[name]
    golden = read(name)
    optimizer = from_learned_optimization(kind, golden.meta_parameters, **(fields | {field: value}))
    path = jax.jit(scanned)(optimizer, start(golden), golden.grads, golden.losses, golden.valid_losses)
    with pytest.raises(AssertionError, match="tolerances away"):
        assert_golden(path, golden)


def test_converter_takes_any_order_of_arrays() -> None:
    arrays = read("small_fc").meta_parameters
    backwards = dict(reversed(arrays.items()))
    a, b = (from_learned_optimization("small_fc", x) for x in (arrays, backwards))
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_converter_rejects_missing_arrays() -> None:
    arrays = read("small_fc").meta_parameters
    del arrays["rms_decays"]
    with pytest.raises(CheckpointError, match="differ in rms_decays"):
        from_learned_optimization("small_fc", arrays)


def test_converter_rejects_extra_arrays() -> None:
    arrays = read("small_fc").meta_parameters | {"nn/~/w9": np.zeros(3)}
    with pytest.raises(CheckpointError, match="differ in nn/~/w9"):
        from_learned_optimization("small_fc", arrays)


def test_converter_rejects_misshapen_arrays() -> None:
    arrays = read("small_fc").meta_parameters | {"nn/~/b1": np.zeros(5, np.float32)}
    with pytest.raises(CheckpointError, match=r"nn/~/b1 has shape \[5\].*expects \[4\]"):
        from_learned_optimization("small_fc", arrays)


def test_converter_rejects_weights_of_the_other_architecture() -> None:
    with pytest.raises(CheckpointError, match=r"nn/~/w2 has shape \[4, 4\].*SmallFC expects \[4, 2\]"):
        from_learned_optimization("small_fc", read("nominal_sgdm").meta_parameters)


@pytest.mark.parametrize(("kind", "near"), [("smal_fc", "small_fc"), ("nominl", "nominal")])
def test_converter_names_the_nearest_kind(kind: str, near: str) -> None:
    with pytest.raises(InputError, match=f"'{kind}'; did you mean {near}"):
        from_learned_optimization(kind, {})


def test_converter_names_the_nearest_field() -> None:
    with pytest.raises(InputError, match="'step_mul'; did you mean step_mult"):
        from_learned_optimization("small_fc", read("small_fc").meta_parameters, step_mul=1.0)


# --- Released weights: once released, a name always means the same maths. ---


UNTOLD = ("general-1", "general-2")  # those with another maths where the horizon is not told
PAPERS = ("neighbours", "scale", "tasks")  # whose claims have weights of their own
OF_CLAIMS = {
    f"{paper}/{path.stem}": path
    for paper in PAPERS
    for path in sorted((Path(lopt.__file__).parent / "reproduce" / paper / "weights").glob("*.safetensors"))
}


def released_path(name: str) -> dict[str, np.ndarray]:
    """Parameters after every update with the gradients of `small_fc.npz`; for some also untold, from parameters 10 times as small and as large in turn."""
    given, optimizer = read("small_fc"), lopt.load(OF_CLAIMS.get(name, name))
    given_losses = given.grads, given.losses, given.valid_losses
    found = jax.jit(scanned)(optimizer, start(given), *given_losses)
    if name in UNTOLD:
        sizes = itertools.cycle((0.1, 10.0))
        resized = {tensor: next(sizes) * param for tensor, param in start(given).items()}
        untold = jax.jit(partial(scanned, told=False))(optimizer, resized, *given_losses)
        found |= {f"untold/{tensor}": path for tensor, path in untold.items()}
    return jax.device_get(found)


@pytest.mark.optimised
@pytest.mark.parametrize("name", [*lopt.zoo.available(), *OF_CLAIMS])
def test_released_weights_keep_their_maths(name: str) -> None:
    with np.load(FOLDER / "released.npz") as file:
        expected = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    assert expected, f"{name} has no frozen trajectory; golden/README.md says how to add one"
    found = released_path(name)
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        np.testing.assert_allclose(found[tensor], values, rtol=1e-4, atol=1e-5)
