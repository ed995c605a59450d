"""A bench does what is missing, the same in any number of processes, and survives failures and kills."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import lopt
from lopt import cli, zoo
from lopt.cli._arguments import contestant
from lopt.errors import InputError
from lopt.evaluate.baselines import BASELINES, LEARNING_RATES, settings
from lopt.evaluate.bench import run as bench
from lopt.evaluate.bench.archive import Archive, differences
from lopt.evaluate.bench.run import Progress, run_bench, standings
from lopt.evaluate.bench.suites import SUITES, Suite, find_suite
from lopt.evaluate.bench.units import Trained, fewer_examples, time_task, train_unit
from lopt.evaluate.bench.workers import Job, Outcome, work
from lopt.evaluate.compare import compare
from lopt.evaluate.contenders import contender, contenders, one_setting
from lopt.evaluate.grid import Protocol
from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.scores.selection import promising, select, within_suite
from lopt.evaluate.scores.summary import score
from lopt.evaluate.timing import Stretch, machine
from lopt.evaluate.training import default_key, train
from lopt.names import split_fields, with_fields
from lopt.optimizers import SGD
from lopt.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("unchecked")

TASKS = ("bowl", 'quadratic{"dim":3}')
TINY = Suite(
    "tiny", "for tests", TASKS, steps=4, protocol=Protocol(seeds=2, evals=2, learning_rates=LEARNING_RATES[6:])
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return zoo.save(tmp_path / "mine", lopt.create("small_fc", key=jax.random.key(0)), zoo.Card(seed=7))


# --- Names. ---


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("digits_mlp", {}, "digits_mlp"),
        ("digits_mlp", {"widths": (64, 8)}, 'digits_mlp{"widths":[64,8]}'),
        ("quadratic", {"noise": 0.5, "dim": 3}, 'quadratic{"dim":3,"noise":0.5}'),
        ("held_out/vae_digits", {}, "held_out/vae_digits"),
    ],
)
def test_names_with_fields_there_and_back(name: str, fields: dict[str, Any], text: str) -> None:
    assert with_fields(name, fields) == text
    assert split_fields(text) == (name, fields)


def test_a_task_by_its_name() -> None:
    assert lopt.tasks.create('quadratic{"dim":3}').dim == 3
    assert lopt.tasks.create('quadratic{"dim":3}', noise=0.5).noise == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('quadratic{"dim":3', "is not of the form name"),
        ("quadratic{dim=3}", "is not of the form name"),
        ('quadratc{"dim":3}', "did you mean quadratic"),
        ('quadratic{"dimm":3}', "did you mean dim"),
        ('quadratic{"dim":0}', "dim is 0"),
        ('held_out/vae_digits{"code":3}', "its fields are fixed"),
    ],
)
def test_bad_names_of_tasks_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        lopt.tasks.create(text)


def test_who_takes_part(saved: Path) -> None:
    found = contenders(["nadamw", str(saved), 'adam{"learning_rate":0.5}', "nadamw"])
    assert [c.label for c in found] == ["adam", "nadamw", "mine", 'adam{"learning_rate":0.5}']
    assert [len(c.settings()) for c in found] == [15, 30, 1, 1]
    assert [c.fingerprint for c in found] == [None, None, zoo.read_card(saved).fingerprint, None]
    assert [c.label for c in contenders(["baselines"])] == ["adam", *(b for b in BASELINES if b != "adam")]


def test_a_saved_optimizer_may_be_left_without_the_horizon(saved: Path) -> None:
    text = f'{saved}{{"tell_horizon":false}}'
    _, told, untold = contenders([str(saved), text])
    assert (told.tell_horizon, untold.tell_horizon) == (True, False)
    assert untold._replace(label=told.label, given=told.given, tell_horizon=True) == told
    assert untold.label == 'mine{"tell_horizon":false}'
    with pytest.raises(InputError, match="tell_horizon is 0; it must be true or false"):
        contender(f'{saved}{{"tell_horizon":0}}')
    with pytest.raises(InputError, match="is for a bench"):
        one_setting(text)


def test_who_is_not_told_the_horizon_does_not_know_it(tmp_path: Path) -> None:
    """Its steps are those of another schedule, and the same whatever the horizon."""
    path = zoo.save(tmp_path / "it", lopt.create("relative_mlp", key=jax.random.key(0)))
    protocol = Protocol(seeds=1, evals=1)

    def steps(text: str, horizon: int) -> float:
        who = contender(text)
        return train_unit(Unit("bowl", who.label, horizon), who, protocol._replace(evals=horizon)).runs[0].train_loss[2]

    untold = f'{path}{{"tell_horizon":false}}'
    assert steps(untold, 3) == steps(untold, 6)
    assert len({steps(str(path), 3), steps(str(path), 6), steps(untold, 3)}) == 3


def test_a_file_called_optimizer_is_named_by_its_folder(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        zoo.save(tmp_path / folder / "optimizer", lopt.create("small_fc", key=jax.random.key(0)))
    found = contenders([str(tmp_path / folder / "optimizer.safetensors") for folder in ("first", "second")])
    assert [c.label for c in found] == ["adam", "first", "second"]


def test_one_setting_of_an_optimizer() -> None:
    baseline = contender('lion{"learning_rate":0.5}')
    assert type(baseline.optimizer({"learning_rate": 0.5})).__name__ == "Baseline"
    other = contender('adam{"b1":0.5}')
    assert type(other.optimizer({"b1": 0.5})).__name__ == "Adam"


def test_bad_optimizers_are_refused(saved: Path) -> None:
    other = zoo.save(saved.parent / "other" / "mine", lopt.create("small_fc", key=jax.random.key(1)))
    for texts, words in (
        (["nadam"], "did you mean nadamw"),
        (["no/such.safetensors"], "There is no file"),
        ([f'{saved}{{"a":1}}'], "its fields are fixed"),
        (['lion{"learning_rat":1}'], "did you mean learning_rate"),
        (['adam{"learning_rate":-1}'], "learning_rate"),
        (["small_fc"], "small_fc has random weights; name a saved optimizer"),
        ([str(saved), str(other)], "would both be reported as mine"),
    ):
        with pytest.raises(InputError, match=words):
            contenders(texts)


# --- Suites. ---


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_names_what_there_is(name: str) -> None:
    suite = find_suite(name)
    assert suite.name == name
    assert len(set(suite.cells())) == len(suite.cells()) >= len(suite.tasks)
    assert set(suite.optimizers) <= set(BASELINES)
    assert "adam" in suite.optimizers
    rates = suite.protocol.learning_rates
    assert (rates[0], rates[-1], len(rates)) == ((1e-4, 1.0, 9) if name == "held_out" else (1e-6, 10.0, 15))
    assert suite.protocol.seeds >= 3
    known = {f"{c}/{m}" for c in lopt.tasks.CORPORA for m in lopt.tasks.find_corpus(c).test}
    known |= {f"{c}/{m}" for c in lopt.tasks.CORPORA for m in lopt.tasks.find_corpus(c).train}
    known |= {f"{c}/{m}" for c in lopt.tasks.CORPORA for m in lopt.tasks.find_corpus(c).valid}
    for task in suite.tasks:
        assert task in known or split_fields(task)[0] in lopt.tasks.TASKS


def test_laptop_is_the_held_out_corpus_but_for_two_large_conv_nets() -> None:
    laptop = find_suite("laptop")
    members = {f"held_out/{m}" for m in lopt.tasks.find_corpus("held_out").test}
    assert members - {*laptop.tasks} == {"held_out/conv_fashion_28_sigmoid", "held_out/conv_fashion_28_relu"}
    assert {*laptop.tasks} <= members
    assert set(laptop.optimizers) == set(BASELINES)


def test_what_one_chooses_by_is_not_what_one_reports() -> None:
    chosen_by, reported = find_suite("meta_valid"), find_suite("held_out")
    valid = {f"{c}/{m}" for c in lopt.tasks.CORPORA for m in lopt.tasks.find_corpus(c).valid}
    assert {*chosen_by.tasks} <= valid
    assert {*reported.tasks} == {f"held_out/{m}" for m in lopt.tasks.find_corpus("held_out").test}
    assert {h for _, h in reported.cells()} == {200, 1000, 5000}
    assert not {*chosen_by.tasks} & {task.name for task in RECIPES["general"].tasks}


def test_generalisation_has_its_axes_and_horizons() -> None:
    suite = find_suite("generalisation")
    assert set(suite.axes) == {"width", "depth", "batch_size", "data", "architecture"}
    assert all(axis[0] == "digits_mlp" and len(axis) >= 4 for axis in suite.axes.values())
    assert [h for task, h in suite.cells() if task == "digits_mlp"] == [200, 400, 1000, 2000]
    assert [h for t, h in suite.changed(steps=10).cells() if t == "digits_mlp"] == [10, 20, 50, 100]


def test_adams_grid_goes_beyond_the_horizons_that_are_scored() -> None:
    for name in SUITES:
        suite = find_suite(name)
        longer = dict(suite.reference_cells())
        for task in suite.tasks:
            own = [horizon for of, horizon in suite.cells() if of == task]
            assert max(longer.get(task, 0), *own) > min(own), "or speed-up could not exceed 1"
        assert not set(suite.reference_cells()) & set(suite.cells())
    assert dict(find_suite("laptop").reference_cells())["held_out/vae_digits"] == 1000
    assert "digits_mlp" not in dict(find_suite("generalisation").reference_cells()), (
        "it has a horizon of ten times its steps"
    )
    assert TINY.reference_cells() == []


def test_what_a_bench_settles_has_the_grids() -> None:
    settled = json.loads(json.dumps(TINY.settled()))
    assert settled["grids"].keys() == set(BASELINES)
    assert settled["grids"]["adamw"] == settings("adamw", TINY.protocol.learning_rates)
    assert machine()["lopt"] == lopt.__version__


def test_finalists_train_all_seeds_and_are_those_of_the_whole_grid() -> None:
    protocol = Protocol(seeds=3, evals=2, learning_rates=LEARNING_RATES[6:])
    unit, who = Unit('quadratic{"dim":3}', "adam", 6), contender("adam")
    whole = train_unit(unit, who, protocol).runs
    some = train_unit(unit, who, protocol._replace(finalists=2)).runs
    assert len(whole) == 3 * 9
    kept = promising([run for run in whole if run.seed == 0], 2)
    assert 2 <= len(kept) < 9
    assert {r.config["learning_rate"] for r in some if r.seed == 2} == {s["learning_rate"] for s in kept}
    assert len(some) == 3 * len(kept) + 9 - len(kept)
    same = {(r.config["learning_rate"], r.seed): r for r in whole}
    for run_ in some:
        other = same[run_.config["learning_rate"], run_.seed]
        np.testing.assert_allclose(run_.train_loss, other.train_loss, rtol=1e-4)
    assert {r.config["learning_rate"] for r in select(some)} == {r.config["learning_rate"] for r in select(whole)}


@pytest.mark.parametrize("finalists", [0, -1])
def test_no_finalists_are_refused(finalists: int) -> None:
    unit, who = Unit("bowl", "adam", 2), contender("adam")
    with pytest.raises(InputError, match=f"finalists is {finalists}; it must be at least 1"):
        train_unit(unit, who, Protocol(seeds=2, evals=1, finalists=finalists))


def test_the_order_of_the_work_is_not_part_of_the_protocol() -> None:
    settled = TINY.settled()
    with Archive(":memory:") as archive:
        archive.settle(settled)
        archive.settle({**settled, "cells": settled["cells"][::-1]})
        with pytest.raises(InputError, match="holds a bench with cells"):
            archive.settle({**settled, "cells": settled["cells"][1:]})


def test_an_archive_learns_of_new_baselines_and_holds_to_the_old_ones() -> None:
    settled = TINY.settled()
    older = {name: grid for name, grid in settled["grids"].items() if name != "muon_cosine"}
    with Archive(":memory:") as archive:
        archive.settle({**settled, "grids": older})
        archive.settle(settled)
        assert archive.protocol()["grids"].keys() == settled["grids"].keys()
        with pytest.raises(InputError, match="holds a bench with grids"):
            archive.settle({**settled, "grids": {**settled["grids"], "adam": []}})


def test_compare_refuses_what_it_would_not_do(saved: Path) -> None:
    with pytest.raises(InputError, match="compare tells all optimizers the horizon"):
        contestant(f'{saved}{{"tell_horizon":false}}')


def test_unknown_suites_and_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="suite named 'smok'; did you mean smoke"):
        find_suite("smok")
    for field in ("steps", "seeds"):
        with pytest.raises(InputError, match=f"{field} is 0; it must be at least 1"):
            TINY.changed(**{field: 0})
    with Archive(":memory:") as archive, pytest.raises(InputError, match="processes is 0"):
        run_bench(TINY, ["sgd"], archive, processes=0)


# --- A unit. ---


def test_a_unit_is_what_train_does() -> None:
    protocol = TINY.protocol
    unit = Unit(TASKS[1], "sgd", 4)
    found = train_unit(unit, contender("sgd"), protocol)
    assert len(found.runs) == len(protocol.learning_rates) * protocol.seeds
    assert found.seconds > found.compile_seconds > 0
    chosen = select(found.runs)
    assert [r.seed for r in chosen] == [0, 1]
    rate = chosen[0].config["learning_rate"]
    record = train(
        lopt.create("sgd", learning_rate=rate),
        lopt.tasks.create(unit.task),
        steps=4,
        key=default_key(0),
        seeds=2,
        evals=2,
    )
    for seed, one in enumerate(chosen):
        assert one[:6] == (unit.task, "sgd", {"learning_rate": rate}, None, 4, seed)
        np.testing.assert_array_equal(one.steps, record.steps)
        for name in ("train_loss", "valid_loss", "test_loss"):
            np.testing.assert_allclose(getattr(one, name), getattr(record, name)[seed], rtol=1e-4)


def test_a_grid_with_weight_decays_is_whole() -> None:
    found = train_unit(Unit("bowl", "adamw", 2), contender("adamw"), TINY.protocol)
    assert len(found.runs) == len({(str(r.config), r.seed) for r in found.runs}) == 2 * 9 * 2
    by_rate = {
        r.config["weight_decay"]: r.train_loss[-1]
        for r in found.runs
        if r.seed == 0 and r.config["learning_rate"] == 1.0
    }
    assert len(set(map(float, by_rate.values()))) == 2, "the decay does something"


def test_a_comparison_tunes_the_baselines_that_are_named() -> None:
    task = lopt.tasks.create("quadratic", dim=3)
    found = compare({"sgd": "sgd"}, task, name="quadratic", steps=4, key=default_key(0), seeds=2, evals=2)
    runs = train_unit(Unit('quadratic{"dim":3}', "sgd", 4), contender("sgd"), Protocol(seeds=2, evals=1)).runs
    row = found.records["sgd"].train_loss[:, -1]
    np.testing.assert_allclose(row, [run.train_loss[-1] for run in select(runs)], rtol=1e-3)
    with pytest.raises(InputError, match="baseline named 'sgdd'; did you mean sgd"):
        compare({"mine": "sgdd"}, task, name="quadratic", steps=4, key=default_key(0), seeds=2, evals=2)


def test_what_the_command_compares(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert contestant("nadamw") == "nadamw", "to be tuned"
    fixed = contestant('momentum{"decay":0.5}')
    assert (type(fixed).__name__, float(fixed.log_one_minus_decay)) == ("Momentum", pytest.approx(math.log(0.5)))
    assert type(contestant(str(saved))).__name__ == "SmallFC"
    assert capfd.readouterr().err == ""
    contestant("small_fc")
    assert "small_fc has random weights" in capfd.readouterr().err


def test_a_task_may_have_evaluations_of_its_own() -> None:
    laptop = find_suite("laptop")
    assert laptop.protocol_of("held_out/gru_prose_long").eval_size == 64
    assert laptop.protocol_of("held_out/vae_digits") == laptop.protocol
    assert laptop.settled()["eval_sizes"]["held_out/gru_prose_long"] == 64


def test_evaluations_on_fewer_examples() -> None:
    task = lopt.tasks.create("held_out/diabetes_linear")
    fewer = fewer_examples(task, 10)
    assert (task.task.eval_size, fewer.task.eval_size) == (task.task.eval_size, 10)
    assert fewer_examples(task, None) is task
    assert jax.tree.structure(fewer) != jax.tree.structure(task)
    assert type(fewer) is type(task)


# --- Standings, by hand. ---


def run_of(task: str, optimizer: str, final: float) -> Run:
    curve = np.asarray([4.0, final], np.float32)
    return Run(task, optimizer, {}, None, 10, 0, np.asarray([0, 10]), curve, curve, curve, {})


def test_standings_by_hand() -> None:
    losses = {"a": (1.0, 2.0, 3.0), "b": (2.0, 2.0, math.nan), "c": (3.0, 1.0, 2.0)}
    runs = [run_of(t, o, x) for t, row in losses.items() for o, x in zip(("p", "q", "adam"), row, strict=True)]
    runs.append(run_of("d", "p", 0.0))  # nobody else was trained on it
    times = {("a", "adam"): (1.0, 2.0, 3.0), ("a", "p"): (2.0, 6.0, 6.0), ("c", "adam"): (1.0,), ("c", "p"): (5.0,)}
    timings = [Timing(t, o, 10, turn, x) for (t, o), xs in times.items() for turn, x in enumerate(xs)]
    rows = {row.optimizer: row for row in standings(runs, timings)}
    assert list(rows) == ["q", "p", "adam"]
    # p: 1, 1.5, 3; q: 2, 1.5, 1; adam: 3, 3, 2.
    assert [rows[o].rank for o in ("p", "q", "adam")] == pytest.approx([5.5 / 3, 1.5, 8 / 3])
    assert [(rows[o].cells, rows[o].firsts, rows[o].diverged) for o in ("p", "q", "adam")] == [
        (4, 2, 0),
        (3, 2, 0),
        (3, 0, 1),
    ]
    assert rows["p"].relative_time == pytest.approx(3.5), "of a median 2 on a and 5 on c"
    assert rows["adam"].relative_time == 1.0
    assert math.isnan(rows["q"].relative_time)


def test_what_is_timed_in_different_sessions_does_not_compare() -> None:
    runs = [run_of("a", o, 1.0) for o in ("p", "adam")]
    timings = [Timing("a", "p", 10, 0, 2.0, "first"), Timing("a", "adam", 10, 0, 1.0, "second")]
    assert math.isnan({row.optimizer: row for row in standings(runs, timings)}["p"].relative_time)


def test_a_new_optimizer_is_timed_with_all_that_the_archive_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def by_hand(jobs: list[Job], _: int) -> Iterator[Outcome]:
        for job in jobs:
            task, horizon, pairs, _ = job.arguments
            asked.append([c.label for c, _ in pairs])
            yield Outcome(job.name, [Timing(task, c.label, horizon, 0, 1.0) for c, _ in pairs], None)

    monkeypatch.setattr(bench, "work", by_hand)
    tiny = dataclasses.replace(TINY, tasks=("bowl",), steps=10)
    with Archive(":memory:") as archive:
        for label, fingerprint in (("adam", None), ("sgd", None), ("gone", "f00"), ("nadamw", None)):
            archive.add(Unit("bowl", label, 10), [run_of("bowl", label, 1.0)._replace(fingerprint=fingerprint)])
        archive.add_given({"gone": "no/such.safetensors"})
        before = ("adam", "sgd", "gone")
        archive.add_timings([Timing("bowl", label, 10, 0, 1.0, "old") for label in before])
        who = {c.label: c for c in contenders(["sgd"])}
        assert bench._time(tiny, who, archive, lambda _: None, {}) == {}
        assert asked == [], "all that are named are timed"
        who = {c.label: c for c in contenders(["nadamw"])}
        failed = bench._time(tiny, who, archive, lambda _: None, {})
        assert "There is no file no/such.safetensors" in failed[Unit("bowl", "gone", 10)]
        assert [sorted(labels) for labels in asked] == [["adam", "nadamw", "sgd"]]
        assert {t.optimizer for t in archive.timings()} == {"adam", "nadamw", "sgd"}
        assert len({t.session for t in archive.timings()} - {"", "old"}) == 1


def test_a_task_is_timed_once_for_all_its_horizons(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def by_hand(jobs: list[Job], _: int) -> Iterator[Outcome]:
        for job in jobs:
            task, horizon, pairs, _ = job.arguments
            asked.append((task, horizon))
            yield Outcome(job.name, [Timing(task, c.label, horizon, 0, 1.0) for c, _ in pairs], None)

    monkeypatch.setattr(bench, "work", by_hand)
    suite = dataclasses.replace(TINY, tasks=("bowl",), steps=10, multiples={"bowl": (1, 3)})
    there = {Unit("bowl", "adam", 10), Unit("bowl", "adam", 30), Unit("bowl", "sgd", 30)}
    with Archive(":memory:") as archive:
        for unit in there:
            archive.add(unit, [run_of("bowl", unit.optimizer, 1.0)._replace(horizon=unit.horizon)])
        who = {c.label: c for c in contenders(["sgd"])}
        assert bench._time(suite, who, archive, lambda _: None, {}) == {}
        assert asked == [("bowl", 10)]
        assert {Unit(*t[:3]) for t in archive.timings()} == there, "where it was trained, and nowhere else"


def test_only_adam_is_trained_longer_and_only_for_speed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[Unit, int] = {}

    def by_hand(jobs: list[Job], *_: Any) -> Iterator[Outcome]:
        """Adam's loss falls by 1 every ten steps, that of SGD by 1 every five."""
        for job in jobs:
            unit, _, protocol = job.arguments
            asked[unit] = protocol.evals
            at = np.linspace(0, unit.horizon, protocol.evals + 1).round().astype(int)
            curve = (4 - at / {"adam": 10, "sgd": 5}[unit.optimizer]).astype(np.float32)
            run = Run(unit.task, unit.optimizer, {}, None, unit.horizon, 0, at, curve, curve, curve, {})
            yield Outcome(job.name, Trained([run], 0.0, 0.0), None)

    monkeypatch.setattr(bench, "work", by_hand)
    suite = dataclasses.replace(TINY, tasks=("bowl",), steps=10, reference_multiple=3)
    with Archive(":memory:") as archive:
        assert run_bench(suite, ["sgd"], archive, processes=1, timing=False, tasks=["bowl"], longest=10) == {}
        assert set(asked) == {Unit("bowl", "adam", 10), Unit("bowl", "sgd", 10)}
        assert run_bench(suite, ["sgd"], archive, processes=1, timing=False) == {}
        assert asked == {Unit("bowl", "adam", 10): 2, Unit("bowl", "sgd", 10): 2, Unit("bowl", "adam", 30): 6}
        everything = archive.runs()
        runs = within_suite(everything, archive.protocol())
        assert {(r.optimizer, r.horizon) for r in runs} == {("adam", 10), ("sgd", 10)}
        assert within_suite(everything, {}) == everything
        found = score(runs, baselines=BASELINES, sweep=[r for r in everything if r.optimizer == "adam"], resamples=100)
        speed = {cell.optimizer: (cell.horizon, cell.speedup, cell.saturated) for cell in found.cells}
        assert speed == {"adam": (10, pytest.approx(1), False), "sgd": (10, pytest.approx(2, rel=0.02), False)}


