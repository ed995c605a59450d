"""Commands that train tasks."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopt.checks import at_least
from lopt.cli._arguments import Fields, contestant, optimizer_of, say, task_of
from lopt.errors import needs_extra
from lopt.zoo import RELEASED

if TYPE_CHECKING:
    from lopt.evaluate.compare import Comparison

with needs_extra("cli"):
    import rich  # noqa: F401 - the commands draw their tables with it


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

        common: dict[str, Any] = {"seed": self.seed, "seeds": self.seeds, "on_table": show, "on_progress": say}
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
            f'optimizer = lopt.load("{demo.RELEASED}")  # the one meta-trained here: lopt.load("{found.weights}")',
            "tx = optax.chain(optax.clip_by_global_norm(1.0), optimizer.to_optax())",
            "state = tx.init(params)",
            "updates, state = tx.update(grads, state, params)",
            "params = optax.apply_updates(params, updates)",
            "deployed = optimizer.eval_params(state[1], params)  # evaluate and ship these",
        ):
            console.print(f"    {line}", soft_wrap=True)


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

        task = task_of(self.task, self.task_fields)
        optimizer = optimizer_of(self.optimizer, self.optimizer_fields)
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
        task = task_of(self.task, self.task_fields)
        found = compare(
            {name: contestant(name) for name in self.optimizers if name != "adam"},  # tuned Adam is there anyhow
            task,
            name=self.task,
            steps=self.steps,
            key=default_key(self.seed),
            seeds=self.seeds,
            on_progress=say,
        )
        console.print(comparison_table(found))
        if self.figure is not None:
            write_bytes(self.figure, figure([found]))
