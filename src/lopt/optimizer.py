"""The abstract learned optimizer."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from lopt.errors import InputError

Params = PyTree[Array]
Updates = PyTree[Array]
State = PyTree[Array]

LARGEST = 1e15  # gradients: the sum of their squares over any tensor stays within float32


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
        """This optimizer as an optax transformation, safe against non-finite gradients.

        A step whose gradient holds a NaN, an infinity or a number beyond 1e15, whose squares could overflow, is skipped: updates
        are zero and the state is unchanged.

        Args:
            horizon: number of steps of the training, handed to `init`.
            key: handed to `init`.

        Raises:
            InputError: by its `init`, for parameters that are no arrays and for what the optimizer refuses; by its `update`, where parameters are not given.

        Examples:
            >>> import jax.numpy as jnp, optax, lopt
            >>> tx = optax.chain(optax.clip_by_global_norm(1.0), lopt.create("adam", learning_rate=0.1).to_optax())
            >>> params = {"w": jnp.ones(3)}
            >>> updates, state = tx.update(params, tx.init(params), params, value=1.0)
        """

        def init(params: Params) -> State:
            for path, leaf in jax.tree_util.tree_leaves_with_path(params):
                if not hasattr(leaf, "shape"):
                    where = jax.tree_util.keystr(path, simple=True, separator=".") or "params"
                    raise InputError(
                        f"{where} is a {type(leaf).__name__} and no array; of an Equinox model give eqx.filter(model, eqx.is_inexact_array)."
                    )
            return self.init(params, key=key, horizon=horizon)

        def update(updates: Updates, state: State, params: Params | None = None, **extra: Any) -> tuple[Updates, State]:
            if params is None:
                raise InputError(f"{type(self).__name__} needs the parameters: call update(grads, state, params).")
            return update_if_finite(self, updates, state, params, **extra)

        return optax.GradientTransformationExtraArgs(init, update)


def update_if_finite(
    optimizer: Optimizer, updates: Updates, state: State, params: Params, **extra: Any
) -> tuple[Updates, State]:
    """`optimizer.update`, or zero updates and the old state where a gradient holds a NaN, an infinity or a number beyond `LARGEST`."""
    finite = jnp.asarray([jnp.all(jnp.abs(g.astype(jnp.float32)) < LARGEST) for g in jax.tree.leaves(updates)]).all()
    # A loop of one or no trip: unlike `lax.cond`, it lets XLA overwrite the state in place.
    return jax.lax.fori_loop(
        0,
        finite.astype(jnp.int32),
        lambda _, carry: optimizer.update(updates, carry[1], params, **extra),
        (jax.tree.map(jnp.zeros_like, params), state),
    )
