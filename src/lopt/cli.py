"""The command line: parses, calls, prints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lopt.checks import at_least
from lopt.errors import InputError, needs_extra
from lopt.machine import cores
from lopt.zoo import RELEASED

if TYPE_CHECKING:
    from lopt.evaluate.compare import Comparison

with needs_extra("cli"):
    import rich  # noqa: F401 - the commands draw their tables with it
    import tyro

Fields = tuple[str, ...]
RANDOM = "lopt: {} has random weights; the path of a saved optimizer gives trained ones"


@dataclasses.dataclass(frozen=True)
class Demo:
    """Pit a saved optimizer against a tuned Adam, meta-train one, and compare it with both, on real digits."""

    run_dir: Path = Path("runs/demo")
    """Where the optimizer, its card, the figure and the report go. An unfinished run there is resumed."""
    seed: int = 0
    """Draws everything."""
    seeds: int = 5
    """Trainings of each network."""
    steps: int | None = None
    """Meta-steps; by default as many as take 100 s on this machine, the recipe's own at most."""

    def run(self) -> None:
        """Compare, meta-train, compare again, print."""
        from lopt import demo
        from lopt.console import comparison_table, console, meta_training_progress
        from lopt.recipes import plan_steps, recipe, run

        at_least(2, seeds=self.seeds)
        if self.steps is not None:
            at_least(1, steps=self.steps)

        def show(found: Comparison) -> None:
            console.print()
            console.print(comparison_table(found))

        common: dict[str, Any] = {"seed": self.seed, "seeds": self.seeds, "on_table": show, "on_progress": _say}
        console.print(f"First, {demo.RELEASED}, which comes with lopt, on scikit-learn's digits.")
        before = demo.first_look(**common)
        chosen, steps = recipe("demo"), self.steps
        if steps is None:
            console.print("\nNow a meta-training. A rehearsal of 40 meta-steps says how many fit here ...")
            steps = plan_steps(chosen, self.run_dir, seed=self.seed, seconds=demo.SECONDS)
            console.print(
                f"{steps:,} meta-steps, of {chosen.steps:,} in the recipe, to take about {demo.SECONDS:.0f} s."
            )
        with meta_training_progress() as on_step:
            given = ("--run-dir", str(self.run_dir), "--seed", str(self.seed), "--seeds", str(self.seeds))
            command = shlex.join(("lopt", "demo", "--steps", str(steps), *given))
            weights = run(chosen, self.run_dir, seed=self.seed, steps=steps, command=command, on_step=on_step)
        found = demo.evaluate(weights, before, self.run_dir, **common)
        console.print(f"\nCurves: {found.figure}\nReport: {found.page}\nOptimizer: {found.weights}\n")
        console.print("Use it in your own optax loop:\n")
        for line in (
            "import lopt, optax",
            f'tx = optax.chain(optax.clip_by_global_norm(1.0), lopt.load("{found.weights}").to_optax())',
            "updates, state = tx.update(grads, state, params, value=loss)  # after state = tx.init(params)",
        ):
            console.print(f"    {line}", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class MetaTrain:
    """Meta-train an optimizer by a recipe. The same command resumes a run that was stopped."""

    recipe: str
    """A name that `lopt list` prints."""
    run_dir: Path | None = None
    """Where the run lives, runs/RECIPE by default; the result is DIR/optimizer.safetensors."""
    seed: int = 0
    """Draws everything."""
    steps: int | None = None
    """Meta-steps; the recipe's own by default."""
    init: Path | None = None
    """A saved optimizer to begin with, instead of a random one of the recipe's architecture."""
    outer: str | None = None
    """A saved optimizer that applies the meta-gradients, by name or path, instead of the recipe's Adam. The loss it gets is the meta-loss."""
    recipe_fields: Fields = ()
    """Changes to the recipe, as `horizon=[100,1000] pairs=16 learning_rate=0.003`."""
    engine: Literal["local", "ray"] = "local"
    """Where meta-gradients are computed: in this process, or by workers of a Ray cluster."""
    workers: int = 2
    """Of Ray, each with one CPU."""
    address: str | None = None
    """Of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; a new one on this machine by default."""
    staleness: int | None = None
    """Workers do not wait for each other, and estimates older than so many meta-steps are dropped. By default they wait."""
    accumulate: int | None = None
    """Estimates a meta-step, with a staleness; by default as many as the recipe has tasks."""

    def run(self) -> None:
        """Meta-train, save, print."""
        from lopt.console import console, meta_training_progress
        from lopt.engine import RayEngine
        from lopt.recipes import recipe, run

        command = shlex.join(("lopt", *sys.argv[1:]))
        chosen = recipe(self.recipe, **_parse(self.recipe_fields))
        engine = None
        if self.engine == "ray":
            ways: dict[str, Any] = {"staleness": self.staleness, "accumulate": self.accumulate}
            engine = RayEngine(self.workers, address=self.address, **ways)
        elif self.address is not None or self.staleness is not None or self.accumulate is not None:
            raise InputError("address, staleness and accumulate are for --engine ray; the engine is local.")
        with (
            contextlib.closing(engine) if engine else contextlib.nullcontext(),
            meta_training_progress(engine) as on_step,
        ):
            weights = run(
                chosen,
                self.run_dir or Path("runs") / self.recipe,
                seed=self.seed,
                steps=self.steps,
                init=self.init,
                outer=self.outer,
                command=command,
                engine=engine,
                on_step=on_step,
            )
        console.print(f"Optimizer: {weights}")


@dataclasses.dataclass(frozen=True)
class SelfTrain:
    """Let a population of randomly initialised optimizers train itself. The same command resumes a run that was stopped."""

    members: int = 10
    """Optimizers of the population."""
    run_dir: Path = Path("runs/self-train")
    """Where the run and its lineage live; the best member goes to DIR/optimizer.safetensors."""
    cycles: int = 150
    """Of ten meta-steps of each member, an evaluation and copies."""
    seed: int = 0
    """Draws everything."""

    def run(self) -> None:
        """Train, save, print."""
        from lopt.console import console, self_training_progress
        from lopt.reproduce.self_training.arms import self_train

        at_least(1, members=self.members, cycles=self.cycles)
        command = shlex.join(("lopt", *sys.argv[1:]))
        given: dict[str, Any] = {"members": self.members, "cycles": self.cycles, "seed": self.seed}
        with self_training_progress() as on_cycle:
            weights = self_train(self.run_dir, **given, command=command, on_cycle=on_cycle)
        console.print(f"Optimizer: {weights}\nLineage: {self.run_dir / 'lineage.jsonl'}", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one task with one optimizer, over many seeds at once."""

    task: str
    """A name that `lopt tasks` prints: of a task, or `corpus/member`."""
    optimizer: str = RELEASED
    """A name that `lopt list` prints, a baseline at one setting, as `nadamw{"learning_rate":0.01}`, or the path of a saved optimizer."""
    steps: int = 200
    """Inner steps."""
    seeds: int = 5
    """Independent trainings."""
    seed: int = 0
    """Draws everything."""
    task_fields: Fields = ()
    """Arguments of the task, as `widths=[64,64] activation=tanh`."""
    optimizer_fields: Fields = ()
    """Arguments of the optimizer, as `learning_rate=0.01`."""
    json: bool = False
    """Print the curves as JSON instead of a table; null where a loss is not finite."""

    def run(self) -> None:
        """Train, print."""
        from rich.table import Table

        from lopt.console import console
        from lopt.evaluate.scores.statistics import mean_interval
        from lopt.evaluate.training import default_key, train

        task = _task(self.task, self.task_fields)
        optimizer = _optimizer(self.optimizer, self.optimizer_fields)
        record = train(optimizer, task, steps=self.steps, key=default_key(self.seed), seeds=self.seeds)
        curves = {
            "train_loss": record.train_loss,
            "valid_loss": record.valid_loss,
            "test_loss": record.test_loss,
            **record.metrics,
        }
        if self.json:
            values = {
                name: [[x if math.isfinite(x) else None for x in row] for row in curve.tolist()]
                for name, curve in curves.items()
            }
            found = {"steps": record.steps.tolist(), **values, "seconds_per_step": record.seconds_per_step.tolist()}
            sys.stdout.write(json.dumps(found) + "\n")
            return
        table = Table(title=f"{self.task}, {self.optimizer}, {self.seeds} seeds", title_justify="left")
        for column in ("", "at the start", f"after {self.steps} steps"):
            table.add_column(column)
        for name, curve in curves.items():
            table.add_row(name.replace("_", " "), str(mean_interval(curve[:, 0])), str(mean_interval(curve[:, -1])))
        console.print(table)
        milliseconds = mean_interval(1e3 * record.seconds_per_step)
        console.print(f"{milliseconds} ms a step; compiled in {record.compile_seconds:.1f} s")


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare optimizers on one task with an Adam tuned over 15 learning rates, on the same seeds."""

    task: str
    """A name that `lopt tasks` prints: of a task, or `corpus/member`."""
    optimizers: tuple[str, ...] = (RELEASED,)
    """Baselines such as `nadamw`, tuned as well; names that `lopt list` prints, with fields as `adam{"b1":0.8}`; or paths of saved optimizers."""
    steps: int = 200
    """Inner steps."""
    seeds: int = 5
    """Independent trainings each."""
    seed: int = 0
    """Draws everything."""
    task_fields: Fields = ()
    """Arguments of the task, as `widths=[64,64] activation=tanh`."""
    figure: Path | None = None
    """Where to write the curves as a PNG."""

    def run(self) -> None:
        """Compare, print."""
        from lopt.checkpoint import write_bytes
        from lopt.console import comparison_table, console
        from lopt.evaluate.compare import compare, default_key
        from lopt.evaluate.report import figure

        at_least(2, seeds=self.seeds)
        task = _task(self.task, self.task_fields)
        found = compare(
            {name: _contestant(name) for name in self.optimizers if name != "adam"},  # tuned Adam is there anyhow
            task,
            name=self.task,
            steps=self.steps,
            key=default_key(self.seed),
            seeds=self.seeds,
            on_progress=_say,
        )
        console.print(comparison_table(found))
        if self.figure is not None:
            write_bytes(self.figure, figure([found]))


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
        if self.processes is not None:
            at_least(1, processes=self.processes)
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
                    timing=self.timing,
                    on_progress=tell,
                    kind=kind,
                )
            title = f"{self.suite}: {len(suite.tasks)} tasks, {suite.protocol.seeds} seeds"
            console.print(
                standings_table(title, standings(within_suite(archive.runs(), archive.protocol()), archive.timings()))
            )
            console.print(f"Archive: {path}", soft_wrap=True)
            if self.export is not None:
                console.print(f"Exported: {', '.join(map(str, export(archive, self.export)))}", soft_wrap=True)
        for unit, error in failed.items():
            sys.stderr.write(f"Failed: {unit.optimizer} on {unit.task}, {unit.horizon} steps: {error}\n")
        if failed:
            raise SystemExit(1)


@dataclasses.dataclass(frozen=True)
class Probe:
    """Ask an optimizer twenty pass/fail questions: does it converge, survive noise and NaNs, changes of scale, long trainings, 16 bits, ..."""

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

        optimizer = _optimizer(self.optimizer, self.optimizer_fields)
        found = probe(optimizer, default_key(self.seed), only=self.only or None, on_progress=_say)
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


@dataclasses.dataclass(frozen=True)
class Certify:
    """Train one task with one optimizer, linearise its steps on the way, and say how far the training is from the edge of stability."""

    optimizer: tyro.conf.Positional[str]
    """A name that `lopt list` prints, a baseline at one setting, as `nadamw{"learning_rate":0.01}`, or the path of a saved optimizer."""
    task: str
    """A name that `lopt tasks` prints: of a task, or `corpus/member`."""
    steps: int = 200
    """Of the training."""
    checkpoints: int = 5
    """At how many steps the training is looked at."""
    seed: int = 0
    """Draws everything."""
    task_fields: Fields = ()
    """Arguments of the task, as `widths=[64,64] activation=tanh`."""
    optimizer_fields: Fields = ()
    """Arguments of the optimizer, as `learning_rate=0.01`."""
    out: Path | None = None
    """Where to write certificate.json and certificate.png; nowhere by default."""

    def run(self) -> None:
        """Certify, print, write."""
        from lopt.analyze import certify, write_certificate
        from lopt.console import certificate_table, console
        from lopt.evaluate.compare import default_key

        found = certify(
            _optimizer(self.optimizer, self.optimizer_fields),
            _task(self.task, self.task_fields),
            steps=self.steps,
            key=default_key(self.seed),
            checkpoints=self.checkpoints,
            name=self.optimizer,
        )
        console.print(certificate_table(found, self.task))
        console.print(found.verdict, soft_wrap=True)
        if self.out is not None:
            files = write_certificate(found, self.out)
            console.print(f"Written: {', '.join(map(str, files))}", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Analyze:
    """Say what an optimizer does: clipping, schedule, momentum, adaptation, memory, and how much of its updates they explain."""

    optimizer: tyro.conf.Positional[str]
    """A name that `lopt list` prints, a baseline at one setting, as `nadamw{"learning_rate":0.01}`, or the path of a saved optimizer."""
    task: str = "digits_mlp"
    """A name that `lopt tasks` prints: of a task, or `corpus/member`. Its gradients are the usual ones."""
    only: tuple[str, ...] = ()
    """Of response, schedule, momentum, adaptation, state_space and explain; all by default."""
    seed: int = 0
    """Draws everything."""
    task_fields: Fields = ()
    """Arguments of the task, as `widths=[64,64] activation=tanh`."""
    optimizer_fields: Fields = ()
    """Arguments of the optimizer, as `learning_rate=0.01`."""
    out: Path | None = None
    """Where mechanisms.html and the arrays as JSON go; runs/analyze-NAME by default, and for a file the name of its folder and its own."""

    def run(self) -> None:
        """Ask, print, write."""
        from lopt.analyze import mechanisms, write_mechanisms
        from lopt.console import console
        from lopt.evaluate.compare import default_key
        from lopt.version import __version__

        optimizer = _optimizer(self.optimizer, self.optimizer_fields)
        path = Path(self.optimizer)
        name = f"{path.parent.name}-{path.stem}".strip("-") if path.suffix == ".safetensors" else self.optimizer
        folder = self.out or Path("runs") / f"analyze-{name}"
        folder.mkdir(parents=True, exist_ok=True)  # what cannot be written should not be measured first
        found = mechanisms(
            optimizer,
            _task(self.task, self.task_fields),
            key=default_key(self.seed),
            only=self.only,
            on_progress=lambda text: console.print(text, soft_wrap=True, markup=False),
        )
        command = shlex.join(("lopt", *sys.argv[1:]))
        facts = {"command": command, "task": self.task, "seed": self.seed, "lopt": __version__}
        files = write_mechanisms(folder, f"What {self.optimizer} does", found, facts)
        console.print(f"Page: {files[0]}", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Watch:
    """Let optimizers descend landscapes of two parameters, and write one page that plays their paths side by side."""

    optimizers: tyro.conf.Positional[tuple[str, ...]] = ("sgd", "momentum", "adam", RELEASED)
    """Baselines such as `momentum`, tuned on each landscape; names that `lopt list` prints, with fields as `sgd{"learning_rate":0.1}`; or paths of
    saved optimizers."""
    landscapes: tuple[str, ...] = ()
    """Keys of `lopt.analyze.LANDSCAPES`, as `rosenbrock`; all by default."""
    starts: Fields = ()
    """Of landscapes, in place of their own, as `rosenbrock=[[-1.5,2],[0,0]]`."""
    steps: int = 200
    """Of each path; optimizers that ask are told."""
    seed: int = 0
    """Draws the noise, and the weights of optimizers that are not trained."""
    out: Path = Path("runs/watch.html")
    """Where the page goes."""

    def run(self) -> None:
        """Descend, write."""
        from lopt.analyze import LANDSCAPES, descend, scenes_of, write_watch
        from lopt.analyze.watch import prepare
        from lopt.console import console
        from lopt.evaluate.compare import default_key
        from lopt.evaluate.contenders import contender, is_random
        from lopt.version import __version__

        at_least(1, steps=self.steps)
        scenes = scenes_of(self.landscapes or tuple(LANDSCAPES), _parse(self.starts))
        for text in self.optimizers:
            if is_random(name := contender(text).name):
                print(RANDOM.format(name), file=sys.stderr)
        prepare(self.out)  # what cannot be written should not be computed first
        found = descend(
            self.optimizers,
            scenes,
            steps=self.steps,
            key=default_key(self.seed),
            on_progress=lambda n: _say(f"{n} ..."),
        )
        command = shlex.join(("lopt", *sys.argv[1:]))
        facts = {"command": command, "steps": self.steps, "seed": self.seed, "lopt": __version__}
        page = write_watch(self.out, "Optimizers at work", found, scenes, facts)
        console.print(f"Page: {page}", soft_wrap=True)


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
class Reproduce:
    """Measure the claims of a paper at the scale of this machine, and write a report with figures and verdicts."""

    paper: tyro.conf.Positional[str]
    """Which: scale is Wichrowska et al. 2017, whether they scale and generalise; mechanisms is Maheswaranathan et al. 2020, what they have learned;
    pathologies is Metz et al. 2019, why learned optimizers are hard to meta-train; stability is Harrison et al. 2022, why they blow up;
    self-training is Metz et al. 2021, optimizers that train themselves; neighbours is Huang & Yang 2022 and Zhao et al. 2020, analytic continuation and
    low-precision graph networks."""
    quick: bool = False
    """Smaller sizes; how much less time that takes depends on the paper."""
    out: Path | None = None
    """Where report.html, results.json and the figures go; runs/PAPER by default."""
    seed: int = 0
    """Draws everything."""
    fields: Fields = ()
    """Arguments of its claims, as `weights=runs/mine/optimizer.safetensors`: a saved optimizer, by name or path, for the claim that needs one.
    For self-training, `arms=DIR` keeps the run directories of its arms, so that the same command resumes."""

    def run(self) -> None:
        """Measure, write, print."""
        from rich.table import Table

        from lopt.console import console
        from lopt.reproduce import find_paper, measure
        from lopt.reproduce.claims import VERDICTS

        report = measure(
            find_paper(self.paper),
            self.out or Path("runs") / self.paper,
            seed=self.seed,
            quick=self.quick,
            fields=_parse(self.fields),
            command=shlex.join(("lopt", *sys.argv[1:])),
            on_progress=_say,
        )
        table = Table("claim", "verdict", "seconds", title=f"reproduce {self.paper}", title_justify="left")
        for claim in report.claims:
            table.add_row(claim.title, VERDICTS[claim.held], f"{claim.seconds:.0f}")
        console.print(table)
        console.print(f"Report: {report.page}\nFigures and results: {report.results.parent}", soft_wrap=True)


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

        fields = _parse(self.optimizer_fields)
        optimizer = from_learned_optimization(self.kind, read_flax(self.checkpoint), **fields)
        card = zoo.Card(
            description=f"Converted from {self.checkpoint.name}.",
            command=shlex.join(("lopt", *sys.argv[1:])),
            licence=self.licence,
        )
        console.print(
            f"Optimizer: {zoo.save(self.out or self.checkpoint.with_suffix('.safetensors'), optimizer, card)}"
        )


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
            "tasks": {name: _summary(family.build) for name, family in TASKS.items()},
            "optimizers": {name: _summary(kind) for name, kind in OPTIMIZERS.items()},
            "estimators": {name: _summary(kind) for name, kind in ESTIMATORS.items()},
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
            measure(catalogue.to_measure(self.corpus), path, command=command, on_progress=None if self.json else _say)
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


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[MetaTrain, tyro.conf.subcommand("meta-train")]
    | Annotated[SelfTrain, tyro.conf.subcommand("self-train")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Certify, tyro.conf.subcommand("certify")]
    | Annotated[Analyze, tyro.conf.subcommand("analyze")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
)


def main(args: list[str] | None = None) -> None:
    """Entry point of the `lopt` command. Input that cannot be used ends in one sentence and exit code 2."""
    command: Any = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        args=args,
        prog="lopt",
        description="Learned optimizers: meta-train them, use them, understand them.",
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    _configure_jax()
    from lopt.meta_train import Interrupted

    try:
        command.run()
    except Interrupted as stop:
        sys.stderr.write(f"{stop} The same command continues.\n")
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        raise SystemExit(130) from None
    except InputError as error:
        sys.stderr.write(f"lopt: {error}\n")
        raise SystemExit(2) from None
    except OSError as error:
        sys.stderr.write(f"lopt: {error.filename or 'a file'}: {error.strerror or error}\n")
        raise SystemExit(2) from None


def _configure_jax() -> None:
    """One CPU device a core, so that particles spread over them; compiled programs are kept for the next start."""
    import jax

    if "XLA_FLAGS" not in os.environ and "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX is in use already: its devices are settled
            jax.config.update("jax_num_cpu_devices", len(cores()))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "lopt" / "xla"))


def _task(name: str, fields: Fields) -> Any:
    from lopt import tasks

    return tasks.create(name, **_parse(fields))


def _optimizer(name: str, fields: Fields) -> Any:
    """What `train` and `probe` take: an optimizer at one setting."""
    from lopt.evaluate.contenders import is_random, one_setting

    found = one_setting(name, _parse(fields))
    from lopt.names import split_fields

    if is_random(kind := split_fields(name)[0]):
        print(RANDOM.format(kind), file=sys.stderr)
    return found


def _contestant(text: str) -> Any:
    """What `compare` takes: the name of a baseline that is to be tuned, or an optimizer."""
    from lopt.evaluate.contenders import contender, is_random

    found = contender(text)
    if found.is_tuned:
        return found.name
    if not found.tell_horizon:
        raise InputError(
            f"{text}: compare tells all optimizers the horizon; leave tell_horizon out, or use lopt bench."
        )
    if is_random(found.name):
        print(RANDOM.format(found.name), file=sys.stderr)
    return found.optimizer(found.fields or {})


def _parse(fields: Fields) -> dict[str, Any]:
    parsed = {}
    for field in fields:
        name, equals, text = field.partition("=")
        if not equals:
            raise InputError(f"{field!r} is not of the form name=value.")
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            parsed[name] = text
    return parsed


def _summary(thing: Callable[..., Any]) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _say(text: str) -> None:
    from lopt.console import console

    console.print(text, style="dim")
