"""Paths of optimizers on landscapes of two parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt import tasks
from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.contenders import Contender, by_label
from lopt.evaluate.training import as_optimizer
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.task import Memory, Split, Task
from lopt.tasks import SURFACES
from lopt.unroll import Inner, step

Point = Float[Array, " 2"]
SMALL = 1e-6  # added to heights before their logarithm


class Scene(NamedTuple):
    """A landscape to be looked at.

    Attributes:
        task: of two parameters, as `lopt.tasks.create` takes it; where its problems differ, one of them is drawn.
        about: what makes it hard, in one sentence.
        frame: left, right, bottom and top of its picture.
        starts: of the paths.
        minima: all global ones.
        least: the loss there.
    """

    task: str
    about: str
    frame: tuple[float, float, float, float]
    starts: tuple[tuple[float, float], ...]
    minima: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    least: float = 0.0


def _surface(
    name: str, about: str, *starts: tuple[float, float], frame: tuple[float, float, float, float] | None = None
) -> Scene:
    surface = SURFACES[name]
    task = f'landscape{{"function":"{name}"}}'
    return Scene(task, about, frame or surface.frame, starts, surface.minima, surface.least)


# The landscapes that `lopt watch` shows, in its order.
LANDSCAPES: dict[str, Scene] = {
    "bowl": Scene(
        'bowl{"angle":0.5,"condition":100.0}',
        "Ill-conditioned: one direction is a hundred times as steep as the other.",
        (-2.5, 2.5, -2.5, 2.5),
        ((-2.0, 1.6), (2.2, 1.0), (0.6, -2.2)),
    ),
    "noisy_bowl": Scene(
        'bowl{"angle":0.5,"condition":10.0,"wrappers":[["noisy_gradients",{"deviation":2.0}]]}',
        "Every gradient comes with noise, so a step that stays large never settles.",
        (-2.5, 2.5, -2.5, 2.5),
        ((-2.0, 1.6), (2.2, 1.0), (0.6, -2.2)),
    ),
    "rosenbrock": _surface(
        "rosenbrock",
        "The walls of a curved valley are steep, and its floor is nearly flat.",
        (-1.5, 2.7),
        (-1.8, -0.8),
        (0.3, 2.8),
        frame=(-2.2, 2.2, -1.2, 3.2),
    ),
    "beale": _surface(
        "beale",
        "Steep cliffs at the corners, and plateaus between them.",
        (-2.5, -2.0),
        (-1.0, 3.5),
        (1.0, 1.2),
    ),
    "styblinski_tang": _surface(
        "styblinski_tang",
        "Four valleys, of which one is deepest, with saddles between them.",
        (-0.5, 0.0),
        (0.16, -4.5),
        (4.0, 1.0),
    ),
    "ackley": _surface(
        "ackley", "A funnel full of pits.", (-4.3, 3.1), (2.6, 4.4), (5.2, -1.7), frame=(-6.0, 6.0, -6.0, 6.0)
    ),
    "booth": _surface("booth", "A mild quadratic.", (-8.0, 2.0), (6.0, -8.0)),
    "branin": _surface("branin", "Three valleys of one depth.", (3.0, 13.0), (-4.0, 2.0), (6.5, 8.0)),
    "log_sum_exp": _surface("log_sum_exp", "Convex, steep outside and flat inside.", (2.4, 1.2), (-2.6, -2.0)),
    "matyas": _surface("matyas", "A long and narrow bowl.", (-9.0, 3.0), (8.0, 2.0)),
    "michalewicz": _surface("michalewicz", "Plains without a slope, cut by narrow valleys.", (1.5, 2.4), (2.6, 0.9)),
}


@dataclasses.dataclass(frozen=True)
class Descent:
    """The paths of one optimizer on one landscape.

    Attributes:
        optimizer: its name.
        landscape: its name.
        setting: that was chosen for the landscape; empty where nothing was tuned.
        tried: how many settings it was chosen from.
        points: where the loss would be evaluated, before the first step and after each.
        heights: the loss there, without noise, above the least one.
    """

    optimizer: str
    landscape: str
    setting: Mapping[str, float]
    tried: int
    points: Float[np.ndarray, "starts times 2"]
    heights: Float[np.ndarray, "starts times"]

    @property
    def diverged(self) -> Int[np.ndarray, " starts"]:
        """The first step after which a point or its height is not finite; -1 where there is none."""
        lost = ~(np.isfinite(self.points).all(axis=-1) & np.isfinite(self.heights))
        return np.where(lost.any(axis=-1), lost.argmax(axis=-1), -1)


def descend(
    optimizers: Sequence[str] | Mapping[str, Optimizer | optax.GradientTransformation],
    landscapes: Sequence[str] | Mapping[str, Scene] = tuple(LANDSCAPES),
    *,
    starts: Mapping[str, Any] | None = None,
    steps: int = 200,
    key: PRNGKeyArray,
    on_progress: Callable[[str], None] | None = None,
) -> list[Descent]:
    r"""Let optimizers descend landscapes of two parameters.

    $$w_{t+1} = w_t + U(\nabla f(w_t), s_t, w_t; \theta), \qquad w_0 \text{ a start}, \quad w_t \in \mathbb R^2$$

    Each optimizer is one compiled program over all landscapes, starts and settings. It is told the number of steps, except where its fields say
    `tell_horizon=false`.
    A baseline without fields has the best setting of its grid on each landscape: the least mean over steps and starts of the logarithm of the height.

    Args:
        optimizers: names, as `lopt.evaluate.contenders.contender` takes them; or optimizers by name.
        landscapes: keys of `LANDSCAPES`; or scenes by name.
        starts: of landscapes, instead of their own; points `[x, y]` within the frame.
        steps: of each path.
        key: draws the noise, the same for all optimizers, and random starts of states.
        on_progress: told the name of each optimizer.

    Returns:
        Optimizers one after the other, each on all landscapes.

    Raises:
        InputError: for no optimizer, landscape or step; for unknown names, with the nearest ones; for a start that is no point of the picture; for a
            task that has not two parameters or that remembers gradients; for two files of one name.

    Examples:
        >>> import jax
        >>> from lopt.analyze import descend
        >>> (found,) = descend(['sgd{"learning_rate":0.1}'], ["booth"], steps=20, key=jax.random.key(0))
        >>> found.points.shape, bool(found.heights[0, -1] < 0.1 * found.heights[0, 0])
        ((2, 21, 2), True)

    Source: lopt's own.
    """
    at_least(1, steps=steps)
    scenes = scenes_of(landscapes, starts)
    entered = _entered(optimizers)
    task = _Choice(tuple(_task(name, scene) for name, scene in scenes.items()))
    which = np.repeat(np.arange(len(scenes)), [len(s.starts) for s in scenes.values()])
    begin = np.asarray([start for scene in scenes.values() for start in scene.starts], np.float32)
    least = np.asarray([scene.least for scene in scenes.values()])
    found = []
    for name, entry in entered.items():
        if on_progress is not None:
            on_progress(name)
        settings = entry.settings() if isinstance(entry, Contender) else [{}]
        rules = entry.optimizers(settings) if isinstance(entry, Contender) else jax.tree.map(lambda x: x[None], entry)
        told = steps if not isinstance(entry, Contender) or entry.tell_horizon else None
        ran = _run(rules, task, which, begin, key, steps=steps, told=told, batch=len(settings))
        points, losses = (np.asarray(x, np.float64) for x in ran)
        for i, landscape in enumerate(scenes):
            heights = losses[:, which == i] - least[i]
            with np.errstate(invalid="ignore", divide="ignore"):
                scores = np.log(np.maximum(heights, 0.0) + SMALL).mean(axis=(1, 2))
            best = int(np.where(np.isfinite(scores), scores, np.inf).argmin())
            chosen = settings[best] if len(settings) > 1 else {}
            found.append(Descent(name, landscape, chosen, len(settings), points[best, which == i], heights[best]))
    return found


def scenes_of(
    landscapes: Sequence[str] | Mapping[str, Scene], starts: Mapping[str, Any] | None = None
) -> dict[str, Scene]:
    """The scenes of some names, with starts of one's own. Arguments and errors as for `descend`."""
    for name in () if isinstance(landscapes, Mapping) else landscapes:
        if name not in LANDSCAPES:
            raise InputError(unknown("landscape", name, LANDSCAPES))
    known = landscapes if isinstance(landscapes, Mapping) else LANDSCAPES
    scenes = {name: known[name] for name in landscapes}
    if not scenes:
        raise InputError(f"no landscapes were named; there are {', '.join(LANDSCAPES)}.")
    for name, points in (starts or {}).items():
        if name not in scenes:
            raise InputError(unknown("landscape", name, scenes))
        scenes[name] = scenes[name]._replace(starts=_points(name, points))
    for name, scene in scenes.items():
        left, right, bottom, top = scene.frame
        for x, y in scene.starts:
            if not (left <= x <= right and bottom <= y <= top):
                raise InputError(
                    f"the start [{x:g}, {y:g}] is outside the picture of {name}: x is from {left:g} to {right:g}, y from {bottom:g} to {top:g}."
                )
    return scenes


