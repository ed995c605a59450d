r"""`SGD`, `Momentum`, `RMSProp`, `Adam`, `AdamW`: hand-designed optimizers whose hyper-parameters are meta-parameters.

Each is a thin `Optimizer` over optax. Its leaves are logarithms of its hyper-parameters, so a learning-rate sweep is a `vmap` over a
batch of them, a tuned baseline costs one compile, and any of them can be meta-trained like a network.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lopt.checks import positive, shares
from lopt.optimizers.from_optax import OptaxOptimizer

Scalar = Float[Array, ""]


def _log(name: str, value: float | Array) -> Scalar:
    if not isinstance(value, Array):
        positive(**{name: value})
    return jnp.log(jnp.asarray(value, jnp.float32))


def _log_gap(name: str, decay: float | Array) -> Scalar:
    if not isinstance(decay, Array):
        shares(**{name: decay})
    return jnp.log1p(-jnp.asarray(decay, jnp.float32))


class SGD(OptaxOptimizer):
    r"""Gradient descent with a learnable learning rate.

    $$u = -\eta\, g$$

    The leaf is $\log \eta$.

    Args:
        learning_rate: $\eta$.
    """

    log_learning_rate: Scalar

    def __init__(self, *, learning_rate: float | Array = 1e-2):
        self.log_learning_rate = _log("learning_rate", learning_rate)

    def transformation(self) -> optax.GradientTransformation:
        """`optax.sgd`."""
        return optax.sgd(jnp.exp(self.log_learning_rate))


class Momentum(OptaxOptimizer):
    r"""Gradient descent with momentum, learning rate and decay learnable.

    $$b \leftarrow \beta b + g, \qquad u = -\eta\, b$$

    The leaves are $\log \eta$ and $\log(1-\beta)$.

    Args:
        learning_rate: $\eta$.
        decay: $\beta$.

    Source: Polyak 1964.
    """

    log_learning_rate: Scalar
    log_one_minus_decay: Scalar

    def __init__(self, *, learning_rate: float | Array = 1e-2, decay: float | Array = 0.9):
        self.log_learning_rate = _log("learning_rate", learning_rate)
        self.log_one_minus_decay = _log_gap("decay", decay)

    def transformation(self) -> optax.GradientTransformation:
        """`optax.sgd` with momentum."""
        decay: Any = 1.0 - jnp.exp(self.log_one_minus_decay)
        return optax.sgd(jnp.exp(self.log_learning_rate), momentum=decay)


class RMSProp(OptaxOptimizer):
    r"""RMSProp with all three hyper-parameters learnable.

    $$v \leftarrow \beta v + (1 - \beta) g^2, \qquad u = -\eta\, g / \sqrt{v + \epsilon}$$

    The leaves are $\log\eta$, $\log(1-\beta)$, $\log\epsilon$.

    Args:
        learning_rate: $\eta$.
        decay: $\beta$.
        eps: $\epsilon$.

    Source: Tieleman & Hinton 2012.
    """

    log_learning_rate: Scalar
    log_one_minus_decay: Scalar
    log_eps: Scalar

    def __init__(self, *, learning_rate: float | Array = 1e-3, decay: float | Array = 0.9, eps: float | Array = 1e-8):
        self.log_learning_rate = _log("learning_rate", learning_rate)
        self.log_one_minus_decay = _log_gap("decay", decay)
        self.log_eps = _log("eps", eps)

    def transformation(self) -> optax.GradientTransformation:
        """`optax.rmsprop`."""
        decay: Any = 1.0 - jnp.exp(self.log_one_minus_decay)
        eps: Any = jnp.exp(self.log_eps)
        return optax.rmsprop(jnp.exp(self.log_learning_rate), decay=decay, eps=eps)


class Adam(OptaxOptimizer):
    r"""Adam with all four hyper-parameters learnable.

    $$u = -\eta\, \hat m / (\sqrt{\hat v} + \epsilon)$$

    The leaves are $\log\eta$, $\log(1-\beta_1)$, $\log(1-\beta_2)$, $\log\epsilon$.

    Args:
        learning_rate: $\eta$.
        b1: $\beta_1$.
        b2: $\beta_2$.
        eps: $\epsilon$.

    Source: Kingma & Ba 2015.
    """

    log_learning_rate: Scalar
    log_one_minus_b1: Scalar
    log_one_minus_b2: Scalar
    log_eps: Scalar

    def __init__(
        self,
        *,
        learning_rate: float | Array = 1e-3,
        b1: float | Array = 0.9,
        b2: float | Array = 0.999,
        eps: float | Array = 1e-8,
    ):
        self.log_learning_rate = _log("learning_rate", learning_rate)
        self.log_one_minus_b1 = _log_gap("b1", b1)
        self.log_one_minus_b2 = _log_gap("b2", b2)
        self.log_eps = _log("eps", eps)

    def transformation(self) -> optax.GradientTransformation:
        """`optax.adam`."""
        return optax.adam(jnp.exp(self.log_learning_rate), **_moments(self))


class AdamW(OptaxOptimizer):
    r"""Adam with decoupled weight decay, all five hyper-parameters learnable.

    $$u = -\eta\, (\hat m / (\sqrt{\hat v} + \epsilon) + \lambda w)$$

    The leaves are those of `Adam` and $\log\lambda$.

    Args:
        learning_rate: $\eta$.
        b1: $\beta_1$.
        b2: $\beta_2$.
        eps: $\epsilon$.
        weight_decay: $\lambda$.

    Source: Loshchilov & Hutter 2019.
    """

    log_learning_rate: Scalar
    log_one_minus_b1: Scalar
    log_one_minus_b2: Scalar
    log_eps: Scalar
    log_weight_decay: Scalar

    def __init__(
        self,
        *,
        learning_rate: float | Array = 1e-3,
        b1: float | Array = 0.9,
        b2: float | Array = 0.999,
        eps: float | Array = 1e-8,
        weight_decay: float | Array = 1e-4,
    ):
        self.log_learning_rate = _log("learning_rate", learning_rate)
        self.log_one_minus_b1 = _log_gap("b1", b1)
        self.log_one_minus_b2 = _log_gap("b2", b2)
        self.log_eps = _log("eps", eps)
        self.log_weight_decay = _log("weight_decay", weight_decay)

    def transformation(self) -> optax.GradientTransformation:
        """`optax.adamw`."""
        return optax.adamw(
            jnp.exp(self.log_learning_rate), weight_decay=jnp.exp(self.log_weight_decay), **_moments(self)
        )


def _moments(rule: Adam | AdamW) -> dict[str, Any]:
    return {
        "b1": 1.0 - jnp.exp(rule.log_one_minus_b1),
        "b2": 1.0 - jnp.exp(rule.log_one_minus_b2),
        "eps": jnp.exp(rule.log_eps),
        # Where a gradient has always been zero the root has no slope, and a meta-gradient through it would be NaN. Far below any eps.
        "eps_root": 1e-30,
    }
