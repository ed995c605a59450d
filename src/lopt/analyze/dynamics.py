"""Many training steps, linearised along the way: the Jacobian of each for small trainings, the growth of one perturbation for all."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PRNGKeyArray

from lopt.analyze.linear import flat_step, params_size, split, tangent_step
from lopt.checks import at_least
from lopt.errors import InputError
from lopt.optimizer import Optimizer
from lopt.task import Task
from lopt.unroll import Inner, start

TINY = 1e-12  # norm below which a perturbation has left the parameters


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

    Source: Lyapunov exponents by products of Jacobians: Benettin et al. 1980; of training: Metz et al. 2019, section 3.
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
            flat, _ = ravel_pytree(split(inner)[0])
            jacobian, (moved, _) = jax.jacfwd(partial(flat_step, optimizer, task, inner, key), has_aux=True)(flat)
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


class Growth(NamedTuple):
    """How a small perturbation of the parameters grows along a training, and the losses on the way."""

    logarithms: Float[np.ndarray, " steps"]  # of the norm of its part in the parameters, after each step
    losses: Float[np.ndarray, " steps"]  # before each step

    def exponent(self, settle: int) -> float:
        """Per step, after so many steps."""
        return float((self.logarithms[-1] - self.logarithms[settle]) / (len(self.logarithms) - 1 - settle))


def growth(optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, *, steps: int) -> Growth:
    """Train on, and follow a random perturbation of the parameters through the linearised steps.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training begins.
        key: draws the minibatches and the perturbation.
        steps: how long.
    """
    count, nothing = params_size(inner), jax.tree.map(jnp.zeros_like, inner.params)
    size = sum(x.size for x in jax.tree.leaves(split(inner)[0]))
    direction = jax.random.normal(jax.random.fold_in(key, steps), (count,))
    x = jnp.zeros(size).at[:count].set(direction / jnp.linalg.norm(direction))
    one, total, logarithms, losses = jnp.float32(1.0), 0.0, [], []
    for k in jax.random.split(key, steps):
        inner, loss, x, norm = tangent_step(optimizer, task, inner, k, one, x, nothing)
        # The norm of the parameters alone: state is in other units.
        scale = np.fmax(float(norm), TINY) if np.isfinite(norm) else float("nan")
        total += np.log(scale)
        x = x / scale
        logarithms.append(total)
        losses.append(float(loss))
    return Growth(np.asarray(logarithms, np.float64), np.asarray(losses, np.float64))


def lyapunov_exponent(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, *, steps: int = 100, settle: int = 20
) -> float:
    r"""The largest Lyapunov exponent of a training from where it is, per step, over finitely many steps.

    $$\lambda = \frac{1}{T - T_0} \log \frac{\lVert P x_T \rVert}{\lVert P x_{T_0} \rVert}, \qquad x_{t+1} = J_t x_t$$

    with $x_0$ a random perturbation of the parameters and $P x$ the part of $x$ in the parameters. Above 0 two trainings that differ by a little
    part exponentially; below 0 they meet.

    Args:
        optimizer: that trains.
        task: that is trained.
        inner: where the training begins.
        key: draws the minibatches and $x_0$.
        steps: $T$.
        settle: $T_0$, in which $x$ turns to the direction that grows most.

    Raises:
        InputError: for fewer than two steps after those that are left out.

    Source: Benettin et al. 1980.
    """
    if not 0 <= settle < steps - 1:
        raise InputError(f"settle is {settle} and steps is {steps}; settle must be at least 0 and below steps - 1.")
    return growth(optimizer, task, inner, key, steps=steps).exponent(settle)


__all__ = ["Dynamics", "Growth", "dynamics", "growth", "lyapunov_exponent", "spectra"]
