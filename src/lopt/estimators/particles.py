"""What all antithetic evolution strategies on truncated unrolls share."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, MetaGradient, meta_loss
from lopt.optimizer import Optimizer
from lopt.task import Split, Task
from lopt.unroll import Inner, restart, start, unroll

Noise = PyTree[Array]  # the structure of the optimizer

# Members of an antithetic pair share problem, step and horizon; parameters, optimizer state and memory are their own.
PAIR = Inner(problem=None, params=0, opt_state=0, step=None, horizon=None, memory=0)  # pyright: ignore[reportArgumentType]

PAIRS = PartitionSpec("pairs")


class ParticleState(NamedTuple):
    """Antithetic pairs in flight; every array has a leading axis of pairs."""

    inner: Inner  # `params`, `opt_state` and `memory` have a second axis of two, the signs
    noise: Noise


def _both(horizon: int | tuple[int, int]) -> tuple[int, int]:
    return (horizon, horizon) if isinstance(horizon, int) else horizon


class AntitheticES(Estimator):
    r"""Antithetic evolution strategies on truncated unrolls. Subclasses say which noise perturbs and which gets the credit.

    Each of $N$ pairs unrolls $\theta + \epsilon_i$ and $\theta - \epsilon_i$ for $K$ steps from where they stand, on the same problem and minibatches:

    $$\hat g = \frac{1}{N} \sum_i \xi_i\, \frac{L_K(\theta + \epsilon_i) - L_K(\theta - \epsilon_i)}{2\sigma^2}$$

    with $\epsilon_i$ the perturbation, $\xi_i$ the credit (a sum of perturbations), and $L_K$ the `meta_loss` of the truncation. A pair that has reached
    its horizon restarts on a fresh problem before the unroll. Horizons are log-uniform multiples of $K$; first horizons are
    shortened at random so that pairs do not march in step. With several devices the pairs are spread over them.

    Args:
        task: the distribution over inner problems.
        pairs: $N$.
        truncation: $K$, inner steps a meta-gradient.
        horizon: length of an inner problem, or the least and the greatest, rounded down to multiples of $K$.
        std: $\sigma$.
        split: the split whose losses make the meta-loss: `train`, or `valid` for optimizers that regularise.
    """

    task: Task
    pairs: int = eqx.field(static=True, default=8, kw_only=True)
    truncation: int = eqx.field(static=True, default=20, kw_only=True)
    horizon: tuple[int, int] = eqx.field(static=True, converter=_both, default=200, kw_only=True)
    std: float = eqx.field(static=True, default=0.01, kw_only=True)
    split: Split = eqx.field(static=True, default="train", kw_only=True)

    def __check_init__(self) -> None:
        for name, number in (("pairs", self.pairs), ("truncation", self.truncation)):
            if number < 1:
                raise InputError(f"{name} is {number}; it must be at least 1.")
        low, high = self.horizon
        if low < self.truncation:
            raise InputError(f"horizon is {low}; it must be at least the truncation, {self.truncation}.")
        if low > high:
            raise InputError(f"horizon is ({low}, {high}); the first must not exceed the second.")
        if not self.std > 0:
            raise InputError(f"std is {self.std}; it must be positive.")
        if self.split not in get_args(Split):
            raise InputError(f"split is {self.split!r}; it must be one of {', '.join(get_args(Split))}.")

    @property
    def inner_steps(self) -> int:
        """Inner steps that one estimate takes: pairs x 2 x truncation."""
        return self.pairs * 2 * self.truncation

    @abc.abstractmethod
    def assign(self, fresh: Noise, held: Noise, restarted: Bool[Array, ""]) -> tuple[Noise, Noise]:
        r"""Perturbation $\epsilon$ and credit $\xi$ of a pair for this truncation.

        Args:
            fresh: new noise, $N(0, \sigma^2 I)$.
            held: the credit of the pair's previous truncation.
            restarted: whether the pair has just begun a problem.
        """

    def init(self, optimizer: Optimizer, key: PRNGKeyArray) -> ParticleState:
        """Pairs that all restart at the first estimate."""
        keys = jax.random.split(key, self.pairs)
        return _over_devices(_init, self.pairs, (PAIRS,))(self, optimizer, keys)

    def estimate(
        self, optimizer: Optimizer, state: ParticleState, key: PRNGKeyArray
    ) -> tuple[MetaGradient, ParticleState, dict[str, Float[Array, ""]]]:
        """One truncation of every pair; see the class."""
        keys = jax.random.split(key, self.pairs)
        per_pair, state = _over_devices(_estimate, self.pairs, (PAIRS, PAIRS))(self, optimizer, state, keys)
        gradient, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), per_pair)
        return gradient, state, metrics


def _over_devices(fn: Callable[..., Any], pairs: int, split: tuple[PartitionSpec, ...]) -> Callable[..., Any]:
    """Spread the leading axis of pairs over all devices where they divide it; estimator and optimizer go everywhere."""
    devices = jax.device_count()
    if devices == 1 or pairs % devices:
        return fn
    mesh = jax.make_mesh((devices,), ("pairs",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (PartitionSpec(), PartitionSpec(), *split)
    return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=PAIRS, check_vma=False)


def _init(estimator: AntitheticES, optimizer: Optimizer, keys: Key[Array, " pairs"]) -> ParticleState:
    both = jax.tree.map(lambda x: jnp.stack([x, x]), optimizer)

    def pair(key: PRNGKeyArray) -> ParticleState:
        inner = jax.vmap(lambda opt: start(opt, estimator.task, key, 0), out_axes=PAIR)(both)
        return ParticleState(inner, jax.tree.map(jnp.zeros_like, optimizer))

    return jax.vmap(pair)(keys)


def _estimate(
    estimator: AntitheticES, optimizer: Optimizer, state: ParticleState, keys: Key[Array, " pairs"]
) -> tuple[tuple[MetaGradient, dict[str, Array]], ParticleState]:
    def pair(
        inner: Inner, held: Noise, key: PRNGKeyArray
    ) -> tuple[tuple[MetaGradient, dict[str, Array]], ParticleState]:
        start_key, horizon_key, noise_key, unroll_key = jax.random.split(key, 4)
        fresh = jax.tree.map(lambda n: estimator.std * n, _normal_like(noise_key, optimizer))
        perturbation, credit = estimator.assign(fresh, held, inner.step >= inner.horizon)
        horizon = _draw_horizon(estimator, horizon_key, newborn=inner.horizon == 0)

        def member(sign: Float[Array, ""], inner: Inner) -> tuple[Inner, Float[Array, ""], Float[Array, ""]]:
            perturbed = jax.tree.map(lambda x, e: x + sign * e, optimizer, perturbation)
            inner = restart(perturbed, estimator.task, inner, start_key, horizon)
            inner, losses = unroll(
                perturbed, estimator.task, inner, unroll_key, estimator.truncation, split=estimator.split
            )
            return inner, *meta_loss(jax.vmap(estimator.task.normalize)(losses))

        inner, losses, diverged = jax.vmap(member, in_axes=(0, PAIR), out_axes=(PAIR, 0, 0))(
            jnp.asarray([1.0, -1.0]), inner
        )
        weight = (losses[0] - losses[1]) / (2.0 * estimator.std**2)
        gradient = jax.tree.map(lambda c: weight * c, credit)
        metrics = {"meta_loss": jnp.mean(losses), "diverged": jnp.mean(diverged)}
        return (gradient, metrics), ParticleState(inner, credit)

    return jax.vmap(pair)(state.inner, state.noise, keys)


def _normal_like(key: PRNGKeyArray, tree: PyTree[Array]) -> PyTree[Array]:
    """Standard normal numbers in the structure of a tree, by one draw: one a leaf takes a third longer to compile."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def _draw_horizon(estimator: AntitheticES, key: PRNGKeyArray, newborn: Bool[Array, ""]) -> Int[Array, ""]:
    """Log-uniform, a multiple of the truncation; the first one shortened uniformly."""
    length_key, stagger_key = jax.random.split(key)
    low, high = (n // estimator.truncation for n in estimator.horizon)
    # + 1: every whole number of truncations owns the interval up to the next.
    exponent = jax.random.uniform(length_key, (), minval=jnp.log(float(low)), maxval=jnp.log(high + 1.0))
    truncations = jnp.clip(jnp.floor(jnp.exp(exponent)), low, high).astype(jnp.int32)
    stagger = jax.random.randint(stagger_key, (), 0, truncations)
    return estimator.truncation * jnp.where(newborn, truncations - stagger, truncations)
