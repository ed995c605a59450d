"""Work in processes of one thread each, so that a figure does not depend on how many there are, and a crash takes one unit with it."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from lopt.machine import one_thread


class Job(NamedTuple):
    """A call that travels to a process."""

    group: Hashable  # jobs of one group share compiled programs, so they go to one process as long as others are busy
    name: Any  # to know it by
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


class Outcome(NamedTuple):
    """How a job went."""

    name: Any
    result: Any
    error: str | None  # None: it went well


class Worker:
    """A process that does one job after the other until it is closed."""

    def __init__(self):
        import jax

        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        cache = jax.config.values["jax_compilation_cache_dir"]
        self.process = context.Process(target=_serve, args=(theirs, one_thread(), cache), daemon=True)
        self.process.start()
        theirs.close()
        self.group: Hashable = None
        self.new_group = False
        self.job: Job | None = None

    def send(self, job: Job) -> None:
        """Start a job."""
        self.job = job
        with contextlib.suppress(OSError):  # it is dead: `receive` says so
            self.connection.send((job.call, job.arguments, self.new_group))
        self.new_group = False

    def receive(self) -> Outcome:
        """Wait for the job that was sent last."""
        assert self.job is not None
        name, self.job = self.job.name, None
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Outcome(name, None, f"the process ended with exit code {self.process.exitcode}")
        return Outcome(name, result, error)

    @property
    def alive(self) -> bool:
        """Whether it can be given another job."""
        return self.process.is_alive()

    @staticmethod
    def ready(workers: Sequence[Worker]) -> list[Worker]:
        """Wait for the first of them that are done."""
        connections = {worker.connection: worker for worker in workers}
        return [connections[it] for it in wait([*connections]) if isinstance(it, Connection)]

    def close(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def work(
    jobs: Sequence[Job], processes: int, on_start: Callable[[Any], None] | None = None, kind: Any = Worker
) -> Iterator[Outcome]:
    """Do jobs in processes and yield how they went, as they end. What a job raises, or the death of its process, is its outcome.

    Args:
        jobs: in the order in which they should be done, as far as groups allow.
        processes: how many at a time.
        on_start: told the name of each job when it starts.
        kind: of workers: `Worker`, or one with the same methods.
    """
    groups: dict[Hashable, deque[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, deque()).append(job)
    untouched = deque(groups)
    workers = [kind() for _ in range(min(processes, len(jobs)))]

    def give(worker: Any) -> None:
        if not groups.get(worker.group):  # one that nobody works on; where there is none, help with the largest
            worker.group = untouched.popleft() if untouched else max(groups, key=lambda g: len(groups[g]))
            worker.new_group = True
        job = groups[worker.group].popleft()
        if on_start is not None:
            on_start(job.name)
        worker.send(job)

    try:
        left = len(jobs)
        for worker in workers:
            give(worker)
        while left:
            for done in kind.ready([w for w in workers if w.job is not None]):
                i = workers.index(done)
                outcome = done.receive()
                left -= 1
                if not done.alive:
                    done.close()
                    workers[i] = kind()
                if any(groups.values()):
                    give(workers[i])
                yield outcome
    finally:
        for worker in workers:
            worker.close()


def _serve(connection: Connection, variables: dict[str, str], cache: str | None) -> None:
    """What the process runs."""
    os.environ.update(variables)
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
    while True:
        try:
            call, arguments, new_group = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):  # nobody is there any more
            return
        if new_group:
            jax.clear_caches()  # programs that this process will hardly run again
        try:
            answer = (call(*arguments), None)
        except KeyboardInterrupt:
            return
        except Exception as error:
            answer = (None, f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            connection.send(answer)


__all__ = ["Job", "Outcome", "Worker", "work"]
