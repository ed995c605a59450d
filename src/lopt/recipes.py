"""Recipes of meta-training: everything but the seed, as typed data."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from lopt import tasks, zoo
from lopt.checks import at_least, one_of
from lopt.engine import Drawn, Engine
from lopt.errors import InputError
from lopt.estimators import ESTIMATORS, Estimator, FullES, Merged, PerTask, normalize_by_average_norm
from lopt.estimators.objectives import Objective
from lopt.estimators.particles import as_horizon, as_truncation, horizon_in_units
from lopt.estimators.schedules import Even, Growing, Widening
from lopt.machine import cores
from lopt.meta_train import Progress, meta_train
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.optimizers import create
from lopt.run_directory import CONFIG, metrics_of
from lopt.task import Split, Task
from lopt.tasks.naming import Wrapping

LEAST_STEPS = 500  # meta-steps, below which `plan_steps` does not go
REHEARSED = 40  # meta-steps of its rehearsal

TaskNorm = Literal["none", "estimate", "average"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task of a recipe: what it is, as `lopt.tasks.TaskName` has it, and how it is used."""

    name: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    wrappers: tuple[Wrapping, ...] = ()
    tell_horizon: bool = True  # to the optimizer
    split: Split | None = None  # whose losses make the meta-loss, where not that of the recipe

    @property
    def task(self) -> tasks.TaskName:
        """What it is."""
        return tasks.TaskName(self.name, self.fields, self.wrappers)

    def build(self) -> Task:
        """The task, by `lopt.tasks.create`."""
        return tasks.create(self.task)

    def to_json(self) -> dict[str, Any]:
        """What a card says of it: the task's JSON, and how it was used where that is not the usual way."""
        told = {} if self.tell_horizon else {"tell_horizon": False}
        return {**self.task.to_json(), **told, **({} if self.split is None else {"split": self.split})}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to meta-train, on what, and how."""

    description: str
    optimizer: str
    optimizer_fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    tasks: tuple[TaskSpec, ...]
    estimator: str = "es_single"
    pairs: int = 8  # antithetic pairs a task
    truncation: int = 20  # inner steps a meta-gradient, where it is not of whole problems
    horizon: tuple[int, int] = (100, 500)  # inner steps
    curriculum: int = 0  # meta-steps over which the greatest horizon grows, from three times the least one
    even: Even = "problems"  # of the horizons of a curriculum, what each octave has equally many of
    std: float = 0.01  # of the perturbation
    split: Split = "train"  # whose losses make the meta-loss
    objective: Objective = "normalised"  # what makes the meta-loss of them
    estimator_fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    drawn: bool = False  # whether a meta-step has one task, drawn evenly, in place of all
    task_norm: TaskNorm = "none"  # each task's meta-gradient is divided by its norm, or by the average of its norms, so that none drowns the others
    steps: int = 5_000  # meta-steps
    learning_rate: float = 1e-3  # of the outer Adam, decayed by a cosine to a tenth
    clip: float = 0.1  # of the meta-gradient, element by element
    average: float = 0.0  # decay of the average of the meta-parameters that is saved; 0 saves the last ones

    def build(
        self, key: PRNGKeyArray, steps: int, init: Path | None = None
    ) -> tuple[Optimizer, tuple[Estimator, ...], optax.GradientTransformation]:
        """The initial optimizer, drawn or that of a saved one, the estimators and the outer optimizer."""
        at_least(1, steps=steps)
        if self.estimator not in ESTIMATORS:
            raise InputError(unknown("estimator", self.estimator, ESTIMATORS))
        optimizer = zoo.load(init) if init else create(self.optimizer, key=key, **self.optimizer_fields)
        at_least(0, curriculum=self.curriculum)
        if self.even != "problems" and not self.curriculum:
            raise InputError(
                f"even is {self.even!r} and curriculum is 0; horizons are drawn so in a curriculum alone, if only of 1."
            )
        one_of("task_norm", self.task_norm, TaskNorm)
        kind = ESTIMATORS[self.estimator]
        known = {f.name for f in dataclasses.fields(kind)}
        fields: dict[str, Any] = {
            "pairs": self.pairs,
            "particles": 2 * self.pairs,  # as many inner steps
            "truncation": None if kind in (FullES, Merged) else self.truncation,
            "horizon": self.horizon,
            "std": self.std,
            "split": self.split,
            "objective": self.objective,
        }
        fields = {name: value for name, value in fields.items() if name in known} | self.estimator_fields
        if self.curriculum and "horizon" not in self.estimator_fields:
            # Here, for its curriculum would pass, or be refused in words of its own.
            horizon_in_units(as_horizon(self.horizon), as_truncation(fields.get("truncation")))
            fields["horizon"] = self.widening
        estimators: tuple[Estimator, ...] = tuple(
            kind(task.build(), **_with(fields, split=task.split or fields["split"]), tell_horizon=task.tell_horizon)
            for task in self.tasks
        )
        if self.task_norm != "none":
            normalize = optax.normalize_by_update_norm if self.task_norm == "estimate" else normalize_by_average_norm
            estimators = tuple(PerTask(e, normalize()) for e in estimators)
        return (
            optimizer,
            estimators,
            optax.chain(optax.clip(self.clip), optax.scale_by_adam(), _annealed(self.learning_rate, steps)),
        )

    @property
    def widening(self) -> Widening:
        """The curriculum of horizons; there must be one."""
        low, high = self.horizon
        return Widening(low, min(3 * low, high), high, self.curriculum, self.even)

    def reached(self, steps: int) -> tuple[int, int]:
        """The least and the greatest horizon of so many meta-steps: a curriculum may not have finished."""
        if not self.curriculum:
            return self.horizon
        return self.horizon[0], int(self.widening.greatest(jnp.asarray(steps - 1)))


# Cheap tasks of many families, all of the corpora's training splits.
GENERAL = (
    "small_images/digits_32",
    "small_images/fashion_8_32",
    "small_images/fashion_8_crops_32",
    "small_images/fashion_8_edges_32",
    "taskset/sampled_0",  # softmax regression, digits
    "taskset/sampled_2",  # autoencoder, digits
    "taskset/sampled_5",  # wine
    "taskset/sampled_6",  # breast cancer
    "taskset/sampled_7",  # GRU, prose
    "taskset/sampled_18",  # RNN, source
    "taskset/sampled_9",  # four layers with layer norm, Fashion-MNIST
    "taskset/sampled_11",  # wide, batches of 16, Fashion-MNIST
    "taskset/sampled_29",  # conv net with layer norm, Fashion-MNIST
    "taskset/sampled_30",  # squared error, Fashion-MNIST
    "taskset/sampled_31",  # linear autoencoder, Fashion-MNIST
    "taskset/sampled_17",  # conv net, digits, batches of 16
    "wichrowska2017/logistic_100_noisy",
    "wichrowska2017/mlp_12_16_8_3_batch_200",
    "wichrowska2017/quadratic_20_noisy",
    "wichrowska2017/bowl_1_noisy",
)

# A second course, after `general`: two thirds of it new, and every third in random coordinates.
GENERAL_LONGER = (
    "taskset/sampled_41",  # LSTM, prose
    "taskset/sampled_14",  # GRU, source
    "taskset/sampled_108",  # conv net with layer norm, digits
    "taskset/sampled_94",  # one convolution, Fashion-MNIST
    "taskset/sampled_1",  # conv net, squared error, batches of 16
    "taskset/sampled_28",  # autoencoder, Fashion-MNIST
    "taskset/sampled_45",  # linear autoencoder, digits
    "taskset/sampled_134",  # batch norm, Fashion-MNIST
    "taskset/sampled_50",  # four layers with layer norm, digits
    "taskset/sampled_73",  # squared error, digits
    "taskset/sampled_110",  # wide, batches of 16, digits
    "taskset/sampled_49",  # 14x14 Fashion-MNIST
    "taskset/sampled_24",  # softmax regression, 14x14 Fashion-MNIST
    "taskset/sampled_58",  # breast cancer, linear
    "small_images/digits_32",
    "small_images/fashion_8_32",
    "small_images/fashion_8_edges_32",
    "taskset/sampled_2",
    "taskset/sampled_5",
    "taskset/sampled_29",
    "wichrowska2017/mlp_12_16_8_3_batch_200",
    "wichrowska2017/quadratic_20_noisy",
)

# Of these two, those with hundreds of examples, digits and tables: there a low training loss is soon no achievement.
FEW_EXAMPLES = (
    "small_images/digits_32",
    *(f"taskset/sampled_{seed}" for seed in (0, 2, 5, 6, 17, 45, 50, 58, 73, 108, 110)),
)

SCALED: tuple[Wrapping, ...] = (("reparametrized", {"level": "tensor", "low": 0.3, "high": 3.0}),)
WIDELY_SCALED: tuple[Wrapping, ...] = (("reparametrized", {"level": "tensor", "low": 0.1, "high": 10.0}),)
UNSCALED: tuple[Wrapping, ...] = (("reparametrized", {"level": "parameter", "low": 0.1, "high": 10.0}),)

# Networks of many kinds whose best rates differ; where examples are few, for a low validation loss. Every second task is told the horizon.
# With half as many tasks the optimizer learned them and no others.
GENERAL_2 = (
    TaskSpec(name="small_images/digits_32", split="valid"),
    TaskSpec(name="small_images/fashion_8_32"),
    TaskSpec(name="small_images/fashion_8_edges_32", wrappers=WIDELY_SCALED),
    TaskSpec(name="taskset/sampled_0", split="valid"),  # softmax regression, digits
    TaskSpec(name="taskset/sampled_5", split="valid"),  # wine
    TaskSpec(name="taskset/sampled_6", split="valid"),  # breast cancer
    TaskSpec(name="taskset/sampled_2"),  # autoencoder, digits
    TaskSpec(name="taskset/sampled_31"),  # linear autoencoder, Fashion-MNIST
    TaskSpec(name="taskset/sampled_7"),  # GRU, prose
    TaskSpec(name="taskset/sampled_18"),  # RNN, source
    TaskSpec(name="taskset/sampled_9"),  # four layers with layer norm, Fashion-MNIST
    TaskSpec(name="taskset/sampled_11"),  # wide, batches of 16, Fashion-MNIST
    TaskSpec(name="taskset/sampled_29"),  # conv net with layer norm, Fashion-MNIST
    TaskSpec(name="taskset/sampled_30", wrappers=WIDELY_SCALED),  # squared error, Fashion-MNIST
    TaskSpec(name="taskset/sampled_17", split="valid"),  # conv net, digits, batches of 16
    TaskSpec(name="taskset/sampled_1"),  # conv net, squared error, batches of 16
    TaskSpec(name="digits_mlp", fields={"widths": (16,) * 6, "activation": "tanh"}),
    TaskSpec(name="digits_mlp", fields={"widths": (24,) * 4, "batch_size": 16}),
    TaskSpec(name="char_transformer", fields={"width": 16, "length": 16, "batch_size": 8}),
    TaskSpec(name="image_vit", fields={"images": "fashion_8", "patch": 4, "batch_size": 16}),
    TaskSpec(name="residual_net", fields={"channels": 4, "batch_size": 16}, split="valid"),
    TaskSpec(name="wichrowska2017/quadratic_20_noisy"),
    TaskSpec(name="wichrowska2017/logistic_100_noisy", wrappers=UNSCALED),
    *(
        TaskSpec(name=f"taskset/sampled_{seed}")
        for seed in (4, 24, 43, 47, 70, 78, 90, 128, 19, 59, 69, 94, 10, 15, 61, 82, 28, 36, 45, 96)
    ),
    *(TaskSpec(name=f"taskset/sampled_{seed}", split="valid") for seed in (50, 60, 102, 39, 108, 44, 58, 71)),
)

RECIPES: dict[str, Recipe] = {
    "demo": Recipe(
        description="STAR on four small digits MLPs, for a low validation loss: about two minutes on two cores.",
        optimizer="star",
        optimizer_fields={"nominal_step": 3e-3},
        tasks=(
            TaskSpec(name="digits_mlp"),
            TaskSpec(name="digits_mlp", fields={"widths": (64,)}),
            TaskSpec(name="digits_mlp", fields={"widths": (32, 32)}),
            TaskSpec(name="digits_mlp", fields={"activation": "tanh"}),
        ),
        split="valid",
        pairs=4,
        steps=5_000,
    ),
    "conv_net": Recipe(
        description="MLP on a conv net for half of the classes of Fashion-MNIST, for a low validation loss, by the merged estimator: about an hour on a core.",
        optimizer="mlp",
        optimizer_fields={"step_mult": 1e-2, "exp_mult": 0.1},
        tasks=(
            TaskSpec(name="conv_net", fields={"images": "fashion_14", "classes": (0, 2, 4, 6, 8), "batch_size": 32}),
        ),
        estimator="merged",
        estimator_fields={"truncation": Growing(first=20, last=100, over=1_500)},
        pairs=4,
        horizon=(100, 1_000),
        split="valid",
        steps=2_500,
        learning_rate=3e-3,
    ),
    "conv_net_2": Recipe(
        description="ControlledMuon on a conv net for half of the classes of Fashion-MNIST at 28x28, for a low validation loss after some 500 steps.",
        optimizer="controlled_muon",
        tasks=(
            TaskSpec(name="conv_net", fields={"images": "fashion_28", "classes": (0, 2, 4, 6, 8), "batch_size": 32}),
        ),
        objective="late_log",
        pairs=4,
        truncation=50,
        horizon=(250, 750),
        std=0.02,
        split="valid",
        steps=1_500,
        learning_rate=1e-3,
        average=0.99,
    ),
    "general": Recipe(
        description="RelativeMLP on a mixture of images, tables, text and landscapes, for general use.",
        optimizer="relative_mlp",
        tasks=tuple(TaskSpec(name=name, tell_horizon=i % 2 == 0) for i, name in enumerate(GENERAL)),
        objective="mean_log",
        pairs=2,
        horizon=(60, 2_000),
        curriculum=1_000,
        std=0.02,
        task_norm="estimate",
        steps=16_000,
        average=0.999,
    ),
    "general_longer": Recipe(
        description="RelativeMLP on other tasks, to longer horizons and for what it generalises to; for `--init` with what general gave.",
        optimizer="relative_mlp",
        tasks=tuple(
            TaskSpec(
                name=name,
                tell_horizon=i % 2 == 0,
                split="valid" if name in FEW_EXAMPLES else None,
                wrappers=SCALED if i % 3 == 2 else (),
            )
            for i, name in enumerate(GENERAL_LONGER)
        ),
        objective="late_log",
        pairs=2,
        horizon=(100, 3_000),
        curriculum=2_000,
        even="steps",
        std=0.02,
        task_norm="average",
        steps=20_000,
        learning_rate=5e-4,
        average=0.999,
    ),
    "general_2": Recipe(
        description="ControlledMuon on networks, tables, text and landscapes whose best rates differ, to find the rate during the training.",
        optimizer="controlled_muon",
        tasks=tuple(dataclasses.replace(task, tell_horizon=i % 2 == 1) for i, task in enumerate(GENERAL_2)),
        objective="late_log",
        drawn=True,
        pairs=4,
        horizon=(60, 1_500),
        curriculum=400,
        even="steps",
        std=0.02,
        task_norm="average",
        steps=24_000,
        learning_rate=1e-4,
        average=0.9998,
    ),
    "smoke": Recipe(
        description="STAR on quadratics for a few seconds: shows that meta-training works.",
        optimizer="star",
        optimizer_fields={"nominal_step": 3e-3},
        tasks=(TaskSpec(name="quadratic", fields={"dim": 10}),),
        horizon=(50, 200),
        steps=500,
    ),
}


class _AnnealedState(NamedTuple):
    """Meta-steps taken, and in all."""

    taken: Int[Array, ""]
    steps: Int[Array, ""]


def _annealed(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Minus a learning rate that a cosine lowers to a tenth. The number of steps is part of the state, so one compiled program serves any number."""

    def init(params: Any) -> _AnnealedState:
        del params
        return _AnnealedState(jnp.zeros((), jnp.int32), jnp.asarray(steps, jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _AnnealedState]:
        del params
        over = jnp.minimum(state.taken.astype(jnp.float32) / state.steps.astype(jnp.float32), 1.0)
        rate = learning_rate * (0.1 + 0.45 * (1.0 + jnp.cos(jnp.pi * over)))
        return jax.tree.map(lambda u: -rate * u, updates), state._replace(taken=state.taken + 1)

    return optax.GradientTransformation(init, update)


def plan_steps(recipe: Recipe, run_dir: Path, *, seed: int, seconds: float) -> int:
    """How many meta-steps of a recipe take about so many seconds on this machine: those of a run that is there already, else by a rehearsal.

    Args:
        recipe: what will be meta-trained.
        run_dir: where.
        seed: of the run.
        seconds: that the meta-training may take, compilation left out.

    Returns:
        Hundreds of meta-steps: at least `LEAST_STEPS`, at most the recipe's own.
    """
    config = run_dir / CONFIG
    if config.exists():
        with contextlib.suppress(ValueError, AttributeError):  # damaged: `meta_train` will say so
            steps = json.loads(config.read_bytes()).get("steps")
            if isinstance(steps, int):
                return steps
    init_key, key = jax.random.split(jax.random.key(seed))
    optimizer, estimators, outer = recipe.build(init_key, recipe.steps)
    times: list[float] = []
    meta_train(
        optimizer, estimators, outer, steps=REHEARSED, key=key, on_step=lambda _: times.append(time.perf_counter())
    )
    usual = float(np.median(np.diff(times[REHEARSED // 4 :])))
    return int(np.clip(100 * round(seconds / usual / 100), LEAST_STEPS, recipe.steps))


def recipe(name: str, **changes: Any) -> Recipe:
    """A recipe by name, with fields changed.

    Raises:
        InputError: for an unknown name or field, with the nearest ones.
    """
    if name not in RECIPES:
        raise InputError(unknown("recipe", name, RECIPES))
    known = {field.name for field in dataclasses.fields(Recipe)}
    for field in changes:
        if field not in known:
            raise InputError(unknown("field of a recipe", field, known))
    chosen = RECIPES[name]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    for field, value in values.items():
        old = getattr(chosen, field)
        number = isinstance(value, int) and isinstance(old, float)
        pair = isinstance(value, tuple) and isinstance(old, tuple) and [*map(type, value)] == [*map(type, old)]
        if not (number or pair or (type(value) is type(old) and not isinstance(old, tuple))):
            raise InputError(f"{field} is {value!r}; it must be like {old!r}.")
    if values.get("optimizer", chosen.optimizer) != chosen.optimizer:
        values.setdefault("optimizer_fields", {})  # the recipe's are those of its own optimizer
    return dataclasses.replace(chosen, **values)


def run(
    recipe: Recipe,
    run_dir: Path,
    *,
    seed: int,
    steps: int | None = None,
    init: Path | None = None,
    outer: str | Path | None = None,
    command: str = "",
    engine: Engine | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Path:
    """Meta-train a recipe in a run directory and save the result there as `optimizer.safetensors` with its card.

    Args:
        recipe: what to meta-train.
        run_dir: where the run lives; the same call resumes it.
        seed: draws everything.
        steps: meta-steps, the recipe's own if `None`.
        init: a saved optimizer to begin with, of whatever architecture; the recipe's own, at random, if `None`.
        outer: a saved optimizer that applies the meta-gradients instead of the recipe's Adam, by name or path.
        command: the command line, for the card.
        engine: where meta-gradients are computed; this process if `None`, of one task a meta-step where the recipe says so.
        on_step: called after each meta-step.

    Returns:
        The path of the weights.

    Raises:
        InputError: for an outer optimizer that wants a validation loss, or an engine where the recipe draws its tasks.
    """
    steps = recipe.steps if steps is None else steps
    init_key, key = jax.random.split(jax.random.key(seed))
    optimizer, estimators, applied = recipe.build(init_key, steps, init)
    if recipe.drawn:
        if engine is not None:
            raise InputError(
                "The recipe draws one task a meta-step, which the local engine alone does; leave out the engine."
            )
        engine = Drawn([1] * len(estimators))
    settings: dict[str, Any] = {"learning_rate": recipe.learning_rate, "clip": recipe.clip}
    if outer is not None:
        applied = _learned(outer, recipe.clip, steps)
        settings = {"outer": str(outer), "clip": recipe.clip}
    state = meta_train(
        optimizer,
        estimators,
        applied,
        steps=steps,
        key=key,
        run_dir=run_dir,
        settings=settings,
        average=recipe.average,
        engine=engine,
        on_step=on_step,
    )
    last = metrics_of(run_dir)[-1]
    card = zoo.Card(
        description=recipe.description,
        tasks=tuple(task.to_json() for task in recipe.tasks),
        seed=seed,
        meta_steps=steps,
        inner_steps=last["inner_steps"],
        horizon=recipe.reached(steps),
        seconds=last["seconds"],
        cores=len(cores()),
        command=command,
    )
    if init is not None:
        card = _in_all(zoo.read_card(init), card)
    return zoo.save(run_dir / "optimizer.safetensors", state.optimizer, card)


def _learned(name: str | Path, clip: float, steps: int) -> optax.GradientTransformation:
    """A saved optimizer as the outer one, behind the recipe's clipping. Its loss is the meta-loss."""
    found = zoo.load(name)
    if found.validation_every:
        raise InputError(
            f"{name} wants a validation loss, which a meta-training has not; give a saved optimizer whose validation_every is 0."
        )
    return optax.chain(optax.clip(clip), found.to_optax(horizon=steps))


def _with(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return fields | more


def _in_all(before: zoo.Card, card: zoo.Card) -> zoo.Card:
    """What an optimizer has seen and cost in two meta-trainings, one after the other."""
    horizons = [c.horizon for c in (before, card) if c.horizon]
    return dataclasses.replace(
        card,
        tasks=tuple({json.dumps(task, sort_keys=True): task for task in (*before.tasks, *card.tasks)}.values()),
        meta_steps=before.meta_steps + card.meta_steps,
        inner_steps=before.inner_steps + card.inner_steps,
        horizon=(min(h[0] for h in horizons), max(h[1] for h in horizons)) if horizons else None,
        seconds=None if before.seconds is None or card.seconds is None else before.seconds + card.seconds,
        command=" && ".join(c.command for c in (before, card) if c.command),
    )
