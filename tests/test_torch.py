"""`lopt.torch.LearnedOptimizer` has the properties of an optimizer of PyTorch."""

from __future__ import annotations

import copy
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

import lopt
from lopt.errors import InputError
from lopt.torch import LearnedOptimizer
from registry import OPTIMIZERS
from torch_models import backward, loss_of, make
from torch_processes import load, save

NAMES = ["adam", "small_fc", "star", "relative_mlp"]  # of the properties that do not depend on what a rule keeps
# Nothing, vectors, and arrays with an entry for each tensor, along the first axis and the last, beside what is of a tensor alone.
KEEPING = ["adam", "small_fc", "velo", "controlled_muon"]
BACKENDS = ["jax", "torch"]
HORIZON = 30


@pytest.fixture(scope="module")
def rules() -> Callable[[str], lopt.Optimizer]:
    made = {
        row.name: row.create(**({"lstm_hidden": 8, "bank": 4} if row.name == "velo" else {}))
        for row in OPTIMIZERS
        if row.name in {*NAMES, *KEEPING}
    }
    return made.__getitem__


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, network: str = "mlp") -> None:
    for step in steps:
        loss = backward(network, model, step)
        optimizer.step(loss=loss)  # pyright: ignore[reportCallIssue]


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def single(
    rule: Any, *shape: int, dtype: torch.dtype = torch.float32, **fields: Any
) -> tuple[Tensor, LearnedOptimizer]:
    """A parameter with a gradient, and its optimizer."""
    p = nn.Parameter(
        torch.linspace(0.5, 1.5, max(1, torch.Size(shape).numel()))
        .to(dtype)[: torch.Size(shape).numel()]
        .reshape(shape)
    )
    p.grad = torch.full_like(p, 0.25)
    return p, LearnedOptimizer([p], rule, **fields)


# Progress, and the arguments.


# Meta-trained on functions of a few parameters alone: they do not train networks, by JAX either.
FUNCTIONS = ("gru-linear-1", "gru-rosenbrock-1")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in lopt.zoo.available() if name not in FUNCTIONS])
def test_saved_optimizers_train(backend: str, name: str) -> None:
    model = make("mlp")
    optimizer, before = (
        LearnedOptimizer(model.parameters(), name, horizon=HORIZON, backend=backend),
        loss_of("mlp", model, 99),
    )
    train(model, optimizer, range(HORIZON))
    assert loss_of("mlp", model, 99) < 0.9 * before


@pytest.mark.parametrize("backend", BACKENDS)
def test_lr_multiplies_the_update_and_decay_is_decoupled(backend: str, rules: Any) -> None:
    found = {}
    for lr, decay in ((1.0, 0.0), (0.5, 0.0), (0.5, 0.2)):
        p, optimizer = single(
            rules("relative_mlp"), 3, 2, dtype=torch.float64, lr=lr, weight_decay=decay, backend=backend
        )
        before = p.detach().clone()
        optimizer.step()
        found[lr, decay] = p.detach() - before
    torch.testing.assert_close(found[0.5, 0.0], 0.5 * found[1.0, 0.0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[0.5, 0.2], found[0.5, 0.0] - 0.1 * before, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decay_and_update_are_rounded_once(dtype: torch.dtype) -> None:
    # Neither half of the least step down moves the parameter, both together do.
    step = torch.finfo(dtype).eps / 2
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    p.grad = torch.full_like(p, 0.3 * step)
    LearnedOptimizer([p], lopt.create("sgd", learning_rate=1.0), weight_decay=0.3 * step).step()
    assert torch.equal(p.detach(), torch.full_like(p, 1.0 - step))


def test_groups_have_rates_and_decays_of_their_own(rules: Any) -> None:
    params = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3)]
    for p in params:
        p.grad = torch.ones_like(p)
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "lr": 0.5},
        {"params": params[2:], "lr": 0.0, "weight_decay": 0.5},
    ]
    LearnedOptimizer(groups, rules("adam")).step()
    steps = [1.0 - float(p.detach()[0]) for p in params]
    assert steps[0] > 0
    assert steps[1] == pytest.approx(0.5 * steps[0], rel=1e-6)
    assert steps[2] == 0


