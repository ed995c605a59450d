"""What the claims on spectra share: the well-conditioned surrogate problem, and the optimizer that is meta-trained on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from lopt import zoo
from lopt.checks import at_least, positive
from lopt.errors import InputError
from lopt.estimators import Backprop
from lopt.meta_train import Progress, meta_train
from lopt.optimizer import Optimizer
from lopt.optimizers import GRUOptimizer
from lopt.task import Split, Task
from lopt.tasks.surfaces.analytic_continuation import AnalyticContinuation, ContinuationProblem

WEIGHTS = Path(__file__).parent / "weights" / "continuation.safetensors"
NOISES = (1e-2, 1e-3, 1e-4)  # of a correlation function whose values at both ends sum to 1
STEPS = 25  # of a training
SPREAD = 0.03  # of the mass on a frequency around the default model, about twice that of a flat spectrum
UNITS = 8  # of the GRU
PARTICLES, RATE = 16, 5e-3  # of the meta-training: spectra of each noise a meta-step, and the first rate of Adam


class Surrogate(Task):
    r"""Analytic continuation with residuals weighted by what they could be, not by the noise alone.

    $$f(z) = \frac n2\, r^\top \left(K K^\top + \frac{\sigma^2}{\delta^2} I\right)^{-1} r, \qquad r = K a - \bar G, \qquad a = \mathrm{softmax}(z)$$

    Were the masses $a$ independent with deviation $\delta$, $\delta^2 K K^\top + \sigma^2 I$ would be the covariance of the data. In $a$ no curvature exceeds
    $n$, the number of frequencies; that of $\chi^2 / 2$ in the basic task is larger by orders of magnitude, and differs as much from direction to direction.

    Training losses are $f$. The validation and test loss is the distance to the spectrum itself, $\int |A - A_\mathrm{true}|\, d\omega$, between 0 and 2.
    Meta-training minimises it, and no gradient of an inner training shows it.

    Args:
        base: the problem, its noise $\sigma$ and its default model.
        spread: $\delta$.
    """

    base: AnalyticContinuation
    whitening: Float[Array, "points points"]

    def __init__(self, base: AnalyticContinuation, spread: float = SPREAD):
        positive(spread=spread)
        kernel = np.asarray(base.kernel, np.float64)
        left, sizes, _ = np.linalg.svd(kernel)
        weights = np.sqrt(kernel.shape[1] / (np.square(sizes) + (base.noise / spread) ** 2))
        self.base, self.whitening = base, jnp.asarray(weights[:, None] * left.T, jnp.float32)

    def sample(self, key: PRNGKeyArray) -> ContinuationProblem:
        """A problem of `base`."""
        return self.base.sample(key)

    def init(self, problem: ContinuationProblem, key: PRNGKeyArray) -> Float[Array, " frequencies"]:
        """Logits of the default model."""
        del problem, key
        return jnp.log(self.base.model)

    def loss(
        self,
        problem: ContinuationProblem,
        params: Float[Array, " frequencies"],
        key: PRNGKeyArray,
        split: Split = "train",
    ) -> Float[Array, ""]:
        """$f$ on `train`, the distance to the true spectrum on the other splits."""
        del key
        masses = jax.nn.softmax(params)
        if split == "train":
            return 0.5 * jnp.sum(jnp.square(self.whitening @ (self.base.kernel @ masses - problem.train)))
        return jnp.sum(jnp.abs(masses - problem.spectrum))


def surrogates(noises: Sequence[float] = NOISES) -> tuple[Surrogate, ...]:
    """A problem for each level of noise."""
    if not noises:
        raise InputError("noises is empty; give at least one level of noise.")
    return tuple(Surrogate(AnalyticContinuation(noise=noise)) for noise in noises)


def meta_trained(
    meta_steps: int, *, seed: int = 0, folder: Path | None = None, on_step: Callable[[Progress], None] | None = None
) -> Optimizer:
    """Meta-train a `GRUOptimizer` on random spectra at all levels of noise, by backpropagation through whole trainings.

    Args:
        meta_steps: how many.
        seed: draws the start and the spectra.
        folder: a run directory, to go on after a stop.
        on_step: told of progress.

    Raises:
        InputError: for no meta-step, or a run directory of another configuration.
    """
    at_least(1, meta_steps=meta_steps)
    start = GRUOptimizer(hidden=UNITS, log_sign=True, input_scale=10.0, key=jax.random.key(seed))
    estimators = [
        Backprop(
            task,
            truncation=None,
            horizon=STEPS,
            particles=PARTICLES,
            objective="last",
            split="valid",
            final_batches=1,
        )
        for task in surrogates()
    ]
    outer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, max(1, meta_steps)))
    )
    key = jax.random.key(2**20 + seed)  # apart from the spectra of every claim
    state = meta_train(start, estimators, outer, steps=meta_steps, key=key, run_dir=folder, on_step=on_step)
    found = state.optimizer
    assert isinstance(found, Optimizer)
    return found


@lru_cache(maxsize=4)
def learned(weights: str | Path | None, meta_steps: int | None) -> Optimizer:
    """The optimizer of the claims: the shipped one, a saved one, or one that is meta-trained now and kept for the next claim.

    Args:
        weights: name or path of a saved optimizer; `None` for the shipped one.
        meta_steps: of a meta-training now; `None` for none.

    Raises:
        InputError: for weights of another architecture, or that were meta-trained on other tasks.
    """
    if meta_steps is not None:
        return meta_trained(meta_steps)
    path = WEIGHTS if weights is None else weights
    card = zoo.read_card(path)
    if card.optimizer != "gru":
        raise InputError(f"weights is {str(path)!r}, a {card.optimizer}; this claim is about a gru.")
    if {str(task["name"]) for task in card.tasks} != {"analytic_continuation"}:
        names = ", ".join(str(task["name"]) for task in card.tasks) or "tasks that its card does not name"
        raise InputError(
            f"weights is {str(path)!r}, meta-trained on {names}; this claim needs one of analytic_continuation."
        )
    return zoo.load(path)
