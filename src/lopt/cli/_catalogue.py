"""Commands that list and convert."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from lopt.cli._arguments import Fields, parse, say, summary
from lopt.errors import needs_extra

with needs_extra("cli"):
    import rich  # noqa: F401 - the commands draw their tables with it
    import tyro


@dataclasses.dataclass(frozen=True)
class List:
    """List tasks, optimizers, estimators, recipes and saved weights."""

    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print."""
        from rich.table import Table

        from lopt import zoo
        from lopt.console import console
        from lopt.estimators import ESTIMATORS
        from lopt.optimizers import OPTIMIZERS
        from lopt.recipes import RECIPES
        from lopt.tasks import TASKS

        kinds: dict[str, dict[str, str]] = {
            "tasks": {name: summary(family.build) for name, family in TASKS.items()},
            "optimizers": {name: summary(kind) for name, kind in OPTIMIZERS.items()},
            "estimators": {name: summary(kind) for name, kind in ESTIMATORS.items()},
            "recipes": {name: recipe.description for name, recipe in RECIPES.items()},
            "weights": {name: zoo.read_card(name).description for name in zoo.available()},
        }
        if self.json:
            sys.stdout.write(json.dumps(kinds, indent=2) + "\n")
            return
        for kind, entries in kinds.items():
            table = Table("name", "what it is", title=kind, title_justify="left")
            for name, text in sorted(entries.items()):
                table.add_row(name, text)
            console.print(table if entries else f"{kind}: none")
        console.print("`lopt tasks` says what a task costs and where it comes from, and lists the corpora.")


@dataclasses.dataclass(frozen=True)
class Tasks:
    """List tasks and corpora, or the members of a corpus: size, cost, data, source. Nothing is measured unless it is asked for."""

    corpus: str | None = None
    """List the members of this corpus, as `corpus/member`."""
    json: bool = False
    """Print JSON; null where a task was not measured."""
    measure: bool = False
    """Measure first: cost of a step, initial loss, best loss of a tuned Adam; on a quiet machine. The same command resumes."""
    out: Path | None = None
    """The file that figures are read from and written to; that of the package by default."""

    def run(self) -> None:
        """Measure if asked to, print."""
        from lopt.console import console, task_tables
        from lopt.tasks import catalogue
        from lopt.tasks.corpora.corpus import find_corpus
        from lopt.tasks.corpora.measured import MEASURED, read_measured

        if self.corpus is not None:
            find_corpus(self.corpus)
        path = self.out or MEASURED
        if self.measure:
            from lopt.evaluate.bench.measure import measure

            corpus = () if self.corpus is None else ("--corpus", self.corpus)
            command = shlex.join(("lopt", "tasks", "--measure", *corpus))
            measure(catalogue.to_measure(self.corpus), path, command=command, on_progress=None if self.json else say)
        entries = catalogue.entries(self.corpus, read_measured(path).tasks)
        if self.json:
            rows = {e.name: {**e._asdict(), "figures": e.figures and e.figures._asdict()} for e in entries}
            found: dict[str, Any] = {"tasks": rows}
            if self.corpus is None:
                found["corpora"] = catalogue.corpus_sizes()
            sys.stdout.write(json.dumps(found, indent=2) + "\n")
            return
        for table in task_tables(self.corpus, entries, {} if self.corpus else catalogue.corpus_sizes()):
            console.print(table)


@dataclasses.dataclass(frozen=True)
class Convert:
    """Turn another library's checkpoint (flax's msgpack) into a saved optimizer. Nothing in the file is run."""

    kind: tyro.conf.Positional[str]
    """What it holds: celo, velo, hierarchical_lstm, mlp, small_fc or nominal."""
    checkpoint: tyro.conf.Positional[Path]
    """The file."""
    out: Path | None = None
    """Where the optimizer goes, beside the checkpoint by default; its card goes beside it."""
    optimizer_fields: Fields = ()
    """Arguments of the optimizer that the file does not hold, as `step_mult=0.001`."""
    licence: str = "not stated"
    """Of the weights; goes on the card."""

    def run(self) -> None:
        """Read, convert, save, print."""
        from lopt import zoo
        from lopt.console import console
        from lopt.convert import from_learned_optimization, read_flax

        fields = parse(self.optimizer_fields)
        optimizer = from_learned_optimization(self.kind, read_flax(self.checkpoint), **fields)
        card = zoo.Card(
            description=f"Converted from {self.checkpoint.name}.",
            command=shlex.join(("lopt", *sys.argv[1:])),
            licence=self.licence,
        )
        console.print(
            f"Optimizer: {zoo.save(self.out or self.checkpoint.with_suffix('.safetensors'), optimizer, card)}"
        )