@pytest.mark.parametrize(
    ("chosen", "trained"),
    [
        ({}, {("bowl", 10), ("bowl", 30), ("held_out/moons", 10), ("held_out/moons", 20), ("held_out/moons", 30)}),
        ({"tasks": ["bowl"]}, {("bowl", 10), ("bowl", 30)}),
        ({"tasks": ["moons"]}, {("held_out/moons", 10), ("held_out/moons", 20), ("held_out/moons", 30)}),
        ({"tasks": ["held_out/moons"], "longest": 20}, {("held_out/moons", 10), ("held_out/moons", 20)}),
        ({"shortest": 20}, {("bowl", 30), ("held_out/moons", 20), ("held_out/moons", 30)}),
        ({"shortest": 20, "longest": 20}, {("held_out/moons", 20)}),
        ({"shortest": 21}, {("bowl", 30), ("held_out/moons", 30)}),
    ],
)
def test_tasks_and_horizons_of_a_call(chosen: dict[str, Any], trained: set[tuple[str, int]]) -> None:
    multiples = {"held_out/moons": (1, 2)}
    suite = Suite("s", "", ("bowl", "held_out/moons"), steps=10, multiples=multiples, reference_multiple=3)
    assert suite.chosen(**chosen) == trained


def test_each_turn_of_a_timing_begins_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, float]] = []
    measure = Stretch.__call__

    def counted(self: Stretch) -> float:
        called.append((self.optimizer.name, seconds := measure(self)))  # pyright: ignore[reportAttributeAccessIssue]
        return seconds

    monkeypatch.setattr(Stretch, "__call__", counted)
    chosen = [(contender(text), {"learning_rate": 0.1}) for text in ("sgd", "momentum")]
    found = time_task("bowl", 4, chosen, Protocol(), turns=3)
    seconds = {(t.turn, t.optimizer): t.seconds_per_step for t in found}
    order = [(0, "sgd"), (0, "momentum"), (1, "momentum"), (1, "sgd"), (2, "sgd"), (2, "momentum")]
    assert [(place[1], seconds[place]) for place in order] == called[4:], "two calls of each find the length"
    assert all(0 < x < 1 for _, x in called[4:])


