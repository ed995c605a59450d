"""Every example runs, as a user would run it, at tiny size."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lopt

EXAMPLES = Path(__file__).parent.parent / "examples"
STEPS = {"use_in_optax": 20, "use_in_torch": 20, "meta_train": 3, "add_an_optimizer": 3, "add_a_task": 20}
# What they need beside PyTorch, and warn about among themselves.
TRAINERS = {
    "fine_tune_in_torch": "torch",
    "use_in_accelerate": "accelerate",
    "use_in_hugging_face": "transformers",
    "use_in_lightning": "lightning",
}
STEPS |= dict.fromkeys(TRAINERS, 20)
ADDING = ("add_an_optimizer", "add_a_task")


def run(name: str, *args: str, cwd: Path, warnings: str = "error") -> str:
    """The output of an example; its warnings are errors if not said otherwise."""
    command = [sys.executable, "-W", warnings, str(EXAMPLES / f"{name}.py"), *args]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_row_and_is_short() -> None:
    files = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert set(STEPS) == set(files)
    for path in files.values():
        assert len(path.read_text().splitlines()) < 150, path


@pytest.mark.parametrize("name", ["use_in_optax", *(pytest.param(n, marks=pytest.mark.slow) for n in ADDING)])
def test_example_runs(name: str, tmp_path: Path) -> None:
    output = run(name, "--steps", str(STEPS[name]), cwd=tmp_path)
    assert re.search(r"\d\.\d+", output)
    assert "nan" not in output


def test_torch_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    output = run("use_in_torch", "--steps", str(STEPS["use_in_torch"]), cwd=tmp_path)
    before, *_, after = (float(loss) for loss in re.findall(r"loss (\d+\.\d+)", output))
    assert after < 0.7 * before


@pytest.mark.parametrize("name", TRAINERS)
def test_trainer_example_runs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip(TRAINERS[name])
    output = run(
        name,
        "--steps",
        str(STEPS[name]),
        cwd=tmp_path,
        warnings="error" if TRAINERS[name] == "torch" else "default",
    )
    before, *_, after = (float(loss) for loss in re.findall(r"loss[a-z ]*\d* ?[a-z]* (\d+\.\d+)", output))
    assert after < 0.8 * before


@pytest.mark.slow
def test_optax_example_takes_a_saved_optimizer(tmp_path: Path) -> None:
    path = lopt.save(tmp_path / "mine", lopt.create("adam", learning_rate=0.01))
    output = run("use_in_optax", str(path), "--steps", "100", cwd=tmp_path)
    before, *_, after = (float(loss) for loss in re.findall(r"loss (\d+\.\d+)", output))
    assert after < 0.7 * before


@pytest.mark.slow
def test_meta_train_example_runs_and_resumes(tmp_path: Path) -> None:
    args = ("--steps", str(STEPS["meta_train"]), "--run-dir", str(tmp_path / "run"))
    first, second = (run("meta_train", *args, cwd=tmp_path) for _ in range(2))
    assert "meta-step" in first
    assert "meta-step" not in second  # nothing was left to do
    assert first.splitlines()[-4:] == second.splitlines()[-4:]  # the optimizers that were loaded are the same
    card = lopt.zoo.read_card(tmp_path / "run" / "optimizer")
    assert (card.optimizer, card.meta_steps) == ("star", STEPS["meta_train"])
