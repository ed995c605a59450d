"""Meta-gradients from workers of a Ray cluster, synchronous or asynchronous, which outlives its workers."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.checks import at_least, positive
from lopt.engine.connection import connect, deaths
from lopt.engine.engine import Engine, Gradients, Unreachable
from lopt.engine.local import merge
from lopt.engine.worker import Answer, Keys, Worker, pack, unpack, versions
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, EstimatorState
from lopt.machine import one_thread
from lopt.optimizer import Optimizer

MOST_FAILED_STARTS = 3  # in a row, of workers
INLINE_BYTES = 64 * 2**10  # Ray's own limit for an argument is 100 kB
POLL_SECONDS = 0.5  # between looks for workers that come and go


class _Held(NamedTuple):
    """In the place of a state that workers hold."""


@dataclasses.dataclass(eq=False)
class _Hand:
    """A worker, as the driver sees it."""

    number: int
    actor: Any
    hello: Any  # the promise of its first answer
    units: list[int] = dataclasses.field(default_factory=list)
    turn: int = 0  # of its units, which comes next
    pid: int = 0
    host: str = ""


class _Call(NamedTuple):
    """Estimates under way. The driver takes each call's answer at most once."""

    number: int
    hand: _Hand
    units: tuple[int, ...]
    version: int  # of the meta-parameters: how many gradients the engine had given


class WorkerStatus(NamedTuple):
    """A worker, as it is shown."""

    number: int
    host: str
    pid: int
    units: int
    busy: bool