def test_a_timed_step_is_guarded() -> None:
    """It is the step of a training: one whose gradient is not finite moves nothing."""

    class Hole(lopt.tasks.Quadratic):
        """Never finite."""

        def loss(self, *args: Any, **options: Any) -> Any:
            return super().loss(*args, **options) * math.nan

    stretch = Stretch(SGD(learning_rate=0.1), Hole(dim=2), 4, default_key(0), length=3)
    assert 0 < stretch() < 1
    assert stretch.parameters == 2
    assert stretch.program is not None
    after = stretch.program(stretch.optimizer, stretch.task, stretch.inner, stretch.key, 3)
    assert int(after.step) == 3
    np.testing.assert_array_equal(after.params, stretch.inner.params)


# --- Processes. ---


def stumble(what: str) -> str:
    """For a process."""
    if what == "raise":
        raise ValueError("on purpose")
    if what == "die":
        os._exit(3)
    return f"{what}, {os.getpid()}"


@pytest.mark.slow
def test_a_process_that_dies_takes_one_job_with_it() -> None:
    whats = ["fine", "raise", "die", "fine too", "good"]
    jobs = [Job(what == "good", what, stumble, (what,)) for what in whats]
    started: list[str] = []
    found = {o.name: o for o in work(jobs, 2, started.append)}
    assert sorted(started) == sorted(found) == sorted(whats)
    assert found["raise"].error == "ValueError: on purpose"
    assert found["die"].error == "the process ended with exit code 3"
    assert all(found[w].error is None and found[w].result.startswith(w) for w in ("fine", "fine too", "good"))
    assert str(os.getpid()) not in str(found)


