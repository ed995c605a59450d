"""Two processes, of data-parallel training or with sharded parameters, do what one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch_processes

PROGRAM = Path(torch_processes.__file__)


@pytest.mark.parametrize("mode", ["ddp", "sharded"])
@pytest.mark.parametrize("rule", ["general-1", pytest.param("velo", marks=pytest.mark.slow)])
def test_two_processes_do_what_one_does(mode: str, rule: str, tmp_path: Path) -> None:
    expected = torch_processes.alone(rule)
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
    start = list(torch_processes.make("mlp").parameters())
    for found, whole, begin in zip(first, expected, start, strict=True):
        moved = torch.linalg.vector_norm(whole - begin)
        assert moved > 0
        assert torch.linalg.vector_norm(found - whole) < 1e-3 * moved
