"""Named tasks and members of corpora: they resolve, they are listed, measured once and normalised by what was measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt.console import console, task_tables
from lopt.errors import InputError
from lopt.evaluate import tune
from lopt.evaluate.bench import measure as measuring
from lopt.evaluate.compare import default_key
from lopt.tasks import TASKS, Landscape, Normalized, TaskName, catalogue, find_corpus
from lopt.tasks.corpora import measured as reading
from lopt.tasks.corpora.corpus import CORPORA
from lopt.tasks.corpora.measured import Figures, figures_of, read_measured
from registry import as_users_run_it

TINY = ("quadratic", "wichrowska2017_full/booth")  # named tasks that compile in a moment


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of two tiny tasks, measured for real."""
    out = tmp_path_factory.mktemp("measured") / "measured.json"
    measuring.measure(TINY, out, command="lopt tasks --measure", steps=5, seeds=2)
    return out


# Names.


@pytest.mark.parametrize("name", CORPORA)
def test_a_member_of_a_corpus_has_a_name(name: str) -> None:
    for split in find_corpus(name):
        for member in list(split)[:: max(1, len(split) // 3)]:
            assert lopt.tasks.find_member(f"{name}/{member}") == split[member]


def test_create_builds_members() -> None:
    task = lopt.tasks.create("wichrowska2017/ackley")
    inner = task.task if isinstance(task, Normalized) else task
    assert isinstance(inner, Landscape)
    assert inner.function == "ackley"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wichrowska2017/ackly", "There is no member of wichrowska2017 named 'ackly'; did you mean ackley or"),
        ("wichrowska/ackley", "There is no corpus named 'wichrowska'; did you mean wichrowska2017 or"),
        (
            "ackley",
            "There is no task named 'ackley'; did you mean wichrowska2017/ackley or wichrowska2017_full/ackley?",
        ),
        ("digits_mpl", "There is no task named 'digits_mpl'; did you mean digits_mlp?"),
        ("taskset/x", "There is no member of taskset named 'x'; known: sampled_0, .* and 1,9[0-9][0-9] more."),
        ("held_out/", "There is no member of held_out named ''; known: conv_fashion_28_relu"),
        ("/ackley", "There is no corpus named ''; known: held_out, "),
    ],
)
def test_an_unknown_name_is_one_sentence(name: str, sentence: str) -> None:
    with as_users_run_it(), pytest.raises(InputError, match=sentence) as error:
        lopt.tasks.create(name)
    assert "\n" not in str(error.value)


def test_a_member_has_no_fields() -> None:
    with as_users_run_it(), pytest.raises(InputError, match=r"wichrowska2017/ackley is a member .* but dim was given"):
        lopt.tasks.create("wichrowska2017/ackley", dim=3)


# Normalisation.


def test_normalised_losses_are_one_and_zero_at_their_two_ends() -> None:
    task = Normalized(Landscape("booth"), initial=80.0, best=-20.0)
    ends = jax.vmap(task.normalize)(jnp.asarray([80.0, -20.0, 30.0, -30.0]))
    np.testing.assert_allclose(ends, [1.0, 0.0, 0.5, -0.1], rtol=1e-6)
    key = jax.random.key(0)
    params = task.init(task.sample(key), key)
    assert float(task.loss((), params, key)) == float(task.task.loss((), params, key))


@pytest.mark.parametrize(("initial", "best"), [(1.0, 1.0), (1.0, 2.0), (float("nan"), 0.0), (1.0, -float("inf"))])
def test_ends_that_cannot_be_are_refused(initial: float, best: float) -> None:
    with as_users_run_it(), pytest.raises(InputError, match="best less than initial"):
        Normalized(Landscape("booth"), initial, best)


