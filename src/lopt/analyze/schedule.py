"""The effective learning rate against the step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from lopt.analyze._record import Record
from lopt.analyze.probing import FINE, difference, first_of, probe_of, with_first
from lopt.analyze.problem import Loss
from lopt.checks import at_least
from lopt.evaluate.report.page import panels
from lopt.optimizer import Optimizer
from lopt.task import Task

STEADY = 0.01  # change of the rate, relative, below which there is no schedule


@dataclasses.dataclass(frozen=True)
class Schedule(Record):
    """How large the steps of a rule are at every step, whatever the gradients.

    Attributes:
        rate: at every step. In a quiet rule the slope of the update function; in one that divides by its gradients the size of the update.
        by_slope: which of the two.
    """

    rate: Float[np.ndarray, " steps"]
    by_slope: bool

    @property
    def peak(self) -> int:
        """The step of the largest rate."""
        return int(np.nanargmax(self.rate)) if np.isfinite(self.rate).any() else 0

    @property
    def rises(self) -> float:
        """The largest rate over the first one."""
        return float(self.rate[self.peak] / self.rate[0]) if self.rate[0] else float("inf")

    @property
    def decays(self) -> float:
        """The last rate over the largest one."""
        return float(self.rate[-1] / self.rate[self.peak])

    @property
    def sentence(self) -> str:
        """In one sentence."""
        of = "The effective learning rate" if self.by_slope else "The size of the step under a constant gradient"
        if not np.isfinite(self.rate).all():
            return f"{of} is not finite from step {int(np.flatnonzero(~np.isfinite(self.rate))[0])} on."
        if np.ptp(self.rate) <= STEADY * np.abs(self.rate).max():
            return f"{of} is {self.rate[0]:.3g} at every step: there is no schedule."
        begun = f"{of} starts at {self.rate[0]:.3g}"
        if self.peak and self.rises > 1 + STEADY:
            begun += f", rises to {self.rate[self.peak]:.3g} at step {self.peak}"
        last = len(self.rate) - 1
        return begun + f" and is {self.rate[-1]:.3g} at step {last}, {self.decays:.2g} of its greatest value."

    def plot(self) -> Any:
        """The rate against the step: a matplotlib figure."""
        fig, ((axes,),) = panels(width=9.2)
        axes.plot(self.rate, color="#0072b2")
        axes.plot([self.peak], [self.rate[self.peak]], "o", color="#d55e00", ms=4)
        axes.set(xlabel="step", ylabel="effective learning rate" if self.by_slope else "size of the update")
        low, high = float(np.nanmin(self.rate, initial=0.0)), float(np.nanmax(self.rate, initial=0.0))
        axes.set(title="schedule")
        if np.isfinite([low, high]).all() and low < high:
            axes.set_ylim(1.1 * low, 1.1 * high)
        return fig


def schedule(
    optimizer: Optimizer | optax.GradientTransformation,
    loss: Task | Loss,
    params: Any = None,
    *,
    key: PRNGKeyArray,
    steps: int = 200,
    horizon: int | None = None,
) -> Schedule:
    r"""Let a rule run without gradients, and take the slope of its update function at every step.

    $$s_{k+1} = F(s_k, 0), \qquad \alpha_k = -\frac{\partial U(g, s_k)}{\partial g} \bigg|_{g = 0}$$

    A rule that divides by the size of its gradients has no such slope. It runs under one constant gradient of the usual size, and its rate is the root
    mean square of its updates.

    Args:
        optimizer: of lopt or of optax.
        loss: a task, or `loss(params, key)`: the tensor and the size of its gradients come from there.
        params: where the training of a loss starts.
        key: draws the problem.
        steps: how many.
        horizon: what the rule is told; `steps` if `None`.

    Raises:
        InputError: for fewer than two steps, and as `probe_of`.

    Examples:
        >>> import jax, lopt, optax
        >>> from lopt.analyze import schedule
        >>> rule = optax.sgd(optax.linear_schedule(0.1, 0.0, 50))
        >>> found = schedule(rule, lopt.tasks.Quadratic(dim=3), key=jax.random.key(0), steps=51)
        >>> [round(float(x), 3) for x in found.rate[[0, 25, 50]]]
        [0.1, 0.05, 0.0]

    Source: Maheswaranathan et al. 2020, *Reverse engineering learned optimizers*: learning rate schedules.
    """
    at_least(2, steps=steps)
    probe = probe_of(optimizer, loss, params, key=key, horizon=horizon or steps)
    shape = (3, *probe.param.shape)
    if probe.quiet:
        size = FINE * probe.scale
        gradients = with_first(np.zeros(shape), np.asarray([0.0, size, -size]))
    else:
        size, gradients = 1.0, np.broadcast_to(with_first(probe.noise(1, 1)[0], np.asarray([probe.scale])), shape)
    states, rates = probe.rows(3), []
    for _ in range(steps):
        updates, after = probe.moves(states, gradients)
        states = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), after)
        _, up, down = first_of(updates)
        rates.append(difference(down, up) / (2.0 * size) if probe.quiet else np.sqrt(np.mean(np.square(updates[0]))))
    return Schedule(np.asarray(rates), probe.quiet)


__all__ = ["Schedule", "schedule"]
