"""Train a small network in a plain PyTorch loop with a learned optimizer: two lines differ from AdamW's.

python examples/use_in_torch.py                # general-2, which comes with lopt
python examples/use_in_torch.py --rule demo-1  # another saved optimizer, by name or path
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits

from lopt.torch import LearnedOptimizer


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description="Train a small network in PyTorch with a learned optimizer.")
    parser.add_argument("--rule", default="general-2", help="name or path of a saved optimizer")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(targets)
    trained = 1500  # images; the rest test
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    loss_fn = torch.nn.CrossEntropyLoss()

    # torch.optim.AdamW(model.parameters(), lr=1e-3) before:
    optimizer = LearnedOptimizer(model.parameters(), args.rule, horizon=args.steps)

    for step in range(args.steps):
        batch = torch.randint(0, trained, (64,))
        optimizer.zero_grad()
        loss = loss_fn(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        if step % max(1, args.steps // 10) == 0 or step == args.steps - 1:
            print(f"step {step:5d}  minibatch loss {loss.item():.4f}")

    optimizer.eval()  # the model now holds what to evaluate and save; optimizer.train() before more steps
    with torch.no_grad():
        logits = model(images[trained:])
    accuracy = (logits.argmax(1) == labels[trained:]).float().mean()
    print(f"test loss {loss_fn(logits, labels[trained:]).item():.4f}, accuracy {accuracy.item():.3f}")


if __name__ == "__main__":
    main()