def test_schedulers_change_the_rate(rules: Any) -> None:
    p, optimizer = single(lopt.create("sgd", learning_rate=0.5), 2, dtype=torch.float64)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    sizes = []
    for _ in range(3):
        before = p.detach().clone()
        optimizer.step()
        scheduler.step()
        sizes.append(float((before - p.detach())[0]))
    assert sizes == pytest.approx([0.125, 0.0625, 0.03125], rel=1e-6)


def test_the_horizon_reaches_the_rule() -> None:
    ends = []
    for horizon in (None, 10, 1_000):
        p, optimizer = single("general-1", 3, 2, horizon=horizon)
        optimizer.step()
        optimizer.step()
        ends.append(p.detach().clone())
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])


# What is called how.


@pytest.mark.parametrize("name", NAMES)
def test_closures_give_the_loss_by_position_and_by_keyword(name: str, rules: Any) -> None:
    plain, positional, keyword = (make("mlp") for _ in range(3))
    optimizers = [LearnedOptimizer(m.parameters(), rules(name)) for m in (plain, positional, keyword)]

    def closure(model: nn.Module, step: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            model.zero_grad()
            loss = loss_of("mlp", model, step)
            loss.backward()
            return loss

        return run

    for step in range(3):
        loss = backward("mlp", plain, step)
        optimizers[0].step(loss=loss)
        assert torch.equal(optimizers[1].step(closure(positional, step)).detach(), loss)
        assert torch.equal(optimizers[2].step(closure=closure(keyword, step)).detach(), loss)
    assert equal(plain, positional)
    assert equal(plain, keyword)


def test_a_rule_that_needs_the_loss_says_so_at_the_first_step(rules: Any) -> None:
    _, optimizer = single(rules("velo"), 3, horizon=HORIZON)
    with pytest.raises(InputError, match=r"VeLO needs the training loss: call step\(loss=loss\)"):
        optimizer.step()
    optimizer.step(loss=1.0)


def test_a_step_at_a_rate_of_zero_starts_the_state_without_the_loss(rules: Any) -> None:
    (p, optimizer), (other, twin) = (single(rules("velo"), 3, horizon=HORIZON) for _ in range(2))
    optimizer.param_groups[0]["lr"] = 0.0
    before = p.detach().clone()
    optimizer.step()
    assert optimizer.state[p]
    assert torch.equal(p, before)
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step(loss=1.0)
    twin.step(loss=1.0)  # it was no step
    assert torch.equal(p, other)


def test_the_loss_may_be_a_number_or_a_tensor(rules: Any) -> None:
    ends = []
    for loss in (0.7, torch.tensor(0.7), torch.tensor([0.7], dtype=torch.float64)):
        p, optimizer = single(rules("velo"), 3, horizon=HORIZON)
        optimizer.step(loss=loss)
        ends.append(p.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


# What parameters may be.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (5,), (2, 3, 2, 2)])
def test_every_shape_steps(backend: str, name: str, shape: tuple[int, ...], rules: Any) -> None:
    p, optimizer = single(rules(name), *shape, horizon=HORIZON, backend=backend)
    before = p.detach().clone()
    optimizer.step(loss=1.0)
    optimizer.step(loss=1.0)
    assert p.shape == before.shape
    assert torch.isfinite(p).all()
    assert not p.numel() or not torch.equal(p, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", KEEPING)
def test_every_dtype_steps_with_a_state_in_float32(backend: str, name: str, dtype: torch.dtype, rules: Any) -> None:
    lr = 1.0 if name == "controlled_muon" else 20.0
    p, optimizer = single(rules(name), 4, 3, dtype=dtype, horizon=HORIZON, lr=lr, backend=backend)
    exact, other = single(rules(name), 4, 3, horizon=HORIZON, lr=lr, backend=backend)
    before = exact.detach().clone()
    exact.data = p.detach().float()
    optimizer.step(loss=1.0)
    other.step(loss=1.0)
    assert p.dtype == dtype
    assert {v.dtype for v in optimizer.state[p].values()} <= {torch.float32, torch.int32}
    assert not torch.equal(exact, before)
    torch.testing.assert_close(p.detach().float(), exact.detach(), rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KEEPING)
def test_a_parameter_without_gradient_takes_no_part(backend: str, name: str, rules: Any) -> None:
    alone, optimizer = single(rules(name), 3, 2, horizon=HORIZON, backend=backend)
    p, _ = single(rules(name), 3, 2, horizon=HORIZON, backend=backend)
    frozen, missing = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    other = LearnedOptimizer([frozen, p, missing], rules(name), horizon=HORIZON, backend=backend)
    for _ in range(3):
        optimizer.step(loss=1.0)
        other.step(loss=1.0)
    assert torch.equal(alone, p)
    assert torch.equal(frozen, torch.ones(2))
    assert torch.equal(missing, torch.ones(2))
    assert set(other.state) == {p}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KEEPING)
def test_a_parameter_may_join_later_and_stay_away(backend: str, name: str, rules: Any) -> None:
    p, optimizer = single(rules(name), 3, 2, horizon=HORIZON, backend=backend)
    optimizer.step(loss=1.0)
    kept = {k: v.clone() for k, v in optimizer.state[p].items()}
    late = nn.Parameter(torch.ones(2, 4))
    late.grad = torch.ones_like(late)
    optimizer.add_param_group({"params": [late]})
    p.grad = None
    optimizer.step(loss=1.0)
    moved = {k for k, v in optimizer.state[p].items() if not torch.equal(v, kept[k])}
    shared = {k for k, v in optimizer.state[p].items() if optimizer.state[late][k].data_ptr() == v.data_ptr()}
    assert moved <= shared  # what is its own stays, what is of all moves on
    assert not torch.equal(late, torch.ones(2, 4))
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    optimizer.step(loss=1.0)
    assert not torch.equal(p, before)


def on(p: Tensor, device: str) -> None:
    """Move a parameter, as `Module.to` may, in place."""
    moved = nn.Parameter(p.detach().to(device))
    p.grad = None
    torch.utils.swap_tensors(p, moved)
    p.grad = torch.ones_like(p)


@pytest.mark.parametrize("name", KEEPING)
def test_the_state_goes_where_the_parameters_are(name: str, rules: Any) -> None:
    params = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizers = [LearnedOptimizer(params, rules(name), horizon=HORIZON, backend=b) for b in ("auto", "jax")]  # pyright: ignore[reportArgumentType]
    for optimizer in optimizers:
        optimizer.step(loss=1.0)
    on(params[0], "meta")
    with pytest.raises(InputError, match="Parameters are on meta and cpu"):
        optimizers[0].step(loss=1.0)
    on(params[1], "meta")
    optimizers[0].step(loss=1.0)
    assert {v.device.type for p in params for v in optimizers[0].state[p].values()} == {"meta"}
    with pytest.raises(InputError, match="for the CPU"):
        optimizers[1].step(loss=1.0)


def test_tied_parameters_move_once() -> None:
    model = make("transformer")
    optimizer = LearnedOptimizer(model.parameters(), lopt.create("sgd", learning_rate=1.0))
    backward("transformer", model, 0)
    before, gradient = model.embedding.weight.detach().clone(), model.embedding.weight.grad.clone()  # pyright: ignore
    optimizer.step()
    torch.testing.assert_close(model.embedding.weight.detach(), before - gradient)  # pyright: ignore


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "name": (lambda: LearnedOptimizer([nn.Parameter(torch.ones(2))], "general-11"), "did you mean general-1"),
    "architecture": (lambda: LearnedOptimizer([nn.Parameter(torch.ones(2))], "velo"), "without weights"),
    "complex": (lambda: LearnedOptimizer([nn.Parameter(torch.ones(2, dtype=torch.complex64))]), "torch.complex64"),
    "integer": (lambda: LearnedOptimizer([torch.ones(2, dtype=torch.int32)]), "torch.int32"),
    "sparse": (lambda: LearnedOptimizer([torch.ones(2, 2).to_sparse().requires_grad_()]), "sparse"),
    "device": (
        lambda: LearnedOptimizer([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))]),
        "cpu and meta",
    ),
    "device of an empty group": (
        lambda: LearnedOptimizer(
            [
                {"params": []},
                {"params": [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))]},
            ]
        ),
        "cpu and meta",
    ),
    "lr": (lambda: LearnedOptimizer([nn.Parameter(torch.ones(2))], lr=-1.0), "lr is -1.0"),
    "rate": (lambda: LearnedOptimizer([nn.Parameter(torch.ones(2))], 1e-3), "rule is 0.001; it must be"),  # pyright: ignore[reportArgumentType]
    "decay": (lambda: LearnedOptimizer([nn.Parameter(torch.ones(2))], weight_decay=-1.0), "weight_decay is -1.0"),
    "backend": (lambda: LearnedOptimizer([nn.Parameter(torch.ones(2))], backend="cpu"), "auto, jax, torch"),  # pyright: ignore[reportArgumentType]
    "backend's device": (
        lambda: LearnedOptimizer([nn.Parameter(torch.ones(2, device="meta"))], backend="jax"),
        "for the CPU",
    ),
    "horizon": (lambda: LearnedOptimizer([nn.Parameter(torch.ones(2))], horizon=0), "horizon is 0"),
    "no horizon": (
        lambda: single(lopt.create("velo", lstm_hidden=8, bank=4), 2)[1].step(),
        r"VeLO needs the length",
    ),
    "group": (
        lambda: LearnedOptimizer([{"params": [nn.Parameter(torch.ones(2))], "horizon": 7}]),
        "one for the whole optimizer",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(case: str, unchecked: None) -> None:
    make_it, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        make_it()
    assert "\n" not in str(caught.value)


def test_a_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InputError, match="gradient is sparse"):
        LearnedOptimizer(embedding.parameters(), "demo-1").step()


