"""Schedules of the truncation: how many inner steps each estimate takes."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.checks import at_least, one_of, positive
from lopt.errors import InputError

Growth = Literal["geometric", "linear"]
Even = Literal["problems", "steps"]


class Schedule(abc.ABC):
    """How many inner steps an estimate takes. Hashable: estimators hold it as a static field.

    All particles of an estimate take the same number of steps. So a length that varies is the bound of a loop, known when the loop begins: evolution strategies
    run just so many steps, backpropagation just so many segments, by one compiled program. Lengths of each particle's own would
    make every particle take the steps of the longest one.
    """

    @property
    @abc.abstractmethod
    def shortest(self) -> int:
        """No length is smaller."""

    @property
    @abc.abstractmethod
    def longest(self) -> int:
        """No length is greater; backpropagation reserves memory for it."""

    @property
    @abc.abstractmethod
    def mean(self) -> float:
        """The mean length."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, estimates: Int[Array, ""]) -> Int[Array, ""]:
        """A length.

        Args:
            key: draws it.
            estimates: how many estimates there have been.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """Always `length` steps. A truncation that is given as a number is this; its loop is unrolled to a fixed length."""

    length: int

    def __post_init__(self) -> None:
        at_least(1, length=self.length)

    @property
    def shortest(self) -> int:
        """The length."""
        return self.length

    @property
    def longest(self) -> int:
        """The length."""
        return self.length

    @property
    def mean(self) -> float:
        """The length."""
        return float(self.length)

    def draw(self, key: PRNGKeyArray, estimates: Int[Array, ""]) -> Int[Array, ""]:
        """The length."""
        del key, estimates
        return jnp.asarray(self.length, jnp.int32)

    def __str__(self) -> str:
        return str(self.length)


@dataclass(frozen=True)
class LogUniform(Schedule):
    r"""$\log K \sim U(\log \text{low}, \log(\text{high} + 1))$, rounded down: every whole number owns the interval up to the next."""

    low: int
    high: int

    def __post_init__(self) -> None:
        at_least(1, low=self.low)
        if self.low > self.high:
            raise InputError(f"low is {self.low} and high is {self.high}; low must not exceed high.")

    @property
    def shortest(self) -> int:
        """The least length."""
        return self.low

    @property
    def longest(self) -> int:
        """The greatest length."""
        return self.high

    @property
    def mean(self) -> float:
        """The mean of the rounded numbers."""
        whole = range(self.low, self.high + 1)
        return sum(n * math.log((n + 1) / n) for n in whole) / math.log((self.high + 1) / self.low)

    def draw(self, key: PRNGKeyArray, estimates: Int[Array, ""]) -> Int[Array, ""]:
        """A length; see the class."""
        del estimates
        return _log_uniform(key, self.low, jnp.asarray(self.high, jnp.int32))

    def __str__(self) -> str:
        return f"({self.low}, {self.high})"


@dataclass(frozen=True)
class Growing(Schedule):
    r"""From `first` to `last` steps over so many estimates, each length multiplied by a number from $U(1 - \text{jitter}, 1 + \text{jitter})$.

    The jitter keeps the optimizer from learning where truncations end.

    Args:
        first: length at the beginning.
        last: length after `over` estimates, and from then on.
        over: estimates that the growth takes.
        jitter: the relative width of the random factor.
        growth: by a constant factor an estimate, or by a constant number.

    Source: Metz et al. 2019, *Understanding and correcting pathologies in the training of learned optimizers*. That lengths begin at 50 is stated by
    Metz et al. 2020, section 3.1; 10,000 and 20 % are recalled, the shape of the growth and `over` are ours (Metz et al. 2020, appendix B, take 10,000
    meta-steps from 300 to 10,000).
    """

    first: int = 50
    last: int = 10_000
    over: int = 10_000
    jitter: float = 0.2
    growth: Growth = "geometric"

    def __post_init__(self) -> None:
        at_least(1, first=self.first, over=self.over)
        if self.last < self.first:
            raise InputError(f"last is {self.last}; it must be at least first, {self.first}.")
        if not 0.0 <= self.jitter < 1.0:
            raise InputError(f"jitter is {self.jitter}; it must be at least 0 and below 1.")
        one_of("growth", self.growth, Growth)

    @property
    def shortest(self) -> int:
        """The first length with the least factor."""
        return max(1, math.floor(self.first * (1.0 - self.jitter)))

    @property
    def longest(self) -> int:
        """The last length with the greatest factor."""
        return math.ceil(self.last * (1.0 + self.jitter))

    @property
    def mean(self) -> float:
        """The last length, at which most of a meta-training's steps are taken."""
        return float(self.last)

    def draw(self, key: PRNGKeyArray, estimates: Int[Array, ""]) -> Int[Array, ""]:
        """A length; see the class."""
        done = jnp.clip(estimates.astype(jnp.float32) / self.over, 0.0, 1.0)
        geometric = self.first * jnp.exp(done * math.log(self.last / self.first))
        length = geometric if self.growth == "geometric" else self.first + done * (self.last - self.first)
        factor = jax.random.uniform(key, (), minval=1.0 - self.jitter, maxval=1.0 + self.jitter)
        return jnp.clip(jnp.round(length * factor), 1, self.longest).astype(jnp.int32)


