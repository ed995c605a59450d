"""From an archive to its report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lopt.errors import InputError
from lopt.evaluate.baselines import BASELINES
from lopt.evaluate.bench.archive import Archive
from lopt.evaluate.bench.export import cells_csv
from lopt.evaluate.bench.suites import SUITES, find_suite
from lopt.evaluate.report._curves import learned
from lopt.evaluate.report._markdown import summary_markdown
from lopt.evaluate.report._origin import SEVERAL, origins_table, other_horizons, seen_table
from lopt.evaluate.report._sections import Provenance
from lopt.evaluate.report._summary import NOTHING_IN_COMMON
from lopt.evaluate.report.bench import benchmark_page
from lopt.evaluate.runs import Run
from lopt.evaluate.scores.selection import select, within_suite
from lopt.evaluate.scores.summary import Scores, score
from lopt.evaluate.scores.untuned import Untuned, without_tuning
from lopt.names import split_fields
from lopt.version import __version__

REFERENCE = "adam"
KEPT = ("seeds", "finalists", "evals", "seed", "eval_size")  # of the protocol, on the page
OTHERS = "Tasks were also trained to other numbers of steps: {steps}; `lopt report --horizon` scores those."


class Report(NamedTuple):
    """What `archive_report` makes."""

    page: str  # HTML
    markdown: str  # the summary alone
    cells: str  # CSV, by `cells_csv`
    scores: Scores
    untuned: list[Untuned]  # every optimizer at one setting for all tasks; empty with fewer than two in common
    notes: list[str]  # what a reader must know before the table, plain text


def archive_report(archive: Archive, *, title: str | None = None, horizon: int | None = None) -> Report:
    """Score what an archive holds, each optimizer at its best setting on each task, and write the page and its summary.

    Args:
        archive: of a bench, finished or not.
        title: of the page; names the suite by default.
        horizon: only trainings of so many inner steps are scored, where tasks were trained to several; speed-up is read from Adam's of all.

    Raises:
        InputError: where the archive has no runs, or none of this horizon or of a baseline, or plotly is not installed.
    """
    everything, timings, protocol = archive.runs(), archive.timings(), archive.protocol()
    if not everything:
        raise InputError(f"{archive.path} has no runs; `lopt bench` makes them.")
    trained, suite = within_suite(everything, protocol), protocol.get("suite")
    if horizon is not None:
        horizons = sorted({run.horizon for run in trained})
        trained = [run for run in trained if run.horizon == horizon]
        if not trained:
            raise InputError(
                f"horizon is {horizon}; the archive has trainings of {', '.join(map(str, horizons))} steps."
            )
    runs, sweep = select(trained), [run for run in everything if run.optimizer == REFERENCE]
    found = score(
        runs,
        timings,
        baselines=BASELINES,
        reference=REFERENCE,
        sweep=sweep,
        tested=select(trained, by="valid"),
        tried=trained,
        failed=archive.failures(),
    )
    several = len(found.common) > 1
    untuned = without_tuning(trained, found, sweep=sweep, failed=archive.failures()) if several else []
    cards = archive.cards()
    saved = {run.optimizer: run.fingerprint for run in runs if run.fingerprint is not None}
    known = {name: cards[fingerprint] for name, fingerprint in saved.items() if fingerprint in cards}
    tasks = list(dict.fromkeys([*(task for task, _ in protocol.get("cells", [])), *found.tasks]))
    origins, seen = origins_table(archive.origins()), seen_table(known, tasks)
    others = other_horizons(trained, found.horizons) if horizon is None else []
    purpose = find_suite(suite).note if suite in SUITES else ""
    notes = [
        *([] if found.common else [NOTHING_IN_COMMON]),
        *([purpose] if purpose else []),
        *([OTHERS.format(steps=", ".join(f"{h:,}" for h in others))] if others else []),
        *([SEVERAL] if origins else []),
    ]
    tables = [table for table in (seen, origins) if table is not None]
    provenance = Provenance(
        commands=(_command(protocol, found.optimizers, archive), _report_command(archive, horizon)),
        machine=_facts(archive.machines(), protocol),
        cards=known,
        failures=[f"{u.optimizer} on {u.task} ({u.horizon:,} steps): {why}" for u, why in archive.failures().items()],
        notes=notes,
        tables=tables,
    )
    of = "" if horizon is None else f", {horizon:,} steps"
    heading = title or (f"Benchmark: the suite {suite}{of}" if suite else f"Benchmark{of}")
    axes = _axes(protocol.get("axes", {}), runs)
    page = benchmark_page(heading, runs, timings, found, provenance, axes=axes, untuned=untuned)
    markdown = summary_markdown(found, learned(runs), untuned=untuned, notes=notes, tables=tables)
    return Report(page, markdown, cells_csv(found, runs), found, untuned, notes)


def _command(protocol: Mapping[str, Any], optimizers: Sequence[str], archive: Archive) -> str:
    """The bench that makes such runs. Optimizers are named as they were given to it; hashes say which files the saved ones were."""
    suite, given = protocol.get("suite", "SUITE"), archive.given()
    parts = ["lopt", "bench", suite, "--optimizers", *(given.get(name, name) for name in optimizers)]
    if suite in SUITES:
        usual = find_suite(suite)
        if (seeds := protocol.get("seeds")) not in (None, usual.protocol.seeds):
            parts += ["--seeds", str(seeds)]
        cells = [tuple(cell) for cell in protocol.get("cells", [])]
        if cells and cells != usual.cells() and cells == usual.changed(steps=min(h for _, h in cells)).cells():
            parts += ["--steps", str(min(h for _, h in cells))]
    return shlex.join([*parts, "--archive", str(archive.path)])


def _report_command(archive: Archive, horizon: int | None) -> str:
    return shlex.join(["lopt", "report", str(archive.path), *(["--horizon", str(horizon)] if horizon else [])])


def _facts(machines: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Protocol, machine and versions; of several machines, every one."""
    found: dict[str, Any] = {name.replace("_", " "): v for name in KEPT if (v := protocol.get(name)) is not None}
    if rates := protocol.get("learning_rates"):
        found["learning rates"] = ", ".join(f"{rate:g}" for rate in rates)
    found["lopt, of this page"] = __version__
    for i, facts in enumerate(machines):
        found |= {k if len(machines) == 1 else f"{k} ({i + 1})": v for k, v in facts.items()}
    return found


def _axes(axes: Mapping[str, Sequence[str]], runs: Sequence[Run]) -> dict[str, dict[float | str, str]]:
    """The axes of a suite, of the tasks that were run, each by what it does not share with the first one, the home."""
    known, found = {run.task for run in runs}, {}
    for axis, tasks in axes.items():
        home = split_fields(tasks[0])[0] if tasks else ""
        points: dict[float | str, str] = {_value(task, home): task for task in tasks if task in known}
        if len(points) > 1:
            found[axis.replace("_", " ")] = points
    return found


def _value(task: str, home: str) -> str:
    name, fields = split_fields(task)
    said = " ".join(str(v).strip("[]").replace(", ", "-") for v in fields.values())
    return f"{name} {said}".strip() if name != home or not said else said