class RayEngine(Engine):
    r"""Workers of a Ray cluster hold the estimators and their inner problems; the outer step stays in this process.

    Synchronous, with `staleness=None`: a meta-step waits for one estimate of every estimator. The meta-parameters are bit for bit those of
    `Local(devices=1)` in a process of one thread, whatever the number of workers.

    Asynchronous: workers never wait for each other. A meta-step takes the first $M$ estimates that come,

    $$\theta_{t+1} = \theta_t + U_\text{outer}\Big(\frac1M \sum_{m=1}^M \hat g_m(\theta_{t - a_m})\Big), \qquad a_m \le K,$$

    and an estimate that is older than $K$ meta-steps is dropped and counted. Estimators on faster workers weigh more.

    A worker that dies is replaced. Its estimators go on from their last snapshot, at the workers that are left; workers that come later take their
    share. The answer of a call is used at most once.

    Metrics: `workers`, `utilisation` (the part of their time that they compute), `replaced` workers so far; asynchronous also `staleness`, the
    mean age of the estimates in meta-steps, and `dropped`, estimates so far.

    Args:
        workers: processes of one thread; each needs a CPU of the cluster.
        address: of a cluster, as in `lopt.engine.connection.connect`; a new one on this machine if `None`.
        staleness: $K$, or `None` for synchronous.
        accumulate: $M$; as many as there are estimators if `None`.
        patience: seconds to wait for a worker where there is none.
        snapshot_steps: meta-steps between two snapshots of the inner states.

    Raises:
        InputError: for numbers out of range, a missing extra, an address that does not answer, too few CPUs, workers of other versions, and, where
            synchronous, more workers than estimators.
        Unreachable: where no worker comes in time.

    Source: asynchronous workers are those of Wichrowska et al. 2017 and Metz et al. 2020, *Tasks, stability, architecture, and compute*.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        address: str | None = None,
        staleness: int | None = None,
        accumulate: int | None = None,
        patience: float = 120.0,
        snapshot_steps: int = 100,
    ):
        at_least(1, workers=workers, snapshot_steps=snapshot_steps)
        positive(patience=patience)
        if staleness is not None:
            at_least(0, staleness=staleness)
        if accumulate is not None:
            at_least(1, accumulate=accumulate)
            if staleness is None:
                raise InputError(f"accumulate is {accumulate}; only an asynchronous engine, with a staleness, has it.")
        self.workers, self.address, self.staleness, self.accumulate = workers, address, staleness, accumulate
        self.patience, self.snapshot_steps = patience, snapshot_steps
        self.ray: Any = None
        self.began_cluster = False
        self._reset()

    def _reset(self) -> None:
        self.living: list[_Hand] = []
        self.coming: list[_Hand] = []
        self.under_way: dict[Any, _Call] = {}  # by the promise of the answer
        self.spare: deque[tuple[_Call, list[Answer]]] = deque()  # answers that no meta-step has used yet
        self.snapshot: dict[int, Any] = {}  # states by unit, packed
        self.estimators: list[Any] = []  # promises, packed
        self.replicas = 1
        self.calls = self.started = self.version = self.replaced = self.dropped = self.failed = 0
        self.given: dict[int, int] = {}  # how often each unit was given out
        self.handed: Any = None  # the states that `begin` returned
        self.last = time.perf_counter()

    @property
    def traceable(self) -> bool:
        """No."""
        return False

    @property
    def synchronous(self) -> bool:
        """Where there is no staleness."""
        return self.staleness is None

    def describe(self, estimators: Sequence[Estimator]) -> dict[str, Any]:
        """How estimates are accumulated; the number of workers only where estimators are replicated for them."""
        if self.staleness is None:
            return {"engine": "ray"}
        replicas = self._replicas(len(estimators))
        accumulate = self.accumulate or len(estimators)
        return {"engine": "ray", "staleness": self.staleness, "accumulate": accumulate, "replicas": replicas}

    def begin(
        self, optimizer: Optimizer, estimators: Sequence[Estimator], key: PRNGKeyArray
    ) -> tuple[EstimatorState, ...]:
        """Start workers, and the inner problems on them."""
        count = len(estimators)
        if self.staleness is None and self.workers > count:
            raise InputError(
                f"workers is {self.workers}; a synchronous run has one for each of its {count} estimators at most, because an estimator cannot be "
                "split over workers. Give a staleness for an asynchronous one, or fewer workers."
            )
        self.stop()
        self.began_cluster = self.began_cluster or not _is_connected()
        self.ray = connect(self.address, workers=self.workers)
        self.replicas = self._replicas(count)
        self.estimators = [self.ray.put(pack(e)) for e in estimators]
        self._summon(self.workers)
        self._wait_for_workers(self.workers)
        units = range(count * self.replicas)
        for unit in units:
            self._give(unit, None)
        meta_params, promises, keys = self._sent(optimizer), {}, self._keys(key)
        for hand in self.living:
            for unit in hand.units:
                promises[unit] = hand.actor.begin.remote(unit, meta_params, keys[unit])
        try:
            self.snapshot = {unit: self.ray.get(promises[unit]) for unit in units}
        except deaths(self.ray) as error:
            raise Unreachable(f"A worker died at its start: {_last_line(error)}") from error
        self.handed = self._states()
        return self.handed

    def gradients(
        self,
        optimizer: Optimizer,
        estimators: Sequence[Estimator],
        states: tuple[EstimatorState, ...],
        key: PRNGKeyArray,
    ) -> Gradients:
        """One estimate of every estimator, or the first that come; see the class."""
        if not all(isinstance(state, _Held) for state in states) and states is not self.handed:
            self._load(states)
        self.handed = None
        if self.version and self.version % self.snapshot_steps == 0:
            self._take_snapshot()
        meta_params = self._sent(optimizer)
        collect = self._all if self.staleness is None else self._first
        answers, ages, busy = collect(meta_params, key, len(estimators))
        self.version += 1
        steps = [e.inner_steps for e in estimators]
        numbers = range(len(answers)) if self.staleness is None else [u // self.replicas for u, _ in answers]
        found = [(a.gradient, a.metrics) for _, a in answers]
        gradient, metrics = _merge(found, tuple(steps[i] for i in numbers))
        now = time.perf_counter()
        told: dict[str, float] = {"workers": len(self.living), "replaced": self.replaced}
        told["utilisation"] = min(1.0, busy / max(1e-9, (now - self.last) * max(1, len(self.living))))
        if self.staleness is not None:
            told |= {"staleness": sum(ages) / len(ages), "dropped": self.dropped}
        self.last = now
        metrics |= {name: jnp.asarray(value, jnp.float32) for name, value in told.items()}
        return Gradients(gradient, tuple(_Held() for _ in estimators), metrics)

    def gather(self, states: tuple[EstimatorState, ...]) -> tuple[EstimatorState, ...]:
        """The states of the workers. Those of a worker that does not answer are those of the last snapshot."""
        if not all(isinstance(state, _Held) for state in states):
            return states
        self._take_snapshot()
        return self._states()

    def status(self) -> list[WorkerStatus]:
        """The workers as they are now."""
        busy = {id(call.hand) for call in self.under_way.values()}  # computes, or has an answer that is not taken yet
        return [WorkerStatus(h.number, h.host, h.pid, len(h.units), id(h) in busy) for h in self.living]

    def stop(self) -> None:
        """End the workers; the cluster goes on."""
        for hand in (*self.living, *self.coming):
            self.ray.kill(hand.actor)
        self._reset()

    def close(self) -> None:
        """End the workers, and the cluster where this engine started it."""
        if self.ray is not None and self.ray.is_initialized():
            self.stop()
            if self.began_cluster:
                self.ray.shutdown()
        self.ray = None

    # Collecting estimates.

    def _all(
        self, meta_params: Any, key: PRNGKeyArray, count: int
    ) -> tuple[list[tuple[int, Answer]], list[int], float]:
        """One estimate of every unit, in their order."""
        found: dict[int, Answer] = {}
        busy, keys = 0.0, self._keys(key)
        while len(found) < count:
            out = {unit for call in self.under_way.values() for unit in call.units}
            for hand in self.living:
                if todo := [unit for unit in hand.units if unit not in found and unit not in out]:
                    self._ask(hand, todo, meta_params, [keys[unit] for unit in todo])
            for call, (answers, seconds) in self._answers():
                busy += seconds
                found |= dict(zip(call.units, answers, strict=True))
        return sorted(found.items()), [0] * count, busy

    def _first(
        self, meta_params: Any, key: PRNGKeyArray, count: int
    ) -> tuple[list[tuple[int, Answer]], list[int], float]:
        """The first estimates that are not too old."""
        taken: list[tuple[int, Answer]] = []
        ages: list[int] = []
        busy, wanted = 0.0, self.accumulate or count
        assert self.staleness is not None
        while True:
            while self.spare and len(taken) < wanted:
                call, answers = self.spare.popleft()
                age = self.version - call.version
                if age > self.staleness:
                    self.dropped += 1
                    continue
                taken += zip(call.units, answers, strict=True)
                ages.append(age)
            if len(taken) == wanted:
                return taken, ages, busy
            busy_hands = {id(call.hand) for call in self.under_way.values()}
            for hand in self.living:
                if id(hand) not in busy_hands and hand.units:
                    unit = hand.units[hand.turn % len(hand.units)]
                    hand.turn += 1
                    self.given[unit] = self.given.get(unit, 0) + 1
                    fresh = Keys(np.asarray(_numbers_of_a_later_key(key, unit, self.replicas, self.given[unit])))
                    self._ask(hand, [unit], meta_params, [fresh])
            for call, (answers, seconds) in self._answers():
                busy += seconds
                self.spare.append((call, answers))

    def _ask(self, hand: _Hand, units: Sequence[int], meta_params: Any, keys: Sequence[Keys]) -> None:
        self.calls += 1
        promise = hand.actor.estimates.remote(list(units), meta_params, list(keys))
        self.under_way[promise] = _Call(self.calls, hand, tuple(units), self.version)

    def _answers(self) -> Iterator[tuple[_Call, Any]]:
        """What has come; waits a little for something. Looks after workers that die and workers that come."""
        self._admit()
        if not self.living:
            self._wait_for_workers(1)
        if not self.under_way:
            return
        done, _ = self.ray.wait([*self.under_way], num_returns=1, timeout=POLL_SECONDS)
        if done:
            done, _ = self.ray.wait([*self.under_way], num_returns=len(self.under_way), timeout=0)
        for promise in done:
            call = self.under_way.pop(promise, None)
            if call is None:  # its worker was found dead meanwhile
                continue
            try:
                answer = self.ray.get(promise)
            except deaths(self.ray):
                self._lose(call.hand)
                continue
            yield call, answer

    # Workers that come and go.

    def _summon(self, count: int) -> None:
        """Ask Ray for workers. They come when there is a CPU for them."""
        cache = jax.config.values["jax_compilation_cache_dir"]
        kind = self.ray.remote(Worker).options(num_cpus=1, max_restarts=0, max_task_retries=0)
        for _ in range(count):
            actor = kind.remote(one_thread(), cache)
            self.coming.append(_Hand(self.started, actor, actor.hello.remote()))
            self.started += 1

    def _admit(self, timeout: float = 0.0) -> None:
        """Take in the workers that have come, and give them their share."""
        if not self.coming:
            return
        promises = {hand.hello: hand for hand in self.coming}
        done, _ = self.ray.wait([*promises], num_returns=len(promises) if not timeout else 1, timeout=timeout)
        for promise in done:
            hand = promises[promise]
            self.coming.remove(hand)
            try:
                theirs, hand.pid, hand.host = self.ray.get(promise)
            except deaths(self.ray) as error:
                self.failed += 1
                if self.failed > MOST_FAILED_STARTS:
                    raise Unreachable(f"Workers cannot start: {_last_line(error)}") from error
                self._summon(1)
                continue
            self.failed = 0
            for name, ours in versions().items():
                if theirs.get(name) != ours:
                    raise InputError(
                        f"{name} is {ours} here and {theirs.get(name)} at the worker on {hand.host}; install one."
                    )
            self.living.append(hand)
            self._share(hand)

    def _share(self, newcomer: _Hand) -> None:
        """Move units to a worker that has come, from those that have most."""
        while True:
            most = max(self.living, key=lambda h: len(h.units))
            if len(most.units) < len(newcomer.units) + 2:
                return
            unit = most.units[-1]
            try:  # queued behind what the worker is doing, so it is the state after that
                state = self.ray.get(most.actor.forget.remote(unit))
            except deaths(self.ray):
                self._lose(most)
                continue
            most.units.remove(unit)
            self._give(unit, state, newcomer)

    def _lose(self, hand: _Hand) -> None:
        """A worker is dead: what it was doing is void, its units go to the others, and another worker is asked for."""
        if hand not in self.living:
            return
        self.living.remove(hand)
        self.ray.kill(hand.actor)
        self.under_way = {p: call for p, call in self.under_way.items() if call.hand is not hand}
        self.replaced += 1
        self._summon(1)
        if not self.living:
            self._wait_for_workers(1)
        for unit in hand.units:
            self._give(unit, self.snapshot.get(unit))

    def _wait_for_workers(self, count: int) -> None:
        """Wait for workers: for all that are asked for as long as there is patience, for one at least.

        Raises:
            Unreachable: where none comes.
        """
        until = time.monotonic() + self.patience
        while len(self.living) < count and (left := until - time.monotonic()) > 0:
            self._admit(timeout=min(left, POLL_SECONDS))
        if not self.living:
            raise Unreachable(
                f"No worker could be reached for {self.patience:g} s; the same command goes on from the last meta-step once there is one."
            )

    def _give(self, unit: int, state: Any, to: _Hand | None = None) -> None:
        """Hand a unit to a worker, by default the one that has the fewest."""
        hand = to or min(self.living, key=lambda h: len(h.units))
        hand.units.append(unit)
        hand.actor.load.remote(unit, self.estimators[unit // self.replicas], state)

    # States.

    def _load(self, states: tuple[EstimatorState, ...]) -> None:
        """Give the workers states that this process has."""
        if not self.living:
            raise InputError("The engine has no workers; call begin first.")
        several = self.replicas > 1
        packed = [pack(s) for state in states for s in (state if several else (state,))]
        self.snapshot = dict(enumerate(packed))
        self.under_way.clear()
        self.spare.clear()
        for hand in self.living:
            for unit in hand.units:
                hand.actor.load.remote(unit, self.estimators[unit // self.replicas], self.snapshot[unit])

    def _take_snapshot(self) -> None:
        promises = [(hand, hand.actor.state.remote(hand.units)) for hand in self.living]
        for hand, promise in promises:
            try:
                self.snapshot |= dict(zip(tuple(hand.units), self.ray.get(promise), strict=True))
            except deaths(self.ray):
                pass  # it is missed where its next estimate is waited for

    def _states(self) -> tuple[EstimatorState, ...]:
        found = [unpack(self.snapshot[unit]) for unit in sorted(self.snapshot)]
        if self.replicas == 1:
            return tuple(found)
        return tuple(tuple(found[i : i + self.replicas]) for i in range(0, len(found), self.replicas))

    def _replicas(self, count: int) -> int:
        """How many copies there are of every estimator, each with problems of its own, so that no worker is idle."""
        return 1 if self.staleness is None else -(-self.workers // count)

    def _sent(self, optimizer: Optimizer) -> Any:
        """Meta-parameters on their way: few travel with each call, more are put once where all workers of a machine read them."""
        packed = pack(optimizer)
        return packed if sum(x.nbytes for x in jax.tree.leaves(packed)) < INLINE_BYTES else self.ray.put(packed)

    def _keys(self, key: PRNGKeyArray) -> list[Keys]:
        """Of every unit: that of its estimator, as `Local` has it, for the first replica."""
        found = _numbers_of_keys(key, len(self.estimators), self.replicas)
        return [Keys(numbers) for numbers in np.asarray(found)]


def _fold_in(key: PRNGKeyArray, number: Any) -> PRNGKeyArray:
    """A population has a key for each member."""
    return jnp.vectorize(jax.random.fold_in, excluded={1})(key, number)


def _unit_key(key: PRNGKeyArray, unit: Any, replicas: int) -> PRNGKeyArray:
    own, replica = _fold_in(key, unit // replicas), unit % replicas
    return jnp.where(replica > 0, _fold_in(own, replica), own)


@partial(jax.jit, static_argnums=(1, 2))
def _numbers_of_keys(key: PRNGKeyArray, estimators: int, replicas: int) -> jax.Array:
    """In one program: each operation on its own would take a meta-step milliseconds."""
    units = jnp.arange(estimators * replicas)
    return jax.vmap(lambda unit: jax.random.key_data(_unit_key(key, unit, replicas)))(units)


@partial(jax.jit, static_argnums=2)
def _numbers_of_a_later_key(key: PRNGKeyArray, unit: Any, replicas: int, times: Any) -> jax.Array:
    """The key of a unit that is given out as often as `times`, this time included."""
    return jax.random.key_data(jax.random.fold_in(_unit_key(key, unit, replicas), times))


_merge = jax.jit(merge, static_argnums=1)


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
