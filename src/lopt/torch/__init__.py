"""The same optimizers in PyTorch, as one `torch.optim.Optimizer`. It needs the extra `torch`."""

from lopt.errors import needs_extra

with needs_extra("torch"):
    from lopt.torch.optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer"]
