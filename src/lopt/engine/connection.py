"""A quiet connection to Ray: no dashboard, no telemetry, none of its messages."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from typing import Any

from lopt.errors import InputError, needs_extra
from lopt.machine import cores

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # else Ray writes a token into the home directory
    "RAY_memory_monitor_refresh_ms": "0",  # else Ray kills workers where other programs fill the memory
    "RAY_agent_register_timeout_ms": "120000",  # else a busy machine is given up after seconds
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
ANSWER_SECONDS = 5.0  # for an address to take a connection
STORE_BYTES = 200 * 2**20  # of shared memory, for meta-parameters and states on their way
# Addresses that `connect` was given, and the clusters there: Ray does not tell those that begin with ray://.
_led_to: dict[str, str] = {}


def connect(address: str | None = None, *, workers: int = 1, cpus: int | None = None) -> Any:
    """Ray's module, connected: to the cluster that this process is connected to, to another, or to a new one on this machine.

    Args:
        address: of a cluster: `HOST:PORT`, `ray://HOST:PORT`, or `auto` for one that runs on this machine. With `None` there will be a new one. In a
            process that is connected, `None` and `auto` are the cluster that it is connected to.
        workers: as many CPUs as are needed.
        cpus: that a new cluster has; as many as this process may use if `None`.

    Raises:
        InputError: without the extra `ray`, for an address that does not answer, or is not that of the cluster that this process is connected to,
            or fewer CPUs than workers.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with needs_extra("ray"):
        import ray
    if ray.is_initialized():
        _must_be_connected_to(ray, address)
    else:
        cpus = cpus or len(cores())
        if address is None and workers > cpus:
            raise InputError(f"workers is {workers}; this machine has {cpus} CPUs for them.")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address is None:
            options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE_BYTES}
            options |= {"_node_ip_address": "127.0.0.1", "address": "local"}  # else Ray asks its environment
        else:
            _must_answer(address)
            options["address"] = address
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)  # the child becomes Ray
                ray.init(**options)
        except Exception as error:  # Ray raises bare ones
            where = "a local Ray" if address is None else f"address is {address!r}; Ray"
            raise InputError(f"{where} cannot be reached: {str(error).strip().splitlines()[0]}") from error
        if address is not None:
            _led_to[address] = ray.get_runtime_context().gcs_address
    there = int(ray.cluster_resources().get("CPU", 0))
    if workers > there:
        raise InputError(f"workers is {workers}; the cluster has {there} CPUs for them.")
    return ray


def deaths(ray: Any) -> tuple[type[Exception], ...]:
    """The errors that say that a worker is no more."""
    found = ray.exceptions
    return (found.RayActorError, found.ObjectLostError, found.WorkerCrashedError, found.NodeDiedError)


def _must_answer(address: str) -> None:
    """Ask before Ray does: it waits for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"address is {address!r}; it must be auto, HOST:PORT or ray://HOST:PORT.")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"address is {address!r}; nothing answers there: {error}.") from error


def _must_be_connected_to(ray: Any, address: str | None) -> None:
    """A process has one connection to Ray."""
    if address is None or address == "auto":
        return
    there = ray.get_runtime_context().gcs_address
    if _led_to.get(address) != there and _resolved(ray, address) != _resolved(ray, there):
        raise InputError(
            f"address is {address!r}; this process is connected to the cluster at {there} already: leave out the address, or call ray.shutdown() first."
        )


def _resolved(ray: Any, address: str) -> str:
    """The address with the host as a number; a loopback becomes this machine's address in the cluster."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, UnicodeError):
        host = socket.gethostbyname(host)
    if host.startswith("127."):
        host = ray.util.get_node_ip_address()
    return f"{host}:{port}"
