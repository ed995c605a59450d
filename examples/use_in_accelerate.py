"""Train a small network with Accelerate and a learned optimizer, and go on from a checkpoint.

python examples/use_in_accelerate.py

Accelerate's optimizer takes a closure, by which rules that need the loss, such as VeLO, get it: `optimizer.step(lambda: loss)`.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lopt.torch import LearnedOptimizer


def main() -> None:
    """Train, save in the middle, go on from there, and print."""
    parser = argparse.ArgumentParser(description="Train with Accelerate and a learned optimizer.")
    parser.add_argument("--rule", default="general-2", help="name or path of a saved optimizer")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    pixels, targets = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(targets)
    trained = 1500  # images; the rest test
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = LearnedOptimizer(model.parameters(), args.rule, horizon=args.steps)
    loader = DataLoader(TensorDataset(images[:trained], labels[:trained]), 64, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    def test_loss() -> float:
        optimizer.eval()  # the model holds what to evaluate
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(images[trained:]).float(), labels[trained:]).item()
        optimizer.train()
        return loss

    def train(steps: int) -> None:
        taken = 0
        while taken < steps:
            for batch, correct in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(batch), correct)
                accelerator.backward(loss)
                optimizer.step(lambda loss=loss: loss.detach())
                taken += 1
                if taken == steps:
                    break

    print(f"test loss before {test_loss():.4f}")
    train(args.steps // 2)
    half = test_loss()
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        train(1)
        accelerator.load_state(folder)
    print(f"test loss of the checkpoint {test_loss():.4f}, {half:.4f} when it was saved")
    train(args.steps - args.steps // 2)
    print(f"test loss after {args.steps} steps {test_loss():.4f}")


if __name__ == "__main__":
    main()
