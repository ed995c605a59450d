"""Two processes, of data-parallel training or with sharded parameters, do what one process does, through a checkpoint too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch_processes
from lopt.torch import LearnedOptimizer
from torch_models import make
from torch_processes import SAVED, STEPS, create, load, train_alone

PROGRAM = Path(torch_processes.__file__)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
@pytest.mark.parametrize(
    ("mode", "rule"),
    [
        ("ddp", "demo-1"),
        ("fsdp", "general-1"),
        pytest.param("ddp", "general-1", marks=pytest.mark.slow),
        pytest.param("ddp", "velo", marks=pytest.mark.slow),
        pytest.param("fsdp", "velo", marks=pytest.mark.slow),
        pytest.param("fsdp", "controlled_muon", marks=pytest.mark.slow),
    ],
)
def test_two_processes_do_what_one_does(mode: str, rule: str, tmp_path: Path) -> None:
    model, other = make("mlp"), make("mlp", seed=1)
    optimizers = [LearnedOptimizer(m.parameters(), create(rule), horizon=STEPS) for m in (model, other)]
    start = [p.detach().clone() for p in model.parameters()]
    expected = train_alone(model, optimizers[0], range(STEPS))
    command = [sys.executable, str(PROGRAM), mode, rule]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    load(other, optimizers[1], tmp_path / "checkpoint")
    alone = train_alone(other, optimizers[1], range(SAVED, STEPS))
    for *found, right, begin in zip(first, alone, expected, start, strict=True):
        moved = torch.linalg.vector_norm(right - begin)
        assert moved > 0
        for x in found:
            assert torch.linalg.vector_norm(x - right) < 1e-4 * moved
