"""The abstract learned optimizer."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from lopt.errors import InputError

Params = PyTree[Array]
Updates = PyTree[Array]
State = PyTree[Array]

COUNTED = 32_768  # numbers of a tensor up to which a check counts those that are too large
LARGEST = 1e15  # of gradients and parameters: the sum of their squares over any tensor stays within float32


class Optimizer(eqx.Module):
    r"""An update rule. Its array leaves are its meta-parameters.

    $$(u_t, s_{t+1}) = \mathrm{update}(g_t, s_t, w_t; \theta), \qquad w_{t+1} = w_t + u_t$$

    An optimizer is a PyTree: `vmap`, `grad` and perturbation act on $\theta$ directly, and jit takes it as
    an argument, so new weights never recompile. Every subclass is final. Static fields are the keyword arguments of its
    constructor, which is what lets `lopt.load` rebuild it from its card.
    """

    @abc.abstractmethod
    def init(self, params: Params, *, key: PRNGKeyArray | None = None, horizon: int | Array | None = None) -> State:
        """Start the optimizer's state for `params`.

        Args:
            params: the parameters to be optimised, any PyTree of floating-point arrays.
            key: needed only by optimizers whose start is random.
            horizon: number of steps the training will take, for optimizers that need to know.
        """

    @abc.abstractmethod
    def update(
        self,
        updates: Updates,
        state: State,
        params: Params,
        *,
        value: Float[Array, ""] | None = None,
        valid_value: Float[Array, ""] | None = None,
        **extra: Any,
    ) -> tuple[Updates, State]:
        """Turn gradients into additive updates.

        Args:
            updates: gradients at `params`, same structure and shapes.
            state: from `init` or the previous `update`.
            params: current parameters: where the gradient was taken.
            value: training loss at `params`.
            valid_value: validation loss at `params`, where there is one.
            **extra: ignored.

        Returns:
            The updates (same structure and dtypes as `params`) and the next state.
        """

    @property
    def exact_params(self) -> bool:
        """Whether its state holds only while parameters are float32 and nothing but its own updates changes them."""
        return False

    @property
    def validation_every(self) -> int:
        """Every how many steps lopt's own loops hand over a validation loss, as `valid_value`; 0 for never."""
        return 0

    def eval_params(self, state: State, params: Params) -> Params:
        """The parameters to evaluate, report and deploy; `params` unless the rule takes its gradients elsewhere.

        A rule that looks ahead lets the training hold the point where the next gradient is taken, so that any loop serves it, and keeps
        the parameters that it has found in its state. This gives them, with the dtypes of `params`.
        """
        del state
        return params

    def to_optax(
        self, *, horizon: int | None = None, key: PRNGKeyArray | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """This optimizer as an optax transformation, safe against numbers that are not finite.

        A step is skipped where a gradient or a parameter is a NaN, an infinity or at least 1e15, whose squares could overflow:
        updates are zero and the state is unchanged. `optax.apply_if_finite` around it counts such gradients. A gradient that is `None` has
        an update of zero, and counts as zero in the state.

        Outside `jit` an update is one compiled program. A jitted function that closes over the transformation holds the meta-parameters as
        constants; one that takes the optimizer as an argument and calls `to_optax` within does not recompile for others.

        Args:
            horizon: number of steps of the training, handed to `init`.
            key: handed to `init`.

        Raises:
            InputError: by its `init` and its `update`, for parameters that are no arrays of floating-point numbers and for what the optimizer
                refuses; by its `update`, where parameters are not given.

        Examples:
            >>> import jax.numpy as jnp, optax, lopt
            >>> tx = optax.chain(optax.clip_by_global_norm(1.0), lopt.create("adam", learning_rate=0.1).to_optax())
            >>> params = {"w": jnp.ones(3)}
            >>> updates, state = tx.update(params, tx.init(params), params, value=1.0)
        """
        return optax.GradientTransformationExtraArgs(
            functools.partial(_init, self, key, horizon), functools.partial(_update, self)
        )


def _init(optimizer: Optimizer, key: PRNGKeyArray | None, horizon: int | Array | None, /, params: Params) -> State:
    _check_params(params)
    return optimizer.init(params, key=key, horizon=horizon)


def _update(
    optimizer: Optimizer, /, updates: Updates, state: State, params: Params | None = None, **extra: Any
) -> tuple[Updates, State]:
    if params is None:
        raise InputError(f"{type(optimizer).__name__} needs the parameters: call update(grads, state, params).")
    _check_params(params)
    filled = jax.tree.map(lambda p, g: jnp.zeros_like(p) if g is None else g, params, updates)
    new, state = update_if_finite(optimizer, filled, state, params, **extra)
    return jax.tree.map(lambda u, g: jnp.zeros_like(u) if g is None else u, new, updates), state


def _check_params(params: Params) -> None:
    """Refuse parameters that are no arrays of floating-point numbers.

    Raises:
        InputError: for the first such leaf, by its name.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
            continue
        where = jax.tree_util.keystr(path, simple=True, separator=".") or "params"
        if dtype is None:
            raise InputError(
                f"{where} is a {type(leaf).__name__} and no array; of an Equinox model give eqx.filter(model, eqx.is_inexact_array)."
            )
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise InputError(f"{where} is {dtype}; parameters must be real: give its real and imaginary parts as two.")
        raise InputError(
            f"{where} is {dtype}; parameters must be floating-point: leave it out, or give it to another transformation with optax.partition."
        )


def are_finite(*trees: PyTree) -> Bool[Array, ""]:
    """Whether all numbers of some trees are below `LARGEST` in size."""
    tensors = [x.astype(jnp.float32) for x in jax.tree.leaves(trees)]
    return jnp.all(jnp.asarray([_beyond(x) for x in tensors]) == 0)


def _beyond(x: Float[Array, ...]) -> Float[Array, ""]:
    """More than 0 where a number of a tensor is not below `LARGEST` in size."""
    # Counted in float32: XLA compiles a sum three times as quickly as a reduction of truth values.
    if x.size <= COUNTED:
        return jnp.sum(jnp.where(jnp.abs(x) < LARGEST, 0.0, 1.0))
    # On a CPU the count would first write a tensor of truth values. A maximum and a sum do not; the maximum alone may miss a NaN.
    within = (jnp.max(jnp.abs(x)) < LARGEST) & (jnp.abs(jnp.sum(x)) < jnp.inf)
    return jnp.where(within, 0.0, 1.0)


def update_if_finite(
    optimizer: Optimizer, updates: Updates, state: State, params: Params, /, **extra: Any
) -> tuple[Updates, State]:
    """`optimizer.update`, or zero updates and the old state where a gradient or a parameter is not below `LARGEST` in size.

    It is one compiled program, with the optimizer as an argument. Reverse-mode differentiation goes through it.
    """
    arrays, others = eqx.partition(extra, eqx.is_array_like)
    if jax.tree.leaves(others):  # functions, such as the loss for a line search: no arguments of a program
        return _guarded(optimizer, updates, state, params, arrays, others)
    return _compiled(optimizer, updates, state, params, arrays)


def _guarded(
    optimizer: Optimizer,
    updates: Updates,
    state: State,
    params: Params,
    arrays: Mapping[str, Any],
    others: Mapping[str, Any] | None = None,
) -> tuple[Updates, State]:
    def take(given: tuple[Any, ...], state: State) -> tuple[Updates, State]:
        optimizer, updates, params, arrays = given
        return optimizer.update(updates, state, params, **(arrays if others is None else eqx.combine(arrays, others)))

    return step_if(are_finite(updates, params), take, (optimizer, updates, params, arrays), state, params)


_compiled = jax.jit(_guarded)


def step_if(
    condition: Bool[Array, ""],
    take: Callable[[Any, Any], tuple[Any, Any]],
    given: Any,
    state: Any,
    params: Any,
) -> tuple[Any, Any]:
    """`take(given, state)`, updates and a new state, or zeros like `params` and the old state. Reverse-mode differentiation goes through it.

    Args:
        condition: whether to take the step.
        take: the step.
        given: what it needs beside the state, as one tree.
        state: what it replaces.
        params: arrays of the shapes of the updates.
    """

    def skip(operands: tuple[Any, Any]) -> tuple[Any, Any]:
        return jax.tree.map(jnp.zeros_like, params), operands[1]

    @jax.custom_jvp
    def step(condition: Array, operands: tuple[Any, Any]) -> tuple[Any, Any]:
        # A loop of one or no trip: unlike `lax.cond`, it lets XLA overwrite the state in place.
        def body(_: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            return take(operands[0], carry[1])

        return jax.lax.fori_loop(0, condition.astype(jnp.int32), body, skip(operands))

    @step.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        # A loop of an unknown number of trips has no reverse mode; a branch has.
        return jax.jvp(
            lambda condition, operands: jax.lax.cond(condition, lambda o: take(*o), skip, operands), primals, tangents
        )

    return step(condition, (given, state))
