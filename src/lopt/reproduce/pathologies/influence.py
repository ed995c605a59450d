"""Influence balancing: what truncated estimators make of a meta-parameter whose early effects contradict its late ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.estimators import PES, Backprop, ESSingle, Particles, TruncatedES
from lopt.meta_train import MetaState, as_outer, meta_init, meta_step
from lopt.optimizer import Optimizer
from lopt.reproduce._curves import last_tenth
from lopt.reproduce.claims import Claim
from lopt.task import Split, Task
from lopt.tasks import InfluenceBalancing


class Recurrence(Optimizer):
    r"""The recurrence of `InfluenceBalancing` as an update rule, deaf to gradients, whose meta-parameter is $\theta$: $u_t = A s_t + \theta v - s_t$.

    Args:
        theta: the meta-parameter.
        system: says $A$ and $v$.
    """

    theta: Float[Array, ""]
    system: InfluenceBalancing = eqx.field(static=True)

    def init(self, params: Any, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def update(self, updates: Any, state: tuple[()], params: Any, **extra: Any) -> tuple[Any, tuple[()]]:
        """One step of the recurrence."""
        push = jnp.where(jnp.arange(self.system.size) < self.system.positive, 1.0, -1.0)
        return 0.5 * (jnp.append(params[1:], 0.0) - params) + self.theta * push, state


class FirstCoordinate(Task):
    r"""What the recurrence is judged by: $f(s) = \tfrac12 (s_1 - 1)^2$, from $s_0 = 0$."""

    size: int = eqx.field(static=True)

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing differs between problems."""
        return ()

    def init(self, problem: tuple[()], key: PRNGKeyArray) -> Float[Array, " size"]:
        """Zero."""
        return jnp.zeros(self.size)

    def loss(self, problem: tuple[()], params: Any, key: PRNGKeyArray, split: Split = "train") -> Float[Array, ""]:
        """$f(s)$."""
        return 0.5 * jnp.square(params[0] - 1.0)


class Contender(NamedTuple):
    """An estimator and what is expected of it."""

    label: str
    estimator: Particles
    sees_all: bool  # whether it accounts for the whole of a problem


