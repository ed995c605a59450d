"""What evaluations leave behind: trainings and timings, in one SQLite file."""

from __future__ import annotations

import contextlib
import datetime
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lopt.errors import InputError
from lopt.evaluate.runs import Done, Run, Timing, Unit, sorted_json

PATIENCE = 60.0  # seconds to wait for another process
APPLICATION, VERSION = 0x6C6F7074, 3  # "lopt"; of the tables
# `weights` and the key of `cards` are fingerprints.
SCHEMA = """
CREATE TABLE protocol (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE machine (id INTEGER PRIMARY KEY, facts TEXT NOT NULL UNIQUE);
CREATE TABLE cards (sha256 TEXT PRIMARY KEY, card TEXT NOT NULL);
CREATE TABLE optimizers (label TEXT PRIMARY KEY, given TEXT NOT NULL);
CREATE TABLE units (
  task TEXT NOT NULL, optimizer TEXT NOT NULL, horizon INTEGER NOT NULL,
  weights TEXT REFERENCES cards, machine INTEGER REFERENCES machine, finished TEXT NOT NULL,
  seconds REAL NOT NULL, compile_seconds REAL NOT NULL, error TEXT,
  PRIMARY KEY (task, optimizer, horizon));
CREATE TABLE runs (
  task TEXT NOT NULL, optimizer TEXT NOT NULL, horizon INTEGER NOT NULL, config TEXT NOT NULL, seed INTEGER NOT NULL,
  weights TEXT REFERENCES cards, steps BLOB NOT NULL, train_loss BLOB NOT NULL, valid_loss BLOB NOT NULL, test_loss BLOB NOT NULL,
  metrics TEXT NOT NULL, metric_values BLOB NOT NULL,
  PRIMARY KEY (task, optimizer, horizon, config, seed));
CREATE TABLE timings (
  task TEXT NOT NULL, optimizer TEXT NOT NULL, horizon INTEGER NOT NULL, turn INTEGER NOT NULL, seconds_per_step REAL NOT NULL,
  session TEXT NOT NULL DEFAULT '', machine INTEGER REFERENCES machine,
  PRIMARY KEY (task, optimizer, horizon, turn));
"""


