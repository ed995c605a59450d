"""The machine that a process runs on."""

from __future__ import annotations

import os
from pathlib import Path

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def cores() -> list[int]:
    """The numbers of the cores that this process may use.

    Linux can confine a process to some cores. Where the system cannot say which (macOS, Windows), these are all cores.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def one_thread() -> dict[str, str]:
    """Variables of the environment for a process in which JAX computes on one thread; what this process sets itself stays.

    Small kernels gain nothing from a second thread, and waiting for it costs as much processor time again.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    flags = flags if "xla_cpu_multi_thread_eigen" in flags else f"{flags} {ONE_THREAD}".strip()
    return {"XLA_FLAGS": flags, "PJRT_NPROC": os.environ.get("PJRT_NPROC", "1")}


def many_maps() -> bool:
    """Whether this process uses half of the memory maps that it may have. Each compiled program takes some; LLVM aborts a process without any left."""
    try:
        most = int(Path("/proc/sys/vm/max_map_count").read_text())
        return Path("/proc/self/maps").read_bytes().count(b"\n") > most / 2
    except OSError:  # no Linux, no such end
        return False
