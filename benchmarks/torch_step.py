"""Time of a step of learned optimizers in PyTorch, over that of `torch.optim.AdamW` on the same tensors.

Every optimizer takes its turn after AdamW, so that whatever else the machine does falls on both; a ratio is of neighbours. The gradients
are random and stay: the step alone is timed. The tensors: two layers of an MLP, a small transformer of 64 tensors, and a matrix of 10^6.
`torch.optim.Muon` takes the matrices, and AdamW beside it the rest, as it is used. PyLO, the field's port to PyTorch, is timed where it can be
imported: its rule of the paper of `small_fc`, with random weights, for its own are downloaded.
The process keeps to as many cores as it has threads, so that JAX and PyTorch have the same. Its own processor time is beside the clock's:
on a busy machine it is the one that repeats.

Run: `python benchmarks/torch_step.py`. Writes `benchmarks/results/torch_step.json`.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

import lopt
from common import RESULTS, header, machine, show, spread, text, write
from lopt.torch import LearnedOptimizer
from lopt.torch.optimizer import Backend

WIDTH = 64
BLOCK = [(WIDTH,)] * 4 + [
    (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,), (4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH), (WIDTH,)
]  # fmt: skip
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "mlp": [(128, 64), (128,), (10, 128), (10,)],
    "transformer": [(256, WIDTH), (32, WIDTH), *BLOCK * 5, (WIDTH,), (WIDTH,)],
    "matrix": [(1000, 1000)],
}


class Muon:
    """`torch.optim.Muon` for matrices and AdamW for the rest, in one step."""

    def __init__(self, params: list[torch.Tensor]):
        matrices, rest = ([p for p in params if (p.ndim == 2) == wanted] for wanted in (True, False))
        self.parts = [torch.optim.Muon(matrices)] + ([torch.optim.AdamW(rest, foreach=True)] if rest else [])

    def step(self) -> None:
        """One of each."""
        for part in self.parts:
            part.step()

    @property
    def state(self) -> dict[Any, Any]:
        """Of all tensors."""
        return {p: state for part in self.parts for p, state in part.state.items()}


def pylo(params: list[torch.Tensor]) -> Any:
    """PyLO's `AdafacLO_naive`, which is the rule of `small_fc` in operations of PyTorch."""
    from pylo.models.Meta_MLP import MetaMLP  # pyright: ignore[reportMissingImports]
    from pylo.optim import AdafacLO_naive  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        MetaMLP(input_size=39, hidden_size=32, hidden_layers=1).save_pretrained(folder)
        return AdafacLO_naive(params, hf_key=folder)


# Not of lopt: how each is made, and where it is.
PEERS: dict[str, tuple[Callable[[list[torch.Tensor]], Any], Callable[[], bool]]] = {
    "muon": (Muon, lambda: hasattr(torch.optim, "Muon")),  # from PyTorch 2.9 on
    "pylo": (pylo, lambda: importlib.util.find_spec("pylo") is not None),
}


class Step:
    """An optimizer on tensors of its own."""

    def __init__(self, shapes: list[tuple[int, ...]], make: Callable[[list[torch.Tensor]], Any], device: str):
        generator = torch.Generator().manual_seed(0)
        self.params = [(0.1 * torch.randn(s, generator=generator)).to(device).requires_grad_() for s in shapes]
        for p in self.params:
            p.grad = (0.01 * torch.randn(p.shape, generator=generator)).to(device)
        self.optimizer, self.device = make(self.params), torch.device(device)

    def __call__(self) -> tuple[float, float]:
        """Take one step; milliseconds of the clock and of processors."""
        began, busy = time.perf_counter(), time.process_time()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - busy)

    def floats(self) -> float:
        """Numbers of the state for each parameter; what several parameters share counts once."""
        held = {
            x.data_ptr(): x.numel()
            for s in self.optimizer.state.values()
            for x in s.values()
            if isinstance(x, torch.Tensor)
        }
        return sum(held.values()) / sum(p.numel() for p in self.params)


def main(
    tensors: tuple[str, ...] = tuple(SHAPES),
    optimizers: tuple[str, ...] = ("general-2", "general-1", "small_fc", "muon", "pylo"),
    backends: tuple[Backend, ...] = ("jax", "torch"),
    seconds: float = 10.0,
    threads: int = 1,
    device: str = "cpu",
    out: Path = RESULTS / "torch_step.json",
) -> None:
    """Time steps.

    Args:
        tensors: which of `SHAPES`.
        optimizers: names from `lopt list`, and of `PEERS`, which are left out where they are missing.
        backends: of the optimizers of lopt.
        seconds: about how long to measure each.
        threads: of PyTorch.
        device: where.
        out: the JSON file to write.
    """
    if hasattr(os, "sched_setaffinity") and device == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    facts = {**machine(), "torch": torch.__version__, "threads": threads, "device": device}
    results: list[dict[str, Any]] = []
    header(
        "tensors", "optimizer", "ms", "ratio to AdamW", "of processor time", "first step, s", "state floats a parameter"
    )
    for kind in tensors:
        adamw = Step(SHAPES[kind], lambda p: torch.optim.AdamW(p, foreach=True), device)
        adamw()
        for name, backend in contenders(optimizers, backends):
            make = PEERS[name][0] if name in PEERS else partial(LearnedOptimizer, rule=made(name), backend=backend)
            step = Step(SHAPES[kind], make, device)
            first = step()
            once = adamw()[0] + step()[0] + adamw()[0]
            times, ratios, busy = [], [], []
            for _ in range(max(9, min(300, int(1e3 * seconds / once)))):
                reference, own = adamw(), step()
                times.append(own[0])
                ratios.append(own[0] / reference[0])
                busy.append(own[1] / reference[1])
            row = {
                "tensors": kind,
                "optimizer": name,
                "backend": backend,
                "parameters": sum(p.numel() for p in step.params),
                "step_ms": spread(times),
                "least_ms": round(min(times), 3),
                "ratio_to_adamw": spread(ratios),
                "ratio_of_processor_time": spread(busy),
                "first_step_seconds": round(first[0] / 1e3, 5),
                "first_step_processor_seconds": round(first[1] / 1e3, 5),
                "state_floats": round(step.floats(), 2),
                "repeats": len(times),
            }
            results.append(row)
            show(
                kind,
                f"{name} {backend}",
                text(row["step_ms"]),
                text(row["ratio_to_adamw"]),
                text(row["ratio_of_processor_time"]),
                f"{row['first_step_seconds']:.2f} ({row['first_step_processor_seconds']:.2f})",
                row["state_floats"],
            )
            write(out, facts, results)


def contenders(optimizers: tuple[str, ...], backends: tuple[Backend, ...]) -> list[tuple[str, str]]:
    """Optimizers and where they run."""
    there = [name for name in optimizers if name not in PEERS or PEERS[name][1]()]
    return [(name, b) for name in there for b in (backends if name not in PEERS else ("",))]


def made(name: str) -> lopt.Optimizer:
    """A saved optimizer, or a rule as it is before meta-training."""
    return lopt.create(name) if name in lopt.optimizers.OPTIMIZERS else lopt.load(name)


if __name__ == "__main__":
    tyro.cli(main)
