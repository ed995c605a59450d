"""Antithetic evolution strategies on truncated unrolls: one family, told apart by when noise is drawn and which noise gets the credit."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from lopt.checks import at_least, positive
from lopt.errors import InputError
from lopt.estimators.estimator import MetaGradient
from lopt.estimators.particles import (
    Clock,
    Metrics,
    Particles,
    Unroll,
    as_truncation,
    mean_over_groups,
    new_clock,
)
from lopt.estimators.schedules import Schedule
from lopt.optimizer import Optimizer
from lopt.unroll import Inner

Noise = PyTree[Array]  # the structure of the optimizer

# Members of an antithetic pair share problem, step and horizon; parameters, optimizer state and memory are their own.
PAIR = Inner(problem=None, params=0, opt_state=0, step=None, horizon=None, memory=0)  # pyright: ignore[reportArgumentType]
PAIR_UNROLL = Unroll(inner=PAIR, first=0, total=0, lost=0)  # pyright: ignore[reportArgumentType]


class Noises(NamedTuple):
    """The noise of a pair."""

    perturbation: Noise
    credit: Noise
    drawn: Int[Array, " *pairs"]  # the inner step at which the perturbation was drawn


class ParticleState(NamedTuple):
    """Antithetic pairs in flight; every array has a leading axis of pairs."""

    inner: Inner  # `params` and `opt_state` have a second axis of two, the signs
    first: Float[Array, "*pairs 2"]  # the first losses of the problem
    noise: Noises
    clock: Clock


class AntitheticES(Particles):
    r"""Antithetic evolution strategies on truncated unrolls. Subclasses say which noise perturbs and which gets the credit.

    Each of $N$ pairs unrolls $\theta + \epsilon_i$ and $\theta - \epsilon_i$ for $K$ steps from where they stand, on the same problem and minibatches:

    $$\hat g = \frac{1}{N} \sum_i \xi_i\, \frac{L_K(\theta + \epsilon_i) - L_K(\theta - \epsilon_i)}{2\sigma^2}$$

    with $\epsilon_i$ the perturbation, $\xi_i$ the credit (a sum of perturbations), and $L_K$ the meta-loss of the truncation. What `Particles` says of
    truncations, horizons and devices holds for pairs.

    Args:
        pairs: $N$.
        std: $\sigma$.
        sign_scale: if given, $c$: every difference of meta-losses is replaced by $c\, \mathrm{sign}(\Delta L)$, so that no pair and no task weighs more than
            another. VeLO is meta-trained with $c = 1$.
    """

    pairs: int = eqx.field(static=True, default=8, kw_only=True)
    std: float = eqx.field(static=True, default=0.01, kw_only=True)
    sign_scale: float | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self) -> None:
        at_least(1, pairs=self.pairs)
        positive(std=self.std)
        if self.sign_scale is not None:
            positive(sign_scale=self.sign_scale)

    @property
    def groups(self) -> int:
        """Pairs."""
        return self.pairs

    @property
    def inner_steps(self) -> int:
        """Inner steps that one estimate takes: pairs x 2 x truncation, or the mean of truncations."""
        return self.pairs * 2 * round(self.schedule.mean)

    @abc.abstractmethod
    def assign(self, fresh: Noise, held: Noises, step: Int[Array, ""], restarted: Bool[Array, ""]) -> Noises:
        r"""Perturbation $\epsilon$ and credit $\xi$ of a pair for this truncation.

        Args:
            fresh: new noise, $N(0, \sigma^2 I)$.
            held: what the pair had in its previous truncation.
            step: inner steps of the pair's problem so far, 0 if it has just begun.
            restarted: whether the pair has just begun a problem.
        """

    def begin(self, optimizer: Optimizer, keys: Key[Array, " pairs"]) -> ParticleState:
        """Pairs that all restart at the first estimate."""
        both = jax.tree.map(lambda x: jnp.stack([x, x]), optimizer)
        none = jax.tree.map(jnp.zeros_like, optimizer)

        def pair(key: PRNGKeyArray) -> ParticleState:
            inner = jax.vmap(lambda opt: self.begin_inner(opt, key), out_axes=PAIR)(both)
            return ParticleState(inner, jnp.zeros(2), Noises(none, none, jnp.zeros((), jnp.int32)), new_clock())

        return jax.vmap(pair)(keys)

    def advance(
        self, optimizer: Optimizer, state: ParticleState, keys: Key[Array, " pairs"], length: Int[Array, ""] | None
    ) -> tuple[tuple[MetaGradient, Metrics], ParticleState]:
        """One truncation of some pairs; see the class."""

        def pair(state: ParticleState, key: PRNGKeyArray) -> tuple[tuple[MetaGradient, dict[str, Array]], Any]:
            inner, (start_key, horizon_key, noise_key, unroll_key) = state.inner, jax.random.split(key, 4)
            fresh = jax.tree.map(lambda n: self.std * n, normal_like(noise_key, optimizer))
            restarted = inner.step >= inner.horizon
            noise = self.assign(fresh, state.noise, jnp.where(restarted, 0, inner.step), restarted)
            horizon, clock = self.plan(inner, state.clock, horizon_key, length)

            def member(sign: Array, inner: Inner, first: Array) -> tuple[Unroll, Array, Array]:
                perturbed = jax.tree.map(lambda x, e: x + sign * e, optimizer, noise.perturbation)
                begun = self.start_unroll(perturbed, inner, first, start_key, horizon)
                return self.whole_unroll(perturbed, begun, unroll_key, length)

            after, losses, lost = jax.vmap(member, in_axes=(0, PAIR, 0), out_axes=(PAIR_UNROLL, 0, 0))(
                jnp.asarray([1.0, -1.0]), inner, state.first
            )
            weight = self.difference(losses) / (2.0 * self.std**2)
            gradient = jax.tree.map(lambda c: weight * c, noise.credit)
            metrics = {"meta_loss": jnp.mean(losses), "diverged": jnp.mean(lost)}
            return (gradient, metrics), ParticleState(self.settle(after.inner, clock), after.first, noise, clock)

        return jax.vmap(pair)(state, keys)

    def difference(self, losses: Float[Array, " 2"]) -> Float[Array, ""]:
        """Of the meta-losses of a pair, or its sign."""
        difference = losses[0] - losses[1]
        return difference if self.sign_scale is None else self.sign_scale * jnp.sign(difference)

    def combine(self, contributions: MetaGradient, metrics: Metrics) -> tuple[MetaGradient, Metrics]:
        """Means over pairs."""
        return mean_over_groups((contributions, metrics))


class NoiseReuseES(AntitheticES):
    r"""Evolution strategies that keep their noise for a period and give credit to all noise since the problem began.

    $$\epsilon_\tau \sim N(0, \sigma^2 I), \quad \xi_\tau = \xi_{\tau-1} + \epsilon_\tau \quad \text{every } P \text{ steps}, \qquad
      \epsilon_\tau = \epsilon_{\tau-1}, \quad \xi_\tau = \xi_{\tau-1} \quad \text{between}$$

    Unbiased for the meta-loss smoothed by independent noise in every period; the variance grows with the number of periods. $P = K$ is `PES`, $P$ equal to
    the horizon `ESSingle`.

    Args:
        noise_period: $P$, inner steps; noise is renewed at the first truncation at or beyond it.

    Source: Li et al. 2023, *Variance-Reduced Gradient Estimation via Noise-Reuse in Online Evolution Strategies*; Vicol 2023, on the generalised scheme.
    """

    noise_period: int = eqx.field(static=True, default=100, kw_only=True)

    def __check_init__(self) -> None:
        at_least(1, noise_period=self.noise_period)

    def assign(self, fresh: Noise, held: Noises, step: Int[Array, ""], restarted: Bool[Array, ""]) -> Noises:
        """Perturb with the noise of this period, credit the sum over all periods."""
        return _accumulate(fresh, held, step, restarted, restarted | (step - held.drawn >= self.noise_period))


class PES(AntitheticES):
    r"""Persistent evolution strategies: fresh noise every truncation, credit for all of it since the problem began.

    $$\epsilon_\tau \sim N(0, \sigma^2 I), \qquad \xi_\tau = \xi_{\tau-1} + \epsilon_\tau, \qquad \xi = 0 \text{ at a restart}$$

    Unbiased for the meta-loss smoothed by independent noise in every truncation; its variance grows with the number of truncations.

    Source: Vicol, Metz, Sohl-Dickstein 2021, *Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent Evolution Strategies*.
    """

    def assign(self, fresh: Noise, held: Noises, step: Int[Array, ""], restarted: Bool[Array, ""]) -> Noises:
        """Perturb with fresh noise, credit its running sum."""
        return _accumulate(fresh, held, step, restarted, jnp.asarray(True))


class ESSingle(AntitheticES):
    r"""ES-Single, also known as noise-reuse evolution strategies (NRES): one draw of noise for the whole of an inner problem.

    $$\xi_\tau = \epsilon_\tau = \epsilon_{\tau-1}, \qquad \epsilon \sim N(0, \sigma^2 I) \text{ drawn anew at a restart}$$

    Unbiased for the meta-loss smoothed by $N(0, \sigma^2 I)$, with a variance that does not grow with the number of truncations.

    Source: Vicol 2023, *Low-Variance Gradient Estimation in Unrolled Computation Graphs with ES-Single*;
    Li et al. 2023, *Variance-Reduced Gradient Estimation via Noise-Reuse in Online Evolution Strategies*.
    """

    def assign(self, fresh: Noise, held: Noises, step: Int[Array, ""], restarted: Bool[Array, ""]) -> Noises:
        """Perturb with the noise of this problem and credit it."""
        return _accumulate(fresh, held, step, restarted, restarted)


class TruncatedES(AntitheticES):
    r"""Truncated evolution strategies: fresh noise every truncation, credit for that truncation alone.

    $$\xi_\tau = \epsilon_\tau \sim N(0, \sigma^2 I)$$

    Biased: it cannot see what a meta-parameter does beyond the truncation, and prefers greedy optimizers. Kept as the control for the
    unbiased ones.

    Source: Metz et al. 2019, *Understanding and correcting pathologies in the training of learned optimizers*.
    """

    def assign(self, fresh: Noise, held: Noises, step: Int[Array, ""], restarted: Bool[Array, ""]) -> Noises:
        """Perturb with fresh noise and credit it."""
        del held, restarted
        return Noises(fresh, fresh, step)


class FullES(AntitheticES):
    r"""Full evolution strategies: every estimate unrolls whole inner problems, $K = T$.

    Unbiased for the meta-loss smoothed by $N(0, \sigma^2 I)$, with one meta-step a problem. Its length is a number, log-uniform, or by a `Schedule`, such as
    `horizon=Growing(50, 10_000)`; all pairs of an estimate have the same.

    Source: Metz et al. 2019; Metz et al. 2022, *VeLO* (log-uniform lengths, `objective="last"`, `sign_scale=1.0`).
    """

    truncation: Schedule | None = eqx.field(static=True, converter=as_truncation, default=None, kw_only=True)

    def __check_init__(self) -> None:
        if self.truncation is not None:
            raise InputError(
                f"truncation is {self.truncation}; full ES has none, its unrolls are as long as the horizon."
            )

    def assign(self, fresh: Noise, held: Noises, step: Int[Array, ""], restarted: Bool[Array, ""]) -> Noises:
        """Perturb with fresh noise and credit it."""
        del held, restarted
        return Noises(fresh, fresh, step)


def _accumulate(
    fresh: Noise, held: Noises, step: Int[Array, ""], restarted: Bool[Array, ""], renewed: Bool[Array, ""]
) -> Noises:
    """Perturb with fresh noise where it is `renewed`, else with what is held; credit the sum since the restart."""
    perturbation = jax.tree.map(lambda f, h: jnp.where(renewed, f, h), fresh, held.perturbation)
    before = jax.tree.map(lambda c: jnp.where(restarted, jnp.zeros_like(c), c), held.credit)
    credit = jax.tree.map(lambda f, c: jnp.where(renewed, f + c, c), fresh, before)
    return Noises(perturbation, credit, jnp.where(renewed, step, held.drawn))


def normal_like(key: PRNGKeyArray, tree: PyTree[Array]) -> Any:
    """Standard normal numbers in the structure of a tree, by one draw: one a leaf takes a third longer to compile."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))
