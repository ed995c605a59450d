"""The benchmarks run, at a tiny size, and write what their README promises."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import lopt
from lopt.evaluate.bench.suites import find_suite

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SPREAD = {"median", "q1", "q3"}


def run(script: str, out: Path, *arguments: str) -> list[dict]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record.keys() == {"command", "machine", "results"}
    assert record["command"] == " ".join(["python", f"benchmarks/{script}", *arguments])
    assert {"cpu", "cores", "load_before", "python", "jax", "jaxlib", "optax"} <= record["machine"].keys()
    assert str(Path.home()) not in out.read_text()
    return record["results"]


@pytest.mark.slow
def test_step(tmp_path: Path) -> None:
    arguments = ("--sizes", "100", "400", "--optimizers", "sgd", "small_fc", "--repeats", "3")
    results = run("step.py", tmp_path / "step.json", *arguments)
    assert [(r["optimizer"], r["parameters"]) for r in results] == [
        ("sgd", 110),
        ("small_fc", 110),
        ("sgd", 420),
        ("small_fc", 420),
    ]
    for r in results:
        for name in ("update_ms", "adam_ms", "ratio_to_adam"):
            assert r[name].keys() == SPREAD
            assert 0 < r[name]["q1"] <= r[name]["median"] <= r[name]["q3"]
        assert r["compile_seconds"] > 0
        assert r["temp_bytes_per_parameter"] >= 0
        assert (r["state_bytes_per_parameter"] == 0) == (r["optimizer"] == "sgd")


@pytest.mark.slow
def test_seconds_of_a_suite(tmp_path: Path) -> None:
    """Seconds to Adam's final loss, over Adam's, are steps over Adam's, times the ratio of a step."""
    table = tmp_path / "table.csv"
    untold = '"sgd{""tell_horizon"":false}"'
    rows = ("adam,50,40", "adam,200,200", "sgd,50,20", "sgd,200,inf", f"{untold},50,10", f"{untold},200,100")
    table.write_text("\n".join(("task,optimizer,steps,steps_to_target", *(f"two_moons,{row}" for row in rows))) + "\n")
    arguments = ("--suite", "smoke", "--optimizers", "sgd", "--table", str(table), "--turns", "2")
    results = run("seconds.py", tmp_path / "seconds.json", *arguments)
    assert [r["network"] for r in results] == list(find_suite("smoke").tasks)
    found = {r["network"]: (r["seconds_to_adams_loss_over_adams"], r["ratio_to_adam"]["median"]) for r in results}
    assert found["quadratic"][0] == {"told": {}, "untold": {}}
    parts, ratio = found["two_moons"]
    assert parts["told"] == {"50": pytest.approx(0.5 * ratio, rel=1e-3), "200": None}
    assert parts["untold"] == pytest.approx({"50": 0.25 * ratio, "200": 0.5 * ratio}, rel=1e-3)
    for wrong, words in (
        (("--optimizers", "adam"), "no rows of adam{"),
        (("--optimizers", "sgd"), "table is of a suite"),
    ):
        suite = ("--suite", "smoke") if "rows" in words else ()
        command = [sys.executable, str(BENCHMARKS / "seconds.py"), *suite, *wrong, "--table", str(table)]
        assert words in subprocess.run(command, capture_output=True, text=True, timeout=100, check=False).stderr


@pytest.mark.slow
def test_accelerator(tmp_path: Path) -> None:
    arguments = ("--sizes", "100", "--width", "4", "--optimizers", "sgd", "--repeats", "3")
    results = run("accelerator.py", tmp_path / "accelerator.json", *arguments)
    assert [(r["model"], r["parameters"], r["tensors"]) for r in results] == [
        ("matrix 10", 100, 1),
        ("transformer 4", 6 * (16 * 12 + 4 * 9), 60),
    ]
    for r in results:
        for name in ("update_ms", "adam_ms", "ratio_to_adam"):
            assert 0 < r[name]["q1"] <= r[name]["median"] <= r[name]["q3"]


