"""The outer step, and the loop over it with progress, checkpoint and resume."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.checks import at_least, shares
from lopt.engine import Engine, Gradients, Local, Unreachable, gradients
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, EstimatorState
from lopt.optimizer import Optimizer, State, update_if_finite
from lopt.optimizers.from_optax import FromOptax
from lopt.run_directory import RunDirectory, configuration

MetaParams = Any  # an `Optimizer`, where optax wants a tree


class MetaState(NamedTuple):
    """Everything that a meta-training is; arrays only.

    During training and in checkpoints `optimizer` is the point at which the next meta-gradient is evaluated. In the state that `meta_train` returns it
    is the result: the average if one is kept, else `outer.eval_params(...)`.
    """

    optimizer: Optimizer
    outer: State
    estimators: tuple[EstimatorState, ...]
    key: PRNGKeyArray
    step: Int[Array, ""]  # meta-steps taken
    smoothed: Float[Array, ""]  # moving average of the meta-loss
    average: Optimizer | None = None  # of the meta-parameters, where one is kept


class Progress(NamedTuple):
    """What a meta-training reports after each meta-step."""

    step: int
    steps: int
    meta_loss: float
    smoothed: float
    diverged: float
    inner_steps_per_second: float
    seconds_left: float


class Interrupted(KeyboardInterrupt):
    """A meta-training was stopped by Ctrl-C, after saving its state where it has a run directory."""

    def __init__(self, state: Any, steps: int, unit: str = "meta-step"):
        self.state, self.steps = state, steps
        super().__init__(f"Stopped after {unit} {int(state.step)} of {steps}.")


def as_outer(outer: optax.GradientTransformation | Optimizer) -> Optimizer:
    """The outer optimizer as a PyTree: an optax transformation is a static field, which compiled programs are tied to; weights are leaves."""
    return outer if isinstance(outer, Optimizer) else FromOptax(outer)


def meta_init(
    optimizer: Optimizer,
    estimators: Sequence[Estimator],
    outer: Optimizer,
    key: PRNGKeyArray,
    *,
    steps: int | None = None,
    average: float = 0.0,
    engine: Engine = Local(devices=1),  # noqa: B008 - it is immutable
) -> MetaState:
    """The state of a meta-training before its first step.

    Args:
        optimizer: the initial meta-parameters.
        estimators: where meta-gradients come from.
        outer: the outer optimizer; `as_outer` makes one of an optax transformation.
        key: draws everything.
        steps: meta-steps in all, which `outer` is told as its horizon.
        average: the decay of the average of the meta-parameters; 0 for none.
        engine: where the estimators live.

    Examples:
        >>> import jax, lopt
        >>> from lopt.meta_train import meta_init, meta_step
        >>> pes = lopt.estimators.PES(lopt.tasks.Quadratic(dim=2), pairs=2, truncation=5, horizon=20)
        >>> outer = lopt.optimizers.Adam(learning_rate=0.01)
        >>> state = meta_init(lopt.optimizers.SGD(), [pes], outer, jax.random.key(0))
        >>> state, metrics = jax.jit(meta_step)([pes], outer, state)
        >>> int(state.step)
        1
    """
    states = engine.begin(optimizer, estimators, key)
    meta_params: MetaParams = optimizer
    outer_state = outer.init(meta_params, key=jax.random.fold_in(key, 2**31 - 1), horizon=steps)
    zero = jnp.zeros((), jnp.int32)
    mean = optimizer if average else None
    return MetaState(optimizer, outer_state, states, key, zero, jnp.zeros((), jnp.float32), mean)


@partial(jax.jit, static_argnums=2)  # operations one by one would take a meta-step a part of a millisecond
def _later_key(key: PRNGKeyArray, step: Int[Array, ""], used: int) -> PRNGKeyArray:
    return jax.random.fold_in(key, step + used)


def step_key(state: MetaState) -> PRNGKeyArray:
    """The key of the next meta-step; `meta_init` has used as many as there are estimators."""
    return _later_key(state.key, state.step, len(state.estimators))


def apply(
    outer: Optimizer, state: MetaState, found: Gradients, *, average: float = 0.0
) -> tuple[MetaState, dict[str, Float[Array, ""]]]:
    r"""The outer step: move the meta-parameters by what the outer optimizer makes of the meta-gradient.

    $$\theta \leftarrow \theta + U_\text{outer}(\hat g)$$

    A lopt `Optimizer` skips a meta-gradient that is not finite; an optax transformation gets it as it is.

    Args:
        outer: the outer optimizer.
        state: before the step.
        found: the meta-gradient, from `gradients` or an engine.
        average: as in `meta_init`.

    Returns:
        The state after the step and the metrics, with `smoothed`, the moving average of the meta-loss.
    """
    meta_params: MetaParams = state.optimizer
    update = outer.update if isinstance(outer, FromOptax) else partial(update_if_finite, outer)
    meta_loss = found.metrics["meta_loss"]
    with jax.numpy_dtype_promotion("standard"):  # optax raises decays to the power of an integer count
        updates, outer_state = update(found.gradient, state.outer, meta_params, value=meta_loss)
    # A moving average over about 100 meta-steps, exact from the first.
    weight = 1.0 / jnp.minimum(state.step.astype(jnp.float32) + 1.0, 100.0)
    smoothed = state.smoothed + weight * (meta_loss - state.smoothed)
    meta_params = optax.apply_updates(meta_params, updates)
    mean: Any = state.average
    state = MetaState(meta_params, outer_state, found.estimators, state.key, state.step + 1, smoothed, mean)
    if mean is not None:
        after = state.step.astype(jnp.float32)
        decay = jnp.minimum(average, after / (after + 10.0))
        now = outer.eval_params(state.outer, meta_params)
        state = state._replace(average=optax.incremental_update(now, mean, 1.0 - decay))
    return state, found.metrics | {"smoothed": smoothed}


def meta_step(
    estimators: Sequence[Estimator],
    outer: Optimizer,
    state: MetaState,
    *,
    average: float = 0.0,
    engine: Engine = Local(devices=1),  # noqa: B008 - it is immutable
) -> tuple[MetaState, dict[str, Float[Array, ""]]]:
    """One meta-step: `gradients`, then `apply`. Pure where the engine is traceable, and `outer` is an argument like any other.

    With another engine the outer step alone is compiled, and the states of the estimators may be what the engine likes.
    """
    found = engine.gradients(state.optimizer, estimators, state.estimators, step_key(state))
    if engine.traceable:
        return apply(outer, state, found, average=average)
    states, found = found.estimators, found._replace(estimators=())
    state, metrics = _apply(outer, state._replace(estimators=()), found, average=average)
    return state._replace(estimators=states), metrics


def result(outer: Optimizer, state: MetaState) -> MetaState:
    """The state to hand out: its `optimizer` is the one to use. Checkpoints keep where the next meta-gradient is taken."""
    meta_params: MetaParams = state.optimizer
    found = outer.eval_params(state.outer, meta_params) if state.average is None else state.average
    return state._replace(optimizer=found)


# Jitted once, so that meta-trainings of one shape share their programs whatever the weights of the outer optimizer.
_meta_init = jax.jit(meta_init, static_argnames=("steps", "average", "engine"))
_meta_step = jax.jit(meta_step, static_argnames=("average", "engine"), donate_argnums=2)
_apply = jax.jit(apply, static_argnames="average")


def meta_train(
    optimizer: Optimizer,
    estimators: Estimator | Sequence[Estimator],
    outer: optax.GradientTransformation | Optimizer,
    *,
    steps: int,
    key: PRNGKeyArray,
    run_dir: str | Path | None = None,
    checkpoint_seconds: float = 20.0,
    settings: Mapping[str, Any] | None = None,
    average: float = 0.0,
    engine: Engine | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> MetaState:
    r"""Meta-train an optimizer.

    $$\theta \leftarrow \theta + U_\text{outer}\Big(\frac1n \sum_{i=1}^n \hat g_i(\theta)\Big)$$

    with $\hat g_i$ the meta-gradient of the $i$-th estimator: a mixture of tasks is a list of estimators. Meta-gradient clipping is part of
    `outer`, as in `optax.chain(optax.clip(0.1), optax.adam(1e-3))`.

    Where the pairs of particles do not divide over all devices, a warning says how many are used.

    With a run directory the training is resumable: after a kill at any moment the same call continues from the last checkpoint, and
    the meta-parameters are bit for bit those of an uninterrupted run. The directory holds `config.json`, `metrics.jsonl`
    (a line a meta-step) and `checkpoint.safetensors`.

    Args:
        optimizer: the initial meta-parameters.
        estimators: where meta-gradients come from.
        outer: any optax transformation, or another lopt `Optimizer`, even one like `optimizer` itself.
        steps: meta-steps in all.
        key: draws everything.
        run_dir: where to keep the run.
        checkpoint_seconds: time between checkpoints.
        settings: extra JSON that must match before a run directory is resumed.
        average: the decay $\beta$ of an exponential moving average of the meta-parameters, which is then what is returned; 0 for none. Early on it is
            $\min(\beta, t / (t + 10))$ after $t$ meta-steps, so that the start is soon forgotten.
        engine: where meta-gradients are computed; `Local()`, this process and its devices, if `None`.
        on_step: called after each meta-step.

    Returns:
        The state at the end, its `optimizer` the one to use: the average where there is one, that of `outer.eval_params` where `outer` is a lopt `Optimizer`.

    Raises:
        InputError: for fewer than one step, an average that is not in [0, 1), or a run directory that is damaged or belongs to another configuration.
        OSError: for a run directory that cannot be written, or a disk that is full. It names the file; the last checkpoint stands.
        Interrupted: after Ctrl-C.
        Unreachable: where an engine has lost all its workers; what was done until then is saved.

    Examples:
        >>> import jax, lopt, optax
        >>> pes = lopt.estimators.PES(lopt.tasks.Quadratic(dim=2), pairs=2, truncation=5, horizon=20)
        >>> state = lopt.meta_train(lopt.optimizers.SGD(), pes, optax.adam(1e-2), steps=3, key=jax.random.key(0))
        >>> int(state.step)
        3
    """
    estimators = (estimators,) if isinstance(estimators, Estimator) else tuple(estimators)
    at_least(1, steps=steps)
    if not estimators:
        raise InputError("estimators is empty; give at least one.")
    shares(average=average)
    engine, tx = engine or Local(), as_outer(outer)
    if run_dir is None:
        run = None
    else:
        others = {**(settings or {}), **({"average": average} if average else {})}
        others |= {"steps": steps, "engine": engine.describe(estimators)}
        as_optax = outer.to_optax(horizon=steps, key=key) if isinstance(outer, Optimizer) else outer
        run = RunDirectory(Path(run_dir), configuration(optimizer, estimators, as_optax, key=key, others=others))
    options: dict[str, Any] = {"average": average, "engine": engine}
    begin = _meta_init if engine.traceable else meta_init
    state = begin(optimizer, estimators, tx, key, steps=steps, **options)
    if run is not None:
        state = run.resume(state)
    if int(state.step) >= steps:
        return result(tx, state)
    program: Any = partial(meta_step, **options)
    if engine.traceable:
        program = _meta_step.lower(estimators, tx, state, **options).compile()
    inner_steps = before = 0 if run is None else run.inner_steps_before
    began = saved = time.perf_counter()
    first = int(state.step)
    with interruptible() as interrupted:
        for step in range(first + 1, steps + 1):
            try:
                state, metrics = program(estimators, tx, state)
            except Unreachable:
                if run is not None:
                    run.save(state._replace(estimators=engine.gather(state.estimators)))
                raise
            found = {k: float(v) for k, v in jax.device_get(metrics).items()}
            now, stop = time.perf_counter(), interrupted.is_set() and step < steps
            rate = (step - first) / (now - began)
            inner_steps += round(found.pop("inner_steps"))
            if run is not None:
                spent = run.seconds_before + now - began
                run.log({"step": step, **found, "inner_steps": inner_steps, "seconds": round(spent, 3)})
                if step == steps or stop or now - saved >= checkpoint_seconds:
                    run.save(state._replace(estimators=engine.gather(state.estimators)))
                    saved = time.perf_counter()
            if on_step is not None:
                speed, left = (inner_steps - before) / (now - began), (steps - step) / rate
                on_step(Progress(step, steps, found["meta_loss"], found["smoothed"], found["diverged"], speed, left))
            if stop:
                raise Interrupted(result(tx, state), steps)
    return result(tx, state)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that a meta-step is never torn; a second one stops at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)


__all__ = [
    "Interrupted",
    "MetaState",
    "Progress",
    "apply",
    "as_outer",
    "gradients",
    "interruptible",
    "meta_init",
    "meta_step",
    "meta_train",
    "result",
    "step_key",
]
