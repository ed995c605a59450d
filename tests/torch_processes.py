"""Two processes train one network, by DDP or with sharded parameters: `python tests/torch_processes.py MODE RULE RANK FOLDER`.

Each writes the parameters that it ends with, whole, to `FOLDER/RANK.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import lopt
from lopt.torch import LearnedOptimizer
from torch_models import backward, loss_of, make

STEPS = 4


def create(rule: str) -> lopt.Optimizer:
    """A saved optimizer, or a small one of a kind."""
    return lopt.load(rule) if rule in lopt.zoo.available() else lopt.create(rule, lstm_hidden=8, bank=4)


def alone(rule: str) -> list[torch.Tensor]:
    """The parameters after training in one process, each step on the batches of both."""
    model = make("mlp")
    optimizer = LearnedOptimizer(model.parameters(), create(rule), horizon=STEPS)
    for step in range(STEPS):
        model.zero_grad()
        losses = [loss_of("mlp", model, 2 * step + rank) for rank in range(2)]
        (sum(losses) / 2).backward()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step(loss=sum(losses).detach() / 2)  # pyright: ignore[reportAttributeAccessIssue]
    return [p.detach() for p in model.parameters()]


def _mean(x: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(x)
    return x / 2


def main() -> None:
    """Train in one of the two processes."""
    mode, rule, rank, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model: Any = make("mlp")
    if mode == "ddp":
        trained = nn.parallel.DistributedDataParallel(model)
        optimizer = LearnedOptimizer(model.parameters(), create(rule), horizon=STEPS)
        for step in range(STEPS):
            loss = backward("mlp", trained, 2 * step + rank)
            optimizer.step(loss=_mean(loss))
    else:
        mesh = init_device_mesh("cpu", (2,))
        sharded = [nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in model.parameters()]
        optimizer = LearnedOptimizer(sharded, create(rule), horizon=STEPS)
        for step in range(STEPS):
            with torch.no_grad():
                for p, s in zip(model.parameters(), sharded, strict=True):
                    p.copy_(s.full_tensor())
            loss = backward("mlp", model, 2 * step + rank)
            for p, s in zip(model.parameters(), sharded, strict=True):
                s.grad = distribute_tensor(_mean(p.grad), mesh, [Shard(0)])
            optimizer.step(loss=_mean(loss))
            if step == 1:  # and from a state dict on
                saved = optimizer.state_dict()
                optimizer = LearnedOptimizer(sharded, create(rule), horizon=STEPS)
                optimizer.load_state_dict(saved)
        with torch.no_grad():
            for p, s in zip(model.parameters(), sharded, strict=True):
                assert isinstance(s, DTensor)
                assert s.to_local().numel() < p.numel() or p.shape[0] < 2
                p.copy_(s.full_tensor())
    torch.save([p.detach() for p in model.parameters()], folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
