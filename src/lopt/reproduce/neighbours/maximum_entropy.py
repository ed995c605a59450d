"""The maximum-entropy method by Bryan's algorithm: a search in the singular space of the kernel, averaged over the weight of the entropy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lopt.checks import positive
from lopt.errors import InputError

FLOOR = 1e-7  # singular values below this part of the largest are left out
FIRST, LEAST, FACTOR = (
    1e4,
    1e-4,
    10**0.25,
)  # of the weights of the entropy: where the search begins and ends, and its steps
ENOUGH = 10.0  # the search ends where the log evidence has fallen by this
LONGEST = 0.2  # bound of the squared length of a step in the metric of the entropy, of a spectrum of mass 1
GREATEST = 3.0  # bound of a step in the logarithm of the spectrum
CLOSE = 1e-4  # of the gradient over the sizes of its two terms
MOST = 500  # steps at one weight


class Found(NamedTuple):
    """What the method finds for one correlation function."""

    average: Float[np.ndarray, " frequencies"]  # over all weights of the entropy, by their evidence: Bryan's answer
    classic: Float[np.ndarray, " frequencies"]  # at the weight with the greatest evidence
    weight: float  # that weight
    chi_square: float  # of `classic`
    steps: int  # of Newton's method, at all weights together


class MaximumEntropy:
    r"""Maximise, for each weight $\alpha$ of the entropy, the posterior probability of a spectrum.

    $$Q = \alpha S - \tfrac12 \chi^2, \qquad \chi^2 = \sum_i \frac{(\bar G_i - \sum_j K_{ij} A_j)^2}{\sigma^2}, \qquad
      S = \sum_j A_j - m_j - A_j \log\frac{A_j}{m_j}$$

    With $K = V \Sigma U^\top$ the maximum has the form $A = m\, e^{U u}$, so that it is sought in as many dimensions as there are singular values. Newton's
    method solves $-\alpha u = g$ with $g = \Sigma V^\top (K A - \bar G) / \sigma^2$,

    $$\left[(\alpha + \mu) I + M T\right] \delta u = -\alpha u - g, \qquad M = \Sigma^2 / \sigma^2, \qquad T = U^\top \mathrm{diag}(A)\, U$$

    where $\mu$ grows until a step is short. Weights fall from a large one, each begun where the last one ended, until the evidence has fallen far
    below its greatest value:

    $$P(\alpha \mid \bar G) \propto \frac1\alpha \prod_i \left(\frac{\alpha}{\alpha + \lambda_i}\right)^{1/2} e^{Q}$$

    with $\lambda$ the eigenvalues of $\sqrt A\, K^\top K \sqrt A / \sigma^2$.

    Args:
        kernel: $K$.
        noise: $\sigma$.

    Source: Bryan 1990, *Maximum entropy analysis of oversampled data problems*; Jarrell & Gubernatis 1996. Recalled.
    """

    def __init__(self, kernel: Float[np.ndarray, "points frequencies"], noise: float):
        positive(noise=noise)
        self.noise = noise
        left, sizes, right = np.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
        kept = sizes > FLOOR * sizes[0]
        self._sizes, self._left, self._right = sizes[kept] / noise, left[:, kept] / noise, right[kept].T

    def maximum(
        self,
        data: Float[np.ndarray, " points"],
        model: Float[np.ndarray, " frequencies"],
        weight: float,
        start: Float[np.ndarray, " directions"] | None = None,
    ) -> tuple[Float[np.ndarray, " frequencies"], Float[np.ndarray, " directions"], int]:
        r"""The spectrum of the greatest $Q$ at one weight.

        Args:
            data: $\bar G$.
            model: $m$, the default model.
            weight: $\alpha$.
            start: $u$ to begin from; zero if not given.

        Returns:
            $A$, $u$ and the number of steps; 500 where it has not converged.
        """
        rows, curvature = self._right, np.square(self._sizes)
        target = self._sizes * (self._left.T @ data)
        u, identity = np.zeros(len(self._sizes)) if start is None else start, np.eye(len(self._sizes))
        for step in range(MOST):
            spectrum = model * np.exp(rows @ u)
            metric = (rows * spectrum[:, None]).T @ rows
            gradient = curvature * (rows.T @ spectrum) - target
            missing = -weight * u - gradient
            size = weight * np.sqrt(u @ metric @ u) + np.sqrt(gradient @ metric @ gradient)
            if missing @ metric @ missing <= (CLOSE * size) ** 2:
                return spectrum, u, step
            damping, jacobian = 0.0, curvature[:, None] * metric
            while True:
                change = np.linalg.solve(jacobian + (weight + damping) * identity, missing)
                if change @ metric @ change <= LONGEST * spectrum.sum() and (rows @ change).max() <= GREATEST:
                    break
                damping = max(4.0 * damping, weight)
            u = u + change
        return model * np.exp(rows @ u), u, MOST

    def evidence(
        self,
        data: Float[np.ndarray, " points"],
        model: Float[np.ndarray, " frequencies"],
        weight: float,
        spectrum: Float[np.ndarray, " frequencies"],
    ) -> tuple[float, float]:
        r"""The logarithm of $\alpha P(\alpha \mid \bar G)$, up to a constant, and $\chi^2$.

        Args:
            data: $\bar G$.
            model: $m$.
            weight: $\alpha$.
            spectrum: that of the greatest $Q$.
        """
        seen, projected = self._sizes * (self._right.T @ spectrum), self._left.T @ data
        outside = (data @ data) / self.noise**2 - projected @ projected
        chi_square = float(np.square(seen - projected).sum() + outside)
        entropy = np.sum(spectrum - model - spectrum * np.log(np.maximum(spectrum, 1e-300) / model))
        scaled = (self._right * self._sizes).T * np.sqrt(spectrum)
        eigenvalues = np.maximum(np.linalg.eigvalsh(scaled @ scaled.T), 0.0)
        log = 0.5 * np.sum(np.log(weight / (weight + eigenvalues))) + weight * entropy - 0.5 * chi_square
        return float(log), chi_square

    def __call__(self, data: Float[np.ndarray, " points"], model: Float[np.ndarray, " frequencies"]) -> Found:
        """Search over the weight of the entropy.

        Args:
            data: $\\bar G$.
            model: $m$, positive.

        Raises:
            InputError: for arrays whose sizes are not those of the kernel, data that are not finite, or a default model that is not finite and positive.
        """
        data, model = np.asarray(data, np.float64), np.asarray(model, np.float64)
        for name, given, size in (("data", data, len(self._left)), ("model", model, len(self._right))):
            if given.shape != (size,):
                raise InputError(f"{name} has shape {given.shape}; with this kernel it must be ({size},).")
        if not np.isfinite(data).all():
            raise InputError("data has an element that is not finite; all must be.")
        if not ((model > 0) & np.isfinite(model)).all():
            raise InputError(f"model has an element of {model.min():g}; a default model must be positive and finite.")
        weight, u, steps = FIRST, None, 0
        spectra, logs, weights, chi_squares = [], [], [], []
        while weight >= LEAST and (not logs or logs[-1] > max(logs) - ENOUGH):
            spectrum, u, taken = self.maximum(data, model, weight, u)
            log, chi_square = self.evidence(data, model, weight, spectrum)
            spectra.append(spectrum)
            logs.append(log)
            weights.append(weight)
            chi_squares.append(chi_square)
            steps += taken
            weight /= FACTOR
        shares = np.exp(
            np.asarray(logs) - max(logs)
        )  # weights are spaced evenly in their logarithm, which the prior 1 / weight makes flat
        average = (shares / shares.sum()) @ np.asarray(spectra)
        best = int(np.argmax(logs))
        return Found(average, spectra[best], weights[best], chi_squares[best], steps)


__all__ = ["Found", "MaximumEntropy"]
