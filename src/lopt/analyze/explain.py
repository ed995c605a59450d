"""How much of the updates of a real training is momentum, clipping, a schedule, scaling by second moments, and what is left."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from lopt.analyze._record import Record
from lopt.analyze.problem import Loss, as_task
from lopt.analyze.recording import record
from lopt.checks import at_least
from lopt.errors import InputError
from lopt.evaluate.report.page import panels
from lopt.evaluate.training import as_optimizer
from lopt.optimizer import Optimizer
from lopt.task import Task

DECAYS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)  # of momenta
SECOND = (0.9, 0.99, 0.999)  # of second moments
LEVELS = (0.3, 1.0, 3.0)  # at which gradients are clipped, over their root mean square in the training
TIMES = 5  # cosines of the schedule
FOLD = 5  # every so many blocks of steps one is held out
RIDGE = 1e-8

PARTS = {
    "gradient": ("gradient",),
    "momentum": ("momentum",),
    "momentum + clipping": ("momentum", "clipping"),
    "momentum + schedule": ("momentum", "schedule"),
    "momentum + scaling": ("momentum", "scaling"),
    "all": ("momentum", "clipping", "schedule", "scaling", "scaling over time"),
}


@dataclasses.dataclass(frozen=True)
class Explained(Record):
    """Shares of the updates' sum of squares that known mechanisms predict on steps that were held out.

    Attributes:
        parts: what the updates were regressed on.
        shares: 1 is all; below 0 the prediction is worse than none. Each tensor has coefficients of its own and counts as much as any other.
        by_tensor: the same for each tensor.
        steps: of the training.
        losses: before each step.
    """

    parts: tuple[str, ...]
    shares: Float[np.ndarray, " parts"]
    by_tensor: Float[np.ndarray, "parts tensors"]
    steps: int
    losses: Float[np.ndarray, " steps"]

    @property
    def left(self) -> float:
        """What none of them explains."""
        return float(1.0 - self.shares[self.parts.index("all")])

    def share(self, part: str) -> float:
        """Of one of `parts`."""
        return float(self.shares[self.parts.index(part)])

    @property
    def sentence(self) -> str:
        """In one sentence."""
        if not np.isfinite(self.shares).all():
            return "The updates of the training are not finite: it diverged, and nothing explains them."
        return (
            f"Of the updates of a training of {self.steps} steps, momentum explains {self.share('momentum'):.0%}, with second-moment scaling "
            f"{self.share('momentum + scaling'):.0%}, with clipping {self.share('momentum + clipping'):.0%}, with a schedule "
            f"{self.share('momentum + schedule'):.0%}, all {self.share('all'):.1%}; {self.left:.1%} is left."
        )

    def plot(self) -> Any:
        """The shares: a matplotlib figure."""
        fig, ((axes,),) = panels(width=9.2, height=3.0)
        shown = np.clip(self.shares, 0.0, 1.0)
        axes.barh(range(len(self.parts)), shown, color="#0072b2")
        axes.set_yticks(range(len(self.parts)), labels=self.parts)
        axes.invert_yaxis()
        axes.set(xlabel="explained variance on held-out steps", xlim=(0, 1.02), title="what explains the updates")
        return fig


def explain(
    optimizer: Optimizer | optax.GradientTransformation,
    loss: Task | Loss,
    params: Any = None,
    *,
    key: PRNGKeyArray,
    steps: int = 200,
    elements: int = 24,
) -> Explained:
    r"""Train, and regress the updates of each tensor on what hand-designed rules are made of.

    $$\text{share} = 1 - \frac{\sum_{t \in \text{held out}} (u_t - X_t \hat c)^2}{\sum_{t \in \text{held out}} u_t^2}$$

    | part | columns of $X$ |
    |---|---|
    | gradient | $g$ |
    | momentum | $g$ and its moving averages $m$ at seven decays |
    | clipping | $g$ and each $m$ clipped at three levels |
    | schedule | $g$ and each $m$, times $\cos(\pi i t / T)$, $i = 1 \dots 5$ |
    | scaling | $g$ and each bias-corrected $m$ over $\sqrt{\hat v} + \epsilon$, $v$ the moving average of $g^2$ at three decays |
    | scaling over time | the last, times the same cosines |

    One in five blocks of ten steps is held out. Coefficients are those of least squares, for each tensor.

    Args:
        optimizer: of lopt or of optax; it is told the number of steps.
        loss: a task, or `loss(params, key)`.
        params: where the training of a loss starts.
        key: draws the problem, its start and minibatches.
        steps: of the training.
        elements: of each tensor, at most.

    Raises:
        InputError: for fewer than 50 steps, fewer than one element, and for a rule that did not move.

    Examples:
        >>> import jax, lopt, optax
        >>> from lopt.analyze import explain
        >>> found = explain(optax.sgd(0.1, momentum=0.9), lopt.tasks.Quadratic(dim=8), key=jax.random.key(0))
        >>> round(found.share("momentum"), 3)
        1.0

    Source: lopt's own.
    """
    at_least(50, steps=steps)
    at_least(1, elements=elements)
    rule, task = as_optimizer(optimizer), as_task(loss, params)
    found = record(rule, task, key, steps=steps, elements=elements)
    held = np.arange(steps) // 10 % FOLD == FOLD // 2
    table, names, few = [], tuple(PARTS), False
    for gradients, updates in zip(found.gradients, found.updates, strict=True):
        if not updates.size or not np.any(updates[held]):
            continue
        if not (np.isfinite(gradients).all() and np.isfinite(updates).all()):
            table.append([np.nan] * len(PARTS))
            continue
        columns = _columns(gradients)
        if sum(columns[p].shape[-1] for p in PARTS["all"]) > updates[~held].size:
            few = True
            continue
        table.append([_share([columns[p] for p in part], updates, held) for part in PARTS.values()])
    if not table and few:
        raise InputError(f"No tensor has numbers enough for a regression over {steps} steps; give more steps.")
    if not table:
        raise InputError(f"{type(rule).__name__} did not move the parameters, so there are no updates to explain.")
    by_tensor = np.asarray(table).T
    return Explained(names, by_tensor.mean(axis=1), by_tensor, steps, found.losses)


def _columns(gradients: np.ndarray) -> dict[str, np.ndarray]:
    """Of each part, `[steps, elements, columns]`."""
    steps = len(gradients)
    averages, corrected = [gradients], [gradients]
    for decay in DECAYS:
        m = _average(gradients, decay)
        averages.append(m)
        corrected.append(m / _correction(decay, steps))
    base = np.stack(averages, axis=-1)
    size = np.sqrt(np.mean(np.square(base), axis=(0, 1))) + 1e-30
    clipped = [np.clip(base, -level * size, level * size) for level in LEVELS]
    time = np.cos(np.pi * np.arange(1, TIMES + 1) * np.arange(steps)[:, None] / steps)
    scaled = []
    for decay in SECOND:
        second = np.sqrt(_average(np.square(gradients), decay) / _correction(decay, steps))
        scaled.append(np.stack(corrected, axis=-1) / (second[..., None] + 1e-8))
    scaling = np.concatenate(scaled, axis=-1)

    def over_time(x: np.ndarray) -> np.ndarray:
        return (x[..., None] * time[:, None, None, :]).reshape(*x.shape[:2], -1)

    return {
        "gradient": gradients[..., None],
        "momentum": base,
        "clipping": np.concatenate(clipped, axis=-1),
        "schedule": over_time(base),
        "scaling": scaling,
        "scaling over time": over_time(scaling),
    }


def _average(x: np.ndarray, decay: float) -> np.ndarray:
    from scipy.signal import lfilter

    return np.asarray(lfilter([1.0 - decay], [1.0, -decay], x, axis=0))


def _correction(decay: float, steps: int) -> np.ndarray:
    return 1.0 - decay ** np.arange(1, steps + 1)[:, None]


def _share(parts: list[np.ndarray], updates: np.ndarray, held: np.ndarray) -> float:
    """Of the updates on held-out steps, the share that a regression on the others predicts."""
    x = np.concatenate(parts, axis=-1)
    width = x.shape[-1]
    seen, unseen = x[~held].reshape(-1, width), x[held].reshape(-1, width)
    scale = np.sqrt(np.mean(np.square(seen), axis=0)) + 1e-30
    seen, unseen = seen / scale, unseen / scale
    target, truth = updates[~held].reshape(-1), updates[held].reshape(-1)
    gram = seen.T @ seen + RIDGE * len(target) * np.eye(width)
    coefficients = np.linalg.solve(gram, seen.T @ target)
    total = float(np.square(truth).sum())
    return 1.0 - float(np.square(truth - unseen @ coefficients).sum()) / total if total > 0 else float("nan")


__all__ = ["PARTS", "Explained", "explain"]
