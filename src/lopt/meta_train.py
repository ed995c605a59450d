"""The outer loop: one jitted meta-step, then progress, checkpoint and resume."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt import checkpoint
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, EstimatorState
from lopt.estimators.per_task import fingerprint, transformations
from lopt.optimizer import Optimizer, State

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.safetensors"


class MetaState(NamedTuple):
    """Everything that a meta-training is; arrays only.

    Where an average is kept, or `outer` takes its gradients elsewhere than at the meta-parameters that it has found (`Optimizer.eval_params`), `optimizer` is
    where the next one is taken while the training runs and in its checkpoints, and what was found in what `meta_train` returns.
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

    def __init__(self, state: MetaState, steps: int):
        self.state, self.steps = state, steps
        super().__init__(f"Stopped after meta-step {int(state.step)} of {steps}.")


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
    on_step: Callable[[Progress], None] | None = None,
) -> MetaState:
    r"""Meta-train an optimizer.

    $$\theta \leftarrow \theta + U_\text{outer}\Big(\frac1n \sum_{i=1}^n \hat g_i(\theta)\Big)$$

    with $\hat g_i$ the meta-gradient of the $i$-th estimator: a mixture of tasks is a list of estimators. Meta-gradient clipping is part of
    `outer`, as in `optax.chain(optax.clip(0.1), optax.adam(1e-3))`.

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
        settings: what else must agree for a run to be continued, as JSON: a learning rate inside `outer` cannot be seen from without.
        average: the decay $\beta$ of an exponential moving average of the meta-parameters, which is then what is returned; 0 for none. Early on it is
            $\min(\beta, t / (t + 10))$ after $t$ meta-steps, so that the start is soon forgotten.
        on_step: called after each meta-step.

    Returns:
        The state at the end, its `optimizer` the one to use: the average where there is one, that of `outer.eval_params` where `outer` is a lopt `Optimizer`.

    Raises:
        InputError: for fewer than one step, an average that is not in [0, 1), or a run directory that belongs to another configuration.
        OSError: for a run directory that cannot be written.
        Interrupted: after Ctrl-C.

    Examples:
        >>> import jax, lopt, optax
        >>> pes = lopt.estimators.PES(lopt.tasks.Quadratic(dim=2), pairs=2, truncation=5, horizon=20)
        >>> state = lopt.meta_train(lopt.optimizers.SGD(), pes, optax.adam(1e-2), steps=3, key=jax.random.key(0))
        >>> int(state.step)
        3
    """
    estimators = (estimators,) if isinstance(estimators, Estimator) else tuple(estimators)
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1.")
    if not estimators:
        raise InputError("estimators is empty; give at least one.")
    if not 0.0 <= average < 1.0:
        raise InputError(f"average is {average}; it must be at least 0 and below 1.")
    eval_params = None
    if isinstance(outer, Optimizer):
        eval_params = outer.eval_params
        outer = outer.to_optax(horizon=steps, key=jax.random.fold_in(key, 2**31 - 1))
    outer_tx = optax.with_extra_args_support(outer)

    def begin(optimizer: Optimizer, estimators: tuple[Estimator, ...], key: PRNGKeyArray) -> MetaState:
        states = tuple(e.init(optimizer, jax.random.fold_in(key, i)) for i, e in enumerate(estimators))
        zero = jnp.zeros((), jnp.int32)
        meta_params: Any = optimizer
        mean = optimizer if average else None
        return MetaState(optimizer, outer_tx.init(meta_params), states, key, zero, jnp.zeros((), jnp.float32), mean)

    def meta_step(estimators: tuple[Estimator, ...], state: MetaState) -> tuple[MetaState, dict[str, Float[Array, ""]]]:
        step_key = jax.random.fold_in(state.key, state.step + len(estimators))
        gradients, states, metrics = zip(
            *(
                e.estimate(state.optimizer, s, jax.random.fold_in(step_key, i))
                for i, (e, s) in enumerate(zip(estimators, state.estimators, strict=True))
            ),
            strict=True,
        )
        gradient = jax.tree.map(lambda *xs: sum(xs) / len(xs), *gradients)
        steps_taken = sum(m.pop("inner_steps", e.inner_steps) for e, m in zip(estimators, metrics, strict=True))
        found = _mean_of_those_that_have_it(metrics) | {"inner_steps": jnp.asarray(steps_taken, jnp.float32)}
        meta_params: Any = state.optimizer
        with jax.numpy_dtype_promotion("standard"):  # optax raises decays to the power of an integer count
            updates, outer_state = outer_tx.update(gradient, state.outer, meta_params, value=found["meta_loss"])
        # A moving average over about 100 meta-steps, exact from the first.
        weight = 1.0 / jnp.minimum(state.step.astype(jnp.float32) + 1.0, 100.0)
        smoothed = state.smoothed + weight * (found["meta_loss"] - state.smoothed)
        meta_params = optax.apply_updates(meta_params, updates)
        mean: Any = state.average
        state = MetaState(meta_params, outer_state, states, state.key, state.step + 1, smoothed, mean)
        if mean is not None:
            after = state.step.astype(jnp.float32)
            decay = jnp.minimum(average, after / (after + 10.0))
            state = state._replace(average=optax.incremental_update(to_evaluate(state), mean, 1.0 - decay))
        return state, found | {"smoothed": smoothed}

    def to_evaluate(state: MetaState) -> Any:
        meta_params: Any = state.optimizer
        return meta_params if eval_params is None else eval_params(state.outer, meta_params)

    def handed_out(state: MetaState) -> MetaState:
        """To be handed out: with the meta-parameters to evaluate. Checkpoints keep where the next gradient is taken."""
        return state._replace(optimizer=to_evaluate(state) if state.average is None else state.average)

    if average:
        settings = {**(settings or {}), "average": average}
    run = None if run_dir is None else _Run(Path(run_dir), _config(optimizer, estimators, steps, key, settings))
    state = jax.jit(begin)(optimizer, estimators, key)
    if run is not None:
        state = run.resume(state)
    if int(state.step) >= steps:
        return handed_out(state)
    program = jax.jit(meta_step, donate_argnums=1).lower(estimators, state).compile()
    inner_steps = before = 0 if run is None else run.inner_steps_before
    began = saved = time.perf_counter()
    first = int(state.step)
    with _interruptible() as interrupted:
        for step in range(first + 1, steps + 1):
            state, metrics = program(estimators, state)
            found = {k: float(v) for k, v in jax.device_get(metrics).items()}
            now, stop = time.perf_counter(), interrupted.is_set() and step < steps
            rate = (step - first) / (now - began)
            inner_steps += round(found.pop("inner_steps"))
            if run is not None:
                spent = run.seconds_before + now - began
                run.log({"step": step, **found, "inner_steps": inner_steps, "seconds": round(spent, 3)})
                if step == steps or stop or now - saved >= checkpoint_seconds:
                    run.save(state)
                    saved = time.perf_counter()
            if on_step is not None:
                speed, left = (inner_steps - before) / (now - began), (steps - step) / rate
                on_step(Progress(step, steps, found["meta_loss"], found["smoothed"], found["diverged"], speed, left))
            if stop:
                raise Interrupted(handed_out(state), steps)
    return handed_out(state)


