"""The stability of learned optimizers: the closed forms that the claims must agree with, and the arms on networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lopt
from lopt.analyze import LinearTraining
from lopt.errors import InputError
from lopt.evaluate.report.page import png_of
from lopt.reproduce import find_paper
from lopt.reproduce.stability import _runs, box, control, noise
from lopt.reproduce.stability._arms import ARMS, BLACK_BOX, STAR_ARMS, Trained, train_arms
from lopt.reproduce.stability.box import rollout
from lopt.reproduce.stability.noise import deviations
from lopt.reproduce.stability.zero_shot import NETWORKS
from lopt.tasks import TaskName

KEY = jax.random.key(0)
TINY = {"names": (BLACK_BOX, "decay-1.0"), "seeds": 2, "meta_steps": 2}


def test_the_theory_holds_at_another_seed() -> None:
    """These claims are theorems; what would not hold is the measurement."""
    key = jax.random.key(1)
    assert box(key, draws=30).held
    assert noise(key, radii=(0.9, 1.1), batches=2, repeats=30).held
    found = control(key, draws=30, errors=(0.1, 0.3, 0.5), steps=20).numbers
    cancelled, controlled = found["unstable"].values()
    assert max(controlled) == 0.0 < cancelled[-1]
    assert found["gain"][-1][1] > 0.0  # the lower end of the interval; at 10 % nothing need be gained


def test_a_rollout_grows_where_the_radius_exceeds_1() -> None:
    rng, h = np.random.default_rng(0), np.diag([1.0, 0.5])
    found = [rollout(LinearTraining(h, rate * np.eye(2), np.eye(2)), 100, rng) for rate in (0.5, 2.2, 1e9)]
    assert found[0] < 10 < 1e4 < found[1] < found[2] == np.inf


def test_the_meta_gradient_is_the_derivative_of_the_meta_loss() -> None:
    """One parameter and one step: the gradient of the mean of two losses is -h^2 (w - xi)(w' - xi') / 2."""
    h, rate, repeats = 0.8, 0.5, 4000
    rng = np.random.default_rng(0)
    found = deviations(np.array([[h]]), rate, (2,), repeats, rng)[0]
    rng = np.random.default_rng(0)
    w = rng.standard_normal(repeats)
    first = w - rng.standard_normal(repeats)
    second = w - rate * h * first - rng.standard_normal(repeats)
    assert found == pytest.approx((-(h**2) * first * second / 2).std(ddof=1))


@pytest.mark.slow
def test_arms_of_one_seed_begin_alike_and_decay_shrinks_them() -> None:
    task = lopt.tasks.Quadratic(dim=2)
    keys = jax.random.split(KEY, 2)
    options: dict[str, Any] = {"meta_steps": 30, "pairs": 1, "truncation": 1, "horizon": 2, "learning_rate": 0.03}
    found = train_arms(["both", "decay-1.0"], task, keys, **options)
    sizes = {
        name: sum(float(np.square(x).sum()) for x in jax.tree.leaves(arm.optimizers[0])) for name, arm in found.items()
    }
    assert sizes["decay-1.0"] < 0.5 * sizes["both"]
    np.testing.assert_array_equal(found["both"].meta_loss[:, 0], found["decay-1.0"].meta_loss[:, 0])
    assert not np.array_equal(found["both"].meta_loss[0], found["both"].meta_loss[1])


@pytest.mark.slow
def test_a_meta_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, keys = lopt.tasks.Quadratic(dim=2), jax.random.split(KEY, 1)
    monkeypatch.setattr("lopt.reproduce.stability._arms.EVERY", 2)
    options: dict[str, Any] = {"meta_steps": 5, "pairs": 1, "truncation": 1, "horizon": 2}

    def stop(names: str, step: int, meta_loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_arms([BLACK_BOX], task, keys, folder=tmp_path, on_step=stop, **options)
    steps: list[int] = []
    resumed = train_arms([BLACK_BOX], task, keys, folder=tmp_path, on_step=lambda n, s, x: steps.append(s), **options)
    assert steps == [3, 4, 5]
    whole = train_arms([BLACK_BOX], task, keys, **options)
    np.testing.assert_array_equal(resumed[BLACK_BOX].meta_loss, whole[BLACK_BOX].meta_loss)
    for x, y in zip(*(jax.tree.leaves(arms[BLACK_BOX].optimizers) for arms in (resumed, whole)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_written_arms_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runs, "WEIGHTS", tmp_path)
    names = (BLACK_BOX, "both")
    assert f"no weights are shipped for {BLACK_BOX}, both; give meta_steps" in _runs.absent(names, 2, None)
    assert "names needs black-box and one of both" in _runs.absent(("both",), 2, None)
    with pytest.raises(InputError, match="bothh"):
        _runs.absent((BLACK_BOX, "bothh"), 2, None)
    rules = tuple(lopt.create("star", key=jax.random.key(seed)) for seed in range(2))
    curves = np.linspace(2.0, 1.0, 40) + np.arange(2)[:, None]
    _runs.write_arms({name: Trained(rules, curves, 40) for name in names}, tmp_path, parts=4)
    assert not _runs.absent(names, 2, None)
    _runs.trained_arms.cache_clear()
    found = _runs.trained_arms(("both",), 2, None)["both"]
    _runs.trained_arms.cache_clear()
    np.testing.assert_allclose(found.meta_loss, curves.reshape(2, 4, 10).mean(axis=-1), rtol=1e-4)
    assert found.meta_steps == 40
    for x, y in zip(jax.tree.leaves(found.optimizers), jax.tree.leaves(rules), strict=True):
        np.testing.assert_array_equal(x, y)
    assert lopt.zoo.read_card(tmp_path / "both-1.safetensors").seed == 1


def test_the_best_arm_is_chosen_among_those_with_both_terms() -> None:
    arms = {name: Trained((), np.full((1, 10), float(i)), 10) for i, name in enumerate(ARMS)}
    assert _runs.best_star(arms) == STAR_ARMS[0] == "both"


def test_divergence_is_a_loss_above_twice_the_first_or_none() -> None:
    losses = np.array([[1.0, 1.9, 1.9], [1.0, 2.5, 2.5], [1.0, np.nan, 1.0]])
    assert _runs.diverged(losses, 3).tolist() == [False, False, True]
    assert _runs.diverged(losses[:, [0, 1, 1, 1, 1, 1]], 6).tolist() == [False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("meta_training", {"problems": 1, "steps": 200}),
        ("longer", {"problems": 1, "multiples": (1,)}),
        ("zero_shot", {"problems": 1, "networks": ("a quadratic",), "steps": 3, "learning_rates": (1e-3,)}),
        ("spectra", {"checkpoints": 2, "steps": 4}),
    ],
)
def test_claims_on_arms_run_and_are_drawn(name: str, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a quadratic in place of networks, whose programs compile far longer."""
    bowl = TaskName("quadratic", {"dim": 2})
    for module in ("_runs", "spectra"):
        found = sys.modules[f"lopt.reproduce.stability.{module}"]
        monkeypatch.setattr(found, "home_task", lambda: (bowl, lopt.tasks.create(bowl)))
    monkeypatch.setitem(NETWORKS, "a quadratic", bowl)
    spec = find_paper("stability").claims[name]
    claim = spec.measure(KEY, **TINY, **sizes)
    assert claim.name == name
    assert claim.held in (True, False)
    assert claim.numbers["star"] == "decay-1.0"
    assert claim.rows
    assert png_of(spec.draw(claim)).startswith(b"\x89PNG")