def picture(name: str, scene: Scene, cells: int) -> Float[np.ndarray, "cells cells"]:
    """Heights above the least loss over the frame of a scene, without noise; the first row is the lowest y.

    Args:
        name: of the scene, for messages.
        scene: to look at.
        cells: points a side.
    """
    task, (left, right, bottom, top) = _task(name, scene), scene.frame
    points = np.stack(np.meshgrid(np.linspace(left, right, cells), np.linspace(bottom, top, cells)), axis=-1)
    problem, key = task.sample(jax.random.key(0)), jax.random.key(0)
    losses = jax.vmap(lambda w: task.loss(problem, w, key, "test"))(jnp.asarray(points.reshape(-1, 2), jnp.float32))
    return np.asarray(losses, np.float64).reshape(cells, cells) - scene.least


def _points(name: str, points: Any) -> tuple[tuple[float, float], ...]:
    try:
        array = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(())
    if array.ndim != 2 or array.shape[1:] != (2,) or not len(array):
        raise InputError(f"starts of {name} are {points!r}; they must be points, as [[0.5, 1], [2, 0]].")
    return tuple((float(x), float(y)) for x, y in array)


def _entered(
    optimizers: Sequence[str] | Mapping[str, Optimizer | optax.GradientTransformation],
) -> Mapping[str, Contender | Optimizer]:
    if not optimizers:
        raise InputError("no optimizers were named; at least one must descend.")
    if isinstance(optimizers, Mapping):
        return {name: as_optimizer(optimizer) for name, optimizer in optimizers.items()}
    return by_label(optimizers)


