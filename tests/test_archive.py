"""An archive gives back what it was given, in whole units, and refuses what is not one."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lopt.errors import InputError
from lopt.evaluate.bench.archive import Archive, differences
from lopt.evaluate.bench.export import export
from lopt.evaluate.runs import Run, Timing, Unit

UNIT = Unit('digits_mlp{"widths":[8]}', "adam", 20)


def run_of(seed: int = 0, rate: float = 0.1, **changes: Any) -> Run:
    rng = np.random.default_rng(seed)
    curve = rng.normal(size=3).astype(np.float32)
    fields: dict[str, Any] = {
        "task": UNIT.task,
        "optimizer": UNIT.optimizer,
        "config": {"learning_rate": rate},
        "fingerprint": None,
        "horizon": UNIT.horizon,
        "seed": seed,
        "steps": np.asarray([0, 10, 20]),
        "train_loss": curve,
        "valid_loss": curve + 1,
        "test_loss": np.asarray([1.0, math.nan, math.inf], np.float32),
        "metrics": {"test_accuracy": curve * 2, "train_accuracy": curve * 3},
    }
    return Run(**{**fields, **changes})


def assert_same(a: Run, b: Run) -> None:
    assert a[:6] == b[:6]
    for x, y in zip(a[6:10], b[6:10], strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.metrics.keys() == b.metrics.keys()
    for name in a.metrics:
        np.testing.assert_array_equal(a.metrics[name], b.metrics[name])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "bench.sqlite"


def test_what_is_written_is_read(path: Path) -> None:
    runs = [run_of(seed, rate) for rate in (0.1, 0.2) for seed in (0, 1)]
    timings = [Timing(*UNIT, turn, 0.5 + turn) for turn in (0, 1)]
    with Archive(path) as archive:
        archive.settle({"seeds": 2, "steps": [20]})
        archive.add(UNIT, runs, seconds=3.0, compile_seconds=1.0, machine={"cpu": "fast", "load_before": 0.5})
        archive.add_timings(timings)
        archive.add_card("abc", {"seed": 1})
    with Archive(path, create=False) as archive:
        for a, b in zip(archive.runs(), runs, strict=True):
            assert_same(a, b)
        assert archive.timings() == timings
        assert archive.cards() == {"abc": {"seed": 1}}
        assert archive.machines() == [{"cpu": "fast"}], "the load is not the machine's"
        assert archive.protocol() == {"seeds": 2, "steps": [20]}
        assert archive.units() == {UNIT}
        assert [(d.seconds, d.compile_seconds, d.error) for d in archive.log()] == [(3.0, 1.0, None)]


@hypothesis.given(
    st.dictionaries(st.text(min_size=1, max_size=9), st.floats(allow_nan=False), max_size=3),
    st.lists(st.floats(width=32), min_size=1, max_size=4),
    st.text(min_size=1),
)
@hypothesis.settings(max_examples=50)
def test_any_setting_and_any_number_survive(config: dict[str, float], values: list[float], label: str) -> None:
    hypothesis.assume(all(ord(c) < 0xD800 or ord(c) > 0xDFFF for c in label + "".join(config)))
    curve = np.asarray(values, np.float32)
    curves = dict.fromkeys(("train_loss", "valid_loss", "test_loss"), curve)
    run = run_of(optimizer=label, config=config, steps=np.arange(len(values)), metrics={}, **curves)
    with Archive(":memory:") as archive:
        archive.add(UNIT._replace(optimizer=label), [run])
        assert_same(archive.runs()[0], run)


def test_a_unit_is_all_or_nothing(path: Path) -> None:
    with Archive(path) as archive:
        with pytest.raises(InputError, match="UNIQUE"):
            archive.add(UNIT, [run_of(0), run_of(1), run_of(0)])
        assert archive.runs() == []
        assert archive.units() == set()
        archive.add(UNIT, [run_of(0)])
        with pytest.raises(InputError, match=r"has adam on digits_mlp.* with 20 steps already"):
            archive.add(UNIT, [run_of(1)])
        with pytest.raises(InputError, match="does not belong to"):
            archive.add(UNIT._replace(horizon=5), [run_of(1)])
        assert len(archive.runs()) == 1


def test_a_failure_is_not_done_and_is_forgotten_when_it_is(path: Path) -> None:
    with Archive(path) as archive:
        archive.add_failure(UNIT, "ValueError: no")
        assert archive.units() == set()
        assert archive.failures() == {UNIT: "ValueError: no"}
        archive.add(UNIT, [run_of()])
        assert (archive.units(), archive.failures()) == ({UNIT}, {})


def test_new_timings_take_the_place_of_the_old(path: Path) -> None:
    other = UNIT._replace(optimizer="sgd")
    with Archive(path) as archive:
        archive.add_timings([Timing(*unit, turn, 1.0) for unit in (UNIT, other) for turn in range(3)])
        elsewhere = Timing("bowl", "adam", 20, 0, 3.0, "first")
        archive.add_timings([elsewhere])
        new = [Timing(*UNIT, turn, 2.0, "second") for turn in range(2)]
        archive.add_timings(new, machine={"cpu": "another"})
        assert archive.timings() == [elsewhere, *new], "those of other optimizers of the task are of another session"
        assert archive.machines() == [{"cpu": "another"}]


def test_another_protocol_is_refused(path: Path) -> None:
    with Archive(path) as archive:
        archive.settle({"seeds": 3, "rates": [0.1]})
        archive.settle({"rates": (0.1,), "seeds": 3})
        with pytest.raises(InputError, match="a bench with seeds = 3, and this one has 4; name another archive"):
            archive.settle({"seeds": 4, "rates": [0.1]})


def test_a_protocol_that_says_less_is_added_to(path: Path) -> None:
    with Archive(path) as archive:
        archive.settle({"seeds": 3})
        archive.settle({"seeds": 3, "grids": {"sgd": [0.1]}})
        assert archive.protocol() == {"seeds": 3, "grids": {"sgd": [0.1]}}
        for less in ({"seeds": 3}, {"seeds": 3, "grids": {"sgd": [0.2]}}):
            with pytest.raises(InputError, match="a bench with grids = "):
                archive.settle(less)


def test_the_log_is_written_ahead_and_others_read_meanwhile(path: Path) -> None:
    with Archive(path) as archive, Archive(path, create=False) as reader:
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        archive.add(UNIT, [run_of()])
        assert reader.units() == {UNIT}


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 50, b"\x00" * 5000])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"odd.sqlite cannot be used as an archive: "):
        Archive(path)
    assert path.read_bytes() == content


def test_what_comes_from_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE runs (a)")
    with pytest.raises(InputError, match="not one of lopt"):
        Archive(path)
    Archive(mine := tmp_path / "mine.sqlite").close()
    with contextlib.closing(sqlite3.connect(mine)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
    for other in (version - 1, version + 1):
        with contextlib.closing(sqlite3.connect(mine)) as db, db:
            db.execute(f"PRAGMA user_version = {other}")
        with pytest.raises(
            InputError, match=f"is an archive of version {other}; this lopt reads version {version} alone"
        ):
            Archive(mine)
    with pytest.raises(InputError, match=r"no archive .*none.sqlite; `lopt bench` makes one"):
        Archive(tmp_path / "none.sqlite", create=False)


def test_equal_archives_have_no_differences() -> None:
    with Archive(":memory:") as a, Archive(":memory:") as b:
        for archive, order in ((a, (0, 1)), (b, (1, 0))):
            for i in order:
                unit = UNIT._replace(horizon=20 + i)
                archive.add(
                    unit, [run_of(s, horizon=unit.horizon) for s in (i, 1 - i)], seconds=float(i), machine={"cpu": i}
                )
        assert differences(a, b) == []
        b.add_timings([Timing(*UNIT, 0, 1.0)])
        assert differences(a, b) == [], "timings never agree"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.settle({"seeds": 1}), "the protocols differ"),
        (lambda b: b.add_card("x", {}), "the cards differ"),
        (lambda b: b.add(UNIT._replace(horizon=5), []), "5 is done in one only"),
        (lambda b: b._db.execute("DELETE FROM runs WHERE seed = 1"), "is in one only"),
        (lambda b: b._db.execute("UPDATE runs SET train_loss = valid_loss WHERE seed = 1"), "differs"),
    ],
)
def test_differences_are_found(change: Any, words: str) -> None:
    with Archive(":memory:") as a, Archive(":memory:") as b:
        for archive in (a, b):
            archive.add(UNIT, [run_of(0), run_of(1)])
        change(b)
        found = differences(a, b)
        assert len(found) == 1
        assert words in found[0]


def test_where_units_come_from(path: Path) -> None:
    old, new = {"cpu": "fast"}, {"cpu": "fast", "lopt": "0.2.0"}
    with Archive(path) as archive:
        assert archive.origins() == []
        for horizon, machine in ((1, new), (2, old), (3, new | {"load_before": 2.0}), (4, None)):
            archive.add(UNIT._replace(horizon=horizon), [], machine=machine)
        archive.add_failure(UNIT._replace(horizon=5), "no", machine={"cpu": "another"})
        assert archive.origins() == [(new, 2), (old, 1), ({}, 1)], "in the order of the work; failures are none"


# --- Export. ---


@pytest.fixture
def filled(path: Path) -> Iterator[Archive]:
    with Archive(path) as archive:
        archive.add(UNIT, [run_of(0), run_of(1)])
        other = UNIT._replace(task="quadratic", optimizer="mine")
        archive.add(other, [run_of(0, task="quadratic", optimizer="mine", config={}, fingerprint="f00", metrics={})])
        archive.add_timings([Timing(*UNIT, 0, 0.25, "now")])
        yield archive


def test_export_to_csv(filled: Archive, tmp_path: Path) -> None:
    runs, timings = export(filled, tmp_path / "out" / "all.csv")
    rows = list(csv.DictReader(runs.read_text().splitlines()))
    assert len(rows) == 3 * 3, "a row an evaluation"
    assert timings.name == "all-timings.csv"
    for row, (run, i) in zip(rows, [(r, i) for r in filled.runs() for i in range(3)], strict=True):
        assert (row["task"], row["optimizer"], int(row["seed"])) == (run.task, run.optimizer, run.seed)
        assert json.loads(row["config"]) == run.config
        assert int(row["step"]) == run.steps[i]
        for name in ("train_loss", "valid_loss", "test_loss"):
            np.testing.assert_array_equal(np.float32(row[name]), getattr(run, name)[i])
        assert (row["test_accuracy"] == "") == (run.task == "quadratic")
    assert [dict(r) for r in csv.DictReader(timings.read_text().splitlines())] == [
        {
            "task": UNIT.task,
            "optimizer": "adam",
            "horizon": "20",
            "turn": "0",
            "seconds_per_step": "0.25",
            "session": "now",
        }
    ]


def test_an_export_that_cannot_be(filled: Archive, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"all.json must end in .csv"):
        export(filled, tmp_path / "all.json")


def test_many_open_a_new_archive_at_once(tmp_path: Path) -> None:
    def count(path: Path) -> int:
        with Archive(path) as archive:
            return len(archive.units())

    with ThreadPoolExecutor(8) as pool:
        for i in range(10):
            assert set(pool.map(count, [tmp_path / f"{i}.sqlite"] * 8)) == {0}
