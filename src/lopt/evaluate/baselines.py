"""Tuned baselines: optax's optimizers, each with a grid of settings that are trained all at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.errors import InputError
from lopt.names import unknown
from lopt.optimizer import Optimizer, Params, State, Updates
from lopt.optimizers.from_optax import FromOptax

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
    "muon_cosine": Rule(optax.contrib.muon, "Loshchilov & Hutter 2017; Jordan et al. 2024", cosine=True),
    "schedule_free_adamw": Rule(optax.contrib.schedule_free_adamw, "Defazio et al. 2024"),
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
        return BaselineState(told, FromOptax(self.transformation(told)).init(_float32(params)))

    def update(
        self, updates: Updates, state: BaselineState, params: Params, **extra: Any
    ) -> tuple[Updates, BaselineState]:
        """Update of the optax transformation, in float32 whatever the parameters are."""
        rule = FromOptax(self.transformation(state.horizon))
        moved, inner = rule.update(_float32(updates), state.inner, _float32(params), **extra)
        return jax.tree.map(lambda u, p: u.astype(p.dtype), moved, params), state._replace(inner=inner)

    def eval_params(self, state: BaselineState, params: Params) -> Params:
        """The parameters that the rule averages, where it does."""
        return FromOptax(self.transformation(state.horizon)).eval_params(state.inner, params)


def grid(name: str, chosen: Sequence[Setting]) -> Baseline:
    """A batch of a baseline at several settings, for `train_batch`: leaves have a leading axis."""
    columns = {field: jnp.asarray([s[field] for s in chosen], jnp.float32) for field in chosen[0]}
    return jax.vmap(lambda setting: Baseline(name, setting))(columns)


def _float32(tree: Params) -> Params:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


__all__ = [
    "BASELINES",
    "LEARNING_RATES",
    "WEIGHT_DECAYS",
    "Baseline",
    "BaselineState",
    "Rule",
    "grid",
    "rule",
    "settings",
]
