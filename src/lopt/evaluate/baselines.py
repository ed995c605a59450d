"""Tuned baselines: optax's optimizers, each with a grid of settings that are trained all at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.errors import InputError
from lopt.evaluate.scores.selection import select, select_one_setting
from lopt.evaluate.training import train_batch
from lopt.names import unknown
from lopt.optimizer import Optimizer, Params, State, Updates
from lopt.optimizers.from_optax import FromOptax
from lopt.optimizers.hand_designed import Adam
from lopt.task import Task

LEARNING_RATES = tuple(float(f"{10 ** (e / 2):.0e}") for e in range(-12, 3))  # 1e-6 to 10, 15 half-decades
WEIGHT_DECAYS = (0.0, 0.1)  # a tenth of it could not be seen in a few hundred steps; see docs/evaluation.md

Rate = Any  # of optax: a number, an array, or a function of the step
Setting = dict[str, float]  # hyper-parameters by name


class Rule(NamedTuple):
    """A baseline: an optax transformation and what is tuned of it. All else is optax's default."""

    make: Callable[..., optax.GradientTransformation]  # of the learning rate, and of the weight decay where it is tuned
    source: str
    weight_decays: tuple[float, ...] = ()  # none: not tuned
    cosine: bool = False  # whether the learning rate falls to zero over the horizon
    eval_params: Callable[[Any, Params], Params] | None = None  # where the training does not hold what one deploys


def _adamw(rate: Rate, weight_decay: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=weight_decay)


def _nadamw(rate: Rate, weight_decay: Any) -> optax.GradientTransformation:
    return optax.nadamw(rate, weight_decay=weight_decay)


# The one place where baselines get their names.
BASELINES: dict[str, Rule] = {
    "sgd": Rule(optax.sgd, "Robbins & Monro 1951"),
    "momentum": Rule(lambda rate: optax.sgd(rate, momentum=0.9), "Polyak 1964"),
    "rmsprop": Rule(optax.rmsprop, "Tieleman & Hinton 2012"),
    "adam": Rule(optax.adam, "Kingma & Ba 2015"),
    "adamw": Rule(_adamw, "Loshchilov & Hutter 2019", WEIGHT_DECAYS),
    "nadamw": Rule(_nadamw, "Dozat 2016; Loshchilov & Hutter 2019", WEIGHT_DECAYS),
    "adamw_cosine": Rule(_adamw, "Loshchilov & Hutter 2017, 2019", WEIGHT_DECAYS, cosine=True),
    "nadamw_cosine": Rule(_nadamw, "Dozat 2016; Loshchilov & Hutter 2017, 2019", WEIGHT_DECAYS, cosine=True),
    "lion": Rule(optax.lion, "Chen et al. 2023"),
    "adafactor": Rule(optax.adafactor, "Shazeer & Stern 2018"),
    "muon": Rule(optax.contrib.muon, "Jordan et al. 2024"),
    "schedule_free_adamw": Rule(
        optax.contrib.schedule_free_adamw,
        "Defazio et al. 2024",
        eval_params=optax.contrib.schedule_free_eval_params,
    ),
    "prodigy": Rule(optax.contrib.prodigy, "Mishchenko & Defazio 2024"),
}


def rule(name: str) -> Rule:
    """The baseline of this name.

    Raises:
        InputError: for an unknown name, with the nearest ones.
    """
    if name not in BASELINES:
        raise InputError(unknown("baseline", name, BASELINES))
    return BASELINES[name]


def settings(name: str, learning_rates: Sequence[float] = LEARNING_RATES) -> list[Setting]:
    """The grid of a baseline: its learning rates, each with every weight decay where that is tuned.

    Args:
        name: a key of `BASELINES`.
        learning_rates: the rates.

    Raises:
        InputError: for an unknown name.

    Examples:
        >>> from lopt.evaluate import settings
        >>> len(settings("adam")), len(settings("adamw"))
        (15, 30)
    """
    decays = rule(name).weight_decays
    if not decays:
        return [{"learning_rate": rate} for rate in learning_rates]
    return [{"learning_rate": r, "weight_decay": d} for r, d in itertools.product(learning_rates, decays)]


class BaselineState(NamedTuple):
    """Where a baseline stands."""

    horizon: Float[Array, ""] | None  # inner steps; None where the learning rate is constant
    inner: State  # of the optax transformation


