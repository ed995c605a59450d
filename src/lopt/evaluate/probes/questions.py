"""Pass/fail probes of any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from lopt.errors import InputError
from lopt.evaluate.probes.rules import Guarded
from lopt.evaluate.probes.task import ODD, SADDLE, VALLEY, ProbeTask, Setting, UnscaledFeatures
from lopt.names import unknown
from lopt.optimizer import Optimizer
from lopt.optimizers.from_optax import FromOptax
from lopt.task import Problem, Task
from lopt.unroll import Inner, unroll

HORIZON = (
    1_000  # steps of a probe; one step of 1e-3 a time, the usual learning rate of Adam, gets twice as far as is needed
)
HALF = HORIZON // 2  # steps of one call of a compiled program
LONG = 10 * HORIZON
SEEDS = 4  # problems of a probe; the worst of them counts
LOOP = 50  # steps taken one by one
LAST = 20  # losses at the end that are averaged


class Probe(NamedTuple):
    """What one probe found."""

    name: str
    shows: str  # what passing it means
    criterion: str
    limit: float
    figure: float  # of the worst seed; NaN where the optimizer could not be run
    passed: bool  # the figure is finite and at most the limit
    note: str = ""  # why it could not be run


class Question(NamedTuple):
    """A probe that has not been run.

    Attributes:
        shows: what passing it means.
        limit: what the figure must not exceed.
        figure: what the figure is, for the criterion.
        setting: of its `ProbeTask`; None where the probe has a task or measure of its own.
        told: the horizon that the optimizer is told.
    """

    shows: str
    limit: float
    figure: str = "final loss / first loss"
    setting: Setting | None = None
    told: int = HORIZON


# Two limits on what is left of the first loss; docs/probes.md argues for them. 0.01 (a tenth of the distance) on a plain quadratic, where a rule with
# a step size that fits ends orders of magnitude below. 0.1 (a third of the distance) where noise keeps a constant step size moving, or where the way is
# longer. An optimizer that does nothing is at 1. `zero_gradients` lets a weight decay of 1e-4 at a learning rate of 1e-2 pass, 0.001 in 1,000 steps, but
# none that is felt. `reproducible` asks two runs for equal bits, and grants the loop, which is another program, the rounding of another order.
# `spikes` lets a loss rise by half. `unscaled_features` asks for half of the logarithm of 2, with which a classifier that knows nothing begins.
STEEP = (1.0, 1e3)
QUESTIONS: dict[str, Question] = {
    "quadratic": Question("converges where nothing is in the way", 0.01, setting=Setting()),
    "ill_conditioned": Question(
        "gets to the end of directions a thousand times as flat as others", 0.1, setting=Setting(curvature=STEEP)
    ),
    "noisy_gradients": Question("averages noise that is larger than the gradient", 0.1, setting=Setting(noise=0.5)),
    "sparse_gradients": Question("learns from gradients of which 95 % are zero", 0.1, setting=Setting(hidden=0.95)),
    "exploding_gradients": Question(
        "is not thrown by gradients 1,000 times as large, at every hundredth step", 0.1, setting=Setting(spiky=1.0)
    ),
    "nan_gradient": Question("survives a NaN in one gradient", 0.01, setting=Setting(nan_at=50)),
    "zero_gradients": Question(
        "does not drift where gradients are zero",
        0.01,
        "distance moved / norm of the parameters",
        Setting(shown=0.0),
    ),
    "loss_times_1000": Question("does not depend on the loss being small", 0.01, setting=Setting(loss_scale=1e3)),
    "loss_over_1000": Question("does not depend on the loss being large", 0.01, setting=Setting(loss_scale=1e-3)),
    "loss_times_1e8": Question("takes losses of a hundred million", 0.01, setting=Setting(loss_scale=1e8)),
    "loss_over_1e8": Question("takes losses of a hundred millionth", 0.01, setting=Setting(loss_scale=1e-8)),
    "params_times_1000": Question("moves as far as large parameters need", 0.01, setting=Setting(scales=(1e3, 1e3))),
    "params_over_1000": Question(
        "moves as little as small parameters need", 0.01, setting=Setting(scales=(1e-3, 1e-3))
    ),
    "params_times_1e6": Question("moves as far as huge parameters need", 0.01, setting=Setting(scales=(1e6, 1e6))),
    "mixed_scales": Question(
        "serves tensors whose scales differ by 100 at once", 0.1, setting=Setting(scales=(1.0, 1e-2))
    ),
    "unscaled_features": Question("trains a classifier whose features reach from 1 to 10,000", 0.5),
    "spikes": Question(
        "does not rise above its start where one step is too long for some directions and too short for others",
        1.5,
        "largest loss / first loss",
        Setting(curvature=STEEP),
    ),
    "saddle": Question("escapes a saddle point from a millionth beside it", 0.1, setting=Setting(surface=SADDLE)),
    "valley": Question("follows the curved valley of Rosenbrock's function", 0.1, setting=Setting(surface=VALLEY)),
    "moving_minimum": Question("follows a minimum that jumps halfway, when it was reached", 0.1, setting=Setting()),
    "ten_horizons": Question(
        "stays at a minimum, in noise, for ten times as many steps",
        0.1,
        f"largest mean loss of {HALF} steps, from step {HORIZON:,} to {LONG:,} / first loss",
        Setting(noise=0.5),
        LONG,
    ),
    "horizon_too_long": Question(
        "trains where it was told ten times as many steps", 0.1, setting=Setting(), told=10 * HORIZON
    ),
    "horizon_too_short": Question(
        "trains where it was told a tenth of the steps", 0.1, setting=Setting(), told=HORIZON // 10
    ),
    "bfloat16": Question("trains parameters of 16 bits", 0.1),
    "odd_leaves": Question("takes scalars and empty tensors", 0.01),
    "digits": Question("trains a small network on real digits, in minibatches", 0.1),
    "reproducible": Question(
        "does the same again with the same key, and in a Python loop as in a scan",
        1e-3,
        f"largest difference in {LOOP} losses / first loss",
    ),
}


def probe(
    optimizer: Optimizer | optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    only: Collection[str] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> list[Probe]:
    """Ask an optimizer the questions of `QUESTIONS`, each with a criterion in numbers.

    A lopt `Optimizer` is probed as its users have it, with the guard of `to_optax` against non-finite gradients; an optax
    transformation as it is. What an optimizer raises fails the probes that it was run for.

    Args:
        optimizer: a lopt `Optimizer`, or any optax transformation. Its hyper-parameters are not tuned.
        key: draws problems, noise and the optimizer's start.
        only: names of `QUESTIONS`; all by default.
        on_progress: told what is being done.

    Returns:
        A `Probe` for each question, in the order of `QUESTIONS`.

    Raises:
        InputError: for what is no optimizer, and for an unknown question.

    Examples:
        >>> import jax, lopt, optax
        >>> (found,) = lopt.evaluate.probe(optax.adam(1e-2), jax.random.key(0), only=["bfloat16"])
        >>> found.passed
        True
    """
    if isinstance(optimizer, Optimizer):
        rule = Guarded(optimizer)
    elif isinstance(optimizer, optax.GradientTransformation):
        rule = FromOptax(optimizer)
    else:
        raise InputError(
            f"optimizer is a {type(optimizer).__name__}; it must be a lopt Optimizer or an optax transformation."
        )
    for name in only or ():
        if name not in QUESTIONS:
            raise InputError(unknown("probe", name, QUESTIONS))
    asked = [name for name in QUESTIONS if only is None or name in only]
    shared = [name for name in asked if QUESTIONS[name].setting is not None or name == "reproducible"]
    programs = [(shared, lambda: _shared(rule, shared, key))] if shared else []
    programs += [([name], partial(_single, rule, name, key)) for name in asked if name not in shared]
    figures, notes = {}, {}
    for names, run in programs:
        if on_progress is not None:
            on_progress(", ".join(names))
        try:
            figures |= run()
        except Exception as error:  # whatever it is, it is the answer
            first = (str(error).strip() or "no message").splitlines()[0]
            notes |= dict.fromkeys(names, f"{type(error).__name__}: {first}")
    return [_judge(name, figures.get(name, float("nan")), notes.get(name, "")) for name in asked]


def _judge(name: str, figure: float, note: str) -> Probe:
    question = QUESTIONS[name]
    criterion = f"{question.figure} ≤ {question.limit:g}"
    passed = bool(np.isfinite(figure) and figure <= question.limit)
    return Probe(name, question.shows, criterion, question.limit, figure, passed, note)


def _shared(optimizer: Optimizer, asked: Collection[str], key: PRNGKeyArray) -> dict[str, float]:
    """The probes that are one program on different data, and whether that program can be relied on."""
    task = ProbeTask(Setting())
    questions = {name: question for name, question in QUESTIONS.items() if question.setting is not None}
    row = {name: slice(i * SEEDS, (i + 1) * SEEDS) for i, name in enumerate(questions)}
    begun = _begin_shared(optimizer, questions.values(), key)
    keys = jax.random.split(jax.random.fold_in(key, 1), LONG // HALF)
    inner, losses = _advance(optimizer, task, begun, keys[0], HALF)
    chunks = [np.asarray(losses)]
    figures = {}

    if "reproducible" in asked:
        again = _advance(optimizer, task, _begin_shared(optimizer, questions.values(), key), keys[0], HALF)
        same = _equal((inner.params, losses), (again[0].params, again[1]))
        loop = _one_by_one(optimizer, task, begun, keys[0])
        difference = _difference(loop, chunks[0][:, :LOOP])[row["quadratic"]]
        figures["reproducible"] = difference.max() if same else np.inf

    # The new minimum lies as far beyond the old one as that is from the start.
    moving, problem = row["moving_minimum"], begun.problem
    center = problem.center.at[moving].add(problem.center[moving] - problem.start[moving])
    inner = inner._replace(problem=problem._replace(center=center))
    while len(chunks) * HALF < HORIZON:
        inner, losses = _advance(optimizer, task, inner, keys[len(chunks)], HALF)
        chunks.append(np.asarray(losses))
    curves = np.concatenate(chunks, axis=1)
    figures |= {name: _worst(curves[rows]) for name, rows in row.items()}
    figures["spikes"] = _highest(curves[row["spikes"]])
    figures["zero_gradients"] = _moved(optimizer, begun, inner, row["zero_gradients"])

    if "ten_horizons" in asked:
        late = []
        for chunk_key in keys[len(chunks) :]:
            inner, losses = _advance(optimizer, task, inner, chunk_key, HALF)
            late.append(np.asarray(losses[row["ten_horizons"]]).mean(axis=1))
        figures["ten_horizons"] = (np.max(late, axis=0) / curves[row["ten_horizons"], 0]).max()
    return {name: float(figures[name]) for name in asked}


def _single(optimizer: Optimizer, name: str, key: PRNGKeyArray) -> dict[str, float]:
    """A probe with a program of its own."""
    task = _own_task(name)
    keys = jax.random.split(key, SEEDS)
    inner = _begin(optimizer, task, _sample(task, keys), keys, jnp.full(SEEDS, HORIZON, jnp.int32))
    chunks = []
    for chunk_key in jax.random.split(jax.random.fold_in(key, 1), HORIZON // HALF):
        inner, losses = _advance(optimizer, task, inner, chunk_key, HALF)
        chunks.append(np.asarray(losses))
    return {name: _worst(np.concatenate(chunks, axis=1))}


def _own_task(name: str) -> Task:
    from lopt.tasks.networks.image_mlp import digits_mlp

    if name == "digits":
        return digits_mlp()
    if name == "unscaled_features":
        return UnscaledFeatures()
    return ProbeTask(Setting(), dtype=jnp.bfloat16) if name == "bfloat16" else ProbeTask(Setting(), tensors=ODD)


def _begin_shared(optimizer: Optimizer, questions: Collection[Question], key: PRNGKeyArray) -> Inner:
    """All problems of all probes in one batch: seeds of the first probe, seeds of the second, ..."""
    keys = jax.random.split(key, SEEDS)
    drawn = (_sample(ProbeTask(question.setting), keys) for question in questions if question.setting is not None)
    problems = jax.tree.map(lambda *x: jnp.concatenate(x), *drawn)
    horizons = np.repeat([question.told for question in questions], SEEDS)
    start_keys = jax.random.split(jax.random.fold_in(key, 2), len(horizons))
    return _begin(optimizer, ProbeTask(Setting()), problems, start_keys, jnp.asarray(horizons, jnp.int32))


# Jitted here rather than in each call, so that the probes of one optimizer share their compiled programs.


@jax.jit
def _sample(task: Task, keys: Key[Array, " batch"]) -> Problem:
    return jax.vmap(task.sample)(keys)


@jax.jit
def _begin(
    optimizer: Optimizer, task: Task, problems: Problem, keys: Key[Array, " batch"], horizons: Int[Array, " batch"]
) -> Inner:
    """`unroll.start` on problems that have been drawn."""

    def begin(problem: Problem, key: PRNGKeyArray, horizon: Int[Array, ""]) -> Inner:
        params_key, opt_key = jax.random.split(key)
        params = task.init(problem, params_key)
        opt_state = optimizer.init(params, key=opt_key, horizon=horizon)
        return Inner(problem, params, opt_state, jnp.zeros((), jnp.int32), horizon, task.remember(problem, params))

    return jax.vmap(begin)(problems, keys, horizons)


@partial(jax.jit, static_argnums=4)
def _advance(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, length: int
) -> tuple[Inner, Float[Array, "batch length"]]:
    """`length` steps of every problem, each with a stream of its own."""
    keys = jax.random.split(key, inner.step.shape[0])
    return jax.vmap(lambda i, k: unroll(optimizer, task, i, k, length))(inner, keys)


def _one_by_one(optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray) -> Float[np.ndarray, "batch steps"]:
    """Losses of steps that Python takes."""
    found = []
    for _ in range(LOOP):
        inner, losses = _advance(optimizer, task, inner, key, 1)
        found.append(np.asarray(losses))
    return np.concatenate(found, axis=1)


def _moved(optimizer: Optimizer, before: Inner, after: Inner, rows: slice) -> float:
    """Distance between the parameters to be evaluated, as a share of their norm, in the worst of some rows."""

    def flat(inner: Inner) -> np.ndarray:
        leaves = jax.tree.leaves(jax.vmap(optimizer.eval_params)(inner.opt_state, inner.params))
        return np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in leaves], axis=1)[rows]

    old = flat(before)
    return (np.linalg.norm(flat(after) - old, axis=1) / np.linalg.norm(old, axis=1)).max()


def _worst(losses: Float[np.ndarray, "seeds steps"]) -> float:
    """Final loss / first loss of the worst seed; not finite where a final loss is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float((losses[:, -LAST:].astype(np.float64).mean(axis=1) / losses[:, 0]).max())


def _highest(losses: Float[np.ndarray, "seeds steps"]) -> float:
    """Largest loss / first loss of the worst seed."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float((losses.astype(np.float64).max(axis=1) / losses[:, 0]).max())


def _difference(
    a: Float[np.ndarray, "batch steps"], b: Float[np.ndarray, "batch steps"]
) -> Float[np.ndarray, " batch"]:
    """Largest difference of two curves / first loss."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.abs(a - b).max(axis=1) / b[:, 0]


def _equal(a: PyTree, b: PyTree) -> bool:
    """To the last bit, NaN with NaN."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in pairs)
