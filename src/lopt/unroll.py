"""The inner loop: start an inner problem, take a step or unroll it, restart it at its horizon."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt.optimizer import Optimizer, Params, State, update_if_finite
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


def step(
    optimizer: Optimizer,
    task: Task,
    inner: Inner,
    key: PRNGKeyArray,
    *,
    guarded: bool = False,
    split: Split | None = "train",
) -> tuple[Inner, Float[Array, ""]]:
    r"""Take one inner step. Every loop of the library takes this one.

    $$\ell_t = f(w_t; \xi_t), \quad (u_t, s_{t+1}) = U(\nabla f(w_t; \xi_t), s_t, w_t; \theta), \quad w_{t+1} = w_t + u_t$$

    The gradient is the one that `task.observe` returns; an augmented task returns another than $\nabla f$.

    Args:
        optimizer: $U$ with its meta-parameters $\theta$.
        task: gives $f$; draws the minibatch $\xi_t$ from the key.
        inner: where to begin.
        key: draws the minibatch.
        guarded: whether a step with a non-finite gradient is skipped, as `to_optax` skips it.
        split: the split of the minibatch whose loss is returned, at `eval_params`. With `None` it is the loss that came with the gradient: at the
            point where the gradient was taken, which for most optimizers is that of `train`.

    Returns:
        The inner problem after the step, and the loss $\ell_t$ before it.

    Examples:
        >>> import jax, lopt
        >>> optimizer, task = lopt.optimizers.SGD(learning_rate=0.1), lopt.tasks.Quadratic(dim=2)
        >>> inner = lopt.start(optimizer, task, jax.random.key(0), horizon=10)
        >>> inner, loss = lopt.step(optimizer, task, inner, jax.random.key(1))
        >>> int(inner.step)
        1
    """
    loss, grads, memory = task.observe(inner.problem, inner.params, inner.memory, key)
    at = optimizer.eval_params(inner.opt_state, inner.params)
    valid_loss = validation_loss(optimizer, task, inner.problem, at, inner.step, key)
    update = partial(update_if_finite, optimizer) if guarded else optimizer.update
    updates, opt_state = update(grads, inner.opt_state, inner.params, value=loss, valid_value=valid_loss)
    if split is not None and (split != "train" or at is not inner.params):
        loss = task.loss(inner.problem, at, key, split)
    params = optax.apply_updates(inner.params, updates)
    return inner._replace(params=params, opt_state=opt_state, step=inner.step + 1, memory=memory), loss


def unroll(
    optimizer: Optimizer, task: Task, inner: Inner, key: PRNGKeyArray, length: int, *, split: Split = "train"
) -> tuple[Inner, Float[Array, " length"]]:
    """Take `length` inner steps, each a `step`, with one `lax.scan`.

    Args:
        optimizer: the update rule with its meta-parameters.
        task: gives the losses and gradients.
        inner: where to begin.
        key: draws the minibatches.
        length: number of steps.
        split: where the losses that are returned come from; gradients always come from the training split.

    Returns:
        The inner problem after `length` steps, and the losses on the way, shape `[length]`. With `split="train"` they are the losses of the
        minibatches that gave the gradients. All are losses at `eval_params`.
    """
    # What never changes stays out of the carry: reverse mode would keep a copy of it for every step.
    fixed = {"problem": inner.problem, "horizon": inner.horizon}
    nothing: dict[str, Any] = dict.fromkeys(fixed)

    def one(carry: Inner, key: PRNGKeyArray) -> tuple[Inner, Float[Array, ""]]:
        after, loss = step(optimizer, task, carry._replace(**fixed), key, split=split)
        return after._replace(**nothing), loss

    after, losses = jax.lax.scan(one, inner._replace(**nothing), jax.random.split(key, length))
    return after._replace(**fixed), losses


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
