"""The effective learning rate against the size of a constant gradient."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import optax
from jaxtyping import Bool, Float, PRNGKeyArray

from lopt.analyze._record import Record
from lopt.analyze.probing import difference, first_of, probe_of, with_first
from lopt.analyze.problem import Loss
from lopt.checks import at_least
from lopt.evaluate.report.page import panels
from lopt.optimizer import Optimizer
from lopt.task import Task

SAME = 1e-4  # change of the update in a step, relative, up to which the rule counts as settled
NEAR = 0.02  # of the gradient: the difference at which slopes are taken


@dataclasses.dataclass(frozen=True)
class Adaptation(Record):
    r"""What a rule does under gradients that never change.

    Attributes:
        gradients: of the first element, of both signs, increasing.
        update: at the state to which the rule settles under the gradient: the S-curve.
        rate: minus the slope of the update function there.
        settled: whether the update no longer changed.
        exponent: $p$ in $|u/g| \propto |g|^p$ over the decade up to the usual size and the one beyond: 0 for gradient descent, -1 for Adam.
        scale: the usual size of a gradient.
    """

    gradients: Float[np.ndarray, " sizes"]
    update: Float[np.ndarray, " sizes"]
    rate: Float[np.ndarray, " sizes"]
    settled: Bool[np.ndarray, " sizes"]
    exponent: float
    scale: float

    @property
    def sentence(self) -> str:
        """In one sentence."""
        if not np.isfinite(self.update).all():
            return "Under some constant gradients the rule diverges."
        if np.any(self.update) and not np.isfinite(self.exponent):
            return "Too few gradients are near the usual one to say how the learning rate depends on them; give more points."
        if not np.isfinite(self.exponent):
            return "After so many steps of a constant gradient the rule no longer moves: its steps have died out."
        whole = f"Around the usual gradient, updates over gradients go as the gradient to the power of {round(self.exponent, 2) + 0.0:.2f}"
        if abs(self.exponent) < 0.05:
            told = ": the rule does not adapt its learning rate to the size of gradients."
        elif self.exponent < 0:
            told = ": the larger the gradient, the smaller the learning rate (Adam: -1)."
        else:
            told = ": the larger the gradient, the larger the learning rate."
        open_ = int((~self.settled).sum())
        return (
            whole + told + (f" At {open_} of {len(self.settled)} gradients the update still changed." if open_ else "")
        )

    def plot(self) -> Any:
        """The S-curve, and the learning rate against the size of the gradient: a matplotlib figure."""
        fig, ((left, right),) = panels(2, width=4.6)
        left.plot(self.gradients / self.scale, self.update, ".-", color="#0072b2", ms=3, lw=1)
        left.set(xlabel="gradient / usual size", ylabel="update", title="update under a constant gradient")
        left.set_xscale("symlog", linthresh=float(np.abs(self.gradients).min() / self.scale))
        left.xaxis.get_major_locator().set_params(numticks=6)  # more overlap
        up = self.gradients > 0
        right.loglog(
            self.gradients[up], np.abs(self.update[up] / self.gradients[up]), color="#0072b2", label="update / gradient"
        )
        right.loglog(
            self.gradients[up],
            np.abs(self.rate[up]),
            ".",
            color="#d55e00",
            ms=4,
            label="|slope| of the update function",
        )
        right.axvline(self.scale, color="0.8", lw=1)
        right.set(xlabel="gradient", ylabel="effective learning rate", title="adaptation")
        right.legend(frameon=False, fontsize=8)
        return fig


def adaptation(
    optimizer: Optimizer | optax.GradientTransformation,
    loss: Task | Loss,
    params: Any = None,
    *,
    key: PRNGKeyArray,
    points: int = 13,
    decades: float = 2.0,
    settle: int = 300,
    horizon: int = 1_000,
) -> Adaptation:
    r"""Let a rule settle under constant gradients of many sizes.

    $$s^*(g) = F(s^*(g), g), \qquad u^*(g) = U(g, s^*(g)), \qquad \alpha(g) = -\frac{\partial U(g', s^*(g))}{\partial g'} \bigg|_{g' = g}$$

    The gradients of the other elements of the tensor keep their proportions to the first.

    Args:
        optimizer: of lopt or of optax.
        loss: a task, or `loss(params, key)`: the tensor and the size of its gradients come from there.
        params: where the training of a loss starts.
        key: draws the problem and the proportions.
        points: sizes of the gradient.
        decades: the sizes reach so many decades below and above the usual one.
        settle: steps for which a gradient is held.
        horizon: what the rule is told.

    Raises:
        InputError: for fewer than three points, fewer than one step, and as `probe_of`.

    Examples:
        >>> import jax, lopt, optax
        >>> from lopt.analyze import adaptation
        >>> found = adaptation(optax.adam(0.1), lopt.tasks.Quadratic(dim=3), key=jax.random.key(0))
        >>> round(found.exponent, 2)
        -1.0

    Source: Maheswaranathan et al. 2020, *Reverse engineering learned optimizers*: learning rate adaptation.
    """
    at_least(3, points=points)
    at_least(1, settle=settle)
    probe = probe_of(optimizer, loss, params, key=key, horizon=horizon)
    sizes = np.logspace(-decades, decades, points) * probe.scale
    gradients = np.concatenate([-sizes[::-1], sizes])
    proportions = with_first(probe.noise(1, 1)[0], np.asarray([probe.scale])) / probe.scale
    held = gradients.reshape(-1, *[1] * probe.param.ndim) * proportions
    states = probe.settled(held, settle)
    update, after = probe.moves(states, held)
    then, _ = probe.moves(after, held)
    update, then = first_of(update), first_of(then)
    up, down = (first_of(probe.moves(states, with_first(held, (1.0 + x) * gradients))[0]) for x in (NEAR, -NEAR))
    rate = difference(down, up) / (2.0 * NEAR * gradients)
    change = np.abs(difference(then, update)) / np.maximum(np.abs(update), 1e-30)
    near = (np.abs(np.log10(np.abs(gradients) / probe.scale)) <= 1.0 + 1e-9) & (update != 0) & np.isfinite(update)
    exponent = float("nan")
    if near.sum() > 2:
        x, y = np.log(np.abs(gradients[near])), np.log(np.abs(update[near] / gradients[near]))
        exponent = float(np.polyfit(x, y, 1)[0])
    return Adaptation(gradients, update, rate, ~(change > SAME), exponent, probe.scale)


__all__ = ["Adaptation", "adaptation"]
