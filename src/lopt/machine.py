"""The machine that a process runs on."""

from __future__ import annotations

import os

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def cores() -> list[int]:
    """The numbers of the cores that this process may use.

    Linux can confine a process to some cores. Where the system cannot say which (macOS, Windows), these are all cores.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def one_thread_flags() -> str:
    """`XLA_FLAGS` of this process, for one of one thread."""
    flags = os.environ.get("XLA_FLAGS", "")
    return flags if "xla_cpu_multi_thread_eigen" in flags else f"{flags} {ONE_THREAD}".strip()
