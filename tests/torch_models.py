"""Networks of the tests of `lopt.torch`, each with batches to train it on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

torch.set_num_threads(1)

Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """A pre-norm transformer block of one head.

    The heads have no bias: the gradient of a bias of the keys is zero but for rounding, and rules like Adam's scale it up.
    """

    def __init__(self, width: int):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.before(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """Next symbol of a sequence; the embedding is tied to the readout.

    There is no norm before the readout: it would let the gradients of what is added to the stream add up to zero; see `make`.
    """

    def __init__(self, symbols: int = 11, width: int = 8, blocks: int = 2):
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.blocks(self.embedding(x)) @ self.embedding.weight.T).flatten(0, 1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def equal() -> nn.Module:
    """Three matrices of one shape and three vectors of another."""
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.LayerNorm([4, 4, 4]),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def _sorted_by_sum(*shape: int) -> Callable[[int], Batch]:
    def batch(seed: int) -> Batch:
        x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return x, (x.flatten(1)[:, :2].sum(1) > 0).long()

    return batch


def _counting(seed: int) -> Batch:
    begin = torch.randint(0, 11, (4, 1), generator=torch.Generator().manual_seed(seed))
    x = (begin + 3 * torch.arange(9)) % 11
    return x[:, :-1], x[:, 1:].flatten()


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch]]] = {
    "mlp": (mlp, _sorted_by_sum(6)),
    "equal": (equal, _sorted_by_sum(4)),
    "conv": (conv, _sorted_by_sum(2, 6, 6)),
    "transformer": (Transformer, _counting),
}


def make(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network with the same weights for the same seed.

    Biases and norms are random too. After a norm of scale one and shift zero the gradients of a matrix add up to zero, and rules that see
    the sign of their mean would see the sign of rounding.
    """
    torch.manual_seed(seed)
    model = MODELS[name][0]()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    return model.to(dtype)


def loss_of(name: str, model: nn.Module, seed: int) -> Tensor:
    """Its loss on the batch of a seed: each class against all others, since gradients of softmax add up to zero over the classes."""
    x, y = MODELS[name][1](seed)
    dtype = next(model.parameters()).dtype
    logits = model(x.to(dtype) if x.is_floating_point() else x)
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(y, logits.shape[-1]).to(dtype))


def backward(name: str, model: nn.Module, seed: int) -> Tensor:
    """The loss, after its gradients have been computed anew."""
    model.zero_grad()
    loss = loss_of(name, model, seed)
    loss.backward()
    return loss.detach()
