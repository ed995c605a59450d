"""The `lopt` command: what it prints, and one sentence and exit code 2 for input that cannot be used."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
import pytest

import lopt
from lopt import cli, machine, recipes, zoo
from lopt.estimators import ESTIMATORS
from lopt.evaluate import timing
from lopt.evaluate.bench.suites import SUITES
from lopt.evaluate.compare import COLUMNS, TUNED, default_key
from lopt.meta_train import Progress, meta_train
from lopt.optimizers import OPTIMIZERS
from lopt.recipes import RECIPES
from lopt.run_directory import CHECKPOINT, CONFIG, METRICS
from lopt.tasks import TASKS
from lopt.tasks.data import images as data

# As users have it, and without touching the settings that JAX has in this process.
pytestmark = pytest.mark.usefixtures("unchecked", "settled")

TINY = ("--recipe-fields", "pairs=1", "truncation=5", "horizon=[5,10]")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "settled")


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command with arguments."""

    def call(*args: str | Path) -> Result:
        capsys.readouterr()
        try:
            cli.main([str(arg) for arg in args])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Calls the command with arguments that cannot be used; gives the one sentence of the refusal."""

    def call(*args: str | Path) -> str:
        found = run(*args)
        assert found.code == 2, found
        assert found.err.startswith("lopt: ")
        assert found.err.endswith("\n")
        assert found.err.count("\n") == 1, found.err
        assert "Traceback" not in found.err + found.out
        return found.err

    return call


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return lopt.save(tmp_path / "mine", lopt.create("sgd", learning_rate=0.1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A meta-training of two steps that has ended."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = recipes.recipe("smoke", pairs=1, truncation=5, horizon=[5, 10])
    recipes.run(recipe, folder, seed=0, steps=2)
    return folder


# --- What it prints. ---


def test_certify_prints_the_certificate_and_writes_it(run: Run, tmp_path: Path) -> None:
    given = (
        "sgd",
        "--task",
        "quadratic",
        "--steps",
        "10",
        "--checkpoints",
        "2",
        "--optimizer-fields",
        "learning_rate=0.5",
    )
    code, out, _ = run("certify", *given, "--out", tmp_path / "found")
    record = json.loads((tmp_path / "found" / "certificate.json").read_text())
    assert code == 0
    assert record["verdict"] in out
    assert f"{record['critical_sharpness'][0]:.3g}" == "4.02"  # 2 over the learning rate, and the tolerance
    assert "4.02" in out
    assert (tmp_path / "found" / "certificate.png").read_bytes().startswith(b"\x89PNG")


def test_list(run: Run) -> None:
    found = run("list")
    assert found.code == 0
    for name in (*TASKS, *OPTIMIZERS, *ESTIMATORS, *RECIPES, *zoo.available()):
        assert re.search(rf"│ {name} +│ \w", found.out), name


def test_list_as_json(run: Run) -> None:
    found = run("list", "--json")
    assert (found.code, found.err) == (0, "")
    kinds = json.loads(found.out)
    assert {kind: sorted(entries) for kind, entries in kinds.items()} == {
        "tasks": sorted(TASKS),
        "optimizers": sorted(OPTIMIZERS),
        "estimators": sorted(ESTIMATORS),
        "recipes": sorted(RECIPES),
        "weights": zoo.available(),
    }
    assert all(text for entries in kinds.values() for text in entries.values())


def test_list_shows_saved_weights(run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lopt.save(saved, lopt.create("sgd"), zoo.Card(description="a fine optimizer"))
    monkeypatch.setattr(zoo, "FOLDER", saved.parent)
    assert json.loads(run("list", "--json").out)["weights"] == {"mine": "a fine optimizer"}
    assert "a fine optimizer" in run("list").out


def test_tasks(run: Run) -> None:
    found = run("tasks")
    assert (found.code, found.err) == (0, "")
    for name in (*TASKS, *lopt.tasks.CORPORA):
        assert re.search(rf"^│ {name} +│", found.out, re.MULTILINE), name
    assert "lopt tasks" in run("list").out


def test_tasks_as_json(run: Run) -> None:
    found = run("tasks", "--json")
    assert (found.code, found.err) == (0, "")
    content = json.loads(found.out)
    assert set(content["tasks"]) == set(TASKS)
    assert set(content["corpora"]) == set(lopt.tasks.CORPORA)
    members = json.loads(run("tasks", "--json", "--corpus", "held_out").out)["tasks"]
    assert set(members) == {f"held_out/{name}" for name in lopt.tasks.find_corpus("held_out").test}
    for row in (*content["tasks"].values(), *members.values()):
        assert row["data"]
        assert row["figures"] is None or row["figures"]["parameters"] > 0


def test_tasks_measures_when_asked_to(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lopt.tasks import catalogue

    monkeypatch.setattr(catalogue, "to_measure", lambda corpus: [f"{corpus}/booth"])
    monkeypatch.setattr(
        "lopt.evaluate.bench.measure.measure.__kwdefaults__", {"steps": 3, "seeds": 1, "on_progress": None}
    )
    out = tmp_path / "measured.json"
    found = run("tasks", "--measure", "--corpus", "wichrowska2017_full", "--out", out)
    assert (found.code, found.err) == (0, "")
    assert "1 of 1: wichrowska2017_full/booth" in found.out
    assert re.search(r"│ booth +│ train +│ +2 │ +\d", found.out)
    (measured,) = json.loads(out.read_text())["runs"]
    assert measured["command"] == "lopt tasks --measure --corpus wichrowska2017_full"


def test_train_takes_a_member_of_a_corpus(run: Run) -> None:
    arguments = ("--optimizer", "sgd", "--steps", "2", "--seeds", "1")
    found = train_json(run, "--task", "wichrowska2017/booth", *arguments)
    assert np.shape(found["train_loss"]) == (1, 3)


def test_an_unknown_member_is_refused(refused: Callable[..., str]) -> None:
    for name in ("wichrowska2017/boooth", "wichrowska17/booth"):
        assert "did you mean" in refused("train", "--task", name, "--optimizer", "sgd")
    assert "did you mean small_images?" in refused("tasks", "--corpus", "small_image")


def test_a_population_of_none_and_an_unknown_outer_optimizer_are_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    message = refused("self-train", "--members", "0", "--run-dir", tmp_path / "none")
    assert "members is 0; it must be at least 1." in message
    given = ("--recipe", "smoke", "--run-dir", tmp_path / "run")
    assert "general-1" in refused("meta-train", *given, "--outer", "general-7")


def train_json(run: Run, *args: str | Path) -> dict[str, Any]:
    found = run("train", *args, "--json")
    assert (found.code, found.err) == (0, "")
    return json.loads(found.out, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


def test_train_as_json(run: Run) -> None:
    fields = ("--task-fields", "dim=3", "noise=0.1", "--optimizer-fields", "learning_rate=0.2")
    found = train_json(run, "--task", "quadratic", "--optimizer", "sgd", "--steps", "6", "--seeds", "3", *fields)
    assert set(found) == {"steps", "train_loss", "valid_loss", "test_loss", "seconds_per_step"}
    assert found["steps"] == list(range(7))
    for split in ("train", "valid", "test"):
        assert np.shape(found[f"{split}_loss"]) == (3, 7)
    task = lopt.tasks.create("quadratic", dim=3, noise=0.1)
    record = lopt.train(lopt.create("sgd", learning_rate=0.2), task, steps=6, key=default_key(0), seeds=3)
    np.testing.assert_allclose(found["test_loss"], record.test_loss, rtol=1e-6)


def test_train_reports_other_metrics(run: Run) -> None:
    fields = ("--task-fields", "widths=[4]", "activation=tanh", "batch_size=8")
    arguments = ("--task", "digits_mlp", "--optimizer", "adam", "--steps", "1", "--seeds", "2", *fields)
    found = train_json(run, *arguments)
    assert np.shape(found["test_accuracy"]) == (2, 2)
    assert {"train_accuracy", "valid_accuracy", "test_accuracy"} < set(found)


def test_train_as_json_has_null_for_what_is_not_finite(run: Run) -> None:
    fields = ("--optimizer-fields", "learning_rate=1e30")
    found = train_json(run, "--task", "quadratic", "--optimizer", "sgd", "--steps", "3", "--seeds", "1", *fields)
    assert found["train_loss"][0][-1] is None
    assert found["train_loss"][0][0] > 0


def test_train_prints_a_table(run: Run) -> None:
    found = run("train", "--task", "quadratic", "--optimizer", "sgd", "--steps", "6", "--seeds", "3")
    assert (found.code, found.err) == (0, "")
    for name in ("train loss", "valid loss", "test loss"):
        assert re.search(rf"{name} +│ +\d+\.\d+ ± \d+\.\d+ +│ +\d+\.\d+ ± \d+\.\d+", found.out), found.out
    assert "after 6 steps" in found.out
    assert "ms a step" in found.out


def test_train_of_one_seed_has_no_interval(run: Run) -> None:
    found = run("train", "--task", "quadratic", "--optimizer", "sgd", "--steps", "6", "--seeds", "1")
    assert found.code == 0
    assert "nan" not in found.out


def test_train_with_a_saved_optimizer(run: Run, saved: Path) -> None:
    arguments = ("--task", "quadratic", "--steps", "4", "--seeds", "2")
    mine = train_json(run, *arguments, "--optimizer", saved)
    sgd = train_json(run, *arguments, "--optimizer", "sgd", "--optimizer-fields", "learning_rate=0.1")
    assert mine["train_loss"] == sgd["train_loss"]


def test_train_takes_baselines_at_one_setting(run: Run) -> None:
    options = ("--task", "quadratic", "--steps", "3", "--seeds", "1", "--task-fields", "dim=3", "--json")
    named = run("train", "--optimizer", 'nadamw{"learning_rate":0.5}', *options)
    assert named.code == 0, named.err
    losses = json.loads(named.out)["train_loss"]
    fields = run(
        "train", "--optimizer", "nadamw", "--optimizer-fields", "learning_rate=0.5", "weight_decay=0", *options
    )
    assert json.loads(fields.out)["train_loss"] == losses, "a weight decay that is not given is 0"
    assert losses[0][0] != losses[0][-1]


def test_train_depends_on_its_seed_alone(run: Run) -> None:
    def losses(seed: int) -> list[list[float]]:
        arguments = ("--task", "quadratic", "--optimizer", "sgd", "--steps", "4", "--seeds", "2", "--seed", str(seed))
        return train_json(run, *arguments)["train_loss"]

    assert losses(0) == losses(0) != losses(1)


def test_compare_prints_a_table(run: Run, saved: Path, tmp_path: Path) -> None:
    figure = tmp_path / "curves.png"
    options = ("--steps", "5", "--seeds", "2", "--task-fields", "dim=3", "--figure", figure)
    found = run("compare", "--task", "quadratic", "--optimizers", "sgd", saved, *options)
    assert (found.code, found.err) == (0, "")
    text = " ".join(found.out.split())
    for column in COLUMNS:
        assert all(word in text for word in column.split())
    rows = [line for line in found.out.splitlines() if line.startswith(("│ sgd ", f"│ {TUNED} "))]
    assert len(rows) == 2
    assert all(re.search(r"│ +\d+\.\d+ ± \d+\.\d+ │", row) for row in rows)
    assert "quadratic: 5 steps, 2 seeds, mean ± 95 % interval" in text
    assert re.search(r"tuned Adam's final train loss, \d\.\d+; its learning rate", text)
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "mine.json", "mine.safetensors"]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("demo", cli.Demo),
        ("meta-train", cli.MetaTrain),
        ("train", cli.Train),
        ("compare", cli.Compare),
        ("list", cli.List),
    ],
)
def test_help_names_every_argument(run: Run, command: str, kind: type) -> None:
    found = run(command, "--help")
    assert found.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", found.out).split())
    for field in dataclasses.fields(kind):
        assert f"--{field.name.replace('_', '-')}" in text
    assert " ".join((kind.__doc__ or "").split()) in text
    assert "Traceback" not in found.err


def test_help_of_bench_names_every_suite_and_what_steps_multiply(run: Run) -> None:
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", run("bench", "--help").out).split())
    (suites,) = re.findall(r"smoke \(minutes\).*? or generalisation\.", text)
    assert all(re.search(rf"\b{suite}\b", suites) for suite in SUITES), suites
    assert 'NAME{"tell_horizon":false}' in text
    (said,) = re.findall(r"held_out has ([\d, and]+) with 100", text)
    horizons = {horizon for _, horizon in SUITES["held_out"]().changed(steps=100).cells()}
    assert {int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d", said)} == horizons


def test_help_names_every_command(run: Run) -> None:
    found = run("--help")
    assert found.code == 0
    for command in ("demo", "meta-train", "train", "compare", "bench", "list"):
        assert re.search(rf"\b{command}\b", found.out)


@pytest.mark.parametrize("command", [get_args(command)[0] for command in get_args(cli.Command)])
def test_a_command_needs_one_option_at_most(command: type) -> None:
    """What is required and missing is said before what is wrong with the rest; of one option it cannot be."""
    options = [f.name for f in dataclasses.fields(command) if "Positional" not in str(f.type)]
    defaults = inspect.signature(command).parameters
    assert len([name for name in options if defaults[name].default is inspect.Parameter.empty]) <= 1


# --- Meta-training. ---


def test_meta_train(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("meta-train", "--recipe", "smoke", "--run-dir", folder, "--seed", "3", "--steps", "2", *TINY)
    found = run(*arguments)
    assert (found.code, found.err) == (0, "")
    assert "meta-step 2/2" in found.out
    weights = folder / "optimizer.safetensors"
    assert str(weights) in "".join(found.out.split())
    card = zoo.read_card(weights)
    assert (card.optimizer, card.seed, card.meta_steps, card.horizon) == ("star", 3, 2, (5, 10))
    assert card.inner_steps == 2 * 1 * 2 * 5, "meta-steps, pairs, members, truncation"
    assert card.tasks == ({"name": "quadratic", "fields": {"dim": 10}},)
    before = weights.read_bytes()
    assert run(*arguments).code == 0
    assert weights.read_bytes() == before
    assert len((folder / METRICS).read_text().splitlines()) == 2
    assert run("train", "--task", "quadratic", "--optimizer", weights, "--steps", "2", "--seeds", "1").code == 0


def test_a_saved_optimizer_applies_the_meta_gradients(run: Run, refused: Any, tmp_path: Path) -> None:
    """In a run directory, which another outer optimizer does not continue."""
    arguments = ("meta-train", "--recipe", "smoke", "--run-dir", tmp_path, *TINY)
    assert run(*arguments, "--steps", "2", "--outer", "demo-1").code == 0
    assert len((tmp_path / METRICS).read_text().splitlines()) == 2
    assert json.loads((tmp_path / CONFIG).read_text())["outer"] == "demo-1"
    assert run(*arguments, "--steps", "2", "--outer", "demo-1").code == 0, "it was done already"
    assert "belongs to another configuration" in refused(*arguments, "--steps", "2")


def test_places_that_need_no_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories: list[Path] = []
    monkeypatch.setattr(recipes, "run", lambda recipe, run_dir, **rest: directories.append(run_dir))
    assert run("meta-train", "--recipe", "smoke").code == 0
    assert directories == [Path("runs/smoke")]
    monkeypatch.setattr("lopt.convert.read_flax", lambda path: {})
    monkeypatch.setattr("lopt.convert.from_learned_optimization", lambda kind, arrays: lopt.create("sgd"))
    assert run("convert", "celo", tmp_path / "theta.state").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theta.json", "theta.safetensors"]


def test_ctrl_c_says_how_to_continue(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*args: Any, on_step: Callable[[Progress], None], **kwargs: Any) -> Any:
        def press(progress: Progress) -> None:
            on_step(progress)
            if progress.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        return meta_train(*args, on_step=press, **kwargs)

    arguments = ("meta-train", "--recipe", "smoke", "--run-dir", tmp_path / "run", "--steps", "6", *TINY)
    monkeypatch.setattr(recipes, "meta_train", pressed)
    found = run(*arguments)
    assert found.code == 130
    assert re.fullmatch(r"Stopped after meta-step [23] of 6\. The same command continues\.\n", found.err)
    assert (tmp_path / "run" / CHECKPOINT).exists()
    assert not (tmp_path / "run" / "optimizer.safetensors").exists()
    monkeypatch.setattr(recipes, "meta_train", meta_train)
    assert run(*arguments).code == 0
    assert len((tmp_path / "run" / METRICS).read_text().splitlines()) == 6


def test_ctrl_c_elsewhere_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(self: cli.List) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.List, "run", press)
    assert run("list") == (130, "", "Stopped.\n")


# --- What is refused. ---

TRAIN = ("train", "--task", "quadratic", "--optimizer", "sgd")
COMPARE = ("compare", "--task", "quadratic", "--optimizers", "sgd")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # Unknown names, with the nearest.
        (("train", "--task", "digits_mpl", "--optimizer", "sgd"), ["task", "'digits_mpl'", "did you mean digits_mlp"]),
        (("train", "--task", "xyz", "--optimizer", "sgd"), ["task", "'xyz'", "known: ", *TASKS]),
        (("train", "--task", "quadratic", "--optimizer", "smal_fc"), ["'smal_fc'", "did you mean small_fc"]),
        (("train", "--task", "quadratic", "--optimizer", "xyz"), ["'xyz'", *OPTIMIZERS]),
        (("train", "--task", "quadratic", "--optimizer", "no/such.safetensors"), ["no/such.safetensors"]),
        (("train", "--task", "quadratic", "--optimizer", "no/such"), ["no/such.safetensors"]),
        (("compare", "--task", "quadratc", "--optimizers", "sgd"), ["did you mean quadratic"]),
        (("compare", "--task", "quadratic", "--optimizers", "sgd", "adamm"), ["'adamm'", "did you mean adam"]),
        # Baselines, of which nothing is tuned here.
        (
            ("train", "--task", "quadratic", "--optimizer", "nadamw"),
            ["nadamw{", '"learning_rate":0.01}', "nothing is tuned"],
        ),
        (("probe", "lion"), ["lion{", '"learning_rate":0.01}']),
        (("certify", "sgd", "--task", "quadratc"), ["did you mean quadratic"]),
        (("certify", "sgd", "--task", "quadratic", "--checkpoints", "1"), ["checkpoints is 1", "at least 2"]),
        (("watch", "adm"), ["'adm'", "did you mean adam"]),
        (("watch", "--landscapes", "both"), ["landscape named 'both'", "did you mean booth"]),
        (("watch", "--starts", "booth=[[20,0]]"), ["the start [20, 0] is outside the picture of booth"]),
        (("watch", "--starts", "booth=left"), ["starts of booth are 'left'", "[[0.5, 1], [2, 0]]"]),
        (("watch", "--steps", "0"), ["steps is 0", "at least 1"]),
        (("probe", 'lion{"learning_rat":1}'), ["give its learning rate"]),
        (("probe", 'lion{"learning_rate":0.1,"b3":1}'), ["hyper-parameter of lion", "'b3'"]),
        (("meta-train", "--recipe", "smoek", "--run-dir", "never"), ["recipe", "'smoek'", "did you mean smoke"]),
        # What is wrong is said, not what is missing.
        (("train", "--task", "nope"), ["task", "'nope'"]),
        (("compare", "--task", "nope"), ["task", "'nope'"]),
        (("meta-train", "--recipe", "smoek"), ["recipe", "'smoek'", "did you mean smoke"]),
        # Fields.
        ((*TRAIN, "--task-fields", "dimm=3"), ["field of task quadratic", "'dimm'", "did you mean dim"]),
        ((*TRAIN, "--optimizer-fields", "learning_rat=1"), ["field of optimizer sgd", "did you mean learning_rate"]),
        ((*TRAIN, "--task-fields", "dim"), ["'dim'", "name=value"]),
        ((*TRAIN, "--task-fields", "dim=0"), ["dim is 0", "at least 1"]),
        ((*TRAIN, "--task-fields", "dim=many"), ["dim is 'many'", "a number that is at least 1"]),
        ((*TRAIN, "--task-fields", "noise=-1"), ["noise is -1"]),
        ((*TRAIN, "--optimizer-fields", "learning_rate=-0.5"), ["learning_rate is -0.5", "positive"]),
        ((*TRAIN, "--optimizer-fields", "learning_rate=fast"), ["sgd", "learning_rate='fast'"]),
        ((*COMPARE, "--task-fields", "dimm=3"), ["'dimm'", "did you mean dim"]),
        # Numbers.
        ((*TRAIN, "--steps", "0"), ["steps is 0", "at least 1"]),
        ((*TRAIN, "--steps", "-5"), ["steps is -5", "at least 1"]),
        ((*TRAIN, "--seeds", "0"), ["seeds is 0", "at least 1"]),
        ((*TRAIN, "--seeds", "-1"), ["seeds is -1", "at least 1"]),
        ((*COMPARE, "--steps", "0"), ["steps is 0", "at least 1"]),
        ((*COMPARE, "--seeds", "1"), ["seeds is 1", "at least 2"]),
        ((*COMPARE, "--seeds", "-3"), ["seeds is -3", "at least 2"]),
        (("demo", "--seeds", "1", "--run-dir", "never"), ["seeds is 1", "at least 2"]),
        (("demo", "--steps", "0", "--run-dir", "never"), ["steps is 0", "at least 1"]),
        (("meta-train", "--recipe", "smoke", "--run-dir", "never", "--steps", "0"), ["steps is 0", "at least 1"]),
        (("meta-train", "--recipe", "smoke", "--run-dir", "never", "--steps", "-2"), ["steps is -2", "at least 1"]),
    ],
)
def test_bad_arguments(
    refused: Callable[..., str],
    arguments: tuple[str, ...],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(*arguments)
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("batch_size=-1", ["batch_size is -1"]),
        ("batch_size=0", ["batch_size is 0"]),
        ("batch_size=2.5", ["batch_size is 2.5"]),
        ("batch_size=big", ["batch_size is big"]),
        ("widths=[8,-1]", ["widths is [8, -1]"]),
        ("widths=8", ["widths=8"]),
        ("activation=reluu", ["activation is 'reluu'", "relu, tanh, gelu, silu, sigmoid"]),
        ("batchsize=3", ["'batchsize'", "did you mean batch_size"]),
    ],
)
def test_bad_fields_of_an_image_task(refused: Callable[..., str], field: str, words: list[str]) -> None:
    message = refused("train", "--task", "digits_mlp", "--optimizer", "sgd", "--task-fields", field)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("pair=3", ["'pair'", "did you mean pairs"]),
        ("pairs=0", ["pairs is 0"]),
        ("pairs=many", ["pairs is 'many'"]),
        ("pairs=2.5", ["pairs is 2.5"]),
        ("truncation=60", ["horizon is 50", "truncation, 60"]),
        ("horizon=[10,200]", ["horizon is 10", "truncation, 20"]),
        ("horizon=100", ["horizon is 100"]),
        ("horizon=[200,100]", ["horizon is (200, 100)"]),
        ("std=0", ["std is 0"]),
        ("split=validation", ["split is 'validation'", "train, valid, test"]),
        ("optimizer=smal_fc", ["did you mean small_fc"]),
        ("estimator=pess", ["estimator", "'pess'", "did you mean pes"]),
        ("tasks=[1]", ["tasks is (1,)"]),
    ],
)
def test_bad_fields_of_a_recipe(refused: Callable[..., str], tmp_path: Path, field: str, words: list[str]) -> None:
    folder = tmp_path / "run"
    message = refused("meta-train", "--recipe", "smoke", "--run-dir", folder, "--recipe-fields", field)
    assert all(word in message for word in words), message
    assert not folder.exists()


def resign(weights: Path) -> None:
    path = weights.with_suffix(".json")
    raw = json.loads(path.read_text()) | {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    signed = zoo.Card(**{name: value for name, value in raw.items() if name != "fingerprint"})
    path.write_text(json.dumps(raw | {"fingerprint": signed.fingerprint}))


@pytest.mark.parametrize("command", [("train", "--optimizer"), ("compare", "--optimizers")])
def test_bad_weights(refused: Callable[..., str], saved: Path, command: tuple[str, str]) -> None:
    def load() -> str:
        return refused(*command, saved, "--task", "quadratic", "--steps", "2", "--seeds", "2")

    good, card = saved.read_bytes(), saved.with_suffix(".json")
    saved.write_bytes(good[:-2])
    assert "checksum" in load()
    resign(saved)
    assert "damaged or truncated" in load()
    saved.write_bytes(lopt.save(saved.with_name("other"), lopt.create("momentum")).read_bytes())
    assert "checksum" in load()
    resign(saved)
    assert "another architecture" in load()
    card.write_text("{")
    assert "not a card" in load()
    card.unlink()
    assert "has no card" in load()
    saved.unlink()
    assert "There is no file" in load()


def test_fields_of_saved_optimizers_are_fixed(refused: Callable[..., str], saved: Path) -> None:
    message = refused("train", "--task", "quadratic", "--optimizer", saved, "--optimizer-fields", "learning_rate=1")
    assert "its fields are fixed" in message
    assert "learning_rate=1" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--seed", "1"), ["key is"]),
        (("--steps", "3"), ["steps is 2", "3"]),
        (("--recipe-fields", "pairs=2", *TINY[2:]), ["estimators is", "pairs=2"]),
        (("--recipe-fields", "learning_rate=0.5", *TINY[1:]), ["learning_rate is 0.001", "0.5"]),
        (("--recipe-fields", "clip=0.5", *TINY[1:]), ["clip is 0.1", "0.5"]),
        (("--recipe-fields", "optimizer=small_fc", *TINY[1:]), ["optimizer is STAR", "SmallFC"]),
        (("--recipe", "demo"), ["estimators is"]),
    ],
)
def test_a_run_directory_of_another_configuration(
    refused: Callable[..., str], finished: Path, changes: tuple[str, ...], words: list[str]
) -> None:
    arguments = {"--recipe": ("smoke",), "--steps": ("2",), TINY[0]: TINY[1:]} | {changes[0]: changes[1:]}
    flat = [part for name, values in arguments.items() for part in (name, *values)]
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    message = refused("meta-train", "--run-dir", finished, *flat)
    assert f"The run directory {finished} belongs to another configuration" in message
    assert all(word in message for word in words), message
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_damaged_checkpoint(refused: Callable[..., str], finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1])
    message = refused("meta-train", "--recipe", "smoke", "--run-dir", folder, "--steps", "2", *TINY)
    assert f"{path} is damaged or truncated" in message


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/lopt/run"])
def test_a_run_directory_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / place  # an absolute place stays as it is
    message = refused("meta-train", "--recipe", "smoke", "--run-dir", folder, "--steps", "2", *TINY)
    assert str(folder) in message or str(folder.parent) in message
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_page_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert f"{tmp_path} is a folder; name the file" in refused("watch", "--out", tmp_path)
    message = refused("watch", "--out", tmp_path / "file" / "watch.html")
    assert str(tmp_path / "file") in message
    assert (tmp_path / "file").read_text() == "in the way"


def test_watch_writes_a_page(run: Run, tmp_path: Path) -> None:
    given = ("--landscapes", "booth", "--starts", "booth=[[0,0]]", "--steps", "3", "--out", tmp_path / "it.html")
    code, out, _ = run("watch", 'sgd{"learning_rate":0.01}', "general-1", *given)
    assert code == 0
    assert "it.html" in out
    text = (tmp_path / "it.html").read_text()
    assert '"optimizers":["sgd{\\"learning_rate\\":0.01}","general-1"]' in text
    assert '"starts":[[0.0,0.0]]' in text


def test_a_figure_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path) -> None:
    arguments = (*COMPARE, "--steps", "2", "--seeds", "2", "--figure", tmp_path / "no" / "such.png")
    assert "No such file or directory" in refused(*arguments)


def test_missing_fashion_mnist(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FASHION_MNIST_FOLDER", tmp_path / "nowhere")
    monkeypatch.setenv("LOPT_DATA", str(tmp_path))
    data.fashion_mnist.cache_clear()
    message = refused("train", "--task", "fashion_mlp", "--optimizer", "sgd")
    assert "Fashion-MNIST is not on this machine" in message
    assert "apt-get install dataset-fashion-mnist" in message
    assert "$LOPT_DATA/fashion-mnist" in message


def test_damaged_fashion_mnist(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for name in data.FASHION_MNIST_FILES:
        (folder / name).write_bytes(b"not gzip")
    monkeypatch.setenv("LOPT_DATA", str(tmp_path))
    data.fashion_mnist.cache_clear()
    message = refused("train", "--task", "fashion_mlp", "--optimizer", "sgd")
    assert f"{folder / data.FASHION_MNIST_FILES[0]} is damaged" in message
    data.fashion_mnist.cache_clear()


@pytest.mark.parametrize("arguments", [("trian",), ("train",), ("train", "--steps", "many"), ("list", "--xml")])
def test_a_command_line_that_does_not_parse(run: Run, arguments: tuple[str, ...]) -> None:
    found = run(*arguments)
    assert found.code == 2
    assert "Traceback" not in found.err
    assert found.err


# --- The settings of JAX. ---


def test_jax_that_is_in_use_is_left_as_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    devices = jax.device_count()
    assert run("list", "--json").code == 0
    assert jax.device_count() == devices


def test_a_system_that_cannot_name_its_cores(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS and Windows; the latter cannot count what runs either."""
    for name in ("sched_getaffinity", "getloadavg"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    assert machine.cores() == [0, 1, 2]
    facts = timing.machine()
    assert (facts["cores"], facts["load_before"]) == (3, None)
    assert run("list", "--json").code == 0


def test_the_cores_are_counted_in_one_place() -> None:
    source = Path(lopt.__file__).parent
    counting = [p.name for p in source.rglob("*.py") if re.search(r"sched_getaffinity|cpu_count", p.read_text())]
    assert counting == ["machine.py"]


SETTINGS = """
import os, sys
from lopt import cli, machine
cli.main(sys.argv[1:])
import jax
print(jax.device_count() == len(machine.cores()), jax.config.jax_compilation_cache_dir)
"""


def fresh(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with an environment in which nothing is said about JAX."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))} | variables
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120)


def test_a_device_a_core_and_a_cache(tmp_path: Path) -> None:
    arguments = ("train", "--task", "quadratic", "--optimizer", "sgd", "--steps", "2", "--seeds", "2", "--json")
    found = fresh("-c", SETTINGS, *arguments, XDG_CACHE_HOME=str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == f"True {tmp_path / 'lopt' / 'xla'}"
    assert json.loads(found.stdout.splitlines()[0])["steps"] == [0, 1, 2]


def test_a_refusal_from_a_fresh_process(tmp_path: Path) -> None:
    found = fresh("-m", "lopt", "train", "--task", "quadratc", "--optimizer", "sgd", XDG_CACHE_HOME=str(tmp_path))
    assert found.returncode == 2
    assert found.stdout == ""
    assert (
        found.stderr
        == "lopt: There is no task named 'quadratc'; did you mean quadratic or data_quadratic or noisy_quadratic?\n"
    )


# --- The demo, small. ---


@pytest.mark.slow
def test_demo(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lopt import demo

    monkeypatch.setattr(demo, "NETWORKS", demo.NETWORKS[:1])
    monkeypatch.setattr(demo, "STEPS", 10)
    recipe = dataclasses.replace(RECIPES["demo"], tasks=RECIPES["demo"].tasks[:1], pairs=1)
    monkeypatch.setitem(RECIPES, "demo", recipe)
    folder = tmp_path / "demo"
    found = run("demo", "--run-dir", folder, "--steps", "3", "--seeds", "2")
    assert (found.code, found.err) == (0, "")
    for name in ("curves.png", "report.html", "optimizer.safetensors", "optimizer.json"):
        assert (folder / name).stat().st_size > 0
    page = (folder / "report.html").read_text()
    for label in (demo.NETWORKS[0][0], demo.UNSEEN[0], demo.LEARNED, demo.HAND_DESIGNED, demo.RELEASED):
        assert label in page
        assert label.split()[0] in found.out
    first, later = found.out.split("meta-step", 1)
    assert demo.RELEASED in first
    assert demo.LEARNED not in first, "the first table stands before the meta-training"
    assert demo.LEARNED in later
    # The lines that it ends with do what they say.
    lines = [line.strip() for line in found.out.splitlines() if line.startswith("    ")]
    assert lines[0] == "import lopt, optax"
    variables: dict[str, Any] = {"grads": np.ones(3, np.float32), "params": np.zeros(3, np.float32)}
    exec("\n".join(lines), variables)
    assert np.isfinite(variables["deployed"]).all()
    assert variables["deployed"].any()
