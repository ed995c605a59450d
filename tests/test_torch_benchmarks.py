"""The benchmarks of the PyTorch front end run, at a tiny size, and write what their README promises."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lopt.tasks.data.images import fashion_mnist_folder
from test_benchmarks import SPREAD, run

torch = pytest.importorskip("torch")


def test_torch_step(tmp_path: Path) -> None:
    arguments = ("--tensors", "mlp", "--optimizers", "demo-1", "muon", "--seconds", "0.001")
    results = run("torch_step.py", tmp_path / "torch_step.json", *arguments)
    assert [(r["optimizer"], r["backend"]) for r in results] == [("demo-1", "jax"), ("demo-1", "torch"), ("muon", "")]
    for r in results:
        for ratio in (r["ratio_to_adamw"], r["ratio_of_processor_time"], r["step_ms"]):
            assert ratio.keys() == SPREAD
            assert 0 < ratio["q1"] <= ratio["median"] <= ratio["q3"]
        assert r["parameters"] == 9_610
        assert r["first_step_seconds"] > 0
    # Muon keeps one number a parameter. AdamW, which takes the biases, keeps two, and a step for each tensor.
    assert [r["state_floats"] for r in results[:2]] == [results[0]["state_floats"]] * 2
    assert 3 < results[0]["state_floats"] < 8
    assert results[2]["state_floats"] == pytest.approx((128 * 64 + 10 * 128 + 2 * 138 + 2) / 9_610, abs=0.01)


PROBLEMS = ["character transformer"] + ["image classifier"] * (fashion_mnist_folder() is not None)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_torch_training(problem: str, tmp_path: Path) -> None:
    arguments = ("--problems", problem, "--rules", "demo-1", "general-2", "--steps", "10", "--seeds", "1")
    results = run("torch_training.py", tmp_path / "torch_training.json", *arguments)
    assert [(r["problem"], r["optimizer"]) for r in results] == [
        (problem, name) for name in ("AdamW", "AdamW, cosine", "demo-1", "general-2")
    ]
    assert [r["rate"] is None for r in results] == [False, False, True, True]
    for r in results:
        assert r["steps_to_target"][0] in ((10,) if r["optimizer"] == "AdamW" else (None, 0, 10))
        for name in ("train_loss", "test_loss"):
            assert all(0 < x < math.log(100) for x in r[name])
        assert all(x >= 0 for x in (*r["seconds"], *r["first_step_seconds"]))
    assert results[-1]["first_step_seconds"][0] > 0  # it compiles