@pytest.mark.slow
def test_one_process_or_two_make_no_difference_and_nothing_is_done_twice(tmp_path: Path, saved: Path) -> None:
    who = ["sgd", "adamw", str(saved)]
    with Archive(tmp_path / "one.sqlite") as one, Archive(tmp_path / "two.sqlite") as two:
        assert run_bench(TINY, who[:1], one, processes=1, timing=False) == {}
        assert {u.optimizer for u in one.units()} == {"adam", "sgd"}, "the reference is always there"
        before = one.log()
        assert run_bench(TINY, who, one, processes=1) == {}
        assert one.log()[: len(before)] == before, "what is there is left alone"
        told: list[Progress] = []
        assert run_bench(TINY, who, two, processes=2, on_progress=told.append) == {}
        assert differences(one, two) == []
        assert len(two.runs()) == 2 * 2 * (9 + 9 + 18 + 1)
        assert two.cards().keys() == {zoo.read_card(saved).fingerprint}
        assert two.cards()[zoo.read_card(saved).fingerprint]["seed"] == 7
        assert {p.total for p in told if p.stage == "training"} == {8}
        assert told[-1].done == told[-1].total == 2
        timings = two.timings()
        assert {t[:3] for t in timings} == two.units()
        assert all(0 < t.seconds_per_step < 1 for t in timings)
        again = two.log(), timings
        assert run_bench(TINY, who, two, processes=2) == {}
        assert (two.log(), two.timings()) == again
        # Other weights under the same name, another protocol.
        zoo.save(saved, lopt.create("small_fc", key=jax.random.key(1)))
        with pytest.raises(InputError, match="runs of another optimizer that is called mine"):
            run_bench(TINY, who, two)
        with pytest.raises(InputError, match="seeds = 2, and this one has 3"):
            run_bench(TINY.changed(seeds=3), who, two)


