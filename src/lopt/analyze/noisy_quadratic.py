r"""When a linear update rule is stable on the noisy quadratic model, in closed form."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lopt.checks import at_least, positive
from lopt.errors import InputError

Matrix = Float[np.ndarray, "_ _"]


class Box(NamedTuple):
    """Bounds on the eigenvalues of a black box within which a training is promised to be stable."""

    low: float
    high: float

    def admits(self, black_box: Matrix) -> bool:
        """Whether all eigenvalues of a matrix are real and within the bounds."""
        values = np.linalg.eigvals(black_box)
        scale = max(1.0, float(np.abs(values).max()))
        return bool(
            (np.abs(values.imag) <= 1e-9 * scale).all()
            and self.low <= values.real.min()
            and values.real.max() <= self.high
        )


def admissible_box(hessian: Matrix, nominal: float, *, preconditioned: bool = False, largest_error: float = 1.0) -> Box:
    r"""The box of Theorem 1, and how Lemmas 2 and 3 move it.

    $$-\frac{\alpha}{\bar d} \leq \lambda(P) \leq \frac{1}{\bar d} \Big( \frac{2}{\lambda} - \alpha \Big), \qquad
      \lambda = \lambda_{\max}(H), \text{ or } \sqrt{\lambda_{\max}(H)} \text{ with output preconditioning}$$

    In the paper these bounds are necessary and sufficient. They are so where $P$ and $H$ have the same eigenvectors. For other symmetric $P$ they
    are sufficient: $(\alpha I + P) H$ is similar to
    $H^{1/2} (\alpha I + P) H^{1/2}$, so the lower bound is necessary as well, the upper one is not. For $P$ that are not symmetric they are neither.

    Args:
        hessian: $H$, symmetric and positive definite.
        nominal: $\alpha$, the step along the negative gradient that the rule always takes.
        preconditioned: whether the whole output is multiplied by $H^{-1/2}$ (Lemma 2).
        largest_error: $\bar d$, where $P = \mathrm{diag}(d)\, \tilde P$ with $0 < d_i \leq \bar d$ and the box is one for $\tilde P$ (Lemma 3).

    Raises:
        InputError: for a Hessian that is not symmetric and positive definite, a negative nominal step, or an error that is not positive.

    Source: Harrison, Metz & Sohl-Dickstein 2022, section 4.
    """
    top = float(np.linalg.eigvalsh(_definite(hessian))[-1])
    at_least(0, nominal=nominal)
    positive(largest_error=largest_error)
    bound = 2.0 / (np.sqrt(top) if preconditioned else top)
    return Box(-nominal / largest_error, float(bound - nominal) / largest_error)


@dataclasses.dataclass(frozen=True)
class LinearTraining:
    r"""A linear update rule on the noisy quadratic model.

    $$w_{t+1} = w_t - Q H_t (w_t - \mu_t), \qquad \mathbb{E} H_t = H, \quad \mu_t \sim \mathcal{N}(0, \Sigma)$$

    $Q = \alpha I + P$ in the paper, where $H_t = H$. Then $w_{t+1} = A w_t + (I - A) \mu_t$ with $A = I - Q H$. With a batch size, our extension,
    $H_t$ is the mean of
    $x x^\top$ over as many $x \sim \mathcal{N}(0, H)$: what least squares shows of its Hessian in a minibatch.

    Args:
        hessian: $H$, symmetric and positive definite.
        update: $Q$.
        covariance: $\Sigma$.
        batch_size: of $H_t$; `None` for all.

    Raises:
        InputError: for a Hessian that is not symmetric and positive definite, a covariance that is not symmetric, or matrices of different sizes.

    Examples:
        >>> import numpy as np
        >>> from lopt.analyze import LinearTraining
        >>> sgd = LinearTraining(np.diag([1.0, 4.0]), 0.4 * np.eye(2), np.eye(2))
        >>> round(sgd.spectral_radius, 6), bool(sgd.expected_losses(np.eye(2), 3)[-1] > 0)
        (0.6, True)

    Source: Harrison, Metz & Sohl-Dickstein 2022, equations 4 to 8. The fourth moment of Gaussian features: Isserlis 1918.
    """

    hessian: Matrix
    update: Matrix
    covariance: Matrix
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _definite(self.hessian)
        if not self.hessian.shape == self.update.shape == self.covariance.shape:
            raise InputError(
                f"hessian, update and covariance have shapes {self.hessian.shape}, {self.update.shape} and {self.covariance.shape}; they must be alike."
            )
        if not np.allclose(self.covariance, self.covariance.T):
            raise InputError("covariance is not symmetric; it must be.")
        if self.batch_size is not None:
            at_least(1, batch_size=self.batch_size)

    @property
    def transition(self) -> Matrix:
        """$A = I - Q H$: of the mean."""
        return np.eye(len(self.hessian)) - self.update @ self.hessian

    @property
    def spectral_radius(self) -> float:
        r"""$\rho(A)$: the mean converges where it is below 1."""
        return float(np.abs(np.linalg.eigvals(self.transition)).max())

    @property
    def second_moment_radius(self) -> float:
        r"""The spectral radius of the map from $\mathbb{E} w_t w_t^\top$ to the next: $\rho(A)^2$ where $H_t = H$, more where it is noisy.

        Where it is below 1 the second moment, and with it the expected loss, converges. A noisy $H_t$ can make it diverge although the mean converges.
        """
        return float(np.abs(np.linalg.eigvals(self._second_moment_map())).max())

    def expected_losses(self, start: Matrix, steps: int) -> Float[np.ndarray, " steps"]:
        r"""The expected loss before each step, $\tfrac12 \operatorname{tr} H (\mathbb{E} w_t w_t^\top + \Sigma)$.

        Their mean is the expected meta-loss of an unroll.

        Args:
            start: $\mathbb{E} w_0 w_0^\top$.
            steps: of the unroll.
        """
        moment, found = np.asarray(start, np.float64), []
        for _ in range(steps):
            found.append(0.5 * np.trace(self.hessian @ (moment + self.covariance)))
            moment = self._next(moment) + self._noise()
        return np.asarray(found)

    def stationary(self) -> Matrix:
        r"""The second moment $\mathbb{E} w w^\top$ at which the training settles.

        Raises:
            InputError: where it does not settle.
        """
        from scipy.linalg import solve_discrete_lyapunov

        if not self.second_moment_radius < 1.0:
            raise InputError(
                f"The second moment grows by {self.second_moment_radius:.4g} a step; there is no stationary one at 1 and above."
            )
        if self.batch_size is None:
            return np.asarray(solve_discrete_lyapunov(self.transition, self._noise()))
        n = len(self.hessian)
        return np.linalg.solve(np.eye(n * n) - self._second_moment_map(), self._noise().ravel()).reshape(n, n)

    def _next(self, moment: Matrix) -> Matrix:
        return self.transition @ moment @ self.transition.T + self.update @ self._extra(moment) @ self.update.T

    def _noise(self) -> Matrix:
        h, s = self.hessian, self.covariance
        return self.update @ (h @ s @ h + self._extra(s)) @ self.update.T

    def _extra(self, moment: Matrix) -> Matrix:
        r"""$\mathbb{E} E M E$ for $E = H_t - H$."""
        if self.batch_size is None:
            return np.zeros_like(moment)
        h = self.hessian
        return (h @ moment.T @ h + np.trace(h @ moment) * h) / self.batch_size

    def _second_moment_map(self) -> Float[np.ndarray, "nn nn"]:
        n = len(self.hessian)
        return np.stack([self._next(e.reshape(n, n)).ravel() for e in np.eye(n * n)], axis=1)


def _definite(hessian: Matrix) -> Matrix:
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not np.allclose(hessian, hessian.T):
        raise InputError(f"hessian has shape {hessian.shape} or is not symmetric; it must be a symmetric matrix.")
    if not np.linalg.eigvalsh(hessian)[0] > 0:
        raise InputError("hessian has an eigenvalue that is not positive; all must be.")
    return hessian


__all__ = ["Box", "LinearTraining", "admissible_box"]