@pytest.mark.slow
def test_compile(tmp_path: Path) -> None:
    results = run("compile.py", tmp_path / "compile.json", "--models", "mlp", "--optimizers", "sgd")
    starts = [(r["optimizer"], r["start"]) for r in results]
    assert starts == [(o, s) for o in ("optax.adam", "sgd") for s in ("cold", "cached")]
    for r in results:
        assert (r["model"], r["tensors"]) == ("mlp", 4)
        assert r["operations"] > 0
        assert r["wall"].keys() == {"build", "trace", "compile", "step"}
        assert r["processor"].keys() == r["wall"].keys() | {"import"}
        assert all(seconds >= 0 for seconds in r["wall"].values())
    for cold, cached in ((0, 1), (2, 3)):
        assert results[cached]["operations"] == results[cold]["operations"]
        assert results[cached]["processor"]["compile"] < results[cold]["processor"]["compile"]
    assert [r["program_ratio_to_adam"] for r in results[:2]] == [1.0, 1.0]
    assert all(r["program_ratio_to_adam"] > 0 for r in results[2:])


@pytest.mark.slow
def test_meta_train(tmp_path: Path) -> None:
    arguments = ("--tasks", "quadratic", "--estimators", "pes", "--optimizers", "sgd", "--pairs", "2")
    arguments += ("--truncations", "2", "--turns", "2", "--seconds", "0.001")
    results = run("meta_train.py", tmp_path / "meta_train.json", *arguments)
    assert [r["layout"] for r in results] == ["threads", "devices", "processes"]
    for r in results:
        assert (r["task"], r["estimator"], r["optimizer"], r["pairs"]) == ("quadratic", "pes", "sgd", 2)
        assert r["meta_step_ms"].keys() == SPREAD
        assert r["meta_steps"] >= 2
        assert r["inner_steps_per_second"] > 0
        assert 0 < r["compile_seconds"] < r["first_meta_step_seconds"]
        assert r["second_start_seconds"] > 0
        assert r["temp_megabytes"] > 0


@pytest.mark.slow
def test_tasks(tmp_path: Path) -> None:
    arguments = ("--tasks", "quadratic", "table_mlp", "--seeds", "1", "--steps", "2", "--repeats", "2")
    quadratic, table, sampled = run("tasks.py", tmp_path / "tasks.json", *arguments)
    assert [(r["task"], r["parameters"]) for r in (quadratic, table)] == [("quadratic", 20), ("table_mlp", 530)]
    for r in (quadratic, table):
        assert r["step_ms"].keys() == r["ratio_to_digits_mlp"].keys() == SPREAD
        assert r["step_ms"]["median"] > 0
    assert (sampled["task"], sampled["programs"], sampled["not_finite"]) == ("1 sampled tasks", 1, 0)
    assert sampled["slowest_step_ms"] > 0


@pytest.mark.slow
def test_ablation(tmp_path: Path) -> None:
    arguments = (
        "--runs",
        str(tmp_path / "runs"),
        "--variants",
        "whole",
        "--tasks",
        "wichrowska2017/quadratic_20_noisy",
    )
    arguments += ("--steps", "2", "--suite", "smoke", "--inner-steps", "4")
    results = run("ablation.py", tmp_path / "ablation.json", *arguments)
    assert [r["variant"] for r in results] == ["whole", "whole-untrained"]
    assert [r["meta_steps"] for r in results] == [2, 0]
    for r in results:
        assert r["horizon"] == 4
        assert r["tasks"] == 3
        assert r["speedup"].keys() == r["normalized"].keys() == {"value", "low", "high"}
    whole, untrained = results
    assert whole["lower_than_whole"] is None
    assert 0 <= untrained["lower_than_whole"]["value"] <= 1
    assert untrained["tasks_lower_than_whole"] + untrained["tasks_higher_than_whole"] <= 3


