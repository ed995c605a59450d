"""Workers of a Ray cluster that come, hang and die, and the units of work that they hold."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from lopt.engine.connection import deaths
from lopt.engine.engine import Unreachable
from lopt.engine.worker import Answer, Worker, versions
from lopt.errors import InputError
from lopt.machine import one_thread

# In a row, of workers. Where others live, one more makes the next wait for the time of patience.
MOST_FAILED_STARTS = 3
POLL_SECONDS = 0.5  # between looks for workers that come and go
LOOKS = 10  # for workers that hang, in the time of patience


@dataclasses.dataclass(eq=False)
class WorkerHandle:
    """What the driver knows of a worker: its process, the units that it holds, and when it last gave a sign of life."""

    number: int
    actor: Any  # of Ray
    hello: Any  # the promise of its first answer
    units: list[int] = dataclasses.field(default_factory=list)
    turn: int = 0  # of its units, which comes next
    pid: int = 0
    host: str = ""
    alive: Any = None  # the promise of a sign of life, where one is asked for
    heard: float = 0.0  # when the last one was seen


class Call(NamedTuple):
    """What a worker is asked for. The driver takes each call's answer at most once."""

    number: int
    worker: WorkerHandle
    method: str  # of `Worker`
    units: tuple[int, ...]
    version: int  # of the meta-parameters: how many gradients the engine had given


class WorkerStatus(NamedTuple):
    """A worker, as it is shown."""

    number: int
    host: str
    pid: int
    units: int
    busy: bool