def test_the_same_weights_with_other_fields_are_another_optimizer(tmp_path: Path) -> None:
    """Both can take part in one bench, and neither goes on under the name of the other."""
    fast, slow = (lopt.create("small_fc", key=jax.random.key(0), step_mult=s) for s in (0.001, 0.002))
    path, other = zoo.save(tmp_path / "mine", fast), zoo.save(tmp_path / "other", slow)
    assert zoo.read_card(path).sha256 == zoo.read_card(other).sha256
    suite = dataclasses.replace(TINY.changed(seeds=1), tasks=TASKS[:1])
    with Archive(tmp_path / "b.sqlite") as archive:
        run_bench(suite, [str(path), str(other)], archive, timing=False, processes=1)
        assert sorted(card["fields"]["step_mult"] for card in archive.cards().values()) == [0.001, 0.002]
        before = archive.log()
        zoo.save(path, slow)
        with pytest.raises(InputError, match="runs of another optimizer that is called mine"):
            run_bench(suite, [str(path)], archive, timing=False, processes=1)
        assert archive.log() == before
        assert bench._everyone({}, archive)[1] == {"mine": f"{path} is another optimizer now."}


@pytest.mark.slow
def test_a_bad_task_does_not_lose_the_rest(tmp_path: Path) -> None:
    bad = Suite("bad", "", ("bowl", 'quadratic{"dim":0}'), steps=2, protocol=TINY.protocol)
    with Archive(tmp_path / "bad.sqlite") as archive:
        failed = run_bench(bad, ["adam"], archive, timing=False)
        assert list(failed) == [Unit('quadratic{"dim":0}', "adam", 2)]
        assert "dim is 0" in next(iter(failed.values()))
        assert archive.failures() == failed
        assert archive.units() == {Unit("bowl", "adam", 2)}
        assert run_bench(bad, ["adam"], archive, timing=False) == failed, "tried again"


