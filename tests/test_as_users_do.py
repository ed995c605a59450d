"""The first steps of a user, in a process like theirs: no checks of types at run time, no strict promotion, the compiler's own settings.

All other tests run under what `conftest.py` sets. This file runs itself as a script, which imports nothing of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def first_steps(folder: Path) -> dict[str, Any]:
    """README's three lines with and without jit, a meta-training, a training, saving and loading. What came out, as JSON."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import lopt

    x = np.linspace(-1, 1, 64).reshape(32, 2)  # float64 and Python's numbers, as users have them
    y = x @ [2, -1]
    start = {"w": np.zeros(2, np.float32), "b": 0 * jnp.ones(())}

    def loss(params: Any) -> jax.Array:
        return ((x @ params["w"] + params["b"] - y) ** 2).mean()

    tx = optax.chain(optax.clip_by_global_norm(1.0), lopt.load("general-2").to_optax())

    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, value

    def train(step: Any, steps: int) -> list[float]:
        params, state, losses = start, tx.init(start), []
        for _ in range(steps):
            params, state, value = step(params, state)
            losses.append(float(value))
        return losses

    task = lopt.tasks.create("quadratic")
    optimizer = lopt.create("small_fc", key=jax.random.key(0))
    estimator = lopt.estimators.ESSingle(task, pairs=1, truncation=2, horizon=4)
    trained = lopt.meta_train(optimizer, estimator, optax.adam(1e-2), steps=2, key=jax.random.key(1)).optimizer
    path = lopt.save(folder / "mine.safetensors", trained)
    before, after, restored = (jax.tree.leaves(found) for found in (optimizer, trained, lopt.load(path)))
    record = lopt.train(trained, task, steps=3, key=jax.random.key(2), seeds=2)
    return {
        "jitted": train(jax.jit(step), 100),
        "un-jitted": train(step, 2),
        "moved": any(np.any(a != b) for a, b in zip(before, after, strict=True)),
        "restored": all(np.array_equal(a, b) for a, b in zip(after, restored, strict=True)),
        "curve": record.train_loss.tolist(),
        "promotion": str(jax.config.jax_numpy_dtype_promotion),
        "beartype": "beartype" in sys.modules,
    }


def test_the_first_steps_of_a_user(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-W", "error", __file__, str(tmp_path)]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stderr) == (0, "")
    result = json.loads(found.stdout)
    assert (result["promotion"], result["beartype"]) == ("standard", False), "this is how users run it"
    jitted, plain = result["jitted"], result["un-jitted"]
    assert jitted[-1] < 0.5 * jitted[0]
    assert all(abs(a - b) < 1e-5 * abs(a) for a, b in zip(plain, jitted, strict=False)), "jit changes nothing"
    assert result["moved"], "meta-training changes meta-parameters"
    assert result["restored"], "bit for bit"
    assert len(result["curve"]) == 2
    assert all(0 < value < float("inf") for curve in result["curve"] for value in curve)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(first_steps(Path(sys.argv[1]))))