# Numbers that are not finite.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e16])
@pytest.mark.parametrize("name", KEEPING)
def test_a_step_that_is_not_finite_is_skipped(backend: str, name: str, bad: float, rules: Any) -> None:
    model, twin, decay = make("mlp"), make("mlp"), 0.0 if name == "controlled_muon" else 0.1
    optimizers = [
        LearnedOptimizer(m.parameters(), rules(name), horizon=HORIZON, weight_decay=decay, backend=backend)
        for m in (model, twin)
    ]
    for m, optimizer in zip((model, twin), optimizers, strict=True):
        train(m, optimizer, range(2))
    for p in model.parameters():
        p.grad.flatten()[0] = bad  # pyright: ignore[reportOptionalMemberAccess]
    optimizers[0].step(loss=float("nan"))
    assert equal(model, twin)
    for m, optimizer in zip((model, twin), optimizers, strict=True):
        train(m, optimizer, range(2, 4))
    assert equal(model, twin)


def test_a_gradient_scaler_scales_and_skips(rules: Any) -> None:
    model, twin = make("mlp"), make("mlp")
    scaled, plain = (LearnedOptimizer(m.parameters(), rules("star")) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        model.zero_grad()
        loss = scaler.scale(loss_of("mlp", model, step))
        loss.backward()
        if step == 2:
            next(model.parameters()).grad[0, 0] = float("inf")  # pyright: ignore[reportOptionalSubscript]
        else:
            backward("mlp", twin, step)
            plain.step()
        scaler.step(scaled)
        scaler.update()
    assert equal(model, twin)


def test_accumulated_gradients_are_one_step(rules: Any) -> None:
    model, twin = make("mlp"), make("mlp")
    optimizer, other = (LearnedOptimizer(m.parameters(), rules("star")) for m in (model, twin))
    (loss_of("mlp", model, 0) + loss_of("mlp", model, 1)).backward()
    optimizer.step()
    loss_of("mlp", twin, 0).backward()
    loss_of("mlp", twin, 1).backward()
    other.step()
    for a, b in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# State dicts.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*KEEPING, "relative_mlp"])
def test_resume_is_bit_exact(backend: str, name: str, dtype: torch.dtype, rules: Any) -> None:
    model, lr = make("mlp", dtype=dtype), 1.0 if name == "controlled_muon" else 0.5
    optimizer = LearnedOptimizer(model.parameters(), rules(name), horizon=HORIZON, lr=lr, backend=backend)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = make("mlp", seed=1, dtype=dtype)
    other.load_state_dict(saved["model"])
    # The saved horizon counts, also where a rule that needs one was given none.
    told = None if name == "velo" else HORIZON + 1
    resumed = LearnedOptimizer(other.parameters(), rules(name), horizon=told, backend=backend)
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["lr"] == lr
    for m, o in ((model, optimizer), (other, resumed)):
        train(m, o, range(3, 6))
    assert equal(model, other)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KEEPING)
