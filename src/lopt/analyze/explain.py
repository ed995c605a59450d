"""How much of the updates of a real training is momentum, clipping, a schedule, scaling by second moments, and what is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
BLOCK = 10  # steps that are held out together
FOLD = 5  # every so many blocks one is held out; also in how many parts the rest chooses its ridge
RIDGES = tuple(10.0**e for e in range(-8, 2))  # over the mean square of a column

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

    One in five blocks of ten steps is held out. Coefficients are those of ridge regression, for each tensor: $\hat c$ minimises
    $\sum_t (u_t - X_t c)^2 + n \lambda \lVert c \rVert^2$ over the other steps, with columns of mean square 1. Of ten values $\lambda$ from $10^{-8}$ to 10
    it has the one that predicts best across five parts of these other steps, so many columns need not fit noise.

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
    held = np.arange(steps) // BLOCK % FOLD == FOLD // 2
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
    columns = np.concatenate(parts, axis=-1)
    columns = columns / (np.sqrt(np.mean(np.square(columns[~held]), axis=(0, 1))) + 1e-30)
    block = np.arange(len(held)) // BLOCK
    errors = np.zeros(len(RIDGES))
    for fold in np.array_split(np.unique(block[~held]), FOLD):
        out = ~held & np.isin(block, fold)
        errors += _errors(columns, updates, ~held & ~out, out, RIDGES)
    (error,) = _errors(columns, updates, ~held, held, (RIDGES[int(errors.argmin())],))
    total = float(np.square(updates[held]).sum())
    return 1.0 - float(error) / total if total > 0 else float("nan")


def _errors(
    columns: np.ndarray, updates: np.ndarray, seen: np.ndarray, unseen: np.ndarray, ridges: Sequence[float]
) -> Float[np.ndarray, " ridges"]:
    """Sums of squares, on some steps, of what regressions on others leave."""
    x, y = columns[seen].reshape(-1, columns.shape[-1]), updates[seen].reshape(-1)
    size, basis = np.linalg.eigh(x.T @ x)
    target = basis.T @ (x.T @ y)
    inside = columns[unseen].reshape(-1, columns.shape[-1]) @ basis
    truth = updates[unseen].reshape(-1)
    return np.asarray(
        [np.square(truth - inside @ (target / (np.maximum(size, 0.0) + r * len(y)))).sum() for r in ridges]
    )


__all__ = ["PARTS", "Explained", "explain"]
