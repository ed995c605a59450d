"""What a user of the wheel does first, where only the core dependencies are installed. Prints one line."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import lopt

MOST = 25  # packages that a bare install may bring


def use() -> list[float]:
    """Losses of a linear regression that `general-2` trains in the user's own loop."""
    x = jax.random.normal(jax.random.key(0), (64, 8))
    y = x @ jnp.linspace(-1.0, 1.0, 8)

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    tx = optax.chain(optax.clip_by_global_norm(1.0), lopt.load("general-2").to_optax())
    params = {"w": jnp.zeros(8), "b": jnp.zeros(())}

    @jax.jit
    def step(
        params: dict[str, jax.Array], state: optax.OptState
    ) -> tuple[dict[str, jax.Array], optax.OptState, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, value  # pyright: ignore[reportReturnType]

    state, losses = tx.init(params), []
    for _ in range(200):
        params, state, value = step(params, state)
        losses.append(float(value))
    return losses


def meta_train() -> None:
    """One meta-step of a small rule on a quadratic."""
    optimizer = lopt.create("small_fc", key=jax.random.key(0))
    estimator = lopt.estimators.ESSingle(lopt.tasks.create("quadratic"), pairs=1, truncation=2, horizon=4)
    lopt.meta_train(optimizer, estimator, optax.adam(1e-3), steps=1, key=jax.random.key(1))


def refusal() -> None:
    """What the console script says where its extra is missing."""
    script = Path(sys.executable).with_name("lopt")
    found = subprocess.run([script, "list"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, ""), found
    assert found.stderr.startswith("lopt: The package "), found.stderr
    assert found.stderr.endswith("pip install 'PATH-TO-CLONE[cli]'.\n"), found.stderr


def main() -> None:
    """Run it all."""
    assert Path(lopt.__file__).is_relative_to(sys.prefix), f"{lopt.__file__} is not the wheel's"
    names = sorted({d.name for d in distributions()} - {"pip", "setuptools", "lopt"})
    assert len(names) < MOST, names
    losses = use()
    assert losses[-1] < 0.5 * losses[0], losses
    meta_train()
    refusal()
    sys.stdout.write(
        f"Python {platform.python_version()}, jax {jax.__version__}: {1 + len(names)} packages; "
        f"general-2 takes a loss from {losses[0]:.1f} to {losses[-1]:.2f} in {len(losses)} steps\n"
    )


main()