def test_a_distributed_checkpoint_resumes(name: str, backend: str, begun: bool, rules: Any, tmp_path: Path) -> None:
    model, other = make("mlp"), make("mlp", seed=1)
    first, second = (
        LearnedOptimizer(m.parameters(), rules(name), horizon=HORIZON, backend=backend) for m in (model, other)
    )
    train(model, first, range(2))
    save(model, first, tmp_path)
    if begun:  # PyTorch starts the state of an optimizer that has none, but not if there are gradients
        backward("mlp", other, 0)
    load(other, second, tmp_path)
    for m, optimizer in ((model, first), (other, second)):
        train(m, optimizer, range(2, 4))
    assert equal(model, other)


def test_a_copy_goes_on_alike(rules: Any) -> None:
    model = make("mlp")
    optimizer = LearnedOptimizer(model.parameters(), rules("velo"), horizon=HORIZON)
    train(model, optimizer, range(2))
    other, copied = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(2, 4))
    assert not equal(model, other)
    train(other, copied, range(2, 4))
    copied.eval()
    assert equal(model, other)


def test_a_state_dict_of_other_weights_is_refused(rules: Any) -> None:
    p, optimizer = single(rules("star"), 3)
    optimizer.step()
    saved = optimizer.state_dict()
    for rule in (lopt.create("star", key=jax.random.key(5)), lopt.create("star", step_mult=2e-3), rules("small_fc")):
        _, other = single(rule, 3)
        with pytest.raises(InputError, match="other weights"):
            other.load_state_dict(saved)
    _, first = single(lopt.optimizers.FromOptax(optax.contrib.schedule_free_sgd(0.1)), 3)
    _, other = single(lopt.optimizers.FromOptax(optax.contrib.schedule_free_sgd(0.5)), 3)
    _, alike = single(lopt.optimizers.FromOptax(optax.contrib.schedule_free_sgd(0.1)), 3)
    first.step()
    alike.load_state_dict(first.state_dict())
    with pytest.raises(InputError, match="other weights"):
        other.load_state_dict(first.state_dict())
    with pytest.raises(InputError, match="no fingerprint"):
        optimizer.load_state_dict(torch.optim.AdamW([p]).state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_does_not_fit_is_refused(backend: str, rules: Any) -> None:
    _, optimizer = single(rules("star"), 3, backend=backend)
    optimizer.step()
    _, other = single(rules("star"), 4, backend=backend)
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(InputError, match="it is of other parameters"):
        other.step()
    saved = optimizer.state_dict()
    del saved["state"][0]["step"]
    optimizer.load_state_dict(saved)
    with pytest.raises(InputError, match="another version"):
        optimizer.step()


@pytest.mark.parametrize("name", lopt.zoo.available())
def test_the_fingerprint_is_of_architecture_fields_and_weights(name: str) -> None:
    def fingerprint(rule: Any) -> str:
        return LearnedOptimizer([nn.Parameter(torch.ones(2))], rule).param_groups[0]["fingerprint"]

    saved = lopt.load(name)
    moved = jax.tree.map(lambda x: x + np.float32(1e-3), saved)
    assert fingerprint(name) == fingerprint(saved)
    assert fingerprint(moved) != fingerprint(saved)


# What is evaluated elsewhere.

ELSEWHERE: dict[str, lopt.Optimizer] = {
    "controlled_muon": lopt.create("controlled_muon", key=jax.random.key(0)),
    "low_memory": lopt.load("general-2", low_memory=True),
    "attention": lopt.create("hierarchical_rnn", use_attention=True, key=jax.random.key(0)),
    "schedule_free": lopt.optimizers.FromOptax(optax.contrib.schedule_free_sgd(0.1)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_eval_gives_the_parameters_that_jax_evaluates(name: str, backend: Any) -> None:
    rule, model = ELSEWHERE[name], make("mlp")
    params = [jnp.asarray(p.detach().numpy().copy()) for p in model.parameters()]
    state = rule.init(params, key=jax.random.key(0))
    optimizer = LearnedOptimizer(model.parameters(), rule, backend=backend)
    update = jax.jit(lambda g, s, p: rule.update(g, s, p))
    for step in range(3):
        backward("mlp", model, step)
        updates, state = update([jnp.asarray(p.grad.numpy()) for p in model.parameters()], state, params)  # pyright: ignore[reportOptionalMemberAccess]
        params = jax.tree.map(jnp.add, params, updates)
        optimizer.step()
    trained = weights(model)
    optimizer.eval()
    optimizer.eval()  # twice is once
    found = weights(model)
    for own, expected in zip(found, rule.eval_params(state, params), strict=True):
        torch.testing.assert_close(own, torch.from_numpy(np.array(expected)), rtol=1e-4, atol=1e-6)
    assert not all(torch.equal(a, b) for a, b in zip(found, trained, strict=True))
    with pytest.raises(InputError, match=r"call optimizer.train\(\) before the next step"):
        optimizer.step()
    resumed = LearnedOptimizer(model.parameters(), rule, backend=backend)
    resumed.load_state_dict(optimizer.state_dict())
    resumed.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), trained, strict=True))
    resumed.step()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.5}, "lr is not 1, which .* use no learning-rate scheduler"),
        ({"lr": torch.tensor(0.5)}, "lr is not 1, which .* use no learning-rate scheduler"),
        ({"weight_decay": 0.1}, "weight_decay is not 0, which .* leave it at 0"),
    ],
)
@pytest.mark.parametrize("rule", ELSEWHERE)
def test_what_a_rule_would_undo_is_refused(rule: str, fields: Any, message: str) -> None:
    p = nn.Parameter(torch.ones(3, 4))
    with pytest.raises(InputError, match=message):
        LearnedOptimizer([p], ELSEWHERE[rule], **fields)
    optimizer = LearnedOptimizer([p], ELSEWHERE[rule], lr=torch.tensor(1.0))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1.0})
    with pytest.raises(InputError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **fields})
    p.grad = torch.ones_like(p)
    optimizer.param_groups[1].update({"lr": 0.0})
    with pytest.raises(InputError, match="lr is not 1"):
        optimizer.step()
    optimizer.param_groups[1].update({"lr": 1.0, **fields})
    with pytest.raises(InputError, match=message):
        optimizer.step()
    assert torch.equal(p, torch.ones_like(p))