class Baseline(Optimizer):
    r"""A baseline at one setting. Its leaves are the hyper-parameters, so a grid is a `vmap` over it.

    A learning rate that follows a cosine is $\frac{\eta}{2}(1 + \cos(\pi t / T))$ at step $t$ of a horizon $T$, without warm-up.

    Args:
        name: a key of `BASELINES`.
        setting: hyper-parameters by name; all those that `settings` has.

    Raises:
        InputError: for an unknown name, or a hyper-parameter that is missing, unknown or negative; for a cosine without a horizon.

    Examples:
        >>> import lopt
        >>> tx = lopt.evaluate.Baseline("lion", {"learning_rate": 1e-3}).to_optax()
    """

    name: str = eqx.field(static=True)
    setting: dict[str, Float[Array, ""]]

    def __init__(self, name: str, setting: Mapping[str, float | Array]):
        wanted = settings(name, (0.0,))[0]
        for field, value in setting.items():
            if field not in wanted:
                raise InputError(unknown(f"hyper-parameter of {name}", field, wanted))
            if not isinstance(value, Array) and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise InputError(f"{field} of {name} is {value!r}; it must be a number that is at least 0.")
        if missing := wanted.keys() - setting.keys():
            raise InputError(f"{name} needs {' and '.join(sorted(missing))}.")
        self.name = name
        self.setting = {field: jnp.asarray(value, jnp.float32) for field, value in setting.items()}

    def transformation(self, horizon: Float[Array, ""] | None) -> optax.GradientTransformation:
        """The optax transformation for a training of `horizon` steps."""
        rate: Rate = self.setting["learning_rate"]
        if BASELINES[self.name].cosine:
            assert horizon is not None
            steps = horizon
            cosine = optax.cosine_decay_schedule(rate, 1)  # over one horizon, whose length may be traced

            def schedule(count: Int[Array, ""]) -> Any:
                return cosine(count.astype(jnp.float32) / steps)

            rate = schedule
        others = {name: value for name, value in self.setting.items() if name != "learning_rate"}
        with jax.numpy_dtype_promotion("standard"):
            return BASELINES[self.name].make(rate, **others)

    def init(
        self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None
    ) -> BaselineState:
        """State of the optax transformation."""
        del key
        told = None
        if BASELINES[self.name].cosine:
            if horizon is None:
                raise InputError(
                    f"{self.name} needs the horizon: call init(params, horizon=...) or to_optax(horizon=...)."
                )
            told = jnp.asarray(horizon, jnp.float32)
        return BaselineState(told, FromOptax(self.transformation(told)).init(params))

    def update(
        self, updates: Updates, state: BaselineState, params: Params, **extra: Any
    ) -> tuple[Updates, BaselineState]:
        """Update of the optax transformation."""
        updates, inner = FromOptax(self.transformation(state.horizon)).update(updates, state.inner, params, **extra)
        return updates, state._replace(inner=inner)

    def eval_params(self, state: BaselineState, params: Params) -> Params:
        """The parameters that the rule averages, where it does."""
        of = BASELINES[self.name].eval_params
        if of is None:
            return params
        with jax.numpy_dtype_promotion("standard"):
            return jax.tree.map(lambda x, p: x.astype(p.dtype), of(state.inner, params), params)


def grid(name: str, chosen: Sequence[Setting]) -> Baseline:
    """A batch of a baseline at several settings, for `train_batch`: leaves have a leading axis."""
    columns = {field: jnp.asarray([s[field] for s in chosen], jnp.float32) for field in chosen[0]}
    return jax.vmap(lambda setting: Baseline(name, setting))(columns)


class Sweep(NamedTuple):
    """Final training losses of a learning-rate sweep."""

    learning_rates: tuple[float, ...]
    train_loss: Float[np.ndarray, "rates seeds"]
    best: float  # the rate with the lowest mean over seeds
    initial_loss: Float[np.ndarray, " seeds"] | None = None  # before the first step
    best_valid: float | None = None  # the rate with the lowest mean final validation loss


def tune_adam(
    task: Task,
    *,
    steps: int,
    key: PRNGKeyArray,
    seeds: int = 5,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Sweep:
    """Tune Adam's learning rate on `task`: `tune` with `Adam`."""
    return tune(
        lambda rate: Adam(learning_rate=rate), task, steps=steps, key=key, seeds=seeds, learning_rates=learning_rates
    )


def tune(
    make: Callable[[Float[Array, ""]], Optimizer],
    task: Task,
    *,
    steps: int,
    key: PRNGKeyArray,
    seeds: int = 5,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Sweep:
    """Tune the learning rate of an optimizer on `task`: all rates and seeds in one vmapped compile.

    The best rate has the lowest final training loss, averaged over seeds; a rate with a seed that is not finite ranks last.

    Args:
        make: the optimizer at a learning rate.
        task: what to train.
        steps: inner steps.
        key: draws problems, starts and minibatches, the same for all rates.
        seeds: trainings a rate.
        learning_rates: the grid.

    Raises:
        InputError: where every rate of the grid diverged.
    """
    rates = jnp.asarray(learning_rates, jnp.float32)
    batch = jax.vmap(make)(rates)
    record = train_batch(batch, task, steps=steps, key=key, seeds=seeds, evals=1, batch=len(rates))
    final, valid = (
        np.where(np.isfinite(x[:, :, -1]).all(axis=1), x[:, :, -1].mean(axis=1), np.inf)
        for x in (record.train_loss, record.valid_loss)
    )
    if not np.isfinite(final).any():
        raise InputError(f"{type(batch).__name__} diverged at every learning rate of the grid on this task.")
    best, best_valid = (learning_rates[int(mean.argmin())] for mean in (final, valid))
    return Sweep(tuple(learning_rates), record.train_loss[:, :, -1], best, record.train_loss[0, :, 0], best_valid)


__all__ = [
    "BASELINES",
    "LEARNING_RATES",
    "WEIGHT_DECAYS",
    "Baseline",
    "BaselineState",
    "Rule",
    "Sweep",
    "grid",
    "rule",
    "select",
    "select_one_setting",
    "settings",
    "tune",
    "tune_adam",
]
