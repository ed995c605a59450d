"""Reconstruct real images with an autoencoder or a variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from lopt.checks import one_of, sizes
from lopt.tasks.data import images as sets
from lopt.tasks.networks.layers import Activation, Function, function_of, mlp
from lopt.tasks.networks.learning import Batch, LearningTask


class EncoderDecoder(eqx.Module):
    """Two networks; the second reads the output of the first."""

    encoder: eqx.nn.Sequential
    decoder: eqx.nn.Sequential


class Autoencoder(LearningTask):
    r"""An MLP autoencoder, plain or variational, with Bernoulli cross-entropy.

    $$f(w; x) = \frac1d \sum_{i=1}^d H(x_i, \hat x_i), \qquad H(x, \hat x) = -x \log \hat x - (1 - x) \log(1 - \hat x)$$

    with $\hat x = \sigma(\mathrm{decoder}(\mathrm{encoder}(x)))$ and pixels $x$ divided by the brightest. The variational one decodes
    $z = \mu + e^{s} \epsilon$, $(\mu, s) = \mathrm{encoder}(x)$, $\epsilon \sim N(0, I)$ drawn from the key on every split, and adds
    $\frac1d \mathrm{KL}(N(\mu, e^{2s}) \,\|\, N(0, I))$: the negative evidence bound, nats a pixel.

    Args:
        images: the data set; labels are not used.
        widths: widths of the encoder's hidden layers; the decoder has them in reverse.
        code: numbers in the code.
        variational: whether the code is drawn.
        activation: `relu`, `tanh`, `gelu`, `silu` or `sigmoid`.
        batch_size: examples a minibatch.
        eval_size: examples that `metrics` looks at; a split that is smaller is taken whole.

    Source: Kingma & Welling 2014 for the variational one.
    """

    brightest: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)
    code: int = eqx.field(static=True)
    variational: bool = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        images: sets.Images,
        *,
        widths: Sequence[int] = (32,),
        code: int = 8,
        variational: bool = False,
        activation: Activation = "relu",
        batch_size: int = 64,
        eval_size: int = 2_000,
    ):
        sizes(batch_size=batch_size, eval_size=eval_size, widths=widths, code=code)
        one_of("activation", activation, Activation)
        super().__init__(images[:3], batch_size, eval_size)
        self.brightest, self.widths, self.code = images.brightest, tuple(widths), code
        self.variational, self.activation = variational, activation

    def network(self, key: PRNGKeyArray, activation: Function | None = None) -> EncoderDecoder:
        """Encoder and decoder."""
        pixels, function = self.train[0].shape[1], activation or function_of(self.activation)
        numbers = 2 * self.code if self.variational else self.code
        encoder = mlp((pixels, *self.widths, numbers), function, key=key)
        return EncoderDecoder(encoder, mlp((self.code, *self.widths[::-1], pixels), function, key=key))

    def measure(
        self, network: EncoderDecoder, batch: Batch, key: PRNGKeyArray, training: bool
    ) -> dict[str, Float[Array, ""]]:
        """`loss`, nats a pixel, and for the variational one `divergence`, the share of it that the code costs."""
        del training
        x = batch[0].astype(jax.tree.leaves(network)[0].dtype) / self.brightest
        code = jax.vmap(network.encoder)(x)
        if not self.variational:
            return {"loss": _reconstruction(network, code, x)}
        mean, log_deviation = jnp.split(code, 2, axis=1)
        drawn = mean + jnp.exp(log_deviation) * jax.random.normal(key, mean.shape, mean.dtype)
        cost = 0.5 * (jnp.square(mean) + jnp.exp(2.0 * log_deviation) - 1.0) - log_deviation
        divergence = jnp.mean(jnp.sum(cost.astype(jnp.float32), axis=1)) / x.shape[1]
        return {"loss": _reconstruction(network, drawn, x) + divergence, "divergence": divergence}

    def normalize(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """Divided by the loss of grey, log 2."""
        return loss / math.log(2.0)


def _reconstruction(network: EncoderDecoder, code: Array, x: Array) -> Float[Array, ""]:
    logits: Any = jax.vmap(network.decoder)(code)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), x))


def plain_autoencoder(
    *,
    images: str = "digits",
    widths: Sequence[int] = (32,),
    code: int = 8,
    activation: Activation = "relu",
    batch_size: int = 64,
    eval_size: int = 2_000,
) -> Autoencoder:
    """Autoencoder. `images` is a name of `data.images.IMAGES`; other arguments as for `Autoencoder`.

    Source: lopt's own.
    """
    return Autoencoder(
        sets.images(images),
        widths=widths,
        code=code,
        activation=activation,
        batch_size=batch_size,
        eval_size=eval_size,
    )


def variational_autoencoder(
    *,
    images: str = "digits",
    widths: Sequence[int] = (32,),
    code: int = 8,
    activation: Activation = "relu",
    batch_size: int = 64,
    eval_size: int = 2_000,
) -> Autoencoder:
    """Variational autoencoder. `images` is a name of `data.images.IMAGES`; other arguments as for `Autoencoder`."""
    return Autoencoder(
        sets.images(images),
        widths=widths,
        code=code,
        variational=True,
        activation=activation,
        batch_size=batch_size,
        eval_size=eval_size,
    )