@pytest.mark.parametrize("rule", ELSEWHERE)
def test_a_schedule_may_begin_at_zero(rule: str) -> None:
    """The steps at a rate of 0 are as if there were none."""
    (p, optimizer), (q, other) = single(ELSEWHERE[rule], 3, 2), single(ELSEWHERE[rule], 3, 2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (0.0, 0.0, 1.0, 0.5)[step])
    for _ in range(2):
        optimizer.step()
        schedule.step()
    optimizer.eval()
    optimizer.train()
    for it in (optimizer, other):
        it.step()
        it.eval()
    assert torch.equal(p, q)
    optimizer.train()
    schedule.step()
    with pytest.raises(InputError, match="lr is not 1"):
        optimizer.step()


def test_low_memory_takes_float32_alone() -> None:
    p = nn.Parameter(torch.ones(3, 4, dtype=torch.bfloat16))
    optimizer = LearnedOptimizer([p], ELSEWHERE["low_memory"])
    p.grad = torch.ones_like(p)
    with pytest.raises(InputError, match="A parameter is bfloat16; ControlledMuon with low memory takes float32 alone"):
        optimizer.step()


def test_eval_changes_nothing_for_other_rules(rules: Any) -> None:
    p, optimizer = single(rules("adam"), 3)
    optimizer.eval()
    optimizer.step()
    before = p.detach().clone()
    optimizer.eval()
    assert torch.equal(p, before)
    optimizer.step()
    assert not torch.equal(p, before)


