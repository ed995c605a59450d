"""Sharded parameters: a rule sees whole tensors, and each process keeps its part of the update."""

from __future__ import annotations

from typing import Any

from lopt.errors import needs_extra

with needs_extra("torch"):
    from torch import Tensor


def is_sharded(x: Any) -> bool:
    """Whether a tensor is a `DTensor`."""
    return hasattr(x, "full_tensor") and hasattr(x, "device_mesh")


def whole(x: Tensor) -> Tensor:
    """The whole tensor, gathered from all processes if it is sharded."""
    return x.full_tensor() if is_sharded(x) else x.detach()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def local_part(p: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    """What this process holds of a parameter, and the same part of a whole tensor of its shape."""
    if not is_sharded(p):
        return p, update
    try:
        from torch.distributed.tensor import DTensor, Replicate
    except ImportError:  # before PyTorch 2.5
        from torch.distributed._tensor import DTensor, Replicate

    sharded: Any = p
    mesh, everywhere = sharded.device_mesh, [Replicate()] * sharded.device_mesh.ndim
    part = DTensor.from_local(update, mesh, everywhere, run_check=False).redistribute(placements=sharded.placements)
    return sharded.to_local(), part.to_local()
