"""The work of a bench on a Ray cluster: the workers are elsewhere, the archive stays here."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from lopt.engine.connection import connect, deaths
from lopt.evaluate.bench.workers import Job, Outcome
from lopt.machine import one_thread


class Server:
    """What a process of the cluster runs.

    Args:
        variables: of the environment, as `lopt.machine.one_thread` has them.
        cache: where compiled programs are kept, or `None`.
    """

    def __init__(self, variables: dict[str, str], cache: str | None):
        os.environ.update(variables)  # JAX reads them at the first computation
        jax.config.update("jax_compilation_cache_dir", cache)

    def do(self, call: Callable[..., Any], arguments: tuple[Any, ...], new_group: bool) -> tuple[Any, str | None]:
        """A job: its result, or what it raised."""
        if new_group:
            jax.clear_caches()
        try:
            return call(*arguments), None
        except Exception as error:
            return None, f"{type(error).__name__}: {error}"


class RayWorker:
    """As `lopt.evaluate.bench.workers.Worker`, on a CPU of the cluster.

    Args:
        address: as in `lopt.engine.connection.connect`.
    """

    def __init__(self, address: str | None = None):
        self.ray = connect(address)
        kind = self.ray.remote(Server).options(num_cpus=1, max_restarts=0, max_task_retries=0)
        self.actor = kind.remote(one_thread(), jax.config.values["jax_compilation_cache_dir"])
        self.group: Hashable = None
        self.new_group = False
        self.job: Job | None = None
        self.alive = True
        self.promise: Any = None

    def send(self, job: Job) -> None:
        """Start a job."""
        self.job = job
        self.promise = self.actor.do.remote(job.call, job.arguments, self.new_group)
        self.new_group = False

    def receive(self) -> Outcome:
        """Wait for the job that was sent last."""
        assert self.job is not None
        name, self.job = self.job.name, None
        try:
            result, error = self.ray.get(self.promise)
        except deaths(self.ray):
            self.alive = False
            return Outcome(name, None, "the worker died")
        return Outcome(name, result, error)

    @staticmethod
    def ready(workers: Sequence[RayWorker]) -> list[RayWorker]:
        """Wait for the first of them that are done."""
        promises = {worker.promise: worker for worker in workers}
        done, _ = workers[0].ray.wait([*promises], num_returns=1)
        return [promises[promise] for promise in done]

    def close(self) -> None:
        """End the process, whatever it does."""
        self.ray.kill(self.actor)


class RayWorkers:
    """The workers of a cluster, for `lopt.evaluate.bench.workers.work`: calling it starts one.

    Args:
        address: as in `lopt.engine.connection.connect`.
    """

    def __init__(self, address: str | None = None):
        self.start = functools.partial(RayWorker, address)
        self.ready = RayWorker.ready

    def __call__(self) -> RayWorker:
        """Start a worker."""
        return self.start()


__all__ = ["RayWorker", "RayWorkers", "Server"]
