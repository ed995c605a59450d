"""Adapt a frozen network to other data with low-rank matrices (LoRA) and a learned optimizer.

python examples/fine_tune_in_torch.py

A network is trained on upright digits and frozen. Then a matrix of low rank is added to each of its weights, and those alone are trained,
on digits that lie on their side. The optimizer is given what is trained: what is frozen has no gradient, and takes no part either way.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lopt.torch import LearnedOptimizer


class LowRank(nn.Module):
    """A frozen linear layer plus the product of two thin matrices, which starts at zero.

    Args:
        layer: the layer.
        rank: of the product.
    """

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Both paths, added."""
        return self.layer(x) + x @ self.down.T @ self.up.T


def main() -> None:
    """Train, freeze, adapt and print."""
    parser = argparse.ArgumentParser(description="Adapt a frozen network with a learned optimizer.")
    parser.add_argument("--rule", default="general-2", help="name or path of a saved optimizer")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=4)
    args = parser.parse_args()

    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    upright, labels = torch.tensor(pixels / 16.0, dtype=torch.float32).reshape(-1, 8, 8), torch.tensor(targets)
    sideways = upright.rot90(1, (1, 2))
    trained = 1500  # images; the rest test
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    loss_fn = nn.CrossEntropyLoss()

    def train(optimizer: torch.optim.Optimizer, images: Tensor, steps: int) -> None:
        for _ in range(steps):
            batch = torch.randint(0, trained, (64,))
            optimizer.zero_grad()
            loss_fn(model(images[batch]), labels[batch]).backward()
            optimizer.step()

    @torch.no_grad()
    def test_loss() -> float:
        return loss_fn(model(sideways[trained:]), labels[trained:]).item()

    train(torch.optim.AdamW(model.parameters(), lr=1e-2), upright, 200)
    model[1], model[3] = (LowRank(model[i], args.rank) for i in (1, 3))  # pyright: ignore[reportArgumentType]
    print(f"test loss before {test_loss():.4f}")

    adapted = [p for p in model.parameters() if p.requires_grad]
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    optimizer = LearnedOptimizer(adapted, args.rule, horizon=args.steps)
    train(optimizer, sideways, args.steps)
    optimizer.eval()  # the model now holds what to evaluate and save
    print(f"test loss after {args.steps} steps {test_loss():.4f}")

    still = all(map(torch.equal, frozen, (p for p in model.parameters() if not p.requires_grad)))
    counts = [sum(p.numel() for p in params) for params in (adapted, frozen)]
    print(f"parameters: {counts[0]} trained, {counts[1]} frozen, frozen ones {'unchanged' if still else 'CHANGED'}")


if __name__ == "__main__":
    main()
