"""Test functions of classical optimisation, with their known minima."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least, positive
from lopt.errors import InputError
from lopt.names import unknown
from lopt.task import Split, Task

Point = Float[Array, " dim"]


class Surface(NamedTuple):
    """A test function of two variables.

    Attributes:
        function: from a point, shape `[2]`, to its value.
        low: least start of each coordinate; `None` where starts are standard normal.
        high: greatest start of each coordinate.
        minima: all global minima, shape `[number, 2]`.
        least: the value there.
        frame: left, right, bottom and top of a picture of it.
    """

    function: Callable[[Point], Float[Array, ""]]
    low: tuple[float, float] | None
    high: tuple[float, float] | None
    minima: tuple[tuple[float, float], ...]
    least: float
    frame: tuple[float, float, float, float]


def _ackley(w: Point) -> Float[Array, ""]:
    square = jnp.mean(jnp.square(w))
    away = square > 0.0
    radius = jnp.where(
        away, jnp.sqrt(jnp.where(away, square, 1.0)), 0.0
    )  # at the minimum the slope of the root is infinite
    waves = jnp.mean(jnp.cos(2.0 * math.pi * w))
    return -20.0 * jnp.expm1(-0.2 * radius) - math.e * jnp.expm1(waves - 1.0)


def _beale(w: Point) -> Float[Array, ""]:
    x, y = w
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _booth(w: Point) -> Float[Array, ""]:
    x, y = w
    return (x + 2.0 * y - 7.0) ** 2 + (2.0 * x + y - 5.0) ** 2


def _branin(w: Point) -> Float[Array, ""]:
    x, y = w
    valley = y - 5.1 / (4.0 * math.pi**2) * x**2 + 5.0 / math.pi * x - 6.0
    return valley**2 + 10.0 * (1.0 - 1.0 / (8.0 * math.pi)) * jnp.cos(x) + 10.0


def _log_sum_exp(w: Point) -> Float[Array, ""]:
    x, y = w
    zero = jnp.zeros_like(x)
    return jax.nn.logsumexp(jnp.stack([x + 3.0 * y - 0.1, x - 3.0 * y - 0.1, -x - 0.1, zero]))


def _matyas(w: Point) -> Float[Array, ""]:
    x, y = w
    return 0.26 * (x**2 + y**2) - 0.48 * x * y


def _michalewicz(w: Point) -> Float[Array, ""]:
    x, y = w
    return 2.0 - jnp.sin(x) * jnp.sin(x**2 / math.pi) ** 10 - jnp.sin(y) * jnp.sin(2.0 * y**2 / math.pi) ** 10


def _rosenbrock(w: Point) -> Float[Array, ""]:
    return jnp.sum((1.0 - w[:-1]) ** 2 + 100.0 * (w[1:] - w[:-1] ** 2) ** 2)


def _styblinski_tang(w: Point) -> Float[Array, ""]:
    return 0.5 * jnp.sum(w**4 - 16.0 * w**2 + 5.0 * w) + 80.0


_LOG_SUM_EXP = -0.5 * math.log(2.0)  # where 2 exp(x) + exp(-x) is least
_STYBLINSKI_TANG = -2.903534027771177  # the least root of 4 z^3 - 32 z + 5
_MICHALEWICZ = 2.1853119618401684  # the root near 2.2 of the derivative of sin x sin(x^2/pi)^10
_PI = math.pi

SURFACES: dict[str, Surface] = {
    "ackley": Surface(_ackley, (-32.768, -32.768), (32.768, 32.768), ((0.0, 0.0),), 0.0, (-33, 33, -33, 33)),
    "beale": Surface(_beale, (-4.5, -4.5), (4.5, 4.5), ((3.0, 0.5),), 0.0, (-4.5, 4.5, -4.5, 4.5)),
    "booth": Surface(_booth, (-10.0, -10.0), (10.0, 10.0), ((1.0, 3.0),), 0.0, (-10, 10, -10, 10)),
    "branin": Surface(
        _branin,
        (-5.0, 0.0),
        (10.0, 15.0),
        ((-_PI, 12.275), (_PI, 2.275), (3.0 * _PI, 2.475)),
        10.0 / (8.0 * _PI),
        (-5, 10, 0, 15),
    ),
    "log_sum_exp": Surface(
        _log_sum_exp,
        None,
        None,
        ((_LOG_SUM_EXP, 0.0),),
        math.log1p(2.0 * math.sqrt(2.0) * math.exp(-0.1)),
        (-3, 3, -3, 3),
    ),
    "matyas": Surface(_matyas, (-10.0, -10.0), (10.0, 10.0), ((0.0, 0.0),), 0.0, (-10, 10, -10, 10)),
    "michalewicz": Surface(
        _michalewicz, (0.0, 0.0), (_PI, _PI), ((_MICHALEWICZ, _PI / 2.0),), 0.19337711465280438, (0, _PI, 0, _PI)
    ),
    "rosenbrock": Surface(_rosenbrock, (-5.0, -5.0), (10.0, 10.0), ((1.0, 1.0),), 0.0, (-5, 10, -5, 10)),
    "styblinski_tang": Surface(
        _styblinski_tang,
        (-5.0, -5.0),
        (5.0, 5.0),
        ((_STYBLINSKI_TANG, _STYBLINSKI_TANG),),
        1.6676685924571757,
        (-5, 5, -5, 5),
    ),
}


class Landscape(Task):
    r"""A test function of a point. Trainings differ in the point at which they start.

    | `function` | $f$ | start |
    |---|---|---|
    | `ackley` | $20 - 20 e^{-0.2 \sqrt{(x^2 + y^2)/2}} + e - e^{(\cos 2\pi x + \cos 2\pi y)/2}$ | $U(-32.768, 32.768)^2$ |
    | `beale` | $(1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2$ | $U(-4.5, 4.5)^2$ |
    | `booth` | $(x + 2y - 7)^2 + (2x + y - 5)^2$ | $U(-10, 10)^2$ |
    | `branin` | $(y - \frac{5.1}{4\pi^2} x^2 + \frac5\pi x - 6)^2 + 10 (1 - \frac1{8\pi}) \cos x + 10$ | $U(-5, 10) \times U(0, 15)$ |
    | `log_sum_exp` | $\log(e^{x + 3y - 0.1} + e^{x - 3y - 0.1} + e^{-x - 0.1} + 1)$ | $N(0, I)$ |
    | `matyas` | $0.26 (x^2 + y^2) - 0.48 xy$ | $U(-10, 10)^2$ |
    | `michalewicz` | $2 - \sin x \sin^{10}(x^2/\pi) - \sin y \sin^{10}(2y^2/\pi)$ | $U(0, \pi)^2$ |
    | `rosenbrock` | $\sum_i (1 - x_i)^2 + 100 (x_{i+1} - x_i^2)^2$ | $U(-5, 10)^n$ |
    | `styblinski_tang` | $\frac12 \sum_z (z^4 - 16 z^2 + 5z) + 80$ | $U(-5, 5)^2$ |

    None is ever negative. All splits are the same function. From 4 dimensions on Rosenbrock's has a second, local minimum.

    Args:
        function: a key of `SURFACES`.
        dim: number of parameters: 2, and for `rosenbrock` any from 2.
        reach: instead of the starts of the table, $U(-r, r)^n$ with this $r$.

    Source: Wichrowska et al. 2017, the released problem generator.
    """

    function: str = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    reach: float | None = eqx.field(static=True)

    def __init__(self, function: str = "rosenbrock", *, dim: int = 2, reach: float | None = None):
        if function not in SURFACES:
            raise InputError(unknown("landscape", function, SURFACES))
        if dim < 2 or (dim > 2 and function != "rosenbrock"):
            raise InputError(f"dim is {dim}; it must be 2, or at least 2 for rosenbrock.")
        if reach is not None:
            positive(reach=reach)
        self.function, self.dim, self.reach = function, dim, reach

    @property
    def surface(self) -> Surface:
        """The function, with its starts."""
        surface = SURFACES[self.function]
        if self.reach is None:
            return surface
        return surface._replace(low=(-self.reach,) * 2, high=(self.reach,) * 2)

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Point:
        """A start within the range that the table names."""
        del problem
        surface = self.surface
        if surface.low is None or surface.high is None:
            return jax.random.normal(key, (self.dim,))
        low, high = (jnp.resize(jnp.asarray(x, jnp.float32), (self.dim,)) for x in (surface.low, surface.high))
        return low + (high - low) * jax.random.uniform(key, (self.dim,))

    def loss(self, problem: tuple[()], params: Point, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """$f$ at the point."""
        del problem, key, split
        return SURFACES[self.function].function(params)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """From 1, the mean over the starts, to 0, the least value."""
        least = SURFACES[self.function].least
        # The terms of Rosenbrock's sum have one mean at the start.
        start = least + (_mean_start(self.surface) - least) * (self.dim - 1)
        return (loss - least) / (start - least)


@functools.cache
def _mean_start(surface: Surface) -> float:
    """The mean of a function over its starts, by the midpoint rule in 400 x 400 cells of equal probability."""
    levels = (np.arange(400, dtype=np.float32) + np.float32(0.5)) / np.float32(400.0)
    with jax.ensure_compile_time_eval():
        share = jnp.stack(jnp.meshgrid(levels, levels), axis=-1).reshape(-1, 2)
        if surface.low is None or surface.high is None:
            points = jax.scipy.special.ndtri(share)
        else:
            low, high = (jnp.asarray(x, jnp.float32) for x in (surface.low, surface.high))
            points = low[None] + (high - low)[None] * share
        return float(jnp.mean(jax.vmap(surface.function)(points)))


def landscape(function: str, cells: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values of a test function over its frame, for a picture.

    Args:
        function: a key of `SURFACES`.
        cells: points a side.

    Returns:
        x, shape `[cells]`; y, shape `[cells]`; values, shape `[cells, cells]`, rows for y.
    """
    if function not in SURFACES:
        raise InputError(unknown("landscape", function, SURFACES))
    at_least(2, cells=cells)
    left, right, bottom, top = SURFACES[function].frame
    x, y = np.linspace(left, right, cells, dtype=np.float32), np.linspace(bottom, top, cells, dtype=np.float32)
    points = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    return x, y, np.asarray(jax.vmap(SURFACES[function].function)(points)).reshape(cells, cells)
