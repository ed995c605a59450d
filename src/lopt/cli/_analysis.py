"""Commands that look into optimizers."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

from lopt.checks import at_least
from lopt.cli._arguments import RANDOM, Fields, optimizer_of, parse, say, task_of
from lopt.errors import needs_extra
from lopt.zoo import RELEASED

with needs_extra("cli"):
    import rich  # noqa: F401 - the commands draw their tables with it
    import tyro


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
            optimizer_of(self.optimizer, self.optimizer_fields),
            task_of(self.task, self.task_fields),
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

        optimizer = optimizer_of(self.optimizer, self.optimizer_fields)
        path = Path(self.optimizer)
        name = f"{path.parent.name}-{path.stem}".strip("-") if path.suffix == ".safetensors" else self.optimizer
        folder = self.out or Path("runs") / f"analyze-{name}"
        folder.mkdir(parents=True, exist_ok=True)  # what cannot be written should not be measured first
        found = mechanisms(
            optimizer,
            task_of(self.task, self.task_fields),
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
        scenes = scenes_of(self.landscapes or tuple(LANDSCAPES), parse(self.starts))
        for text in self.optimizers:
            if is_random(name := contender(text).name):
                print(RANDOM.format(name), file=sys.stderr)
        prepare(self.out)  # what cannot be written should not be computed first
        found = descend(
            self.optimizers,
            scenes,
            steps=self.steps,
            key=default_key(self.seed),
            on_progress=lambda n: say(f"{n} ..."),
        )
        command = shlex.join(("lopt", *sys.argv[1:]))
        facts = {"command": command, "steps": self.steps, "seed": self.seed, "lopt": __version__}
        page = write_watch(self.out, "Optimizers at work", found, scenes, facts)
        console.print(f"Page: {page}", soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Measure the claims of a paper at the scale of this machine, and write a report with figures and verdicts."""

    paper: tyro.conf.Positional[str]
    """Which: scale is Wichrowska et al. 2017, whether they scale and generalise; mechanisms is Maheswaranathan et al. 2020, what they have learned;
    pathologies is Metz et al. 2019, why learned optimizers are hard to meta-train; stability is Harrison et al. 2022, why they blow up;
    tasks is Metz et al. 2020, more tasks and a better architecture; self-training is Metz et al. 2021, optimizers that train themselves;
    neighbours is Huang & Yang 2022 and Zhao et al. 2020, analytic continuation and low-precision graph networks."""
    claims: tuple[str, ...] = ()
    """The names of the claims to measure; all by default. The table at the end of a run has them, and results.json."""
    quick: bool = False
    """Smaller sizes; how much less time that takes depends on the paper."""
    out: Path | None = None
    """Where report.html, results.json and the figures go; runs/PAPER by default, and the names of claims where some are given."""
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
            self.out or Path("runs") / "-".join((self.paper, *self.claims)),
            only=self.claims,
            seed=self.seed,
            quick=self.quick,
            fields=parse(self.fields),
            command=shlex.join(("lopt", *sys.argv[1:])),
            on_progress=say,
        )
        table = Table("name", "claim", "verdict", "seconds", title=f"reproduce {self.paper}", title_justify="left")
        for claim in report.claims:
            table.add_row(claim.name, claim.title, VERDICTS[claim.held], f"{claim.seconds:.0f}")
        console.print(table)
        console.print(f"Report: {report.page}\nFigures and results: {report.results.parent}", soft_wrap=True)
