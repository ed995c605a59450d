"""Reparameterisation gradients and evolution strategies, merged by inverse variance."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from lopt.checks import positive
from lopt.errors import InputError
from lopt.estimators.backprop import unroll_and_differentiate
from lopt.estimators.estimator import MetaGradient
from lopt.estimators.evolution import normal_like
from lopt.estimators.particles import (
    Clock,
    Metrics,
    Particles,
    as_horizon,
    as_truncation,
    mean_over_groups,
    new_clock,
)
from lopt.estimators.schedules import Schedule, Unrolls
from lopt.optimizer import Optimizer
from lopt.unroll import Inner


class MergedState(NamedTuple):
    """Antithetic pairs in flight; every array has a leading axis of pairs and, but for the clock, a second one of two, the signs."""

    inner: Inner
    first: Float[Array, "*pairs 2"]
    clock: Clock


class Merged(Particles):
    r"""Two unbiased estimators of one smoothed meta-gradient, each meta-parameter following the one that varies less.

    $$\mathcal L(\theta) = E_{\epsilon \sim N(0, \sigma^2 I)}\, L(\theta + \epsilon)$$

    $$r_j = \tfrac12 \big(\nabla L(\theta + \epsilon_j) + \nabla L(\theta - \epsilon_j)\big), \qquad
      e_j = \epsilon_j \frac{L(\theta + \epsilon_j) - L(\theta - \epsilon_j)}{2 \sigma^2}, \qquad
      \hat g = (1 - a) \bar r + a \bar e, \quad a = \frac{v_r - c}{v_r + v_e - 2c}$$

    by reparameterisation ($r$, backpropagation) and evolution strategies ($e$), on the same noise, inner start and minibatches. Means,
    variances $v$ and the covariance $c$ are over the pairs, element by element; $a$ is kept within 0 and 1, and with $c = 0$ it weights by inverse
    variance. Backpropagation is precise for short unrolls and explodes in long ones; the variance of $e$ is bounded.
    Where a mean or variance of $r$ is not finite, $\hat g = \bar e$.

    Whole problems by default, as in the paper, with lengths by `horizon`, such as `Growing()`. With a `truncation` both parts are truncated alike,
    noise is drawn anew for each, and the estimate is biased as that of `TruncatedES`. Weights from the same samples bias the merge slightly.

    Metrics: `variance_reparam` and `variance_es`, the sums over meta-parameters of the variances of the means, and `share_es`, the mean weight of $e$.

    Args:
        pairs: $N$, at least two; variances from few pairs are rough.
        std: $\sigma$. 0.01 is stated by Metz et al. 2020, section 3.1, for their follow-up, and recalled for the paper.
        covariance: whether $c$ counts. The paper merges by inverse variance, $c = 0$; that the parts share their noise is recalled. Where they do,
            a part of a hundredth of the other's variance can still lose a quarter to it, which $c$ prevents.

    Source: Metz et al. 2019, *Understanding and correcting pathologies in the training of learned optimizers*. The equations are recalled, as the
    paper's text was not at hand; the covariance is ours.
    """

    truncation: Schedule | None = eqx.field(static=True, converter=as_truncation, default=None, kw_only=True)
    horizon: Schedule | Unrolls = eqx.field(static=True, converter=as_horizon, default=50, kw_only=True)
    pairs: int = eqx.field(static=True, default=8, kw_only=True)
    std: float = eqx.field(static=True, default=0.01, kw_only=True)
    covariance: bool = eqx.field(static=True, default=True, kw_only=True)

    def __check_init__(self) -> None:
        if self.pairs < 2:
            raise InputError(f"pairs is {self.pairs}; it must be at least 2, for a variance.")
        positive(std=self.std)

    @property
    def groups(self) -> int:
        """Pairs."""
        return self.pairs

    @property
    def inner_steps(self) -> int:
        """Inner steps that one estimate takes: pairs x 2 x truncation, or the mean of truncations; what is computed anew is not counted."""
        return self.pairs * 2 * round(self.schedule.mean)

    def begin(self, optimizer: Optimizer, keys: Key[Array, " pairs"]) -> MergedState:
        """Pairs that all restart at the first estimate."""
        both = jax.tree.map(lambda x: jnp.stack([x, x]), optimizer)

        def pair(key: PRNGKeyArray) -> MergedState:
            inner = jax.vmap(lambda opt: self.begin_inner(opt, key))(both)
            return MergedState(inner, jnp.zeros(2), new_clock())

        return jax.vmap(pair)(keys)

    def advance(
        self, optimizer: Optimizer, state: MergedState, keys: Key[Array, " pairs"], length: Int[Array, ""] | None
    ) -> tuple[tuple[tuple[MetaGradient, MetaGradient], Metrics], MergedState]:
        """One truncation of some pairs: both gradients of each."""

        def pair(state: MergedState, key: PRNGKeyArray) -> tuple[Any, MergedState]:
            start_key, horizon_key, noise_key, unroll_key = jax.random.split(key, 4)
            noise = jax.tree.map(lambda n: self.std * n, normal_like(noise_key, optimizer))
            one = jax.tree.map(lambda x: x[0], state.inner)  # step and horizon are those of both members
            horizon, clock = self.plan(one, state.clock, horizon_key, length)

            def member(sign: Array, inner: Inner, first: Array) -> Any:
                perturbed = jax.tree.map(lambda x, e: x + sign * e, optimizer, noise)
                keys = (start_key, unroll_key)
                after, *found = unroll_and_differentiate(self, perturbed, inner, first, keys, horizon, length)
                return self.settle(after.inner, clock), after.first, *found

            inner, first, losses, lost, gradients = jax.vmap(member)(jnp.asarray([1.0, -1.0]), state.inner, state.first)
            weight = (losses[0] - losses[1]) / (2.0 * self.std**2)
            es = jax.tree.map(lambda e: weight * e, noise)
            metrics = {"meta_loss": jnp.mean(losses), "diverged": jnp.mean(lost)}
            return ((mean_over_groups(gradients), es), metrics), MergedState(inner, first, clock)

        return jax.vmap(pair)(state, keys)

    def combine(
        self, contributions: tuple[MetaGradient, MetaGradient], metrics: Metrics
    ) -> tuple[MetaGradient, Metrics]:
        """Merge by inverse variance, element by element."""
        reparam, es = contributions
        outer = jax.tree.structure(reparam)
        merged = [
            merge(r, e, self.covariance) for r, e in zip(jax.tree.leaves(reparam), jax.tree.leaves(es), strict=True)
        ]
        gradient = outer.unflatten([m.gradient for m in merged])
        size = sum(m.gradient.size for m in merged)
        found = {
            "variance_reparam": sum(
                jnp.sum(m.variance_reparam, where=jnp.isfinite(m.variance_reparam)) for m in merged
            ),
            "variance_es": sum(jnp.sum(m.variance_es) for m in merged),
            "share_es": sum(jnp.sum(m.share_es) for m in merged) / size,
        }
        return gradient, mean_over_groups(metrics) | found


class Merge(NamedTuple):
    """One leaf, merged; variances are of the means."""

    gradient: Float[Array, " *leaf"]
    variance_reparam: Float[Array, " *leaf"]
    variance_es: Float[Array, " *leaf"]
    share_es: Float[Array, " *leaf"]


def merge(reparam: Float[Array, " pairs *leaf"], es: Float[Array, " pairs *leaf"], covariance: bool = True) -> Merge:
    """The mean of two samples of one quantity that varies least; that of `es` where `reparam` is not finite.

    Args:
        reparam: one sample.
        es: the other.
        covariance: whether to account for the covariance of the two, or to take them for independent.
    """
    pairs = es.shape[0]
    mean_r, mean_e = jnp.mean(reparam, axis=0), jnp.mean(es, axis=0)
    variance_r, variance_e = (jnp.var(x, axis=0, ddof=1) / pairs for x in (reparam, es))
    common = jnp.zeros_like(variance_e)
    if covariance:
        common = jnp.sum((reparam - mean_r[None]) * (es - mean_e[None]), axis=0) / (pairs * (pairs - 1))
    usable = jnp.isfinite(mean_r) & jnp.isfinite(variance_r) & jnp.isfinite(common)
    mean_r, known_r, common = (
        jnp.where(usable, x, safe) for x, safe in ((mean_r, 0.0), (variance_r, 1.0), (common, 0.0))
    )
    total = known_r + variance_e - 2.0 * common
    # Where the difference of the two never varies, half of each.
    share = jnp.where(total > 0.0, (known_r - common) / jnp.where(total > 0.0, total, 1.0), 0.5)
    share = jnp.where(usable, jnp.clip(share, 0.0, 1.0), 1.0)
    variance_r = jnp.where(usable, variance_r, jnp.inf)
    return Merge(share * mean_e + (1.0 - share) * mean_r, variance_r, variance_e, share)