BENCH = ("bench", "smoke", "--optimizers", "sgd", "--steps", "4", "--seeds", "2", "--no-timing", "--processes", "1")


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "lopt", *BENCH, *map(str, arguments)]


@pytest.mark.slow
def test_a_killed_bench_resumes_to_the_same_archive(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.sqlite", tmp_path / "killed.sqlite"
    subprocess.run(command("--archive", whole), check=True, capture_output=True)
    process = subprocess.Popen(command("--archive", killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if killed.exists():
                with Archive(killed, create=False) as archive:
                    if len(archive.units()) >= 2:
                        break
            time.sleep(0.05)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with Archive(killed, create=False) as archive:
        before = archive.log()
        assert 2 <= len(before) < 9
        assert len(archive.runs()) == len(before) * 15 * 2, "whole units only"
    subprocess.run(command("--archive", killed), check=True, capture_output=True)
    with Archive(whole, create=False) as a, Archive(killed, create=False) as b:
        assert b.log()[: len(before)] == before
        assert len(b.units()) == 9
        assert differences(a, b) == []


# --- The command. ---


@pytest.mark.slow
def test_bench_smoke_prints_standings_and_exports(tmp_path: Path, saved: Path) -> None:
    archive, table = tmp_path / "smoke.sqlite", tmp_path / "runs.csv"
    options = ("--steps", "4", "--seeds", "2", "--archive", archive, "--export", table, "--optimizers", "sgd", saved)
    found = subprocess.run(
        [sys.executable, "-m", "lopt", "bench", "smoke", *map(str, options)], capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
    text = found.stdout
    for label in ("sgd", "adam", "mine"):
        assert re.search(rf"│ {label} +│ +\d\.\d\d │ +\d of 3 │ +0 │ +\d+\.\d\d× │", text), text
    assert "training 12/12" in text, "with Adam's longer trainings"
    assert "timing 3/3" in text
    assert str(archive) in text
    assert len(table.read_text().splitlines()) == 1 + 3 * ((15 + 15 + 1) * 2 * 5 + 15 * 2 * 9)
    assert len(table.with_name("runs-timings.csv").read_text().splitlines()) == 1 + 3 * 3 * 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("smok",), "did you mean smoke"),
        (("smoke", "--optimizers", "adamm"), "did you mean adam"),
        (("smoke", "--seeds", "0"), "seeds is 0"),
        (("smoke", "--processes", "0"), "processes is 0"),
        (("smoke", "--longest", "0"), "longest is 0"),
        (("smoke", "--shortest", "0"), "shortest is 0"),
        (("smoke", "--tasks", "two_moon"), "did you mean two_moons"),
        (("smoke", "--shortest", "60", "--longest", "90"), "has 60 or more and 90 or fewer steps"),
        (("smoke", "--shortest", "101"), "No training of smoke has 101 or more steps; these tasks have 50, 100."),
        (
            ("held_out", "--longest", "199"),
            "has 199 or fewer steps; these tasks have 200, 1,000, 5,000.",
        ),
    ],
)
def test_a_bench_that_cannot_be(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any
) -> None:
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "settled")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *arguments])
    assert stop.value.code == 2
    assert words in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- The pages of the documentation. ---