class WorkerPool:
    """As many workers as are wanted, as far as the cluster has them. Each unit, an estimator with inner problems, is at one of them.

    A worker that dies is lost. So is one that hangs: it has given no sign of life for the time of patience. A thread of its own gives these signs, so
    that neither a long estimate nor a compilation looks like a hang. What a lost worker was asked for is void. Its units go on from their last
    snapshots at the others, and another worker is asked for. A process that stops counts as hanging; a computation that never ends does not.

    Args:
        ray: the module, connected.
        size: how many workers are wanted.
        estimators: promises of them, packed.
        optimizer: a promise of that of the meta-training at its start, packed.
        replicas: units of each estimator.
        patience: seconds to wait for a worker where there is none, and for a sign of life.
    """

    def __init__(self, ray: Any, size: int, estimators: Sequence[Any], optimizer: Any, replicas: int, patience: float):
        self.ray, self.size, self.replicas, self.patience = ray, size, replicas, patience
        self.estimators, self.optimizer = estimators, optimizer
        self.living: list[WorkerHandle] = []
        self.coming: list[WorkerHandle] = []
        self.under_way: dict[Any, Call] = {}  # by the promise of the answer
        self.units = [*range(len(estimators) * replicas)]
        self.homeless = [*self.units]  # units that are at no worker
        self.snapshot: dict[int, Any] = {}  # states by unit, packed
        self.due: set[int] = set()  # units whose next call should ask for their state
        self.calls = self.started = self.replaced = self.failed = 0
        self.next_start = self.looked = 0.0
        self.begun = self.warned = False

    def start(self) -> None:
        """Wait for all workers as long as there is patience, for one at least.

        Raises:
            InputError: for a worker of another version.
            Unreachable: where none comes.
        """
        self._wait(self.size)
        self.begun = True
        self._settle()

    def take_due(self, units: Sequence[int]) -> list[bool]:
        """Whether the states of units are due. The call that is made now asks for them, so that the next one does not."""
        found = [unit in self.due for unit in units]
        self.due.difference_update(units)
        return found

    def call(self, worker: WorkerHandle, method: str, units: Sequence[int], *others: Any, version: int = 0) -> None:
        """Ask a worker for something about some of its units; `answers` tells when it has come."""
        self.calls += 1
        promise = getattr(worker.actor, method).remote([*units], *others)
        self.under_way[promise] = Call(self.calls, worker, method, tuple(units), version)

    def every(
        self, method: str, others: Callable[[list[int]], tuple[Any, ...]] = lambda _: (), *, version: int = 0
    ) -> dict[int, Answer]:
        """An answer about every unit, whatever worker it is from. Where a worker is lost, others are asked.

        Args:
            method: of `Worker`.
            others: what it is given besides the units.
            version: of the meta-parameters.

        Raises:
            Unreachable: where no worker is left, and none comes.
        """
        found: dict[int, Answer] = {}
        while len(found) < len(self.units):
            out = {unit for call in self.under_way.values() for unit in call.units}
            for worker in self.living:
                if todo := [unit for unit in worker.units if unit not in found and unit not in out]:
                    self.call(worker, method, todo, *others(todo), version=version)
            for call, answers in self.answers():
                found |= dict(zip(call.units, answers, strict=True))
        return found

    def answers(self) -> Iterator[tuple[Call, list[Answer]]]:
        """What has come; waits a little for something. Looks after workers that come, hang and die.

        Raises:
            Unreachable: where no worker is left, and none comes.
        """
        self._admit()
        self._look()
        if not self.living:
            self._wait(1)
        self._settle()
        if not self.under_way:
            return
        done, _ = self.ray.wait([*self.under_way], num_returns=1, timeout=POLL_SECONDS)
        if done:
            done, _ = self.ray.wait([*self.under_way], num_returns=len(self.under_way), timeout=0)
        for promise in done:
            call = self.under_way.pop(promise, None)
            if call is None:  # its worker was lost meanwhile
                continue
            try:
                found: list[Answer] = self.ray.get(promise)
            except deaths(self.ray):
                self._lose(call.worker)
                continue
            for unit, answer in zip(call.units, found, strict=True):
                if answer.state is not None:
                    self.snapshot[unit] = answer.state
            if call.method == "forget":
                call.worker.units = [unit for unit in call.worker.units if unit not in call.units]
                self.homeless += call.units
            else:
                yield call, found

    def load(self, states: Sequence[Any]) -> None:
        """Give the workers states that the driver has, packed, one for each unit. What they were asked for is void."""
        self.snapshot = dict(enumerate(states))
        self.under_way.clear()
        for worker in self.living:
            for unit in worker.units:
                self._load(worker, unit)

    def status(self) -> list[WorkerStatus]:
        """The workers as they are now."""
        busy = self.busy()
        return [WorkerStatus(w.number, w.host, w.pid, len(w.units), w in busy) for w in self.living]

    def busy(self) -> set[WorkerHandle]:
        """The workers that compute, or have an answer that is not taken yet."""
        return {call.worker for call in self.under_way.values()}

    def ready(self, *, under_way: int) -> list[WorkerHandle]:
        """The workers that have units, exactly so many calls under way, and give none of their units away."""
        asked = Counter(call.worker for call in self.under_way.values())
        giving = {call.worker for call in self.under_way.values() if call.method == "forget"}
        return [w for w in self.living if w.units and asked[w] == under_way and w not in giving]

    def stop(self) -> None:
        """End the workers; the cluster goes on."""
        for worker in (*self.living, *self.coming):
            self.ray.kill(worker.actor)
        self.living, self.coming = [], []
        self.under_way.clear()

    # Workers that come and go.

    def _summon(self, count: int) -> None:
        """Ask Ray for workers. They come when there is a CPU for them."""
        if count <= 0:
            return
        cache = jax.config.values["jax_compilation_cache_dir"]
        # The group is the thread that gives signs of life; everything else happens in order.
        kind = self.ray.remote(concurrency_groups={"life": 1})(Worker)
        for _ in range(count):
            options = kind.options(num_cpus=1, max_restarts=0, max_task_retries=0)
            actor = options.remote(one_thread(), cache, self.optimizer)
            self.coming.append(WorkerHandle(self.started, actor, actor.hello.remote()))
            self.started += 1

    def _admit(self, timeout: float = 0.0) -> None:
        """Take in the workers that have come, and ask for those that are missing."""
        if not self.living or time.monotonic() >= self.next_start:
            self._summon(self.size - len(self.living) - len(self.coming))
        promises = {worker.hello: worker for worker in self.coming}
        if not promises:
            time.sleep(timeout)
            return
        done, _ = self.ray.wait([*promises], num_returns=1 if timeout else len(promises), timeout=timeout)
        for promise in done:
            worker = promises[promise]
            self.coming.remove(worker)
            try:
                theirs, worker.pid, worker.host = self.ray.get(promise)
                _same_versions(theirs, worker.host)
            except (InputError, *deaths(self.ray)) as error:
                self.ray.kill(worker.actor)
                self._note_failed_start(error)
                continue
            self.failed = 0
            self.living.append(worker)

    def _note_failed_start(self, error: Exception) -> None:
        if isinstance(error, InputError):
            if not self.begun:
                raise error
            if not self.warned:
                warnings.warn(f"A worker is refused, and the run goes on without it: {error}", stacklevel=2)
            self.warned = True
        self.failed += 1
        if self.failed > MOST_FAILED_STARTS:
            if not self.living:
                raise Unreachable(f"Workers cannot start: {_last_line(error)}") from error
            self.next_start = time.monotonic() + self.patience

    def _look(self) -> None:
        """Lose the workers that have given no sign of life for too long."""
        now = time.monotonic()
        if now < self.looked + self.patience / LOOKS:
            return
        self.looked = now
        asked = [worker.alive for worker in self.living if worker.alive is not None]
        seen = set(self.ray.wait(asked, num_returns=len(asked), timeout=0)[0]) if asked else set()
        for worker in [*self.living]:
            try:
                if worker.alive in seen:
                    self.ray.get(worker.alive)
            except deaths(self.ray):
                self._lose(worker)
                continue
            if worker.alive is None or worker.alive in seen:
                worker.alive = worker.actor.alive.options(concurrency_group="life").remote()
                worker.heard = now
            elif now - worker.heard > self.patience:
                self._lose(worker)

    def _lose(self, worker: WorkerHandle) -> None:
        """A worker is dead or hangs: what it was asked for is void, and its units are at no worker."""
        if worker not in self.living:
            return
        self.living.remove(worker)
        self.ray.kill(worker.actor)
        self.under_way = {p: call for p, call in self.under_way.items() if call.worker is not worker}
        self.homeless += worker.units
        self.due.update(worker.units)  # their states may have been on the way
        self.replaced += 1

    def _wait(self, count: int) -> None:
        """Wait for so many workers as long as there is patience, for one at least."""
        until = time.monotonic() + self.patience
        while len(self.living) < count and (left := until - time.monotonic()) > 0:
            self._admit(timeout=min(left, POLL_SECONDS))
        if not self.living:
            raise Unreachable(
                f"No worker could be reached for {self.patience:g} s; the same command goes on from the last meta-step once there is one."
            )

    # Units.

    def _settle(self) -> None:
        """Give the units that are at no worker to those that have fewest, and take one from a worker that has too many."""
        for unit in sorted(self.homeless):
            worker = min(self.living, key=lambda w: len(w.units))
            worker.units.append(unit)
            self._load(worker, unit)
        self.homeless = []
        if any(call.method == "forget" for call in self.under_way.values()):
            return
        most, fewest = max(self.living, key=lambda w: len(w.units)), min(self.living, key=lambda w: len(w.units))
        if len(most.units) >= len(fewest.units) + 2:
            self.call(most, "forget", most.units[-1:])  # behind what the worker is doing, so it is the state after that

    def _load(self, worker: WorkerHandle, unit: int) -> None:
        worker.actor.load.remote(unit, self.estimators[unit // self.replicas], self.snapshot.get(unit))


def _same_versions(theirs: dict[str, str], host: str) -> None:
    for name, ours in versions().items():
        if theirs.get(name) != ours:
            raise InputError(f"{name} is {ours} here and {theirs.get(name)} at the worker on {host}; install one.")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


__all__ = ["Call", "WorkerHandle", "WorkerPool", "WorkerStatus"]
