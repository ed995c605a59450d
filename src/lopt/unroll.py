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


def start(
    optimizer: Optimizer, task: Task, key: PRNGKeyArray, horizon: int | Int[Array, ""], *, tell_horizon: bool = True
) -> Inner:
    """Draw a problem of `task`, its initial parameters and the optimizer's state for them.

    Args:
        optimizer: the optimizer that will train it.
        task: the distribution over problems.
        key: draws the problem, the parameters and, where it is random, the optimizer's start.
        horizon: inner steps until the problem is replaced.
        tell_horizon: whether the optimizer is told; some must be.
    """
    problem_key, params_key, opt_key = jax.random.split(key, 3)
    problem = task.sample(problem_key)
    params = task.init(problem, params_key)
    horizon = jnp.asarray(horizon, jnp.int32)
    opt_state = optimizer.init(params, key=opt_key, horizon=horizon if tell_horizon else None)
    return Inner(problem, params, opt_state, jnp.zeros((), jnp.int32), horizon, task.remember(problem, params))


def restart(
    optimizer: Optimizer,
    task: Task,
    inner: Inner,
    key: PRNGKeyArray,
    horizon: Int[Array, ""],
    *,
    tell_horizon: bool = True,
) -> Inner:
    """A fresh inner problem where `inner` has reached its horizon, `inner` unchanged where it has not.

    Called between truncations, never inside the scan: horizons are multiples of the truncation, and a restart inside the
    vmapped step would cost a third of it.
    """
    done = inner.step >= inner.horizon
    fresh = start(optimizer, task, key, horizon, tell_horizon=tell_horizon)
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
        carry: tuple[Params, State, Memory], given: tuple[PRNGKeyArray, Int[Array, ""]]
    ) -> tuple[tuple[Params, State, Memory], Float[Array, ""]]:
        (params, opt_state, memory), (key, t) = carry, given
        loss, grads, memory = task.observe(inner.problem, params, memory, key)
        at = optimizer.eval_params(opt_state, params)
        valid_loss = validation_loss(optimizer, task, inner.problem, at, inner.step + t, key)
        updates, opt_state = optimizer.update(grads, opt_state, params, value=loss, valid_value=valid_loss)
        if split != "train" or at is not params:
            loss = task.loss(inner.problem, at, key, split)
        return (optax.apply_updates(params, updates), opt_state, memory), loss

    given = jax.random.split(key, length), jnp.arange(length, dtype=jnp.int32)
    (params, opt_state, memory), losses = jax.lax.scan(step, (inner.params, inner.opt_state, inner.memory), given)
    return inner._replace(params=params, opt_state=opt_state, step=inner.step + length, memory=memory), losses


def validation_loss(
    optimizer: Optimizer, task: Task, problem: Problem, params: Params, step: Int[Array, ""], key: PRNGKeyArray
) -> Float[Array, ""] | None:
    """The loss on a minibatch of the validation split at every so many steps as the optimizer asks for, NaN at others; `None` if it never does.

    Args:
        optimizer: says how often, by `validation_every`.
        task: gives the loss.
        problem: of the task.
        params: where to look.
        step: inner steps taken before this one.
        key: of the step; the minibatch comes from a stream of its own.
    """
    if not optimizer.validation_every:
        return None
    stream = jax.random.fold_in(key, 0x76616C)
    return jax.lax.cond(
        step % optimizer.validation_every == 0,
        lambda: task.loss(problem, params, stream, "valid").astype(jnp.float32),
        lambda: jnp.full((), jnp.nan, jnp.float32),
    )
