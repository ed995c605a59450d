r"""Analytic continuation: recover a spectral function from imaginary-time data, an ill-posed linear inverse problem."""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import at_least
from lopt.errors import InputError
from lopt.task import Split, Task

# Of the reference problems: shares of the cutoff that centres and widths of peaks span.
CENTRES = (-0.6, 0.6)
WIDTHS = (0.03, 0.2)


class ContinuationProblem(NamedTuple):
    """A spectrum and three measurements of its correlation function."""

    spectrum: Float[Array, " frequencies"]  # mass on each frequency; they sum to 1
    train: Float[Array, " points"]
    valid: Float[Array, " points"]
    test: Float[Array, " points"]


class AnalyticContinuation(Task):
    r"""Fermionic analytic continuation by regularised maximum likelihood.

    Quantum Monte Carlo measures a correlation function of an electron at imaginary times $0 \le \tau \le \beta$; experiments see its spectral
    function at real frequencies. The two are tied by

    $$G(\tau) = \int K(\tau, \omega)\, A(\omega)\, d\omega, \qquad K(\tau, \omega) = \frac{e^{-\tau\omega}}{1 + e^{-\beta\omega}},
    \qquad A \ge 0, \quad \int A\, d\omega = 1$$

    and $K$ smooths so much that its singular values fall exponentially: noise of a part in a thousand hides all but a few combinations of
    $A$. A loss surface of this kind is steep in a few directions and flat in all others.

    The parameters are logits on a grid of frequencies, $a_j = \mathrm{softmax}(z)_j = A(\omega_j)\Delta\omega$, and the loss is, per data point,

    $$f(z) = \frac{1}{N} \left( \tfrac12 \sum_i \frac{(\bar G_i - \sum_j K_{ij} a_j)^2}{\sigma^2} - \alpha S(a) \right),
    \qquad S(a) = -\sum_j a_j \log\frac{a_j}{m_j}$$

    This is half of $\chi^2$, with the entropy $S$ relative to a default model $m$ (maximum entropy) on the training split alone. At the true spectrum
    half of $\chi^2$ is about 1/2 a point. A training loss far below that fits the noise, which the other splits show.

    Problems are random: a mixture of Gaussians with Dirichlet(1) weights, centres uniform within 0.6 and widths log-uniform within 0.03 to 0.2
    of the cutoff, and noise $N(0, \sigma^2)$, drawn once a problem. `train` and `valid` are independent measurements at the same times,
    `test` is one at the times between. Spectra live on the grid, so there is no discretisation error to fit.

    Args:
        frequencies: grid points from $-$`cutoff` to `cutoff`.
        points: $N$, imaginary times.
        beta: $\beta$, inverse temperature, in inverse units of frequency.
        cutoff: greatest frequency.
        noise: $\sigma$; $G(0) + G(\beta) = 1$ sets the scale.
        peaks: Gaussians in a mixture.
        entropy: $\alpha$; 0 for plain maximum likelihood.
        model: $m$ on the grid, positive; made to sum to 1. Flat if not given.

    Source: Jarrell & Gubernatis 1996, *Bayesian inference and the analytic continuation of imaginary-time quantum Monte Carlo data*, recalled; the
    distribution of problems is ours.
    """

    model: Float[Array, " frequencies"]
    kernel: Float[Array, "points frequencies"]
    test_kernel: Float[Array, "points frequencies"]
    grid: Float[Array, " frequencies"]
    start: Float[Array, ""]  # expected loss of the default model
    noise: float = eqx.field(static=True)
    peaks: int = eqx.field(static=True)
    entropy: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        frequencies: int = 65,
        points: int = 32,
        beta: float = 10.0,
        cutoff: float = 8.0,
        noise: float = 1e-3,
        peaks: int = 3,
        entropy: float = 0.0,
        model: Float[Array, " frequencies"] | np.ndarray | None = None,
    ):
        at_least(2, frequencies=frequencies)
        at_least(1, points=points, peaks=peaks)
        for name, number in (("beta", beta), ("cutoff", cutoff), ("noise", noise)):
            if not 0 < number < math.inf:
                raise InputError(f"{name} is {number}; it must be positive.")
        at_least(0, entropy=entropy)
        given = np.ones(frequencies) if model is None else np.asarray(model, np.float64)
        if given.shape != (frequencies,) or not (given > 0).all() or not np.isfinite(given).all():
            raise InputError(
                f"model has shape {given.shape}; it must be {frequencies} positive numbers, one a frequency."
            )
        given = given / given.sum()
        grid = np.linspace(-cutoff, cutoff, frequencies)
        times = beta * (np.arange(points) + 0.5) / points
        between = beta * np.arange(points) / points
        kernel = fermionic_kernel(times, grid, beta)
        self.model, self.grid = jnp.asarray(given, jnp.float32), jnp.asarray(grid, jnp.float32)
        self.kernel = jnp.asarray(kernel, jnp.float32)
        self.test_kernel = jnp.asarray(fermionic_kernel(between, grid, beta), jnp.float32)
        self.start = jnp.asarray(_expected_start(kernel, grid, given, peaks, noise), jnp.float32)
        self.noise, self.peaks, self.entropy = noise, peaks, entropy

    def sample(self, key: PRNGKeyArray) -> ContinuationProblem:
        """Draw a spectrum and measure its correlation function three times."""
        centre_key, width_key, weight_key, noise_key = jax.random.split(key, 4)
        cutoff = self.grid[-1]
        shape = (self.peaks, 1)
        centres = cutoff * jax.random.uniform(centre_key, shape, minval=CENTRES[0], maxval=CENTRES[1])
        low, high = map(math.log, WIDTHS)
        widths = cutoff * jnp.exp(jax.random.uniform(width_key, shape, minval=low, maxval=high))
        peaks = jax.nn.softmax(-0.5 * jnp.square((self.grid[None] - centres) / widths), axis=-1)
        weights = jax.random.exponential(weight_key, shape)  # normalised exponentials are Dirichlet(1)
        spectrum = jnp.sum(weights / jnp.sum(weights) * peaks, axis=0)
        errors = self.noise * jax.random.normal(noise_key, (3, len(self.kernel)))
        clean, between = self.kernel @ spectrum, self.test_kernel @ spectrum
        return ContinuationProblem(spectrum, clean + errors[0], clean + errors[1], between + errors[2])

    def init(self, problem: ContinuationProblem, key: PRNGKeyArray) -> Float[Array, " frequencies"]:
        """Logits of the default model, and $N(0, 0.1^2)$."""
        del problem
        return jnp.log(self.model) + 0.1 * jax.random.normal(key, self.model.shape)

    def loss(
        self,
        problem: ContinuationProblem,
        params: Float[Array, " frequencies"],
        key: PRNGKeyArray,
        split: Split = "train",
    ) -> Float[Array, ""]:
        """Half of $\\chi^2$ a data point and, on `train`, the entropy term; see the class."""
        del key
        log_masses = jax.nn.log_softmax(params)
        masses = jnp.exp(log_masses)
        kernel = self.test_kernel if split == "test" else self.kernel
        data: Array = getattr(problem, split)
        half = 0.5 * jnp.mean(jnp.square((data - kernel @ masses) / self.noise))
        if split != "train" or not self.entropy:
            return half
        return half + self.entropy / len(data) * jnp.sum(masses * (log_masses - jnp.log(self.model)))

    def metrics(
        self, problem: ContinuationProblem, params: Float[Array, " frequencies"], key: PRNGKeyArray, split: Split
    ) -> dict[str, Float[Array, ""]]:
        r"""`loss`, and `l1`: $\int |A - A_\mathrm{true}|\, d\omega$, from 0 to 2, the same on all splits."""
        distance = jnp.sum(jnp.abs(jax.nn.softmax(params) - problem.spectrum))
        return {"loss": self.loss(problem, params, key, split), "l1": distance}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the expected loss of the default model."""
        return loss / self.start


def fermionic_kernel(
    times: Float[np.ndarray, " points"], grid: Float[np.ndarray, " frequencies"], beta: float
) -> Float[np.ndarray, "points frequencies"]:
    r"""$K(\tau, \omega) = e^{-\tau\omega} / (1 + e^{-\beta\omega})$ for $0 \le \tau \le \beta$, whatever the size of $\beta\omega$.

    For $\omega < 0$ both factors overflow, but $K(\tau, \omega) = K(\beta - \tau, -\omega)$, and for $\omega \ge 0$ neither does.
    """
    distance = np.where(grid[None] >= 0, times[:, None], beta - times[:, None])
    return np.exp(-distance * np.abs(grid)) / (1.0 + np.exp(-beta * np.abs(grid)))


def _expected_start(kernel: np.ndarray, grid: np.ndarray, model: np.ndarray, peaks: int, noise: float) -> float:
    r"""$E[f]$ at the default model, over spectra and noise.

    With Dirichlet(1) weights over $P$ independent peaks $g$, $E[aa^\top] = \bar g \bar g^\top + 2/(P+1)\, \mathrm{Cov}(g)$.
    """
    share = (np.arange(32) + 0.5) / 32
    centres = grid[-1] * (CENTRES[0] + share * (CENTRES[1] - CENTRES[0]))
    widths = grid[-1] * np.exp(np.log(WIDTHS[0]) + share * np.log(WIDTHS[1] / WIDTHS[0]))
    g = np.exp(-0.5 * np.square((grid - centres[:, None, None]) / widths[:, None])).reshape(-1, len(grid))
    measured = (g / g.sum(axis=1, keepdims=True)) @ kernel.T
    mean_square = np.square(measured.mean(axis=0) - kernel @ model) + 2.0 / (peaks + 1) * measured.var(axis=0)
    return float(0.5 * np.mean(mean_square) / noise**2 + 0.5)
