"""The noisy quadratic model, with a chosen spectrum and noise."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.errors import InputError
from lopt.task import Split, Task


class NoisyQuadratic(Task):
    r"""The noisy quadratic model, in the eigenbasis of its Hessian.

    $$f(w; \mu_t) = \tfrac12 (w - \mu_t)^\top H (w - \mu_t), \qquad H = \mathrm{diag}(h), \quad \mu_t \sim N(0, \Sigma), \quad w_0 \sim N(0, I)$$

    with $\mu_t$ drawn at every step. Linear update rules have dynamics in closed form here: with $u = -(\alpha I + P) g$,
    $w_{t+1} = (I - (\alpha I + P) H) w_t + (\alpha I + P) H \mu_t$. The noise is on the training split only; on the others $\mu = 0$. All
    problems of the task are alike.

    Args:
        spectrum: $h$, not negative, at least one of them positive.
        covariance: $\Sigma$: one variance for all coordinates, one for each, or a symmetric positive semi-definite matrix.

    Source: Harrison, Metz & Sohl-Dickstein 2022, section 3; the model is standard.
    """

    spectrum: Float[Array, " dim"]
    root: Float[Array, "dim dim"]  # of the covariance

    def __init__(
        self,
        *,
        spectrum: Sequence[float] | np.ndarray = (1.0, 0.1, 0.01),
        covariance: float | Sequence[float] | np.ndarray = 0.0,
    ):
        h = np.asarray(spectrum, np.float64)
        if h.ndim != 1 or not np.isfinite(h).all() or (h < 0).any() or not h.any():
            raise InputError(f"spectrum is {spectrum}; it must be a row of numbers, none negative and one positive.")
        given = np.asarray(covariance, np.float64)
        if given.ndim > 2 or any(n != len(h) for n in given.shape):
            raise InputError(
                f"covariance has shape {list(given.shape)}; for {len(h)} eigenvalues it must be one number, {len(h)}, or {len(h)} by {len(h)}."
            )
        matrix = given if given.ndim == 2 else np.diag(np.broadcast_to(given, h.shape))
        variances, basis = np.linalg.eigh(0.5 * (matrix + matrix.T))
        if not np.allclose(matrix, matrix.T) or variances.min() < -1e-9 * max(1.0, abs(variances).max()):
            raise InputError(f"covariance is {covariance}; it must be symmetric and positive semi-definite.")
        self.spectrum = jnp.asarray(h, jnp.float32)
        self.root = jnp.asarray(basis * np.sqrt(np.maximum(variances, 0.0)), jnp.float32)

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        del key
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Float[Array, " dim"]:
        """$w_0 \\sim N(0, I)$."""
        del problem
        return jax.random.normal(key, self.spectrum.shape)

    def loss(
        self, problem: tuple[()], params: Float[Array, " dim"], key: PRNGKeyArray, split: Split = "train"
    ) -> Float[Array, ""]:
        """$f(w; \\mu_t)$; see the class."""
        del problem
        if split == "train":
            params = params - self.root @ jax.random.normal(key, self.spectrum.shape, params.dtype)
        return 0.5 * jnp.sum(self.spectrum * jnp.square(params))

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the expected loss at the start without noise, half the trace of the Hessian."""
        return loss / (0.5 * jnp.sum(self.spectrum))
