"""The one task behind most probes: three surfaces and whatever can happen to their gradients, as data of the problem."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.optimizer import Params
from lopt.task import Split, Task

SIZE = 16  # parameters of every probe but the one on real data
TENSORS = (("matrix", (4, 3)), ("vector", (4,)))
ODD = (("empty", (0, 3)), ("scalar", ()), ("vector", (15,)))
QUADRATIC, SADDLE, VALLEY = range(3)
SPIKE, SPIKE_EVERY = 1e3, 100
DISTANCE = 0.5  # of every coordinate from the minimum at the start, about what a weight travels in the training of a small network


class ProbeProblem(NamedTuple):
    """One problem. All of it is data, so that one compiled program serves all probes."""

    surface: Int[Array, ""]  # QUADRATIC, SADDLE or VALLEY
    start: Float[Array, " size"]
    center: Float[Array, " size"]  # the minimum of the quadratic
    curvature: Float[Array, " size"]  # its eigenvalues
    axis: Float[Array, " size"]  # unit vector of the reflection that turns its eigenbasis
    scale: Float[Array, " size"]  # parameters are these many times as large
    loss_scale: Float[Array, ""]
    noise: Float[Array, ""]  # deviation of normal noise on every element of the gradient
    hidden: Float[Array, ""]  # probability that an element of the gradient is zeroed
    spiky: Float[Array, ""]  # 1 where the gradient of every hundredth step is 1,000 times as large, else 0
    nan_at: Int[Array, ""]  # the step at which one element of the gradient is NaN; negative for never
    shown: Float[Array, ""]  # the gradient is multiplied by it: 0 or 1


class Setting(NamedTuple):
    """What sets a problem apart from a well-conditioned, noise-free quadratic; see `ProbeProblem`."""

    surface: int = QUADRATIC
    curvature: tuple[float, float] = (0.3, 1.0)  # least and greatest eigenvalue; log-uniform between them
    scales: tuple[float, float] = (1.0, 1.0)  # of the first tensors, of the last one
    loss_scale: float = 1.0
    noise: float = 0.0
    hidden: float = 0.0
    spiky: float = 0.0
    nan_at: int = -1
    shown: float = 1.0


class ProbeTask(Task):
    r"""A surface of 16 parameters, and what an optimizer is shown of it.

    $$f(w) = c\, s(z), \quad z = w / r, \qquad h_t(g) = 1000^{p_t}\, b_t \odot (g + \sigma n_t)$$

    | surface | $s(z)$ | start |
    |---|---|---|
    | quadratic | $\frac12 (z - z^*)^\top R\, \mathrm{diag}(\lambda)\, R (z - z^*)$, $R = I - 2 a a^\top$ | each eigendirection holds the same loss |
    | saddle | $\sum_i \frac12 x_i^2 + \frac14 (y_i^2 - 1)^2$ | $x = \pm\frac12$, $y = \pm 10^{-6}$ |
    | valley | $\frac18 \sum_i (1 - x_i)^2 + 100 (y_i - x_i^2)^2$ | $x = y = 0$ |

    with $b_t$ Bernoulli for each element, $n_t$ normal, and $p_t$ one at every hundredth step of a spiky problem, else zero. The loss itself is always exact.

    Args:
        setting: which of it.
        tensors: name and shape of each tensor, 16 elements in all.
        dtype: of the parameters; the loss is float32.
    """

    setting: Setting = eqx.field(static=True)
    tensors: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    def __init__(
        self,
        setting: Setting,
        *,
        tensors: tuple[tuple[str, tuple[int, ...]], ...] = TENSORS,
        dtype: Any = jnp.float32,
    ):
        self.setting, self.tensors, self.dtype = setting, tensors, dtype

    def sample(self, key: PRNGKeyArray) -> ProbeProblem:
        """Draw basis and directions; everything else is the setting's."""
        s = self.setting
        axis_key, start_key, sign_key = jax.random.split(key, 3)
        axis = jax.random.normal(axis_key, (SIZE,))
        axis = axis / jnp.linalg.norm(axis)
        signs = jax.random.rademacher(sign_key, (SIZE,), jnp.float32)
        low, high = s.curvature
        curvature = jnp.asarray(np.geomspace(low, high, SIZE), jnp.float32)
        half = SIZE // 2
        if s.surface == QUADRATIC:
            start = DISTANCE * jax.random.normal(start_key, (SIZE,))
        elif s.surface == SADDLE:
            start = signs * jnp.where(jnp.arange(SIZE) < half, 0.5, 1e-6)
        else:
            start = jnp.zeros(SIZE)
        # Where curvature is small the minimum is far, so that a rule must get to the end of flat directions, too.
        away = _reflect(axis, DISTANCE * signs * jnp.sqrt(low / curvature))
        last = int(np.prod(self.tensors[-1][1]))
        scale = jnp.where(jnp.arange(SIZE) < SIZE - last, s.scales[0], s.scales[1])
        number = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
        return ProbeProblem(
            jnp.asarray(s.surface, jnp.int32),
            start,
            start + away,
            curvature,
            axis,
            number(scale),
            number(s.loss_scale),
            number(s.noise),
            number(s.hidden),
            number(s.spiky),
            jnp.asarray(s.nan_at, jnp.int32),
            number(s.shown),
        )

    def init(self, problem: ProbeProblem, key: PRNGKeyArray) -> Params:
        """The problem's start."""
        del key
        return self._tree(problem.start * problem.scale)

    def loss(
        self, problem: ProbeProblem, params: Params, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w)$, the same on all splits."""
        del key, split
        z = self._flat(params) / problem.scale
        half = SIZE // 2
        x, y = z[:half], z[half:]
        value = jax.lax.switch(
            problem.surface,
            (
                lambda: 0.5 * jnp.sum(problem.curvature * jnp.square(_reflect(problem.axis, z - problem.center))),
                lambda: jnp.sum(0.5 * jnp.square(x) + 0.25 * jnp.square(jnp.square(y) - 1.0)),
                lambda: jnp.mean(jnp.square(1.0 - x) + 100.0 * jnp.square(y - jnp.square(x))),
            ),
        )
        return problem.loss_scale * value

    def remember(self, problem: ProbeProblem, params: Params) -> Int[Array, ""]:
        """The number of the step."""
        del problem, params
        return jnp.zeros((), jnp.int32)

    def observe(
        self, problem: ProbeProblem, params: Params, memory: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Params, Int[Array, ""]]:
        """The loss, and what is shown of its gradient; see the class."""
        loss, gradients = jax.value_and_grad(lambda p: self.loss(problem, p, key))(params)
        noise_key, hidden_key = jax.random.split(key)
        g = self._flat(gradients) + problem.noise * jax.random.normal(noise_key, (SIZE,))
        g = jnp.where(jax.random.uniform(hidden_key, (SIZE,)) < problem.hidden, 0.0, g)
        # Halfway between hundreds, so that half of a hundred steps are left to recover before the end.
        g = jnp.where((problem.spiky > 0) & (memory % SPIKE_EVERY == SPIKE_EVERY // 2), SPIKE * g, g)
        g = jnp.where((memory == problem.nan_at) & (jnp.arange(SIZE) == SIZE - 1), jnp.nan, problem.shown * g)
        return loss, self._tree(g), memory + 1

    def _flat(self, params: Params) -> Float[Array, " size"]:
        return jnp.concatenate([params[name].astype(jnp.float32).reshape(-1) for name, _ in self.tensors])

    def _tree(self, flat: Float[Array, " size"]) -> Params:
        at, found = 0, {}
        for name, shape in self.tensors:
            size = int(np.prod(shape))
            found[name] = flat[at : at + size].reshape(shape).astype(self.dtype)
            at += size
        return found


class UnscaledFeatures(Task):
    r"""Logistic regression on features whose deviations reach from 1 to 10,000, as in a table that nobody scaled.

    $$f(w, b) = \frac{1}{512} \sum_n \log(1 + e^{-y_n (w \cdot x_n + b)}), \quad x_n \sim N(0, \mathrm{diag}(s^2)), \quad s_i = 10^{4 (i - 1) / 9}$$

    Labels $y_n = \pm 1$ are the signs of $w^* \cdot x_n$ with $w^*_i s_i$ normal. $w$ and $b$ begin at zero; all examples are in every gradient.
    """

    def sample(self, key: PRNGKeyArray) -> tuple[Float[Array, "512 10"], Float[Array, " 512"]]:
        """Features and labels."""
        features_key, labels_key = jax.random.split(key)
        scaled = jax.random.normal(features_key, (512, 10))
        signs = jnp.sign(scaled @ jax.random.normal(labels_key, (10,)))
        return scaled * jnp.asarray(np.logspace(0, 4, 10), jnp.float32)[None, :], signs

    def init(self, problem: tuple[Array, Array], key: PRNGKeyArray) -> Params:
        """Zeros."""
        del problem, key
        return {"w": jnp.zeros(10), "b": jnp.zeros(())}

    def loss(
        self, problem: tuple[Array, Array], params: Params, key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w, b)$, the same on all splits."""
        del key, split
        features, signs = problem
        return jnp.mean(jax.nn.softplus(-signs * (features @ params["w"] + params["b"])))


def _reflect(axis: Float[Array, " size"], x: Float[Array, " size"]) -> Float[Array, " size"]:
    return x - 2.0 * axis * jnp.dot(axis, x)