def _mean_of_those_that_have_it(metrics: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Estimators of a mixture may report different things."""
    names = dict.fromkeys(name for found in metrics for name in found)
    having = {name: [found[name] for found in metrics if name in found] for name in names}
    return {name: sum(values[1:], values[0]) / len(values) for name, values in having.items()}


class _Run:
    """A run directory."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG
        if path.exists():
            try:
                known = dict(json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path} is damaged: {error}.") from error
            for name in dict.fromkeys((*config, *known)):
                if known.get(name) != config.get(name):
                    raise InputError(
                        f"The run directory {folder} belongs to another configuration: its {name} is {known.get(name)}, "
                        f"this one's {config.get(name)}. Choose another directory, or the same configuration to resume."
                    )
        else:
            checkpoint.write_text(path, json.dumps(config, indent=2) + "\n")
        self.lines: list[str] = []
        self.seconds_before, self.inner_steps_before = 0.0, 0  # of earlier sessions of this run

    def resume(self, like: MetaState) -> MetaState:
        """The last checkpoint, or `like` where there is none; metrics after it are cut off."""
        path, metrics = self.folder / CHECKPOINT, self.folder / METRICS
        state = checkpoint.from_bytes(path.read_bytes(), like, str(path)) if path.exists() else like
        known = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        known = known[: int(state.step)]
        try:
            if known:
                last = json.loads(known[-1])
                self.seconds_before, self.inner_steps_before = last["seconds"], last["inner_steps"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{metrics} is damaged: line {len(known)} is not a line of metrics.") from error
        if len(known) != state.step:
            raise InputError(
                f"{metrics} is damaged: it has {len(known)} lines, the checkpoint is of step {state.step}."
            )
        checkpoint.write_text(metrics, "".join(known))
        return state

    def log(self, line: dict[str, Any]) -> None:
        known = {k: v if math.isfinite(v) else None for k, v in line.items()}  # JSON has no other numbers
        self.lines.append(json.dumps(known) + "\n")

    def save(self, state: MetaState) -> None:
        """Metrics first: lines without a checkpoint are cut off at the next start, a checkpoint without lines would be a gap."""
        with (self.folder / METRICS).open("a") as file:
            file.writelines(self.lines)
        self.lines.clear()
        checkpoint.write_bytes(self.folder / CHECKPOINT, checkpoint.to_bytes(state))


def _config(
    optimizer: Optimizer,
    estimators: Sequence[Estimator],
    steps: int,
    key: PRNGKeyArray,
    settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What must agree for a run to be continued, as JSON gives it back."""
    config = {
        **(settings or {}),
        "optimizer": eqx.tree_pformat(optimizer, width=10_000),
        "estimators": [eqx.tree_pformat(e, width=10_000) for e in estimators],
        "steps": steps,
        "key": jax.random.key_data(key).tolist(),
        "devices": jax.device_count(),
        "initial meta-parameters": hashlib.sha256(checkpoint.to_bytes(optimizer)).hexdigest(),
    }
    found = [fingerprint(tx, optimizer) for e in estimators for tx in transformations(e)]
    if found:  # not in the configuration of runs without: those of before can be continued
        config["digest of the transformations of PerTask"] = found
    return json.loads(json.dumps(config))


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
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