def _task(name: str, scene: Scene) -> Task:
    task = tasks.create(scene.task)
    problem = jax.eval_shape(task.sample, jax.random.key(0))
    shape = jax.eval_shape(task.init, problem, jax.random.key(0))
    if getattr(shape, "shape", None) != (2,):
        raise InputError(f"{name} is {scene.task}, which has not two parameters in one tensor.")
    if jax.tree.leaves(jax.eval_shape(task.remember, problem, shape)):
        raise InputError(f"{name} is {scene.task}, which remembers earlier gradients; no landscape may.")
    return task


class _Choice(Task):
    """One of several tasks, chosen by a number: its problem. Gradients are taken within each, so that none is spoilt by another's overflow."""

    tasks: tuple[Task, ...]

    def sample(self, key: PRNGKeyArray) -> Int[Array, ""]:
        del key
        return jnp.zeros((), jnp.int32)

    def init(self, problem: Int[Array, ""], key: PRNGKeyArray) -> Point:
        del problem, key
        return jnp.zeros(2)

    def loss(
        self, problem: Int[Array, ""], params: Point, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        def of(task: Task) -> Callable[[], Float[Array, ""]]:
            return lambda: task.loss(task.sample(jax.random.key(0)), params, key, split)

        return jax.lax.switch(problem, [of(task) for task in self.tasks])

    def observe(
        self, problem: Int[Array, ""], params: Point, memory: Memory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Point, Memory]:
        def of(task: Task) -> Callable[[], tuple[Float[Array, ""], Point]]:
            drawn = task.sample(jax.random.key(0))
            return lambda: task.observe(drawn, params, task.remember(drawn, params), key)[:2]

        return *jax.lax.switch(problem, [of(task) for task in self.tasks]), memory


@partial(jax.jit, static_argnames=("steps", "told", "batch"))
def _run(
    optimizers: Optimizer,
    task: Task,
    which: Int[Array, " rows"],
    starts: Float[Array, "rows 2"],
    key: PRNGKeyArray,
    *,
    steps: int,
    told: int | None,
    batch: int,
) -> tuple[Float[Array, "batch rows times 2"], Float[Array, "batch rows times"]]:
    def one(optimizer: Optimizer, number: Int[Array, ""], start: Point, key: PRNGKeyArray) -> Any:
        begin, stream = jax.random.split(key)
        state = optimizer.init(start, key=begin, horizon=told)
        inner = Inner(number, start, state, jnp.zeros((), jnp.int32), jnp.asarray(steps, jnp.int32))

        def look(inner: Inner) -> tuple[Point, Float[Array, ""]]:
            at = optimizer.eval_params(inner.opt_state, inner.params)
            return at, task.loss(number, at, key, "test")

        def body(inner: Inner, key: PRNGKeyArray) -> Any:
            return step(optimizer, task, inner, key, split=None)[0], look(inner)

        after, seen = jax.lax.scan(body, inner, jax.random.split(stream, steps))
        return jax.tree.map(lambda path, last: jnp.concatenate([path, last[None]]), seen, look(after))

    keys = jax.random.split(key, len(starts))
    rows = jax.vmap(one, in_axes=(None, 0, 0, 0))
    return jax.vmap(rows, in_axes=(0, None, None, None), axis_size=batch)(optimizers, which, starts, keys)


__all__ = ["LANDSCAPES", "Descent", "Scene", "descend", "picture", "scenes_of"]
