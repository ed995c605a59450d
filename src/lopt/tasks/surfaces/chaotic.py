"""One-dimensional toys on which momentum descent is chaotic in its hyper-parameters."""

from __future__ import annotations

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least, one_of
from lopt.task import Split, Task

Curve = Literal["log_sine", "polynomial"]

# Where each curve is least, and its value there.
MINIMA: dict[str, tuple[float, float]] = {
    "log_sine": (-0.4273078468752301, 0.00400862321029849),
    "polynomial": ((21.0 + math.sqrt(57.0)) / 8.0, 0.0),
}
_DEPTH = 3.123796757173885  # of (x - 4)(x - 3) x^2 below zero


class ChaoticToy(Task):
    r"""A curve with ripples: the loss after some steps of momentum is a fractal over learning rate and momentum.

    $$f(x) = \log(x^2 + 1 + \sin 3x) + 1.5 \quad (\texttt{log\_sine}), \qquad f(x) = (x - 4)(x - 3) x^2 + 3.124 \quad (\texttt{polynomial})$$

    The polynomial is raised to a least value of zero.

    Args:
        curve: `log_sine` or `polynomial`. The polynomial is recalled, not seen in a source.
        start: $x_0$.
        spread: deviation of normal noise on the start; none in the source.

    Source: a note of the first author of Metz et al. 2019 (February 2021) for `log_sine` and its start; the paper for what it shows.
    """

    curve: Curve = eqx.field(static=True)
    start: float = eqx.field(static=True)
    spread: float = eqx.field(static=True)

    def __init__(self, *, curve: Curve = "log_sine", start: float = -4.0, spread: float = 0.0):
        one_of("curve", curve, Curve)
        at_least(0, spread=spread)
        self.curve, self.start, self.spread = curve, start, spread

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Float[Array, ""]:
        """The start."""
        del problem
        return self.start + self.spread * jax.random.normal(key, ())

    def loss(
        self, problem: tuple[()], params: Float[Array, ""], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(x)$, the same on all splits."""
        del problem, key, split
        return _value(self.curve, params, jnp)

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """From 1, the loss at the start, to 0, the least value."""
        _, least = MINIMA[self.curve]
        start = float(_value(self.curve, np.float64(self.start)))
        return (loss - least) / max(start - least, 1e-3)  # a start at the minimum itself has no scale


def _value(curve: Curve, x: Any, xp: Any = np) -> Any:
    if curve == "log_sine":
        return xp.log(x**2 + 1.0 + xp.sin(3.0 * x)) + 1.5
    return (x - 4.0) * (x - 3.0) * x**2 + _DEPTH
