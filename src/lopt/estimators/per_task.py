"""An optax transformation of the meta-gradient of one task, before those of a mixture are averaged."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lopt import checkpoint
from lopt.checks import at_least, shares
from lopt.estimators.estimator import Estimator, EstimatorState, MetaGradient
from lopt.optimizer import Optimizer, State

TINY = 1e-30  # under roots


class PerTaskState(NamedTuple):
    """The state of the estimator and that of the transformation."""

    estimator: EstimatorState
    transformation: State


class PerTask(Estimator):
    r"""An estimator whose meta-gradients pass through an optax transformation: normalised for each task, say, so that no task drowns the others.

    $$\hat g \leftarrow \hat g / \|\hat g\| \quad \text{with } \mathtt{optax.normalize\_by\_update\_norm()}$$

    Args:
        estimator: of one task.
        transformation: `optax.normalize_by_update_norm()`, `optax.clip_by_global_norm(1.0)`, or any other.

    Examples:
        >>> import lopt, optax
        >>> tasks = [lopt.tasks.Quadratic(dim=2), lopt.tasks.Quadratic(dim=4)]
        >>> each = [lopt.estimators.ESSingle(task, pairs=2) for task in tasks]
        >>> mixture = [lopt.estimators.PerTask(e, optax.normalize_by_update_norm()) for e in each]

    Source: secondary notes on VeLO (Metz et al. 2022) tell of meta-gradients of norm one for each task; its configurations take the sign of differences, the
    `sign_scale` of evolution strategies.
    """

    estimator: Estimator
    transformation: optax.GradientTransformation = eqx.field(static=True)

    @property
    def inner_steps(self) -> int:
        """Those of the estimator."""
        return self.estimator.inner_steps

    def init(self, optimizer: Optimizer, key: PRNGKeyArray) -> PerTaskState:
        """Start the inner problems and the transformation."""
        meta_params: Any = optimizer
        return PerTaskState(self.estimator.init(optimizer, key), self.transformation.init(meta_params))

    def estimate(
        self, optimizer: Optimizer, state: PerTaskState, key: PRNGKeyArray
    ) -> tuple[MetaGradient, PerTaskState, dict[str, Float[Array, ""]]]:
        """The estimate, transformed."""
        meta_params: Any = optimizer
        gradient, inner, metrics = self.estimator.estimate(optimizer, state.estimator, key)
        with jax.numpy_dtype_promotion("standard"):  # as the outer optimizer: optax mixes types
            update = optax.with_extra_args_support(self.transformation).update
            gradient, outer = update(gradient, state.transformation, meta_params, value=metrics["meta_loss"])
        return gradient, PerTaskState(inner, outer), metrics


class AverageNormState(NamedTuple):
    """How many updates there have been, and the average of their squared norms."""

    updates: Int[Array, ""]
    square: Float[Array, ""]


def normalize_by_average_norm(decay: float = 0.98, most: float = 3.0) -> optax.GradientTransformation:
    r"""Divide by the usual norm.

    $$s_t = \beta s_{t-1} + (1 - \beta) \min(\|g\|^2, c^2 \hat s_{t-1}), \qquad g \leftarrow g \min\Big(\frac{1}{\sqrt{\hat s_t}}, \frac{c}{\|g\|}\Big)$$

    with $\hat s = s_t / (1 - \beta^t)$; the first estimate is not held. One whose norm is not finite becomes zeros and leaves the average as it is. In a
    `PerTask`, no task drowns the others, as with `optax.normalize_by_update_norm()`; but an estimate that says little, because the meta-loss of its
    truncation counts little or hardly depends on the meta-parameters, still says little.

    Args:
        decay: $\beta$.
        most: $c$, beyond which a norm counts as an outlier.

    Raises:
        InputError: for a decay outside of [0, 1) or a $c$ below 1.

    Source: lopt's own.
    """
    shares(decay=decay)
    at_least(1, most=most)

    def init(params: Any) -> AverageNormState:
        del params
        return AverageNormState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AverageNormState]:
        del params
        own = jnp.square(optax.tree.norm(updates)).astype(jnp.float32)
        usable = jnp.isfinite(own)
        before = state.square / jnp.maximum(1.0 - decay ** state.updates.astype(jnp.float32), 1e-8)
        held = jnp.where(before > 0, jnp.minimum(own, most**2 * before), own)
        new = AverageNormState(state.updates + 1, decay * state.square + (1.0 - decay) * held)
        usual = new.square / (1.0 - decay ** new.updates.astype(jnp.float32))
        factor = jnp.minimum(jax.lax.rsqrt(usual + TINY), most * jax.lax.rsqrt(own + TINY))
        state = jax.tree.map(lambda n, o: jnp.where(usable, n, o), new, state)
        return jax.tree.map(lambda u: jnp.where(usable, u * factor, 0.0).astype(u.dtype), updates), state

    return optax.GradientTransformation(init, update)


def fingerprint(transformation: optax.GradientTransformation, meta_params: Optimizer) -> str:
    """What a transformation computes, as a digest: it is closures, of which neither the name nor the address says what is in them.

    Args:
        transformation: of meta-gradients.
        meta_params: what it is for; only shapes matter.
    """
    tx, params = optax.with_extra_args_support(transformation), jax.eval_shape(lambda x: x, meta_params)

    def program(gradient: Any, params: Any, value: Array) -> Any:
        state = tx.init(params)
        return state, tx.update(gradient, state, params, value=value)

    with jax.numpy_dtype_promotion("standard"):
        return checkpoint.digest_of_program(program, params, params, jax.ShapeDtypeStruct((), jnp.float32))


def transformations(estimator: Estimator) -> list[optax.GradientTransformation]:
    """Those of all `PerTask` within an estimator, the outermost first."""
    found, rest = [], [estimator]
    while rest:
        tree = rest.pop()
        for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, PerTask)):
            if isinstance(leaf, PerTask):
                found.append(leaf.transformation)
                rest.append(leaf.estimator)
    return found