@pytest.mark.slow
def test_long(tmp_path: Path) -> None:
    optimizer = lopt.create("relative_mlp", key=jax.random.key(0))
    saved = lopt.save(tmp_path / "it", optimizer, lopt.zoo.Card(horizon=(2, 4)))
    arguments = ("--optimizer", str(saved), "--multiple", "3", "--evals", "2", "--tasks", "quadratic")
    first = run("long.py", tmp_path / "long.json", *arguments)
    assert [(r["task"], r["told"], r["steps"], r["diverged"]) for r in first] == [
        ("quadratic", True, 12, 0),
        ("quadratic", False, 12, 0),
    ]
    assert all(r["end"] < r["start"] for r in first)
    file = tmp_path / "long.json"
    marked = json.loads(file.read_text())
    marked["results"][0]["end"] = -1.0
    file.write_text(json.dumps(marked))
    more = run("long.py", file, *arguments, "bowl")
    assert more[:2] == marked["results"], "what is done is kept, not done again"
    assert [r["task"] for r in more[2:]] == ["bowl", "bowl"]
    other = run("long.py", file, *arguments, "--seeds", "2")
    assert other[:4] == more, "what was done with other settings stays"
    assert [r["seeds"] for r in other[4:]] == [2, 2]


@pytest.mark.parametrize(
    ("train_loss", "minibatch_loss", "bad"),
    [
        ([2.0, 0.5, 0.6], [1.0], False),
        ([2.0, 0.5, 1.25], [1.0], False),
        ([2.0, 0.5, 1.3], [1.0], True),  # it lost more than half of what it had learned
        ([2.0, 1.9, 2.0], [1.0], True),
        ([2.0, 2.5, 1.9], [1.0], False),
        ([2.0, math.nan, 0.5], [1.0], True),
        ([2.0, 0.6, 0.5], [1.0, math.inf], True),
    ],
)
def test_what_has_diverged(
    train_loss: list[float], minibatch_loss: list[float], bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    diverged = importlib.import_module("long").diverged
    fine = np.array([[2.0, 1.0, 0.5], train_loss]), np.array([[1.0] * len(minibatch_loss), minibatch_loss])
    assert diverged(*fine).tolist() == [False, bad]


@pytest.mark.slow
def test_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two arms that differ in their decay alone, one meta-step; the second call finds them done and writes the same."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    arms = importlib.import_module("arms")
    weights = [tmp_path / name for name in ("first", "second")]
    for out in weights:
        arms.main(tmp_path / "state", ("both", "decay-1.0"), meta_steps=1, seeds=1, learning_rate=0.5, out=out)
        monkeypatch.setattr("lopt.reproduce.stability._arms._meta_step", None)  # whoever calls it again fails
    first, second = ({path.name: path.read_bytes() for path in out.iterdir()} for out in weights)
    assert first == second
    names = {f"{arm}-0.{ending}" for arm in ("both", "decay-1.0") for ending in ("json", "safetensors")}
    assert first.keys() == names | {"meta_loss.csv"}
    assert lopt.zoo.read_card(weights[0] / "both-0.safetensors").command.endswith(
        "--meta-steps 1 --seeds 1 --learning-rate 0.5"
    )
    init_key = jax.random.split(jax.random.split(jax.random.key(0), 1)[0])[0]
    start = lopt.create("star", key=init_key)
    plain, decayed = (lopt.load(weights[0] / f"{arm}-0.safetensors") for arm in ("both", "decay-1.0"))
    for w, x, y in zip(*map(jax.tree.leaves, (start, plain, decayed)), strict=True):
        np.testing.assert_allclose(x - y, 0.5 * w, atol=1e-6)  # learning rate times decay times the weights
    table = capsys.readouterr().out
    assert "| both |" in table
    assert "| decay-1.0 |" in table


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    """The driver alone is the bottleneck of a hundred workers; failures happen, and cost what they must."""
    arguments = ("--workers", "1", "100", "--lives", "1e9", "60", "--figure", str(tmp_path / "scaling.png"))
    results = run("scaling.py", tmp_path / "scaling.json", *arguments)
    assert [r["beside"]["workers"] for r in results if "beside" in r] == [1, 2, 4, 8]
    one, alone, accumulators, _ = [r for r in results if "way" in r]
    assert 0.97 < one["efficiency"] <= 1.0  # a second call waits while the driver works: 4 ms of 55
    assert (alone["bottleneck"], accumulators["bottleneck"]) == ("the driver", "none")
    never, often = [r["failing"] for r in results if "failing" in r]
    assert never["failures"] == 0
    assert often["failures"] == pytest.approx(100 * often["seconds"] / (60 + 20), rel=0.2)
    assert often["efficiency"] / never["efficiency"] == pytest.approx(60 / (60 + 20), abs=0.05)
    assert (tmp_path / "scaling.png").stat().st_size > 0