def influence(
    key: PRNGKeyArray,
    *,
    size: int = 23,
    positive: int = 10,
    horizon: int = 200,
    truncation: int = 10,
    longer: int = 100,
    particles: int = 1000,
    few: int = 4,
    std: float = 0.1,
    theta: float = 0.5,
    meta_steps: int = 2000,
    learning_rate: float = 2e-3,
    seeds: int = 3,
    tolerance: float = 0.1,
) -> Claim:
    r"""Meta-train $\theta$ by truncated and by unbiased estimators, all with Adam, beside the exact minimum.

    $$s_{t+1} = A s_t + \theta v, \qquad L(\theta) = \frac1T \sum_{t<T} \tfrac12 (a_t \theta - 1)^2, \qquad \theta^* = \frac{\sum_t a_t}{\sum_t a_t^2}$$

    with $a_t$ the first coordinate after $t$ steps at $\theta = 1$: positive at first, negative in the end.

    Args:
        key: draws noise and staggering.
        size: $n$; recalled.
        positive: $p$; recalled.
        horizon: $T$.
        truncation: $K$ of all truncated estimators.
        longer: a second truncation of backpropagation, reported and not judged.
        particles: of ES and PES, two to a pair.
        few: particles of a second ES-Single.
        std: of the noise.
        theta: where meta-training starts.
        meta_steps: of Adam.
        learning_rate: of Adam.
        seeds: meta-trainings of each estimator.
        tolerance: final distance from the minimum that counts as arrived, relative to the distance at the start.

    Source: Vicol 2023, section 4.1, after Vicol et al. 2021 and Tallec & Ollivier 2018; the sizes, the loss and its mean over steps are recalled or ours.
    """
    system = InfluenceBalancing(size=size, positive=positive, steps=horizon)
    task = FirstCoordinate(size)
    best, effects = exact_minimum(system)
    common: dict[str, Any] = {"horizon": horizon, "objective": "mean"}
    noisy = {**common, "truncation": truncation, "std": std}
    contenders = [
        Contender(
            f"backprop, {truncation} steps", Backprop(task, truncation=truncation, particles=16, **common), False
        ),
        Contender(f"truncated ES, N={particles}", TruncatedES(task, pairs=particles // 2, **noisy), False),
        Contender(f"PES, N={particles}", PES(task, pairs=particles // 2, **noisy), True),
        Contender(f"ES-Single, N={particles}", ESSingle(task, pairs=particles // 2, **noisy), True),
        Contender(f"ES-Single, N={few}", ESSingle(task, pairs=few // 2, **noisy), True),
    ]
    aside = Contender(f"backprop, {longer} steps", Backprop(task, truncation=longer, particles=16, **common), False)
    curves = {
        c.label: np.asarray(
            meta_trainings(c.estimator, Recurrence(jnp.float32(theta), system), key, meta_steps, learning_rate, seeds)
        )
        for c in (*contenders, aside)
    }
    away = abs(theta - best)
    ends = {label: last_tenth(curve) for label, curve in curves.items()}
    # The final distance, of the seed that supports the claim least.
    distance = {label: np.abs(end - best) / away for label, end in ends.items()}
    wrong = {c.label: bool(distance[c.label].min() > 1.0) for c in contenders if not c.sees_all}
    arrived = {c.label: bool(distance[c.label].max() <= tolerance) for c in contenders if c.sees_all}
    rows = [
        {
            "estimator": c.label,
            "theta at the end": " ".join(f"{x:+.3f}" for x in ends[c.label]),
            "distance from the minimum, start = 1": " ".join(f"{x:.2f}" for x in distance[c.label]),
            "expected": "not judged" if c is aside else ("arrives" if c.sees_all else "moves away"),
            "came out": "" if c is aside else "as expected" if {**wrong, **arrived}[c.label] else "otherwise",
        }
        for c in (*contenders, aside)
    ]
    numbers = {
        "minimum": best,
        "start": theta,
        "effect_after_truncation": float(effects[min(truncation, horizon - 1)]),
        "effect_in_the_end": float(effects[-1]),
        "theta_at_the_end": ends,
        "relative_distance": distance,
        "moved_away": wrong,
        "arrived": arrived,
    }
    found = (
        f"The minimum is at {best:+.3f}, the start at {theta:+.3f}. "
        + "; ".join(f"{c.label}: {ends[c.label].mean():+.3f}" for c in contenders)
        + "."
    )
    return Claim(
        "influence",
        "(e) Truncated estimators move the wrong way",
        "Where a meta-parameter's early effects contradict its late ones, truncated backpropagation and truncated ES move away from the minimum; PES and "
        "ES-Single see the whole of the problem and converge, ES-Single even with four particles.",
        f"After {meta_steps} meta-steps both truncated estimators are further from the exact minimum than at the start, with every seed; "
        f"PES and both ES-Single are within {tolerance:.0%} of the distance at the start, with every seed.",
        found,
        all(wrong.values()) and all(arrived.values()),
        numbers,
        rows,
        {"effects": effects, **{label: curve for label, curve in curves.items()}},
    )


def exact_minimum(system: InfluenceBalancing) -> tuple[float, np.ndarray]:
    """The minimum of the mean loss over the steps of a problem, and the first coordinate at each of them, a unit of theta."""
    effects = np.array([system.influence(t) for t in range(system.steps)])
    return float(effects.sum() / np.square(effects).sum()), effects


def meta_trainings(
    estimator: Particles, optimizer: Optimizer, key: PRNGKeyArray, steps: int, learning_rate: float, seeds: int
) -> Float[Array, "seeds steps"]:
    """Meta-parameters `[seeds, steps]` of an optimizer with one, meta-trained with Adam, all seeds in one program."""
    outer = as_outer(optax.adam(learning_rate))

    @jax.jit
    def run(optimizer: Any, keys: Array) -> Array:
        def one(key: Array) -> Array:
            def step(state: MetaState, nothing: None) -> tuple[MetaState, Array]:
                del nothing
                state, _ = meta_step((estimator,), outer, state)
                return state, jax.tree.leaves(state.optimizer)[0]

            return jax.lax.scan(step, meta_init(optimizer, (estimator,), outer, key), None, steps)[1]

        return jax.vmap(one)(keys)

    return run(optimizer, jax.random.split(key, seeds))


__all__ = ["FirstCoordinate", "Recurrence", "influence"]
