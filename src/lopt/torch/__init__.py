"""The same optimizers in PyTorch, as one `torch.optim.Optimizer`. It needs the extra `torch`."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("lopt.torch needs PyTorch: pip install 'lopt[torch]'.", name="torch") from error

from lopt.torch.optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer"]
