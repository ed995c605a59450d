"""Commands that judge optimizers."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

from lopt.checks import at_least
from lopt.cli._arguments import Fields, optimizer_of, say
from lopt.errors import InputError, needs_extra

with needs_extra("cli"):
    import rich  # noqa: F401 - the commands draw their tables with it
    import tyro


@dataclasses.dataclass(frozen=True)
class Bench:
    """Train optimizers on a suite of tasks, every baseline tuned over its grid, and keep all runs. The same command resumes."""

    suite: tyro.conf.Positional[str]
    """smoke (minutes), laptop (meant for an hour of two cores), held_out (hours), meta_valid (to choose by), wichrowska2017, taskset or generalisation."""
    optimizers: tuple[str, ...] = ()
    """Baselines such as `nadamw`, `baselines` for all, saved optimizers by name or path; those of the suite by default. Adam is always there.
    `NAME{"tell_horizon":false}` is a saved optimizer that is not told how long a training lasts."""
    archive: Path | None = None
    """The SQLite file of all runs; runs/bench-SUITE.sqlite by default."""
    steps: int | None = None
    """Inner steps of every task; the suite's own by default.
    Where a suite has several horizons, this multiplies all: held_out has 100, 500 and 2,500 with 100."""
    seeds: int | None = None
    """Trainings of every setting; the suite's own by default."""
    tasks: tuple[str, ...] = ()
    """Train these tasks of the suite alone; the same command without it trains the others too. All by default."""
    shortest: int | None = None
    """Inner steps of a training, at least; the same command without it trains the shorter ones too. All by default."""
    longest: int | None = None
    """Inner steps of a training, at most; the same command without it trains the longer ones too. All by default."""
    processes: int | None = None
    """At a time; one a core by default. The runs do not depend on it."""
    engine: Literal["local", "ray"] = "local"
    """Where the trainings run: in processes of this machine, or on a Ray cluster. The archive and the timing stay here."""
    address: str | None = None
    """Of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; a new one on this machine by default."""
    timing: bool = True
    """Measure wall-clock at the end, all optimizers of a task in turns."""
    export: Path | None = None
    """Write all runs as FILE.csv or FILE.parquet as well, timings beside it."""

    def run(self) -> None:
        """Train, time, print."""
        from lopt.console import bench_progress, console, standings_table
        from lopt.engine.connection import connect
        from lopt.evaluate.bench.archive import Archive
        from lopt.evaluate.bench.cluster import RayWorkers
        from lopt.evaluate.bench.export import export
        from lopt.evaluate.bench.run import run_bench, standings
        from lopt.evaluate.bench.suites import find_suite
        from lopt.evaluate.bench.workers import Worker
        from lopt.evaluate.contenders import contenders
        from lopt.evaluate.scores.selection import within_suite

        suite = find_suite(self.suite).changed(steps=self.steps, seeds=self.seeds)
        contenders(self.optimizers or suite.optimizers)  # before there is a file: a name may be wrong
        suite.chosen(self.tasks, self.shortest, self.longest)
        at_least(1, **({} if self.processes is None else {"processes": self.processes}))
        if self.engine == "local" and self.address is not None:
            raise InputError("address is for --engine ray; the engine is local.")
        kind: Any = Worker
        processes = self.processes
        if self.engine == "ray":
            ray = connect(self.address, workers=processes or 1)
            processes = processes or int(ray.cluster_resources()["CPU"])
            kind = RayWorkers(self.address)
        path = self.archive or Path("runs") / f"bench-{self.suite}.sqlite"
        with Archive(path) as archive:
            with bench_progress() as tell:
                failed = run_bench(
                    suite,
                    self.optimizers,
                    archive,
                    processes=processes,
                    tasks=self.tasks,
                    shortest=self.shortest,
                    longest=self.longest,
                    timing=self.timing,
                    on_progress=tell,
                    kind=kind,
                )
            runs = within_suite(archive.runs(), archive.protocol())
            title = f"{self.suite}: {len({run.task for run in runs})} tasks, {suite.protocol.seeds} seeds"
            console.print(standings_table(title, standings(runs, archive.timings())))
            console.print(f"Archive: {path}", soft_wrap=True)
            if self.export is not None:
                console.print(f"Exported: {', '.join(map(str, export(archive, self.export)))}", soft_wrap=True)
        for unit, error in failed.items():
            sys.stderr.write(f"Failed: {unit.optimizer} on {unit.task}, {unit.horizon} steps: {error}\n")
        if failed:
            raise SystemExit(1)


@dataclasses.dataclass(frozen=True)
class Report:
    """Score the runs of a bench and write them as one interactive page that needs nothing else."""

    archive: tyro.conf.Positional[Path]
    """What `lopt bench` wrote."""
    out: Path = Path("report.html")
    """Where the page goes."""
    title: str | None = None
    """Of the page; names the suite by default."""
    markdown: Path | None = None
    """Write the summary, its notes and tables, as Markdown as well."""
    cells: Path | None = None
    """Write a row for each optimizer and task, as CSV, as well."""
    horizon: int | None = None
    """Score only trainings of so many inner steps, where tasks were trained to several."""

    def run(self) -> None:
        """Score, write, print."""
        from lopt.checkpoint import write_text
        from lopt.console import console, summary_table
        from lopt.evaluate.bench.archive import Archive
        from lopt.evaluate.report import archive_report

        with Archive(self.archive, create=False) as archive:
            found = archive_report(archive, title=self.title, horizon=self.horizon)
        write_text(self.out, found.page)
        if self.markdown is not None:
            write_text(self.markdown, found.markdown)
        if self.cells is not None:
            write_text(self.cells, found.cells)
        console.print(summary_table(found.scores))
        for note in found.notes:
            console.print(note, soft_wrap=True, markup=False)
        console.print(f"Report: {self.out} ({len(found.page) / 1e6:.1f} MB)", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Probe:
    """Ask an optimizer 27 pass/fail questions: does it converge, survive noise and NaNs, changes of scale, long trainings, 16 bits, ..."""

    optimizer: tyro.conf.Positional[str]
    """A name that `lopt list` prints, a baseline at one setting, as `nadamw{"learning_rate":0.01}`, or the path of a saved optimizer."""
    optimizer_fields: Fields = ()
    """Arguments of the optimizer, as `learning_rate=0.01`."""
    only: tuple[str, ...] = ()
    """Names of probes; all of them by default."""
    seed: int = 0
    """Draws everything."""
    strict: bool = False
    """Exit with 1 where a probe fails."""

    def run(self) -> None:
        """Probe, print."""
        from rich.table import Table
        from rich.text import Text

        from lopt.console import console
        from lopt.evaluate.compare import default_key
        from lopt.evaluate.probes.questions import probe

        optimizer = optimizer_of(self.optimizer, self.optimizer_fields)
        found = probe(optimizer, default_key(self.seed), only=self.only or None, on_progress=say)
        table = Table(
            "probe", "what passing shows", "figure", "at most", "", title=self.optimizer, title_justify="left"
        )
        for p in found:
            shows = "\n".join(text for text in (p.shows, p.criterion, p.note) if text)
            table.add_row(
                p.name,
                Text(shows),
                "–" if p.note else f"{p.figure:.2g}",
                f"{p.limit:g}",
                "pass" if p.passed else "FAIL",
            )
        console.print(table)
        passed = sum(p.passed for p in found)
        console.print(f"{self.optimizer} passes {passed} of {len(found)}. Figures are those of the worst of its seeds.")
        if self.strict and passed < len(found):
            raise SystemExit(1)
