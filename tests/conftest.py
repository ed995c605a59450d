"""What every test runs under: types that must not mix by accident, shapes that are checked, one thread a process."""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

# Small kernels: handing work to a second thread costs more than it saves, and the tests run a process a core. Most tests compile far
# longer than they compute, so the machine code is not optimised, but for those that are marked `optimised`, in `make test-slow`.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# XLA ends a process that sets a flag which it has no longer.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen=false {QUICK_TO_COMPILE}")

# What was compiled once is read from disk, also by the programs that tests start. JAX does not write such files at one stroke, so each process of
# pytest-xdist has a folder of its own.
KEPT = Path(__file__).parents[1] / ".cache" / "xla" / os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(KEPT))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("lopt", "beartype.beartype")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples every time, however busy the machine.
hypothesis.settings.register_profile("lopt", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("lopt")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Groups are what keeps a program from being compiled in both processes; pytest-xdist drops them silently where it does not know pytest."""
    if hasattr(config, "workerinput") and config.getvalue("loadgroup"):
        grouped = [item for item in items if item.get_closest_marker("xdist_group")]
        assert all("@" in item.nodeid for item in grouped), "pytest-xdist does not group tests with this pytest"


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Iterator[None]:
    """Compiled programs of one file are of no use to the next, and a few thousand of them fill gigabytes."""
    yield
    jax.clear_caches()


class Recorded(sqlite3.Connection):
    """A connection that is in `left` until it is closed, in whatever thread."""

    left: ClassVar[dict[int, Recorded]] = {}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.left[id(self)] = self

    def close(self) -> None:
        super().close()
        self.left.pop(id(self), None)


@pytest.fixture(autouse=True, scope="module")
def _no_database_stays_open() -> Iterator[None]:
    """Who opens a database closes it. Python warns of it from 3.13 on, in whatever test runs when the connection is collected."""
    connect = functools.partial(sqlite3.connect, factory=Recorded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        yield
    left = list(Recorded.left.values())
    for connection in left:
        connection.close()
    assert not left, f"{len(left)} databases were left open"


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users have it: annotations are not checked at run time, so that the library's own checks speak."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
