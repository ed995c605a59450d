"""Commands that meta-train optimizers."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from lopt.checks import at_least
from lopt.cli._arguments import Fields, parse
from lopt.errors import InputError


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
        chosen = recipe(self.recipe, **parse(self.recipe_fields))
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
    engine: Literal["local", "ray"] = "local"
    """Where meta-gradients are computed: in this process, or by workers of a Ray cluster."""
    workers: int = 2
    """Of Ray, each with one CPU; at most two, one for each task."""
    address: str | None = None
    """Of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; a new one on this machine by default."""

    def run(self) -> None:
        """Train, save, print."""
        from lopt.console import console, self_training_progress
        from lopt.engine import RayEngine
        from lopt.reproduce.self_training.arms import self_train

        at_least(1, members=self.members, cycles=self.cycles)
        command = shlex.join(("lopt", *sys.argv[1:]))
        if self.engine == "local" and self.address is not None:
            raise InputError("address is for --engine ray; the engine is local.")
        engine = RayEngine(self.workers, address=self.address) if self.engine == "ray" else None
        given: dict[str, Any] = {"members": self.members, "cycles": self.cycles, "seed": self.seed, "engine": engine}
        with (
            contextlib.closing(engine) if engine else contextlib.nullcontext(),
            self_training_progress() as on_cycle,
        ):
            weights = self_train(self.run_dir, **given, command=command, on_cycle=on_cycle)
        console.print(f"Optimizer: {weights}\nLineage: {self.run_dir / 'lineage.jsonl'}", soft_wrap=True)
