"""Where the states of parameters are during a training: how many dimensions they fill."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from lopt.analyze._record import Record
from lopt.analyze.probing import moving, probe_of, row_of
from lopt.analyze.problem import Loss, as_task
from lopt.analyze.recording import record
from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.report.page import panels
from lopt.evaluate.training import as_optimizer
from lopt.optimizer import Optimizer
from lopt.task import Task

MOST = 0.95  # of the variance: what counts as nearly all
DRAWN = 24  # trajectories of the figure


@dataclasses.dataclass(frozen=True)
class StateSpace(Record):
    """The states of parameters during a training, by principal components.

    Attributes:
        shares: of the variance, of each component, the largest first.
        paths: some parameters in the plane of the first two components, at every step.
        fixed_point: where a rule that treats every parameter alone settles without gradients, in that plane; NaN where there is none.
    """

    shares: Float[np.ndarray, " components"]
    paths: Float[np.ndarray, "parameters steps 2"]
    fixed_point: Float[np.ndarray, " 2"]

    @property
    def dimensions(self) -> int:
        """Components that hold 95 % of the variance."""
        return int(np.searchsorted(np.cumsum(self.shares), MOST) + 1) if np.isfinite(self.shares).all() else 0

    @property
    def participation(self) -> float:
        r"""$(\sum v)^2 / \sum v^2$ of the variances: how many components there are as large as the largest."""
        return float(1.0 / np.square(self.shares).sum())

    @property
    def sentence(self) -> str:
        """In one sentence."""
        if not np.isfinite(self.shares).all():
            return "The states of the training are not finite: it diverged."
        first = self.shares[: min(2, len(self.shares))].sum()
        return (
            f"Of {len(self.shares)} numbers a parameter, {self.dimensions} dimensions hold {MOST:.0%} of the variance of states, "
            f"and the first two {first:.0%}."
        )

    def plot(self) -> Any:
        """Trajectories in the plane of the first two components, and the variance that components hold: a matplotlib figure."""
        fig, ((left, right),) = panels(2, width=4.6)
        for path in self.paths:
            left.plot(path[:, 0], path[:, 1], lw=0.7, alpha=0.6, color="#0072b2")
        left.plot(self.paths[:, -1, 0], self.paths[:, -1, 1], ".", color="#d55e00", ms=5, label="at the end")
        if np.isfinite(self.fixed_point).all():
            left.plot(*self.fixed_point, "k*", ms=10, label="fixed point")
        left.set(xlabel="first component", ylabel="second component", title="states")
        left.legend(frameon=False, fontsize=8)
        right.plot(1 + np.arange(len(self.shares)), np.cumsum(self.shares), ".-", color="#0072b2")
        right.axhline(MOST, color="0.8", lw=1)
        right.set(xlabel="components", ylabel="share of the variance", title="dimensions", ylim=(0, 1.02))
        right.xaxis.get_major_locator().set_params(integer=True)
        return fig


def state_space(
    optimizer: Optimizer | optax.GradientTransformation,
    loss: Task | Loss,
    params: Any = None,
    *,
    key: PRNGKeyArray,
    steps: int = 200,
    settle: int = 500,
) -> StateSpace:
    r"""Train, and find the principal components of the states of all parameters at all steps.

    Where there are fewer than four numbers, or the largest root mean square over the training is above a hundred times the median one, every number is
    divided by its own. Else all are of one kind, as those of a recurrent network, and numbers far smaller than the others count for little.

    Args:
        optimizer: of lopt or of optax.
        loss: a task, or `loss(params, key)`.
        params: where the training of a loss starts.
        key: draws the problem, its start and minibatches.
        steps: of the training.
        settle: steps without gradient after which a state counts as the fixed point.

    Raises:
        InputError: for fewer than two steps, and for a rule that remembers nothing of a parameter.

    Examples:
        >>> import jax, lopt, optax
        >>> from lopt.analyze import state_space
        >>> found = state_space(optax.adam(0.1), lopt.tasks.Quadratic(dim=3), key=jax.random.key(0))
        >>> len(found.shares)  # two moments
        2

    Source: Maheswaranathan et al. 2020, *Reverse engineering learned optimizers*, figure 2.
    """
    at_least(2, steps=steps)
    rule, task = as_optimizer(optimizer), as_task(loss, params)
    tensors = record(rule, task, key, steps=steps).states
    states = np.concatenate(tensors, axis=1)  # [steps, parameters, numbers]
    numbers = states.shape[-1]
    if not numbers:
        raise InputError(
            f"{type(rule).__name__} keeps nothing for a parameter, so it has no state space; response, schedule, adaptation and explain have a meaning for it."
        )
    rows = states.reshape(-1, numbers)
    if not np.isfinite(rows).all():
        nothing = np.full((1, steps, 2), np.nan)
        return StateSpace(np.full(numbers, np.nan), nothing, np.full(2, np.nan))
    sizes = np.sqrt(np.mean(np.square(rows), axis=0))
    if sizes.max() > 100 * max(np.median(sizes), 1e-30) or numbers < 4:
        rows, states = rows / np.maximum(sizes, 1e-30), states / np.maximum(sizes, 1e-30)
    else:
        sizes = np.ones(numbers)
    mean = rows.mean(axis=0)
    _, values, components = np.linalg.svd(rows - mean, full_matrices=False)
    variances = np.square(values)
    shares = variances / variances.sum() if variances.sum() > 0 else np.eye(1, len(variances))[0]
    plane = np.zeros((2, numbers))
    plane[: min(2, len(components))] = components[:2]
    paths = np.swapaxes((states - mean) @ plane.T, 0, 1)[:DRAWN]
    fixed = np.full(2, np.nan)
    probe = probe_of(rule, task, key=key, horizon=steps)
    if probe.alone and probe.quiet:
        at = np.asarray(moving(row_of(probe.settled(np.zeros((1, *probe.param.shape)), settle), 0))[0], np.float64)
        if at.size == numbers and np.isfinite(at).all():
            fixed = (at / sizes - mean) @ plane.T
    return StateSpace(shares, paths, fixed)


__all__ = ["StateSpace", "state_space"]