@dataclass(frozen=True)
class Widening(Schedule):
    r"""A curriculum: $\log K \sim U(\log \text{low}, \log(h + 1))$, where $h$ grows from `first` to `last` by a constant factor an estimate.

    As a horizon, problems are short while the optimizer is young, and short ones keep coming. With lengths that are log-uniform most inner steps, and so most
    meta-gradients, belong to the longest problems; with $p(K) \propto K^{-2}$ as many belong to those from 100 to 200 steps as to those from 1,000 to 2,000.

    Args:
        low: the least length.
        first: the greatest length at the beginning.
        last: the greatest length after `over` estimates, and from then on.
        over: estimates that the growth takes.
        even: what every octave of lengths has equally many of: problems, or their steps, which makes the density $K^{-2}$.

    Source: lopt's own; that horizons grow over meta-training is in Metz et al. 2020, appendix B.
    """

    low: int
    first: int
    last: int
    over: int
    even: Even = "problems"

    def __post_init__(self) -> None:
        at_least(1, low=self.low, over=self.over)
        one_of("even", self.even, Even)
        if not self.low <= self.first <= self.last:
            raise InputError(
                f"low, first and last are {self.low}, {self.first} and {self.last}; they must not descend."
            )

    @property
    def shortest(self) -> int:
        """The least length."""
        return self.low

    @property
    def longest(self) -> int:
        """The greatest length of all."""
        return self.last

    @property
    def mean(self) -> float:
        """The mean at the end, where most of a meta-training's steps are taken."""
        if self.even == "problems":
            return LogUniform(self.low, self.last).mean
        whole = sum(1.0 / (n + 1) for n in range(self.low, self.last + 1))
        return whole / (1.0 / self.low - 1.0 / (self.last + 1))

    def draw(self, key: PRNGKeyArray, estimates: Int[Array, ""]) -> Int[Array, ""]:
        """A length; see the class."""
        draw = _log_uniform if self.even == "problems" else _inverse_square
        return draw(key, self.low, self.greatest(estimates))

    def greatest(self, estimates: Int[Array, ""]) -> Int[Array, ""]:
        """The greatest length that may be drawn after so many estimates.

        Args:
            estimates: how many there have been.
        """
        done = jnp.clip(estimates.astype(jnp.float32) / self.over, 0.0, 1.0)
        return jnp.floor(self.first * jnp.exp(done * math.log(self.last / self.first)) + 0.5).astype(jnp.int32)


