"""Train a small network with Lightning and a learned optimizer.

python examples/use_in_lightning.py

Lightning calls the optimizer with a closure that returns the loss, so rules that need the loss, such as VeLO, work as they are.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lopt.torch import LearnedOptimizer


class Digits(lightning.LightningModule):
    """A classifier of 8x8 images.

    Args:
        rule: name or path of a saved optimizer.
        steps: of the training.
    """

    def __init__(self, rule: str, steps: int):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.rule, self.steps = rule, steps

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss of a batch."""
        self.log("test loss", nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        """The line that differs."""
        return LearnedOptimizer(self.parameters(), self.rule, horizon=self.steps)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description="Train with Lightning and a learned optimizer.")
    parser.add_argument("--rule", default="general-2", help="name or path of a saved optimizer")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    pixels, targets = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16.0, dtype=torch.float32), torch.tensor(targets))
    trained, tested = torch.utils.data.Subset(data, range(1500)), torch.utils.data.Subset(data, range(1500, len(data)))
    loaders = DataLoader(trained, 64, shuffle=True), DataLoader(tested, len(tested))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Digits(args.rule, args.steps)
    before = trainer.validate(model, loaders[1], verbose=False)[0]["test loss"]
    print(f"test loss before {before:.4f}")
    trainer.fit(model, loaders[0])
    trainer.optimizers[0].eval()  # the model now holds what to evaluate and save
    after = trainer.validate(model, loaders[1], verbose=False)[0]["test loss"]
    print(f"test loss after {args.steps} steps {after:.4f}")


if __name__ == "__main__":
    main()