def test_members_come_normalised_where_they_were_measured(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = read_measured(tiny).tasks
    monkeypatch.setattr(reading, "read_measured", lambda: read_measured(tiny))
    booth = figures["wichrowska2017_full/booth"]
    # The smaller corpus has the same members.
    for name in ("wichrowska2017/booth", "wichrowska2017_full/booth"):
        task = lopt.tasks.create(name)
        assert isinstance(task, Normalized)
        assert float(task.normalize(jnp.float32(booth.initial_loss))) == 1.0
        assert float(task.normalize(jnp.float32(booth.best_loss))) == 0.0


def test_a_baseline_that_lowers_nothing_gives_no_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    for initial, best in ((1.0, 1.0), (1.0, None), (None, None)):
        figures = Figures(2, 1.0, 1.0, initial, best, None, 0)
        monkeypatch.setattr(reading, "figures_of", lambda _, figures=figures: figures)
        assert isinstance(lopt.tasks.create("wichrowska2017/booth"), Landscape)


# Measuring.


def test_what_is_measured_is_what_the_tuned_adam_does(tiny: Path) -> None:
    measured = read_measured(tiny)
    assert set(measured.tasks) == set(TINY)
    (run,) = measured.runs
    assert (run["command"], run["steps"], run["seeds"]) == ("lopt tasks --measure", 5, 2)
    assert {"cpu", "cores", "load_before", "python", "jax", "lopt", "learning_rates"} <= run.keys()
    assert str(Path.home()) not in tiny.read_text()
    found = measured.tasks["quadratic"]
    adam = tune("adam", lopt.tasks.create("quadratic"), steps=5, key=default_key(0), seeds=2)
    assert found.parameters == 20
    assert found.best_rate == adam.setting["learning_rate"]
    assert found.best_loss == pytest.approx(adam.train_loss.mean(), rel=1e-4)
    assert found.best_loss < found.initial_loss  # pyright: ignore[reportOptionalOperand]
    assert found.step_ms > 0
    assert found.ratio_to_digits_mlp > 0


def test_what_is_there_is_not_measured_again(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "measured.json"
    out.write_bytes(tiny.read_bytes())
    asked: list[str] = []

    def once(task: lopt.Task, *_: object, run: int, **__: object) -> Figures:
        asked.append(type(task).__name__)
        return Figures(1, 1.0, 1.0, 2.0, 1.0, 0.1, run)

    monkeypatch.setattr(measuring, "figures", once)
    names = [*TINY, "wichrowska2017/booth", "bowl", "wichrowska2017/bowl_5"]
    measuring.measure(names, out, command="lopt tasks --measure", steps=5, seeds=2)
    assert asked == ["Bowl"]  # under two names: measured once
    found = read_measured(out)
    before = read_measured(tiny)
    assert len(found.runs) == 1  # a run that continues, whatever the load
    assert {name: found.tasks[name] for name in TINY} == before.tasks
    assert found.tasks["bowl"] == found.tasks["wichrowska2017_full/bowl_5"]
    content = out.read_bytes()
    measuring.measure(names, out, command="other", steps=7)
    assert out.read_bytes() == content
    measuring.measure(["p_norm"], out, command="other", steps=7)
    assert [run["steps"] for run in read_measured(out).runs] == [5, 7]
    assert read_measured(out).tasks["p_norm"].run == 1


@pytest.mark.slow
def test_a_kill_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    out, log = tmp_path / "measured.json", tmp_path / "log"
    code = (
        "import pathlib, sys\n"
        "from lopt.evaluate.bench.measure import measure\n"
        f"log = open({str(log)!r}, 'a', buffering=1)\n"
        f"measure({TINY!r}, pathlib.Path({str(out)!r}), command='x', steps=5, seeds=2, on_progress=lambda t: log.write(t + '\\n'))\n"
    )
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while not (out.exists() and "2 of 2" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    before = read_measured(out)
    assert list(before.tasks) == ["quadratic"]
    subprocess.run(command, check=True, timeout=120, env=dict(os.environ))
    after = read_measured(out)
    assert after.tasks["quadratic"] == before.tasks["quadratic"]
    assert set(after.tasks) == set(TINY)
    assert log.read_text().splitlines() == ["1 of 2: quadratic", f"2 of 2: {TINY[1]}", f"1 of 1: {TINY[1]}"]
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


@pytest.mark.parametrize(
    "content", ["", "[]", '{"runs": []}', '{"runs": [], "tasks": {"quadratic": {"parameters": 1}}}']
)
def test_a_file_without_figures_is_one_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(content)
    with as_users_run_it(), pytest.raises(InputError, match=r"measured\.json does not hold figures") as error:
        read_measured(path)
    assert "\n" not in str(error.value)


# What was measured and ships.


def test_every_task_that_is_to_be_measured_was() -> None:
    figures = read_measured().tasks
    assert [name for name in catalogue.to_measure() if figures_of(name, figures) is None] == []


def test_what_was_measured_exists_and_makes_sense() -> None:
    measured = read_measured()
    for name, figures in measured.tasks.items():
        assert catalogue.resolved(TaskName.parse(name))
        assert figures.parameters > 0
        assert 0 < figures.step_ms < 100, name
        assert figures.ratio_to_digits_mlp > 0
        assert figures.has_scale, name
        assert figures.best_rate in measured.runs[figures.run]["learning_rates"]


def test_what_is_to_be_measured() -> None:
    names = catalogue.to_measure()
    assert len(set(names)) == len(names)
    assert set(TASKS) <= set(names)
    for corpus in ("small_images", "held_out", "taskset"):
        assert set(catalogue.to_measure(corpus)) == {n for n in names if n.startswith(f"{corpus}/")}
    every = catalogue.to_measure("wichrowska2017_full")
    assert len(every) == 158
    assert [n for n in names if n.startswith("wichrowska2017_full/")] == every[:: catalogue.WICHROWSKA_EVERY]
    families = [
        lopt.tasks.task_recipe(int(n.rpartition("_")[2])).config.family for n in catalogue.to_measure("taskset")
    ]
    assert len(families) == len(set(families)) == 8


# The catalogue.


@pytest.mark.parametrize(
    ("corpus", "name", "data", "source"),
    [
        (None, "digits_mlp", "digits", "lopt's own"),
        (None, "fashion_mlp", "fashion_28", "lopt's own"),
        (None, "two_moons", "generated", "Maheswaranathan et al. 2020"),
        (None, "image_vit", "digits", "Dosovitskiy et al. 2021"),
        (None, "learned_optimizer_training", "digits", "the task `lopt` of google/learned_optimization"),
        ("small_images", "fashion_8_edges_32", "fashion_8_edges", "Moudgil et al. 2025 (Celo), with other data"),
        ("held_out", "transformer_source", "source", "Vaswani et al. 2017"),
        ("held_out", "diabetes_mlp", "diabetes", "lopt's own"),
        ("taskset", "sampled_5", "wine", "in the manner of TaskSet (Metz et al. 2020)"),
        ("wichrowska2017", "sparse_bowl_1", "generated", "Wichrowska et al. 2017"),
        ("wichrowska2017", "test_fashion_conv_relu", "fashion_28", "Wichrowska et al. 2017"),
    ],
)
def test_data_and_source(corpus: str | None, name: str, data: str, source: str) -> None:
    full = f"{corpus}/{name}" if corpus else name
    (entry,) = (entry for entry in catalogue.entries(corpus) if entry.name == full)
    assert (entry.data, entry.source) == (data, source)


def test_every_task_has_a_source() -> None:
    for corpus in (None, *CORPORA):
        assert all(entry.source for entry in catalogue.entries(corpus))


def test_tables_have_every_row(tiny: Path) -> None:
    figures = read_measured(tiny).tasks
    with console.capture() as captured:
        for table in task_tables(None, catalogue.entries(None, figures), catalogue.corpus_sizes()):
            console.print(table)
    lines = captured.get().splitlines()
    for name in (*TASKS, *CORPORA):
        assert sum(line.startswith(f"│ {name} ") for line in lines) == 1, name
    (quadratic,) = (line for line in lines if line.startswith("│ quadratic "))
    assert [cell.strip() for cell in quadratic.split("│")][2] == "20"
    (bowl,) = (line for line in lines if line.startswith("│ bowl "))
    assert [cell.strip() for cell in bowl.split("│")][2:5] == ["–"] * 3
    json.dumps(catalogue.corpus_sizes())