# A user's own rule, and what there is no operation for.


class Loops(lopt.Optimizer):
    """Descent by a sum over loops of several kinds, and a choice by the data."""

    def init(self, params: Any, *, key: Any = None, horizon: Any = None) -> Any:
        return jnp.zeros((), jnp.int32)

    def update(
        self, updates: Any, state: Any, params: Any, *, value: Any = None, valid_value: Any = None, **extra: Any
    ) -> Any:
        def one(g: Any) -> Any:
            flat = jnp.pad(g.reshape(-1), (0, 4 - g.size % 4))

            def chunk(i: Any, out: Any) -> Any:
                part = jax.lax.dynamic_slice_in_dim(flat, 4 * i, 4)
                return jax.lax.dynamic_update_slice_in_dim(out, 0.5 * part, 4 * i, 0)

            halves = jax.lax.fori_loop(0, len(flat) // 4, chunk, flat)[: g.size]
            total, parts = jax.lax.scan(lambda c, x: (c + x, c * x), jnp.zeros(()), g.reshape(-1), reverse=True)
            chosen = jax.lax.cond(total > 0, lambda: jnp.cumsum(halves), lambda: halves[::-1])
            return -(chosen + parts).reshape(g.shape)

        return jax.tree.map(one, updates), state + 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_loops_and_branches_are_followed(sign: float) -> None:
    gradient = sign * torch.linspace(-0.5, 1.0, 6).reshape(2, 3)
    p = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    p.grad = gradient.double()
    LearnedOptimizer([p], Loops(), backend="torch").step()
    expected, _ = Loops().update([jnp.asarray(gradient.numpy())], jnp.zeros((), jnp.int32), [jnp.zeros((2, 3))])
    torch.testing.assert_close(p.detach().float(), torch.from_numpy(np.array(expected[0])))


class Aliases(Loops):
    """A state of which one part becomes another, and the old one the update."""

    def init(self, params: Any, *, key: Any = None, horizon: Any = None) -> Any:
        return {name: jax.tree.map(jnp.zeros_like, params) for name in ("m", "previous")}

    def update(
        self, updates: Any, state: Any, params: Any, *, value: Any = None, valid_value: Any = None, **extra: Any
    ) -> Any:
        return state["m"], {"m": updates, "previous": state["m"]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rule_may_return_its_state(backend: str) -> None:
    p, optimizer = single(Aliases(), 2, backend=backend)
    found = []
    for step in range(3):
        before = p.detach().clone()
        p.grad = torch.full_like(p, step + 1.0)
        optimizer.step()
        state = {k: float(v[0]) for k, v in optimizer.state[p].items()}
        found.append((float((p.detach() - before)[0]), state["m"], state["previous"]))
    assert found == [(0.0, 1.0, 0.0), (1.0, 2.0, 1.0), (2.0, 3.0, 2.0)]


class NamesByCount(Loops):
    """A state with a name that says how many tensors there are."""

    def init(self, params: Any, *, key: Any = None, horizon: Any = None) -> Any:
        return {f"of {len(params)}": jnp.zeros(())}


class Horizon(Loops):
    """A state as long as the training."""

    def init(self, params: Any, *, key: Any = None, horizon: Any = None) -> Any:
        return jnp.arange(float(horizon))

    def update(
        self, updates: Any, state: Any, params: Any, *, value: Any = None, valid_value: Any = None, **extra: Any
    ) -> Any:
        return jax.tree.map(lambda g: jnp.full_like(g, state.sum()), updates), state[::-1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layout_of_the_state_is_followed_or_refused(backend: str) -> None:
    p, optimizer = single(Horizon(), 2, horizon=4, backend=backend)
    before = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(p.detach() - before, torch.full((2,), 6.0))
    with pytest.raises(InputError, match="The state has of 1, and not for one tensor more"):
        single(NamesByCount(), 2, backend=backend)[1].step()


class Losses(Loops):
    """Both losses as the update."""

    def update(
        self, updates: Any, state: Any, params: Any, *, value: Any = None, valid_value: Any = None, **extra: Any
    ) -> Any:
        first, second = (0.0 if x is None else x for x in (value, valid_value))
        return jax.tree.map(lambda g: 0 * g + first - 10 * second, updates), state


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_losses_are_told_apart(backend: str) -> None:
    p, optimizer = single(Losses(), 2, backend=backend)
    for valid, expected in ((None, 3.0), (0.5, -2.0)):
        before = p.detach().clone()
        optimizer.step(loss=3.0, valid_loss=valid)
        torch.testing.assert_close(p.detach() - before, torch.full((2,), expected))


class Factors(Loops):
    """A rule with a primitive that is not in the table."""

    def update(
        self, updates: Any, state: Any, params: Any, *, value: Any = None, valid_value: Any = None, **extra: Any
    ) -> Any:
        return jax.tree.map(lambda g: g if g.ndim < 2 else jax.lax.linalg.cholesky(g @ g.T) @ g, updates), state


def test_a_primitive_without_an_operation_is_named() -> None:
    _, optimizer = single(Factors(), 2, 2, backend="torch")
    with pytest.raises(InputError, match="JAX primitive cholesky"):
        optimizer.step()


# Compilation.


COMPILED = """
import sys, torch, lopt
from lopt.torch import LearnedOptimizer
from torch_models import backward, loss_of, make

what, compiler, rule, backend = sys.argv[1:]
models = [make("mlp") for _ in range(2)]
rule = lopt.load(rule) if rule in lopt.zoo.available() else lopt.create(rule)
optimizers = [LearnedOptimizer(m.parameters(), rule, backend=backend) for m in models]

def train(model, optimizer, i):
    model.zero_grad()
    loss = loss_of("mlp", model, i)
    loss.backward()
    optimizer.step(loss=loss.detach())

# The step alone is compiled as one graph: the first one, which starts the state and traces the rule, is no part of it.
first = 1 if what == "step" else 0
for i in range(first):
    for model, optimizer in zip(models, optimizers):
        train(model, optimizer, i)
step = torch.compile(optimizers[0].step, fullgraph=True, backend=compiler) if what == "step" else None
whole = torch.compile(train, backend=compiler)
for i in range(first, 4):
    train(models[1], optimizers[1], i)
    if step is None:
        whole(models[0], optimizers[0], i)
    else:
        step(loss=backward("mlp", models[0], i))
for a, b in zip(*(m.parameters() for m in models)):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.parametrize(
    ("what", "compiler", "rule", "backend"),
    [
        ("step", "eager", "conv-net-1", "torch"),
        ("training", "aot_eager", "conv-net-1", "jax"),
        ("training", "aot_eager", "adam", "torch"),
        pytest.param("step", "inductor", "adam", "torch", marks=pytest.mark.slow),
    ],
)
def test_what_is_compiled_does_the_same(what: str, compiler: str, rule: str, backend: str) -> None:
    # In a process of its own: checked annotations, which no user has, break the graph.
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", COMPILED, what, compiler, rule, backend]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The documentation.


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "pytorch.md"
    blocks = re.findall(r"^```python no-run\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    space: dict[str, Any] = {}
    for block in blocks:
        exec(block, space)
    assert space["resumed"].state_dict()["state"].keys() == space["optimizer"].state_dict()["state"].keys()


# Importing.


def test_lopt_does_not_import_torch() -> None:
    code = "import sys, lopt; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_torch_is_one_sentence() -> None:
    code = "import sys; sys.modules['torch'] = None\ntry:\n    import lopt.torch\nexcept ValueError as e:\n    print(e)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (
        done.stdout
        == "The package torch is not installed; it comes with the extra torch: pip install 'PATH-TO-CLONE[torch]'.\n"
    )
