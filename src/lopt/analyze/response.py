"""The update against the gradient: gain, saturation, clipping threshold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from lopt.analyze._record import Record
from lopt.analyze.probing import NOISE_STEPS, probe_of, row_of
from lopt.analyze.problem import Loss
from lopt.checks import at_least
from lopt.evaluate.report.page import panels
from lopt.optimizer import Optimizer
from lopt.task import Task

SATURATED = 0.5  # growth of the update with the gradient, in logarithms, below which it saturates


@dataclasses.dataclass(frozen=True)
class Response(Record):
    r"""How the update of one parameter depends on its gradient, with all else held.

    Attributes:
        gradients: sizes of the gradient, increasing.
        update: half the difference of the updates at a gradient and at its opposite; negative where the rule descends.
        scale: the root mean square of the gradient at the start of a training.
        gain: $-u/g$ at the smallest gradient: the learning rate where nothing is clipped.
        saturation: the largest update, in size.
        threshold: saturation over gain: the gradient from which the update no longer follows, infinite where it always does.
        growth: $\mathrm{d}\log|u| / \mathrm{d}\log|g|$ at the largest gradients: 1 for a linear rule, 0 for one that clips.
        after_noise: whether the rule had seen noise before; if not, it is at its start.
    """

    gradients: Float[np.ndarray, " sizes"]
    update: Float[np.ndarray, " sizes"]
    scale: float
    gain: float
    saturation: float
    threshold: float
    growth: float
    after_noise: bool

    @property
    def sentence(self) -> str:
        """In one sentence."""
        if not np.isfinite(self.update).all():
            return "The update is not finite for some of the gradients."
        if not np.isfinite(self.threshold):
            return f"The update follows the gradient with a gain of {self.gain:.3g} as far as was looked, and nothing clips it."
        return (
            f"The update follows small gradients with a gain of {self.gain:.3g} and stops at {self.saturation:.3g}: "
            f"gradients above {self.threshold:.3g}, {self.threshold / self.scale:.3g} times the usual size, are clipped."
        )

    def plot(self) -> Any:
        """The update against the gradient, on logarithmic axes: a matplotlib figure."""
        fig, ((axes,),) = panels(width=9.2)
        axes.loglog(self.gradients, np.abs(self.update), color="#0072b2", label="update")
        axes.loglog(
            self.gradients, np.abs(self.gain) * self.gradients, color="0.5", ls=":", lw=1, label="gain × gradient"
        )
        axes.axvline(self.scale, color="0.8", lw=1, label="usual gradient")
        if np.isfinite(self.threshold):
            axes.axvline(self.threshold, color="#d55e00", ls="--", lw=1, label="threshold")
        axes.set(xlabel="gradient", ylabel="update", title="response")
        axes.legend(frameon=False, fontsize=8)
        return fig


def response(
    optimizer: Optimizer | optax.GradientTransformation,
    loss: Task | Loss,
    params: Any = None,
    *,
    key: PRNGKeyArray,
    points: int = 41,
    decades: float = 4.0,
    draws: int = 8,
    horizon: int = 1_000,
) -> Response:
    r"""Sweep the gradient of one parameter over many sizes and see what the rule makes of it.

    $$u(g) = \tfrac12 \left( U(g, s) - U(-g, s) \right), \qquad \text{threshold} = \frac{\max_g |u(g)|}{|u(g_0) / g_0|}$$

    with $s$ the state at the start, or for a rule that divides by its own gradients the states after 50 steps of noise of the usual size.
    The half difference leaves out what the state alone puts out, such as momentum.

    Args:
        optimizer: of lopt or of optax.
        loss: a task, or `loss(params, key)`: the tensor and the size of its gradients come from there.
        params: where the training of a loss starts.
        key: draws the problem and noise.
        points: sizes of the gradient.
        decades: the sizes reach so many decades below and above the usual one.
        draws: of noise, over which the update is averaged.
        horizon: what the rule is told.

    Raises:
        InputError: for fewer than three points, fewer than one draw, and as `probe_of`.

    Examples:
        >>> import jax, lopt, optax
        >>> from lopt.analyze import response
        >>> clipped = optax.chain(optax.clip(0.5), optax.sgd(0.1))
        >>> found = response(clipped, lopt.tasks.Quadratic(dim=3), key=jax.random.key(0))
        >>> round(found.gain, 3), round(found.threshold, 3)
        (0.1, 0.5)

    Source: Maheswaranathan et al. 2020, *Reverse engineering learned optimizers*: gradient clipping.
    """
    at_least(3, points=points)
    at_least(1, draws=draws)
    probe = probe_of(optimizer, loss, params, key=key, horizon=horizon)
    at = probe.scale * np.logspace(-decades, decades, points)
    if probe.quiet:
        found = probe.odd_updates(probe.start, np.zeros((1, *probe.param.shape)), at)
    else:
        _, states = probe.follow(probe.rows(draws), probe.noise(NOISE_STEPS, draws))
        others = probe.noise(1, draws, seed=1)[0]
        found = np.mean([probe.odd_updates(row_of(states, i), others[i : i + 1], at) for i in range(draws)], axis=0)
    gain, saturation = -found[0] / at[0], np.abs(found).max()
    last = max(2, points // 10)
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = float(np.log(np.abs(found[-1] / found[-last])) / np.log(at[-1] / at[-last]))
    clips = np.isfinite(found).all() and growth < SATURATED and gain != 0.0
    threshold = float(saturation / abs(gain)) if clips else float("inf")
    return Response(at, found, probe.scale, float(gain), float(saturation), threshold, growth, not probe.quiet)


__all__ = ["Response", "response"]
