"""Train a small network in a plain optax loop with a learned optimizer.

python examples/use_in_optax.py                                    # general-2, which comes with lopt
python examples/use_in_optax.py runs/demo/optimizer.safetensors    # what `make demo` has meta-trained

The loop is the one you already have: only the line that makes `tx`, the argument `value=loss` and the parameters that are evaluated are new.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import lopt

Weights = dict[str, jax.Array]


def init(key: jax.Array, sizes: tuple[int, ...] = (64, 32, 10)) -> Weights:
    """He initialisation of a multilayer perceptron."""
    weights = {}
    for i, k in enumerate(jax.random.split(key, len(sizes) - 1)):
        weights[f"w{i}"] = jax.random.normal(k, (sizes[i], sizes[i + 1])) * jnp.sqrt(2.0 / sizes[i])
        weights[f"b{i}"] = jnp.zeros(sizes[i + 1])
    return weights


def logits(weights: Weights, images: jax.Array) -> jax.Array:
    """The network."""
    hidden = jax.nn.relu(images @ weights["w0"] + weights["b0"])
    return hidden @ weights["w1"] + weights["b1"]


def loss_fn(weights: Weights, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(weights, images), labels).mean()


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(
        description="Train a small network with a learned optimizer in a plain optax loop."
    )
    parser.add_argument("optimizer", nargs="?", default="general-2", help="name or path of a saved optimizer")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    optimizer = lopt.load(args.optimizer)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optimizer.to_optax(horizon=args.steps))

    pixels, targets = load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16.0, jnp.float32), jnp.asarray(targets, jnp.int32)
    trained = 1500  # images; the rest test

    @jax.jit
    def step(weights: Weights, state: optax.OptState, key: jax.Array) -> tuple[Weights, optax.OptState, jax.Array]:
        batch = jax.random.randint(key, (64,), 0, trained)
        loss, grads = jax.value_and_grad(loss_fn)(weights, images[batch], labels[batch])
        updates, state = tx.update(grads, state, weights, value=loss)
        new: Any = optax.apply_updates(weights, updates)
        return new, state, loss

    weights = init(jax.random.key(1))
    state: Any = tx.init(weights)
    for i, key in enumerate(jax.random.split(jax.random.key(2), args.steps)):
        weights, state, loss = step(weights, state, key)
        if i % max(1, args.steps // 10) == 0 or i == args.steps - 1:
            print(f"step {i:5d}  minibatch loss {float(loss):.4f}")

    weights = optimizer.eval_params(state[1], weights)  # state[1] is lopt's part of the chain
    correct = jnp.argmax(logits(weights, images[trained:]), axis=-1) == labels[trained:]
    print(
        f"test loss {float(loss_fn(weights, images[trained:], labels[trained:])):.4f}, accuracy {float(correct.mean()):.3f}"
    )


if __name__ == "__main__":
    main()
