"""From an archive to its report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lopt.errors import InputError
from lopt.evaluate.archive import Archive, Run
from lopt.evaluate.baselines import BASELINES
from lopt.evaluate.contenders import split_fields
from lopt.evaluate.report._curves import learned
from lopt.evaluate.report._sections import Provenance
from lopt.evaluate.report._summary import sentences, summary_markdown
from lopt.evaluate.report.bench import benchmark_page
from lopt.evaluate.scores import Scores, score
from lopt.evaluate.selection import scored, select
from lopt.evaluate.suites import SUITES, find_suite
from lopt.version import __version__

REFERENCE = "adam"
KEPT = ("seeds", "evals", "seed", "eval_size")  # of the protocol, on the page


class Report(NamedTuple):
    """What `archive_report` makes."""

    page: str  # HTML
    markdown: str  # the summary alone
    sentences: list[str]  # of the summary, plain text
    scores: Scores


def archive_report(archive: Archive, *, title: str | None = None) -> Report:
    """Score what an archive holds, each optimizer at its best setting on each task, and write the page and its summary.

    Args:
        archive: of a bench, finished or not.
        title: of the page; names the suite by default.

    Raises:
        InputError: where the archive has no runs, or none of a baseline, or plotly is not installed.
    """
    everything, timings, protocol = archive.runs(), archive.timings(), archive.protocol()
    if not everything:
        raise InputError(f"{archive.path} has no runs; `lopt bench` makes them.")
    runs, suite = select(scored(everything, protocol)), protocol.get("suite")
    found = score(
        runs,
        timings,
        baselines=BASELINES,
        reference=REFERENCE,
        sweep=[run for run in everything if run.optimizer == REFERENCE],
        tested=select(everything, by="valid"),
        tried=everything,
        failed=archive.failures(),
    )
    cards = archive.cards()
    weights = {run.optimizer: run.weights for run in runs if run.weights is not None}
    provenance = Provenance(
        commands=(_command(protocol, found.optimizers, archive), shlex.join(["lopt", "report", str(archive.path)])),
        machine=_facts(archive.machines(), protocol),
        cards={name: cards[sha] for name, sha in weights.items() if sha in cards},
        failures=[f"{u.optimizer} on {u.task} ({u.horizon:,} steps): {why}" for u, why in archive.failures().items()],
    )
    heading = title or (f"Benchmark: the suite {suite}" if suite else "Benchmark")
    page = benchmark_page(heading, runs, timings, found, provenance, axes=_axes(protocol.get("axes", {}), runs))
    said = sentences(found, learned(runs), str)
    return Report(page, summary_markdown(found, learned(runs)), said, found)


def _command(protocol: Mapping[str, Any], optimizers: Sequence[str], archive: Archive) -> str:
    """The bench that makes such runs. Saved optimizers are named as they are reported; their hashes say which files they were."""
    suite = protocol.get("suite", "SUITE")
    parts = ["lopt", "bench", suite, "--optimizers", *optimizers]
    if suite in SUITES:
        usual = find_suite(suite)
        if (seeds := protocol.get("seeds")) not in (None, usual.protocol.seeds):
            parts += ["--seeds", str(seeds)]
        cells = [tuple(cell) for cell in protocol.get("cells", [])]
        if cells and cells != usual.cells() and cells == usual.changed(steps=min(h for _, h in cells)).cells():
            parts += ["--steps", str(min(h for _, h in cells))]
    return shlex.join([*parts, "--archive", str(archive.path)])


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
