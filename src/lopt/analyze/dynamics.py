"""The dynamics of training as a linear map a step: its eigenvalues, and how fast small differences grow."""

from __future__ import annotations

import dataclasses
from functools import partial

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PRNGKeyArray

from lopt.checks import at_least
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.unroll import Inner, start, step


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """Training, linearised at every step. `n` counts the parameters and the floats of the optimizer's state."""

    jacobians: Float[np.ndarray, "starts length n n"]  # of each step, in parameters and state
    moduli: Float[np.ndarray, "starts length"]  # of the dominant eigenvalue of each
    growth: Float[np.ndarray, "starts length"]  # logarithm of the norm of the product up to each step

    @property
    def exponent(self) -> Float[np.ndarray, " starts"]:
        """The Lyapunov exponent over the whole training: growth a step."""
        return self.growth[:, -1] / self.growth.shape[1]


def dynamics(optimizer: Optimizer, task: Task, key: PRNGKeyArray, *, length: int, starts: int = 1) -> Dynamics:
    r"""Linearise every step of some trainings.

    $$J_k = \frac{\partial s_{k+1}}{\partial s_k}, \qquad
      g_t = \log \Big\lVert \prod_{k < t} J_k \Big\rVert_F, \qquad \lambda = \frac{g_T}{T}$$

    with $s$ the parameters and the optimizer's state, its integers left out. The step is `lopt.step`, so the gradient is the one that the task shows.

    Args:
        optimizer: what trains.
        task: what is trained; small, since a Jacobian has $n^2$ numbers.
        key: draws starts and minibatches.
        length: steps, $T$.
        starts: how many trainings.

    Raises:
        InputError: for a length or a number of starts below 1.

    Examples:
        >>> import jax, lopt
        >>> from lopt.analyze import dynamics
        >>> bowl = lopt.tasks.NoisyQuadratic(spectrum=[3.0])
        >>> found = dynamics(lopt.optimizers.SGD(learning_rate=0.1), bowl, jax.random.key(0), length=5)
        >>> round(float(found.moduli[0, 0]), 3)  # one minus the learning rate times the curvature
        0.7

    Source: Lyapunov exponents by products of Jacobians: Benettin et al. 1980 [recalled]; of training: Metz et al. 2019, section 3.
    """
    at_least(1, length=length)
    at_least(1, starts=starts)
    found = np.asarray(_jacobians(optimizer, task, jax.random.split(key, starts), length), np.float64)
    return Dynamics(found, *spectra(found))


@partial(jax.jit, static_argnums=3)
def _jacobians(
    optimizer: Optimizer, task: Task, keys: Key[Array, " starts"], length: int
) -> Float[Array, "starts length n n"]:
    def one(key: PRNGKeyArray) -> Float[Array, "length n n"]:
        def advance(inner: Inner, key: PRNGKeyArray) -> tuple[Inner, Array]:
            floats, rest = eqx.partition((inner.params, inner.opt_state), eqx.is_inexact_array)
            flat, unravel = ravel_pytree(floats)

            def after(flat: Array) -> tuple[Array, Inner]:
                params, opt_state = eqx.combine(unravel(flat), rest)
                moved, _ = step(optimizer, task, inner._replace(params=params, opt_state=opt_state), key)
                return ravel_pytree(eqx.filter((moved.params, moved.opt_state), eqx.is_inexact_array))[0], moved

            jacobian, moved = jax.jacfwd(after, has_aux=True)(flat)
            return moved, jacobian

        return jax.lax.scan(advance, start(optimizer, task, key, length), jax.random.split(key, length))[1]

    return jax.vmap(one)(keys)


def spectra(
    jacobians: Float[np.ndarray, "*batch length n n"],
) -> tuple[Float[np.ndarray, "*batch length"], Float[np.ndarray, "*batch length"]]:
    """Moduli of the dominant eigenvalues, and logarithms of the norms of the products up to every step.

    Args:
        jacobians: of each step, in order.
    """
    moduli = np.abs(np.linalg.eigvals(jacobians)).max(axis=-1)
    product = np.broadcast_to(np.eye(jacobians.shape[-1]), (*jacobians.shape[:-3], *jacobians.shape[-2:]))
    total, found = np.zeros(jacobians.shape[:-3]), []
    for t in range(jacobians.shape[-3]):
        product = jacobians[..., t, :, :] @ product
        norm = np.linalg.norm(product, axis=(-2, -1))
        total = total + np.log(norm)
        product = product / norm[..., None, None]
        found.append(total)
    return np.maximum(moduli, 1e-30), np.stack(found, axis=-1)


__all__ = ["Dynamics", "dynamics", "spectra"]