@pytest.fixture
def benches() -> Any:
    """The script that writes the pages."""
    path = Path(__file__).parents[1] / "docs" / "benches.py"
    spec = importlib.util.spec_from_file_location("benches", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_first_passage_is_the_median_over_tasks_that_have_a_target(benches: Any) -> None:
    def cells(*found: tuple[float, float]) -> dict[str, Any]:
        named = (SimpleNamespace(steps_to_target=steps, target=target, horizon=100) for steps, target in found)
        return {f"task {i}": cell for i, cell in enumerate(named)}

    table = {
        "early": cells((20, 1.0), (math.inf, 1.0), (40, 1.0), (10, math.nan)),
        "late": cells((math.inf, 1.0), (math.inf, 1.0), (40, 1.0)),
        "no target": cells((10, math.nan)),
    }
    said = benches.passage(SimpleNamespace(table=table), ["early", "late", "no target", "absent"])
    assert said.endswith("Median over tasks: `early` 0.40 (on 2 of 3 tasks), `late` never (on 1 of 3 tasks).\n")
    assert benches.passage(SimpleNamespace(table=table), ["absent"]) == ""


@pytest.mark.parametrize(("name", "horizons"), [("held_out", (4, 8)), ("laptop", (4,))])
def test_the_pages_of_benches(name: str, horizons: tuple[int, ...], benches: Any, saved: Path, tmp_path: Path) -> None:
    benches.DOCS = tmp_path
    suite = dataclasses.replace(TINY, name=name, multiples=dict.fromkeys(TASKS, tuple(h // 4 for h in horizons)))
    with Archive(tmp_path / "bench.sqlite") as archive:
        run_bench(suite, [str(saved)], archive, processes=1, timing=False)
    benches.main(tmp_path / "bench.sqlite")
    page, table = (tmp_path / f"{name}.md").read_text(), (tmp_path / "data" / f"{name}.csv").read_text()
    assert len(table.splitlines()) == 1 + len(horizons) * len(TASKS) * 2
    assert page.count("Who wins where") == (len(horizons) if name == "held_out" else 1)
    assert page.count("First passage is the part") == (len(horizons) if name == "held_out" else 0)
    assert f"lopt bench {name} --optimizers" in page
    assert "runs/mine.safetensors" in page
    assert str(tmp_path) not in page
    for horizon in horizons:
        assert (f"\n## {horizon} steps\n" in page) == (name == "held_out")
        assert page.count(f"| {horizon} | `") == len(TASKS)
    assert "Not trained yet" not in page
    with contextlib.closing(sqlite3.connect(tmp_path / "bench.sqlite")) as db, db:
        db.execute("DELETE FROM runs WHERE task = ?", (TASKS[-1],))
    benches.main(tmp_path / "bench.sqlite")
    assert f"Not trained yet, and in no figure here: `{TASKS[-1]}`." in (tmp_path / f"{name}.md").read_text()