@dataclass(frozen=True)
class HeavyTailed(Schedule):
    r"""$K = \text{least} + \mathrm{round}(\mathrm{Exp}(\text{scale}))$, at most `limit`: many short truncations and a few long ones.

    With `horizon=Unrolls()` this is the schedule of Wichrowska et al.; they have no limit. One in 17,000 lengths meets the default.

    Source: Wichrowska et al. 2017, *Learned Optimizers that Scale and Generalize*, and the code of its release.
    """

    least: int = 50
    scale: float = 200.0
    limit: int = 2_000

    def __post_init__(self) -> None:
        at_least(1, least=self.least)
        positive(scale=self.scale)
        if self.limit < self.least:
            raise InputError(f"limit is {self.limit}; it must be at least least, {self.least}.")

    @property
    def shortest(self) -> int:
        """The least length."""
        return self.least

    @property
    def longest(self) -> int:
        """The limit."""
        return self.limit

    @property
    def mean(self) -> float:
        """The mean, but for rounding."""
        return self.least + self.scale * -math.expm1((self.least - self.limit) / self.scale)

    def draw(self, key: PRNGKeyArray, estimates: Int[Array, ""]) -> Int[Array, ""]:
        """A length; see the class."""
        del estimates
        return jnp.minimum(self.least + _rounded_exponential(key, self.scale), self.limit)


@dataclass(frozen=True)
class Unrolls:
    r"""A horizon in truncations rather than steps: a problem lasts $\text{least} + \mathrm{round}(\mathrm{Exp}(\text{scale}))$ of them.

    Optimizers that ask for their horizon are told this number times the mean length of a truncation.

    Source: Wichrowska et al. 2017, the code of its release.
    """

    least: int = 1
    scale: float = 40.0

    def __post_init__(self) -> None:
        at_least(1, least=self.least)
        positive(scale=self.scale)

    def draw(self, key: PRNGKeyArray, estimates: Int[Array, ""]) -> Int[Array, ""]:
        """A number of truncations. Arguments as those of a `Schedule`."""
        del estimates
        return self.least + _rounded_exponential(key, self.scale)


@dataclass(frozen=True)
class _Multiples(Schedule):
    """Lengths of a schedule in multiples of a unit, rounded down, but never below the least multiple that the schedule allows."""

    lengths: Schedule
    unit: int

    @property
    def shortest(self) -> int:
        return -(-self.lengths.shortest // self.unit)

    @property
    def longest(self) -> int:
        return self.lengths.longest // self.unit

    @property
    def mean(self) -> float:
        return self.lengths.mean / self.unit

    def draw(self, key: PRNGKeyArray, estimates: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.maximum(self.lengths.draw(key, estimates) // self.unit, self.shortest)


def multiples(lengths: Schedule, unit: int) -> Schedule:
    """A schedule of numbers of units: their multiples are lengths, none shorter or longer than the schedule allows.

    Args:
        lengths: the schedule of lengths.
        unit: steps of which all lengths are multiples.

    Raises:
        InputError: where the schedule allows no multiple of the unit.
    """
    found = _Multiples(lengths, unit)
    if found.shortest > found.longest:
        raise InputError(f"horizon is {lengths}; no multiple of the truncation, {unit}, is among these lengths.")
    if isinstance(lengths, Constant | LogUniform):
        return LogUniform(found.shortest, found.longest)
    return found


def _log_uniform(key: PRNGKeyArray, low: int, high: Int[Array, ""]) -> Int[Array, ""]:
    """See `LogUniform`."""
    above = high.astype(jnp.float32) + 1.0
    exponent = jax.random.uniform(key, (), minval=jnp.log(float(low)), maxval=jnp.log(above))
    return jnp.clip(jnp.floor(jnp.exp(exponent)).astype(jnp.int32), low, high)


def _inverse_square(key: PRNGKeyArray, low: int, high: Int[Array, ""]) -> Int[Array, ""]:
    r"""$1/K \sim U(1/(\text{high} + 1), 1/\text{low})$, rounded down."""
    inverse = jax.random.uniform(key, (), minval=1.0 / (high.astype(jnp.float32) + 1.0), maxval=1.0 / low)
    return jnp.clip(jnp.floor(1.0 / inverse).astype(jnp.int32), low, high)


def _rounded_exponential(key: PRNGKeyArray, scale: float) -> Int[Array, ""]:
    drawn: Float[Array, ""] = jax.random.exponential(key, ())
    return jnp.round(scale * drawn).astype(jnp.int32)
