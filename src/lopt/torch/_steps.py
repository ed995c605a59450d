"""A step as operations of PyTorch, on a state in place."""

from __future__ import annotations

from collections.abc import Sequence

from lopt.errors import needs_extra
from lopt.optimizer import LARGEST
from lopt.torch._program import Program

with needs_extra("torch"):
    import torch
    from torch import Tensor


class TorchStep:
    """A program with the state that it reads and overwrites.

    Args:
        program: the update.
        leaves: of the state, in memory that `LearnedOptimizer.state` shares.
    """

    def __init__(self, program: Program, leaves: Sequence[Tensor]):
        self._run, self._leaves = program.run, leaves

    def __call__(
        self, grads: Sequence[Tensor], params: Sequence[Tensor], losses: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """The updates, zero where a number is not finite, and whether all were finite. The state moves on. Nothing is read on the host."""
        out = self._run(*grads, *params, *self._leaves, *losses)
        numbers = [*(x for x in (*grads, *params) if x.numel()), grads[0].new_zeros(1)]
        finite = torch.stack(torch._foreach_norm(numbers, float("inf"))).max() < LARGEST  # pyright: ignore[reportPrivateImportUsage]
        updates = [torch.where(finite, u, 0.0) for u in out[: len(grads)]]
        del out[: len(grads)]
        # What the program returns may be the state that it read: all is computed before the first of it is overwritten.
        kept = [k for k, old in enumerate(self._leaves) if old is not out[k]]
        for k in kept:
            out[k] = torch.where(finite, out[k], self._leaves[k])
        if kept:
            torch._foreach_copy_([self._leaves[k] for k in kept], [out[k] for k in kept])  # pyright: ignore[reportPrivateImportUsage]
        return updates, finite
