"""The whole rule and the rule without each of its parts, and how they are meta-trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from lopt.estimators import Backprop
from lopt.estimators.objectives import Objective
from lopt.estimators.schedules import Constant, HeavyTailed, Schedule, Unrolls
from lopt.meta_train import meta_train
from lopt.optimizers import HierarchicalRNN
from lopt.tasks import create, find_member

# The rule with some meta-parameters held at the value that takes a part away, or at the given one.
Hold = Callable[[HierarchicalRNN, float | None], HierarchicalRNN]

TASKS = ("quadratic_20_noisy", "branin")  # of the meta-trainings
WHOLE = "whole"
NEVER = 20.0  # a logit whose decay is 1 in all digits


class Arm(NamedTuple):
    """A row of the ablation: fields of the rule, meta-parameters that are held, the objective and the lengths of unrolls."""

    fields: Mapping[str, Any] = {}
    hold: Hold | None = None
    objective: Objective = "mean_log"
    lengths: Schedule = HeavyTailed(least=5, scale=20.0, limit=100)
    horizon: Unrolls | int = Unrolls(scale=10.0)


def without_products(rule: HierarchicalRNN, value: float | None = None) -> HierarchicalRNN:
    """Nothing reads the products of neighbouring momenta: their rows in the parameter RNN and in the tensor RNN are zero."""
    n, value = rule.timescales, value or 0.0
    rows = slice(n, 2 * n - 1)
    above = slice(rule.sizes[0] + n, rule.sizes[0] + 2 * n - 1)
    return eqx.tree_at(
        lambda r: (r.parameter_rnn.gates, r.parameter_rnn.candidate, r.tensor_rnn.gates, r.tensor_rnn.candidate),
        rule,
        (
            rule.parameter_rnn.gates.at[rows].set(value),
            rule.parameter_rnn.candidate.at[rows].set(value),
            rule.tensor_rnn.gates.at[above].set(value),
            rule.tensor_rnn.candidate.at[above].set(value),
        ),
    )


def without_scaling(rule: HierarchicalRNN, value: float | None = None) -> HierarchicalRNN:
    """The scale of the inputs stays that of the first gradient: its decay is 1."""
    weight, bias = rule.scale_decay.weight, rule.scale_decay.bias
    return eqx.tree_at(
        lambda r: (r.scale_decay.weight, r.scale_decay.bias),
        rule,
        (
            jnp.full_like(weight, 0.0 if value is None else value),
            jnp.full_like(bias, NEVER if value is None else value),
        ),
    )


def without_hierarchy(rule: HierarchicalRNN, value: float | None = None) -> HierarchicalRNN:
    """Nothing comes down from the tensor and the global RNN."""

    def levels(r: HierarchicalRNN) -> list[Any]:
        return [
            x
            for affine in (r.tensor_to_parameter, r.global_to_parameter, r.global_to_tensor)
            for x in (affine.weight, affine.bias)
        ]

    return eqx.tree_at(levels, rule, [jnp.full_like(x, value or 0.0) for x in levels(rule)])


ARMS: dict[str, Arm] = {
    WHOLE: Arm(fields={"use_attention": True}),
    "no attention": Arm(),
    "one momentum": Arm(fields={"use_attention": True, "timescales": 1}),  # and so no products
    "no dynamic scaling": Arm(fields={"use_attention": True}, hold=without_scaling),
    "no products": Arm(fields={"use_attention": True}, hold=without_products),
    "no log objective": Arm(fields={"use_attention": True}, objective="relative"),
    "fixed lengths": Arm(fields={"use_attention": True}, lengths=Constant(25), horizon=275),
    "no hierarchy": Arm(fields={"use_attention": True}, hold=without_hierarchy),
}


def train_arm(
    name: str,
    key: PRNGKeyArray,
    *,
    meta_steps: int,
    particles: int = 4,
    learning_rate: float = 1e-3,
    folder: Path | None = None,
) -> HierarchicalRNN:
    """Meta-train an arm by truncated backpropagation and Adam. What an arm holds starts at its value and is never updated.

    Args:
        name: of `ARMS`.
        key: draws the start and the problems: arms of one key begin alike and meet the same problems.
        meta_steps: how many.
        particles: trainings at once, on each task.
        learning_rate: of Adam.
        folder: a run directory, to go on after a stop.

    Raises:
        InputError: for a run directory of another configuration.
    """
    arm = ARMS[name]
    init_key, train_key = jax.random.split(key)
    rule = HierarchicalRNN(**arm.fields, key=init_key)
    if arm.hold is not None:
        rule = arm.hold(rule, None)
    estimators = [
        Backprop(
            create(find_member(f"wichrowska2017/{task}")),
            particles=particles,
            truncation=arm.lengths,
            horizon=arm.horizon,
            objective=arm.objective,
        )
        for task in TASKS
    ]
    state = meta_train(rule, estimators, _outer(name, learning_rate), steps=meta_steps, key=train_key, run_dir=folder)
    found: Any = state.optimizer
    return found


@functools.cache  # of one object, so that all seeds of an arm share their program
def _outer(name: str, learning_rate: float) -> optax.GradientTransformation:
    """Adam, which leaves alone what an arm holds."""
    arm = ARMS[name]
    rule = HierarchicalRNN(**arm.fields, key=jax.random.key(0))
    free = jax.tree.map(jnp.ones_like, rule)
    if arm.hold is not None:
        free = jax.tree.map(lambda x: (~jnp.isnan(x)).astype(x.dtype), arm.hold(rule, jnp.nan))
    held = optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, free))
    return optax.chain(optax.clip(0.1), optax.adam(learning_rate), held)


__all__ = ["ARMS", "TASKS", "WHOLE", "Arm", "train_arm", "without_hierarchy", "without_products", "without_scaling"]
