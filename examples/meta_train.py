"""Meta-train STAR on quadratics, save it, load it, and train quadratics it has not seen.

python examples/meta_train.py
python examples/meta_train.py --steps 2000 --run-dir runs/quadratics    # resumes if it is stopped
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import jax
import optax

import lopt
from lopt.meta_train import Progress


def main() -> None:
    """Meta-train, save, load, compare."""
    parser = argparse.ArgumentParser(description="Meta-train STAR on quadratics through the Python API.")
    parser.add_argument("--steps", type=int, default=500, help="meta-steps")
    parser.add_argument("--run-dir", type=Path, help="where to keep the run, so that it can be resumed")
    args = parser.parse_args()

    task = lopt.tasks.Quadratic(dim=10)
    start = lopt.create("star", key=jax.random.key(0))

    # The meta-gradient: eight antithetic pairs, each on an inner problem of 50 to 200 steps, 20 of them a meta-step.
    horizon = (50, 200)
    estimator = lopt.estimators.ESSingle(task, pairs=8, truncation=20, horizon=horizon)
    # The outer optimizer: any optax transformation. Clipping meta-gradients is part of it.
    outer = optax.chain(optax.clip(0.1), optax.adam(optax.cosine_decay_schedule(3e-3, args.steps, alpha=0.1)))

    def tell(progress: Progress) -> None:
        if progress.step % max(1, args.steps // 10) == 0 or progress.step == args.steps:
            print(f"meta-step {progress.step:5d}  meta-loss {progress.meta_loss:.4f} (average {progress.smoothed:.4f})")

    state = lopt.meta_train(
        start, estimator, outer, steps=args.steps, key=jax.random.key(1), run_dir=args.run_dir, on_step=tell
    )

    # Weights and card, side by side; the card says how they came about.
    card = lopt.zoo.Card(
        description="STAR on ten-dimensional quadratics",
        tasks=({"name": "quadratic", "fields": {"dim": 10}},),
        seed=1,
        meta_steps=args.steps,
        inner_steps=args.steps * estimator.inner_steps,
        horizon=horizon,
    )
    path = lopt.save((args.run_dir or Path(tempfile.mkdtemp())) / "optimizer", state.optimizer, card)
    trained = lopt.load(path)
    print(f"saved {path} with its card {path.with_suffix('.json').name}")

    # The same key gives every optimizer the same problems and starts.
    print("normalised loss after 100 steps, mean over 8 unseen problems")
    for name, optimizer in {"before": start, "after": trained, "Adam at 0.1": optax.adam(0.1)}.items():
        record = lopt.train(optimizer, task, steps=100, key=jax.random.key(2), seeds=8)
        print(f"{name:>12}: {float(task.normalize(record.train_loss[:, -1].mean())):.5f}")


if __name__ == "__main__":
    main()
