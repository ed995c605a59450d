"""Parameters that are cut over two devices get the updates of whole ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from registry import OPTIMIZERS

PROGRAM = Path(__file__).parent / "sharded.py"


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """Of every optimizer and tensor, relative to its largest update."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run([sys.executable, str(PROGRAM)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.xdist_group("sharding")  # one process, for one run of the program serves them all
@pytest.mark.parametrize("name", [row.name for row in OPTIMIZERS])
def test_sharded_parameters_get_the_same_updates(name: str, errors: dict[str, dict[str, float]]) -> None:
    assert max(errors[name].values()) < 1e-4, errors[name]
