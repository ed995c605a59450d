"""Train an image classifier and a character transformer in PyTorch: saved optimizers against AdamW at 9 rates.

The image classifier is an MLP on Fashion-MNIST at 14x14, the transformer predicts the next character of Python's help texts. AdamW runs at
every rate of `RATES`, constant and with a cosine that ends at zero; its rate is the one with the lowest final training loss, mean over
seeds. All optimizers see the same batches from the same start. The training loss is that of a fixed part of the training data.
Losses are of what `optimizer.eval()` puts into the model, where the optimizer has it.

Run: `python benchmarks/torch_training.py`. Writes `benchmarks/results/torch_training.json`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from common import RESULTS, header, machine, show, write
from lopt.tasks.data.images import images
from lopt.tasks.data.text import text
from lopt.torch import LearnedOptimizer

RATES = tuple(float(f"{10 ** (e / 2):.0e}") for e in range(-8, 1))  # 1e-4 to 1, half-decades
EVERY = 10  # steps between evaluations

Batch = tuple[Tensor, Tensor]
Make = Callable[[list[nn.Parameter], int], tuple[torch.optim.Optimizer, Any]]


class Problem(NamedTuple):
    """A network with its data."""

    make: Callable[[], nn.Module]
    train: Batch
    test: Batch
    batch: int


class Transformer(nn.Module):
    """A causal transformer on windows of characters, pre-norm, with learned positions."""

    def __init__(self, symbols: int, length: int, width: int = 32, blocks: int = 2, heads: int = 2):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(symbols, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.norm, self.readout = nn.LayerNorm(width), nn.Linear(width, symbols)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x) + self.positions.weight
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return self.readout(self.norm(x)).transpose(1, 2)


def classifier() -> Problem:
    """An MLP with a hidden layer of 64 on Fashion-MNIST at 14x14."""
    found = images("fashion_14")

    def tensors(examples: Any) -> Batch:
        pixels = np.array(examples.images, np.float32) / found.brightest
        return torch.from_numpy(pixels), torch.from_numpy(np.array(examples.labels, np.int64))

    make = partial(_mlp, found.train.images.shape[1], 64, found.classes)
    return Problem(make, tensors(found.train), tensors(found.test), 128)


def transformer() -> Problem:
    """Two blocks of width 32 on windows of 32 characters."""
    found = text("prose", 32)

    def tensors(windows: Any) -> Batch:
        return tuple(torch.from_numpy(np.array(x, np.int64)) for x in windows)  # pyright: ignore[reportReturnType]

    return Problem(partial(Transformer, found.classes, 32), tensors(found.train), tensors(found.test), 32)


def _mlp(inputs: int, hidden: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


PROBLEMS: dict[str, Callable[[], Problem]] = {"image classifier": classifier, "character transformer": transformer}


class Run(NamedTuple):
    """A training.

    Attributes:
        train: losses on the fixed part of the training data, every `EVERY` steps from the start.
        test: loss after the last step.
        seconds: of a processor, in the steps after the first.
        first: seconds of a processor in the first step of the optimizer.
    """

    train: list[float]
    test: float
    seconds: float
    first: float


def train(problem: Problem, make: Make, steps: int, seed: int) -> Run:
    """Train from the start of a seed on the batches of a seed."""
    torch.manual_seed(seed)
    model, generator = problem.make(), torch.Generator().manual_seed(seed)
    optimizer, scheduler = make(list(model.parameters()), steps)
    seen, losses, seconds, first = _some(problem.train, 1024), [], 0.0, 0.0
    for step in range(steps):
        if step % EVERY == 0:
            losses.append(_loss(model, optimizer, seen))
        began = time.process_time()
        rows = torch.randint(len(problem.train[0]), (problem.batch,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(problem.train[0][rows]), problem.train[1][rows]).backward()
        before = time.process_time()
        optimizer.step()
        if step == 0:
            first, began = time.process_time() - before, began + time.process_time() - before
        scheduler.step()
        seconds += time.process_time() - began
    losses.append(_loss(model, optimizer, seen))
    return Run(losses, _loss(model, optimizer, _some(problem.test, 2048)), seconds, first)


def _some(data: Batch, count: int) -> Batch:
    """Examples spread evenly over all that there are."""
    rows = torch.linspace(0, len(data[0]) - 1, min(count, len(data[0]))).long()
    return data[0][rows], data[1][rows]


@torch.no_grad()
def _loss(model: nn.Module, optimizer: torch.optim.Optimizer, data: Batch) -> float:
    """The loss of what is to be evaluated. The training goes on from where it was."""
    if isinstance(optimizer, LearnedOptimizer):
        optimizer.eval()
    loss = F.cross_entropy(model(data[0]), data[1]).item()
    if isinstance(optimizer, LearnedOptimizer):
        optimizer.train()
    return loss


def adamw(rate: float, cosine: bool, params: list[nn.Parameter], steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW at a constant rate, or at one that falls to zero."""
    optimizer = torch.optim.AdamW(params, lr=rate)
    if cosine:
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def learned(rule: str, params: list[nn.Parameter], steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """A saved optimizer as it is."""
    optimizer = LearnedOptimizer(params, rule, horizon=steps)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def main(
    problems: tuple[str, ...] = tuple(PROBLEMS),
    rules: tuple[str, ...] = ("general-2", "general-1"),
    steps: int = 400,
    seeds: int = 3,
    threads: int = 1,
    out: Path = RESULTS / "torch_training.json",
) -> None:
    """Train and compare.

    Args:
        problems: which of `PROBLEMS`.
        rules: names or paths of saved optimizers.
        steps: of a training.
        seeds: trainings of each optimizer.
        threads: of PyTorch.
        out: the JSON file to write.
    """
    torch.set_num_threads(threads)
    facts = {**machine(), "torch": torch.__version__, "threads": threads}
    results: list[dict[str, Any]] = []
    header("problem", "optimizer", "steps to AdamW's final loss", "training loss", "test loss", "processor, s", "first")
    for name in problems:
        problem = PROBLEMS[name]()
        run = partial(train, problem)
        found: dict[str, tuple[float | None, list[Run]]] = {}
        for label, cosine in (("AdamW", False), ("AdamW, cosine", True)):
            grid = {r: [run(partial(adamw, r, cosine), steps, s) for s in range(seeds)] for r in RATES}
            best = min(grid, key=lambda r: np.nan_to_num(_mean(grid[r], lambda x: x.train[-1]), nan=np.inf))
            found[label] = best, grid[best]
        for rule in rules:
            found[rule] = None, [run(partial(learned, rule), steps, s) for s in range(seeds)]
        targets = [run.train[-1] for run in found["AdamW"][1]]
        for label, (rate, runs) in found.items():
            row = {
                "problem": name,
                "optimizer": label,
                "parameters": sum(p.numel() for p in problem.make().parameters()),
                "steps": steps,
                "rate": rate,
                "steps_to_target": [_reached(r, t) for r, t in zip(runs, targets, strict=True)],
                "train_loss": [round(r.train[-1], 4) for r in runs],
                "test_loss": [round(r.test, 4) for r in runs],
                "seconds": [round(r.seconds, 2) for r in runs],
                "first_step_seconds": [round(r.first, 2) for r in runs],
            }
            results.append(row)
            shown = label if rate is None else f"{label}, rate {rate:g}"
            show(
                name,
                shown,
                *(row[k] for k in ("steps_to_target", "train_loss", "test_loss", "seconds")),
                row["first_step_seconds"],
            )
            write(out, facts, results)


def _mean(runs: list[Run], of: Callable[[Run], float]) -> float:
    return float(np.mean([of(r) for r in runs]))


def _reached(run: Run, target: float) -> int | None:
    """The first evaluated step at which the training loss is at most a target."""
    return next((i * EVERY for i, loss in enumerate(run.train) if loss <= target), None)


if __name__ == "__main__":
    tyro.cli(main)
