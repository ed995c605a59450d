"""Two processes train one network, by DDP or by FSDP2, and go on from a checkpoint: `python tests/torch_processes.py MODE RULE RANK FOLDER`.

Each writes the parameters that it ends with, whole, to `FOLDER/RANK.pt`. The checkpoint is `FOLDER/checkpoint`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import lopt
from lopt.torch import LearnedOptimizer
from torch_models import backward, loss_of, make

STEPS, SAVED = 4, 2  # steps of the training, and after how many of them the checkpoint is


def create(rule: str) -> lopt.Optimizer:
    """A saved optimizer, or a small one of a kind."""
    small: dict[str, Any] = {"velo": {"lstm_hidden": 8, "bank": 4}, "controlled_muon": {"key": jax.random.key(0)}}
    return lopt.load(rule) if rule in lopt.zoo.available() else lopt.create(rule, **small[rule])


def train_alone(model: nn.Module, optimizer: LearnedOptimizer, steps: range) -> list[torch.Tensor]:
    """The parameters after training in one process, each step on the batches of both."""
    for step in steps:
        model.zero_grad()
        losses = [loss_of("mlp", model, 2 * step + rank) for rank in range(2)]
        (sum(losses) / 2).backward()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step(loss=sum(losses).detach() / 2)  # pyright: ignore[reportAttributeAccessIssue]
    return [p.detach() for p in model.parameters()]


def save(model: nn.Module, optimizer: LearnedOptimizer, path: Path) -> None:
    """Write a checkpoint."""
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=path)


def load(model: nn.Module, optimizer: LearnedOptimizer, path: Path) -> None:
    """Read a checkpoint."""
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)


def begin(mode: str, rule: str, rank: int, meeting: Path, seed: int) -> tuple[Any, LearnedOptimizer]:
    """A process group, the network in it, and its optimizer."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    model: Any = make("mlp", seed)
    if mode == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, LearnedOptimizer(model.parameters(), create(rule), horizon=STEPS)


def train(model: nn.Module, optimizer: LearnedOptimizer, steps: range, rank: int) -> None:
    """Take steps, on the batches of this process."""
    for step in steps:
        loss = backward("mlp", model, 2 * step + rank)
        dist.all_reduce(loss)
        optimizer.step(loss=loss / 2)


def whole(p: torch.Tensor) -> torch.Tensor:
    """A parameter, gathered if it is sharded, of which each process then holds a part."""
    if not isinstance(p, DTensor):
        return p.detach()
    assert p.to_local().numel() < p.numel() or p.shape[0] < 2
    return p.full_tensor().detach()


def main() -> None:
    """Train in one of the two processes."""
    mode, rule, rank, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    model, optimizer = begin(mode, rule, rank, folder / "first", seed=0)
    train(model, optimizer, range(SAVED), rank)
    save(model, optimizer, folder / "checkpoint")
    dist.destroy_process_group()
    model, optimizer = begin(mode, rule, rank, folder / "second", seed=1)
    if mode == "fsdp":  # a checkpoint may be read before or after the first gradients
        backward("mlp", model, 0)
    load(model, optimizer, folder / "checkpoint")
    train(model, optimizer, range(SAVED, STEPS), rank)
    torch.save([whole(p) for p in model.parameters()], folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
