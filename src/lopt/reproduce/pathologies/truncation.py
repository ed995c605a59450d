"""The bias of truncated backpropagation: the learning rate to which it converges, beside the best one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.engine import Gradients
from lopt.estimators import Backprop, LogUniform
from lopt.evaluate.scores.statistics import mean_interval
from lopt.meta_train import MetaState, apply, as_outer, meta_init, step_key
from lopt.optimizers import SGD
from lopt.reproduce.claims import Claim
from lopt.task import Task
from lopt.tasks import NoisyQuadratic
from lopt.unroll import start, unroll


def truncation(
    key: PRNGKeyArray,
    *,
    truncations: Sequence[int] = (2, 5, 10, 20, 50, 100),
    horizon: int = 100,
    steep: int = 1,
    flat: int = 20,
    curvature: float = 0.05,
    noise: float = 0.5,
    particles: int = 64,
    meta_steps: int = 1000,
    outer_rate: float = 0.03,
    seeds: int = 4,
    rates: int = 161,
    trainings: int = 1024,
    tolerance: float = 0.1,
) -> Claim:
    r"""Meta-train the learning rate of gradient descent on a noisy quadratic by backpropagation through $K$ steps, for several $K$.

    $$f(w; \mu_t) = \tfrac12 (w - \mu_t)^\top H (w - \mu_t), \qquad \eta \leftarrow \text{Adam on } \nabla_{\log \eta} L_K(\eta; w)$$

    with steep directions, where the noise sets a limit to the rate, and flat ones, where only a high rate gets anywhere within the horizon. The next few
    steps gain most from low noise in the steep ones, so a short truncation wants a low rate. The exact answer is the minimum of the
    mean loss over the horizon, by a sweep over rates that all meet the same starts and noise. Beside it, for every $K$, the rate at which the expected
    truncated gradient vanishes, from the recurrence of the second moments: what is found should be that.

    Args:
        key: draws everything.
        truncations: $K$, at least two: the loss is taken before the update. The last is the horizon.
        horizon: $T$.
        steep: directions of curvature 1.
        flat: directions of curvature `curvature`.
        curvature: theirs.
        noise: variance of $\mu$ in every direction.
        particles: trainings an estimate.
        meta_steps: of Adam; the result is the mean of the last quarter.
        outer_rate: of Adam on the logarithm of the rate.
        seeds: meta-trainings, from rates spread evenly on a logarithmic scale around the exact one.
        rates: of the sweep.
        trainings: over which the sweep averages.
        tolerance: relative, of the rate at the full horizon and of predicted ones.

    Source: Metz et al. 2019, section 3; the noisy quadratic and the reason for the bias, Wu et al. 2018, *Understanding Short-Horizon Bias*.
    """
    task = NoisyQuadratic(spectrum=[1.0] * steep + [curvature] * flat, covariance=noise)
    sweep_key, train_key = jax.random.split(key)
    grid = np.geomspace(0.02, 1.5, rates).astype(np.float32)
    losses = np.asarray(sweep(task, jnp.asarray(grid), jax.random.split(sweep_key, trainings), horizon), np.float64)
    exact = float(grid[losses.mean(axis=1).argmin()])
    eighths = [float(grid[half.mean(axis=1).argmin()]) for half in np.array_split(losses, 8, axis=1)]

    begin = jnp.log(exact) + jnp.linspace(-0.5, 0.5, seeds)
    estimator = Backprop(
        task, truncation=LogUniform(1, horizon), horizon=horizon, objective="mean", particles=particles
    )
    outer = as_outer(optax.adam(outer_rate))

    @jax.jit
    def run(length: Array, keys: Array) -> Float[Array, "seeds steps"]:
        def one(log_rate: Array, key: Array) -> Array:
            def step(state: MetaState, nothing: None) -> tuple[MetaState, Array]:
                del nothing
                gradient, after, metrics = estimator.take(state.optimizer, state.estimators[0], step_key(state), length)
                state, _ = apply(outer, state, Gradients(gradient, (after,), metrics))
                return state, jax.tree.leaves(state.optimizer)[0]

            begun = meta_init(SGD(learning_rate=jnp.exp(log_rate)), (estimator,), outer, key)
            return jax.lax.scan(step, begun, None, meta_steps)[1]

        return jax.vmap(one)(begin, keys)

    keys = jax.random.split(train_key, seeds)
    curves = {k: np.exp(np.asarray(run(jnp.int32(k), keys), np.float64)) for k in truncations}
    ends = {k: np.exp(np.log(c[:, -max(1, meta_steps // 4) :]).mean(axis=1)) for k, c in curves.items()}
    found = {k: mean_interval(end) for k, end in ends.items()}
    directions = ((steep, 1.0), (flat, curvature))
    predicted = {k: stationary_rate(directions, noise, horizon, k) for k in truncations}
    shortest, longest = truncations[0], truncations[-1]
    too_low = bool(found[shortest].high < exact)
    means = [found[k].value for k in truncations]
    rising = all(after >= 0.97 * before for before, after in itertools.pairwise(means))
    error = abs(means[-1] / exact - 1.0)
    off = max(abs(found[k].value / predicted[k] - 1.0) for k in truncations)
    excess = {
        k: float(
            np.interp(math.log(found[k].value), np.log(grid), losses.mean(axis=1)) / losses.mean(axis=1).min() - 1.0
        )
        for k in truncations
    }
    numbers = {
        "truncations": list(truncations),
        "horizon": horizon,
        "exact": exact,
        "exact_of_eighths_of_the_trainings": eighths,
        "predicted": predicted,
        "converged": ends,
        "interval": {k: [v.value, v.half] for k, v in found.items()},
        "excess_meta_loss": excess,
        "sweep_rates": grid,
        "sweep_meta_loss": losses.mean(axis=1),
    }
    rows = [
        {
            "truncation": str(k),
            "converges to a rate of": str(found[k]),
            "predicted": f"{predicted[k]:.3f}",
            "found over exact": f"{found[k].value / exact:.2f}",
            "meta-loss above the least": f"{excess[k]:.1%}",
        }
        for k in truncations
    ]
    return Claim(
        "truncation",
        "(c) Truncated backpropagation converges to the wrong learning rate",
        "The shorter the truncation, the further the learning rate to which meta-training converges from the one that is best for the whole training.",
        f"On the noisy quadratic the rate found with {shortest} steps is below the exact one by more than its 95 % interval, rates rise with the truncation "
        f"(3 % of slack), and with {longest} steps, the whole horizon, it is within {tolerance:.0%} of the exact one; each is within {tolerance:.0%} of "
        "the rate at which the expected truncated gradient vanishes.",
        f"The exact rate is {exact:.3f}. Truncations of {', '.join(map(str, truncations))} converged to {', '.join(f'{m:.3f}' for m in means)}; "
        f"at most {off:.0%} from the predicted rates.",
        too_low and rising and error <= tolerance and off <= tolerance,
        numbers,
        rows,
        {f"curve_{k}": c for k, c in curves.items()},
    )


def stationary_rate(directions: Sequence[tuple[int, float]], noise: float, horizon: int, length: int) -> float:
    r"""The rate at which the expected gradient through `length` steps vanishes, summed over the truncations of a problem.

    With $m_t = E[w_t^2]$ in a direction of curvature $h$, and $d_t$ its derivative by the rate within the truncation:

    $$m_{t+1} = (1 - \eta h)^2 m_t + \eta^2 h^2 s, \qquad
      d_{t+1} = (1 - \eta h)^2 d_t - 2 h (1 - \eta h) m_t + 2 \eta h^2 s, \qquad d = 0 \text{ at its start}$$
    """
    rates = np.geomspace(1e-3, 1.9, 4001)
    total = np.zeros_like(rates)
    for count, h in directions:
        moment, slope = np.ones_like(rates), np.zeros_like(rates)
        for t in range(horizon):
            if t % length == 0:
                slope = np.zeros_like(rates)
            total += 0.5 * count * h * slope
            shrink = 1.0 - rates * h
            slope = shrink**2 * slope - 2.0 * h * shrink * moment + 2.0 * rates * h**2 * noise
            moment = shrink**2 * moment + (rates * h) ** 2 * noise
    return float(rates[np.argmax((total[:-1] < 0.0) & (total[1:] >= 0.0))])


@partial(jax.jit, static_argnums=3)
def sweep(task: Task, rates: Float[Array, " rates"], keys: Array, horizon: int) -> Float[Array, "rates trainings"]:
    """The mean loss of gradient descent over a training, at every rate, on the same starts and noise."""

    def one(rate: Array, key: Array) -> Array:
        optimizer, (start_key, unroll_key) = SGD(learning_rate=rate), jax.random.split(key)
        inner = start(optimizer, task, start_key, horizon)
        return jnp.mean(unroll(optimizer, task, inner, unroll_key, horizon)[1])

    return jax.lax.map(lambda rate: jax.vmap(lambda key: one(rate, key))(keys), rates)


__all__ = ["stationary_rate", "truncation"]