class Archive:
    """Runs, timings, cards and machines of one bench in an SQLite file, and nowhere else.

    Every `add` is one transaction: a process that is killed loses what it had not added, and the file stays readable. One process writes,
    any number may read meanwhile. Use it as a context manager, or call `close`.

    Args:
        path: the file; `":memory:"` for none.
        create: whether to start a new one where there is none.

    Raises:
        InputError: for a file that is missing though it must not be, is no archive, is damaged, or has another version.

    Examples:
        >>> from lopt.evaluate import Archive
        >>> with Archive(":memory:") as archive:
        ...     len(archive.runs())
        0
    """

    def __init__(self, path: str | Path, *, create: bool = True):
        self.path = Path(path)
        in_memory = str(path) == ":memory:"
        if not in_memory and not self.path.exists():
            if not create:
                raise InputError(f"There is no archive {path}; `lopt bench` makes one.")
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)
        try:
            with self._damage_is_an_input_error():
                self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        tables, application, version = (  # in this order: who sees tables of another process sees its marks as well
            self._db.execute(query).fetchone()[0]
            for query in ("SELECT count(*) FROM sqlite_schema", "PRAGMA application_id", "PRAGMA user_version")
        )
        if tables and application != APPLICATION:
            raise InputError(f"{self.path} is a database, but not one of lopt.")
        if tables and version != VERSION:
            raise InputError(
                f"{self.path} is an archive of version {version}; this lopt reads version {VERSION} alone."
            )
        if not tables:
            self._use_wal()
            with self._transaction():
                if self._read("SELECT count(*) FROM sqlite_schema")[0][0]:
                    return  # another process was faster
                marks = (f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {VERSION}")
                for statement in (*marks, *SCHEMA.split(";")):
                    self._db.execute(statement)

    def _use_wal(self) -> None:
        """Switch to the write-ahead log. SQLite does not wait for another process that is at it, whatever the timeout; so this does."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    @contextlib.contextmanager
    def _damage_is_an_input_error(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path} cannot be used as an archive: {error}.") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file free; what was added is in it."""
        self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._damage_is_an_input_error():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._damage_is_an_input_error():
            return self._db.execute(query, values).fetchall()

    def add(
        self,
        unit: Unit,
        runs: Sequence[Run],
        *,
        seconds: float = 0.0,
        compile_seconds: float = 0.0,
        machine: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a unit of work, all or nothing. A failure that was recorded for it is forgotten.

        Args:
            unit: what was trained.
            runs: all its trainings.
            seconds: of wall-clock.
            compile_seconds: of these for the training steps' compilation.
            machine: where, as `lopt.evaluate.timing.machine` says it.

        Raises:
            InputError: where the unit is there already, or a run does not belong to it or is there twice.
        """
        if strange := next((r for r in runs if Unit(r.task, r.optimizer, r.horizon) != unit), None):
            raise InputError(f"A run of {strange.optimizer} on {strange.task} does not belong to {unit}.")
        if unit in self.units():
            raise InputError(f"{self.path} has {unit.optimizer} on {unit.task} with {unit.horizon} steps already.")
        fingerprint = next((run.fingerprint for run in runs), None)
        with self._transaction() as db:
            where = _machine_id(db, machine)
            row = (*unit, fingerprint, where, _now(), seconds, compile_seconds, None)
            db.execute("INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            db.executemany("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_row, runs))

    def add_failure(self, unit: Unit, error: str, *, machine: Mapping[str, Any] | None = None) -> None:
        """Write down that a unit could not be trained, and why. It is not done by that: the next bench tries again."""
        with self._transaction() as db:
            row = (*unit, None, _machine_id(db, machine), _now(), 0.0, 0.0, error)
            db.execute("INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def add_timings(self, timings: Iterable[Timing], *, machine: Mapping[str, Any] | None = None) -> None:
        """Write the timings of a task, in place of all that were there of the same task and horizon, whatever the optimizer.

        Args:
            timings: of all optimizers of the task, of one session.
            machine: where, as `lopt.evaluate.timing.machine` says it.
        """
        timings = list(timings)
        with self._transaction() as db:
            where = _machine_id(db, machine)
            for cell in {(t.task, t.horizon) for t in timings}:
                db.execute("DELETE FROM timings WHERE (task, horizon) = (?, ?)", cell)
            db.executemany("INSERT INTO timings VALUES (?, ?, ?, ?, ?, ?, ?)", [(*t, where) for t in timings])

    def add_card(self, fingerprint: str, card: Mapping[str, Any]) -> None:
        """Write the card of a saved optimizer."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO cards VALUES (?, ?)", (fingerprint, sorted_json(card)))

    def add_given(self, given: Mapping[str, str]) -> None:
        """Write how optimizers were named to the bench, by the label under which they are reported: of saved ones the path."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO optimizers VALUES (?, ?)", list(given.items()))

    def given(self) -> dict[str, str]:
        """What `add_given` was given; the label itself where nothing was written."""
        written = dict(self._read("SELECT label, given FROM optimizers"))
        return {label: written.get(label, label) for label in self.fingerprints()}

    def settle(self, protocol: Mapping[str, Any]) -> None:
        """Say by what protocol all runs of this archive are made, once; the same again is fine.

        What the archive does not say yet is added to it, a grid as well; all that it says must agree.

        Raises:
            InputError: for another protocol than that of the archive: their runs would not compare.
        """
        known, new = self.protocol(), json.loads(json.dumps(protocol))
        for name in sorted(known):
            asked = new.get(name)
            if name == "grids" and asked:  # of the baselines of its day
                asked = {baseline: grid for baseline, grid in asked.items() if baseline in known[name]}
            old_value, new_value = _settled_text(name, known[name]), _settled_text(name, asked)
            if old_value != new_value:
                old_value, new_value = (v if len(v) < 60 else f"{v[:57]}..." for v in (old_value, new_value))
                raise InputError(
                    f"{self.path} holds a bench with {name} = {old_value}, and this one has {new_value}; name another archive."
                )
        with self._transaction() as db:
            rows = [(name, json.dumps(value)) for name, value in new.items()]
            db.executemany("INSERT OR REPLACE INTO protocol VALUES (?, ?)", rows)

    def protocol(self) -> dict[str, Any]:
        """What `settle` was given."""
        return {name: json.loads(value) for name, value in self._read("SELECT * FROM protocol ORDER BY rowid")}

    def units(self) -> set[Unit]:
        """What is done, and so is never done again."""
        return {done.unit for done in self.log() if done.error is None}

    def failures(self) -> dict[Unit, str]:
        """What failed, and why, in the order of failing."""
        return {done.unit: done.error for done in self.log() if done.error is not None}

    def log(self) -> list[Done]:
        """All units that were tried, in the order in which they were finished."""
        query = "SELECT task, optimizer, horizon, seconds, compile_seconds, error FROM units ORDER BY rowid"
        return [Done(Unit(*row[:3]), *row[3:]) for row in self._read(query)]

    def runs(self) -> list[Run]:
        """All trainings, ordered by task, optimizer, horizon, setting and seed."""
        query = "SELECT * FROM runs ORDER BY task, optimizer, horizon, config, seed"
        return [_run(row) for row in self._read(query)]

    def timings(self) -> list[Timing]:
        """All timings, ordered by task, horizon, turn and optimizer."""
        query = """SELECT task, optimizer, horizon, turn, seconds_per_step, session FROM timings
            ORDER BY task, horizon, turn, optimizer"""
        return [Timing(*row) for row in self._read(query)]

    def cards(self) -> dict[str, dict[str, Any]]:
        """The cards of saved optimizers, by their fingerprints."""
        return {sha: json.loads(card) for sha, card in self._read("SELECT * FROM cards ORDER BY sha256")}

    def fingerprints(self) -> dict[str, str | None]:
        """Of every optimizer that has runs, by the name under which it is reported; None where it is no saved one."""
        return dict(self._read("SELECT DISTINCT optimizer, weights FROM runs"))

    def machines(self) -> list[dict[str, Any]]:
        """Where units were run and timed."""
        return [json.loads(facts) for (facts,) in self._read("SELECT facts FROM machine ORDER BY id")]

    def origins(self) -> list[tuple[dict[str, Any], int]]:
        """Where what is done was trained: a machine with its versions, and how many units; no facts where none were written."""
        query = """SELECT coalesce(facts, '{}'), count(*) FROM units LEFT JOIN machine ON machine.id = units.machine
            WHERE error IS NULL GROUP BY units.machine ORDER BY min(units.rowid)"""
        return [(json.loads(facts), count) for facts, count in self._read(query)]


def _settled_text(name: str, value: Any) -> str:
    """What must agree; the order of the cells is only that of the work."""
    return sorted_json(sorted(value) if name == "cells" and value else value)


def differences(a: Archive, b: Archive, most: int = 10) -> list[str]:
    """In what two archives of the same bench differ: empty if they hold the same protocol, cards and runs, bit for bit.

    What depends on the hour is left out: timings, durations, machines, the order of work.

    Args:
        a: one.
        b: the other.
        most: how many differences to list.
    """
    found = [
        f"the {what}s differ"
        for what, x, y in (("protocol", a.protocol(), b.protocol()), ("card", a.cards(), b.cards()))
        if x != y
    ]
    found += [f"{'/'.join(map(str, unit))} is done in one only" for unit in sorted(a.units() ^ b.units())]
    left, right = ({row[:5]: row for row in map(_row, archive.runs())} for archive in (a, b))
    found += [f"the run {key} is in one only" for key in sorted(left.keys() ^ right.keys())]
    found += [f"the run {key} differs" for key in sorted(left.keys() & right.keys()) if left[key] != right[key]]
    return found[:most]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _machine_id(db: sqlite3.Connection, machine: Mapping[str, Any] | None) -> int | None:
    if machine is None:
        return None
    facts = sorted_json({k: v for k, v in machine.items() if k != "load_before"})
    db.execute("INSERT OR IGNORE INTO machine (facts) VALUES (?)", (facts,))
    return db.execute("SELECT id FROM machine WHERE facts = ?", (facts,)).fetchone()[0]


def _bytes(values: Any, kind: str) -> bytes:
    return np.ascontiguousarray(values, kind).tobytes()


def _row(run: Run) -> tuple[Any, ...]:
    curves = (_bytes(curve, "<f4") for curve in (run.train_loss, run.valid_loss, run.test_loss))
    names = sorted(run.metrics)
    metrics = _bytes([run.metrics[name] for name in names], "<f4")
    key = (run.task, run.optimizer, run.horizon, sorted_json(run.config), run.seed)
    return (*key, run.fingerprint, _bytes(run.steps, "<i4"), *curves, json.dumps(names), metrics)


def _run(row: tuple[Any, ...]) -> Run:
    task, optimizer, horizon, config, seed, fingerprint, steps, *curves, names, metrics = row
    at = np.frombuffer(steps, "<i4")
    train, valid, test = (np.frombuffer(curve, "<f4") for curve in curves)
    values = np.frombuffer(metrics, "<f4").reshape(-1, len(at))
    return Run(
        task, optimizer, json.loads(config), fingerprint, horizon, seed, at, train, valid, test,
        dict(zip(json.loads(names), values, strict=True)),
    )  # fmt: skip


__all__ = ["Archive", "differences"]
