"""The inner loop: start an inner problem, unroll it, restart it at its horizon."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.optimizer import Optimizer, Params, State
from lopt.task import Memory, Problem, Split, Task


class Inner(NamedTuple):
    """One inner problem in flight."""

    problem: Problem
    params: Params
    opt_state: State
    step: Int[Array, ""]  # inner steps taken since the start
    horizon: Int[Array, ""]  # inner step at which the problem is replaced
    memory: Memory = ()  # what the task carries from one gradient to the next


def start(optimizer: Optimizer, task: Task, key: PRNGKeyArray, horizon: int | Int[Array, ""]) -> Inner:
    """Draw a problem of `task`, its initial parameters and the optimizer's state for them.

    Args:
        optimizer: the optimizer that will train it.
        task: the distribution over problems.
        key: draws the problem, the parameters and, where it is random, the optimizer's start.
        horizon: inner steps until the problem is replaced.
    """
    problem_key, params_key, opt_key = jax.random.split(key, 3)
    problem = task.sample(problem_key)
    params = task.init(problem, params_key)
    horizon = jnp.asarray(horizon, jnp.int32)
    opt_state = optimizer.init(params, key=opt_key, horizon=horizon)
    return Inner(problem, params, opt_state, jnp.zeros((), jnp.int32), horizon, task.remember(problem, params))


def restart(optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, horizon: Int[Array, ""]) -> Inner:
    """A fresh inner problem where `inner` has reached its horizon, `inner` unchanged where it has not.

    Called between truncations, never inside the scan: horizons are multiples of the truncation, and a restart inside the
    vmapped step would cost a third of it.
    """
    done = inner.step >= inner.horizon
    fresh = start(optimizer, task, key, horizon)
    return jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, inner)


def unroll(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, length: int, *, split: Split = "train"
) -> tuple[Inner, Float[Array, " length"]]:
    r"""Take `length` inner steps with one `lax.scan`.

    $$\ell_t = f(w_t; \xi_t), \quad (u_t, s_{t+1}) = U(\nabla f(w_t; \xi_t), s_t, w_t; \theta), \quad w_{t+1} = w_t + u_t$$

    The gradient is what `task.observe` shows, which for an augmented task is another than $\nabla f$.

    Args:
        optimizer: $U$ with its meta-parameters $\theta$.
        task: gives $f$; draws the minibatch $\xi_t$ from the key.
        inner: where to begin.
        key: draws the minibatches.
        length: number of steps.
        split: where the losses that are returned come from; gradients always come from the training split.

    Returns:
        The inner problem after `length` steps, and the losses on the way, shape `[length]`: the training losses $\ell_t$ of the very
        minibatches that gave the gradients, or losses on minibatches of another split. Losses are those of `eval_params`: where a rule
        takes its gradients elsewhere than at the parameters that it has found, the latter count.
    """

    def step(
        carry: tuple[Params, State, Memory], key: PRNGKeyArray
    ) -> tuple[tuple[Params, State, Memory], Float[Array, ""]]:
        params, opt_state, memory = carry
        loss, grads, memory = task.observe(inner.problem, params, memory, key)
        at = optimizer.eval_params(opt_state, params)
        updates, opt_state = optimizer.update(grads, opt_state, params, value=loss)
        if split != "train" or at is not params:
            loss = task.loss(inner.problem, at, key, split)
        return (optax.apply_updates(params, updates), opt_state, memory), loss

    keys = jax.random.split(key, length)
    (params, opt_state, memory), losses = jax.lax.scan(step, (inner.params, inner.opt_state, inner.memory), keys)
    return inner._replace(params=params, opt_state=opt_state, step=inner.step + length, memory=memory), losses
