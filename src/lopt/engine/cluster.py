"""Meta-gradients from workers of a Ray cluster, synchronous or asynchronous, which outlives its workers."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lopt.checks import at_least, positive
from lopt.engine.connection import connect
from lopt.engine.engine import Engine, Gradients, Unreachable
from lopt.engine.local import merge
from lopt.engine.pool import Call, WorkerHandle, WorkerPool, WorkerStatus
from lopt.engine.worker import Answer, Keys, pack, unpack
from lopt.errors import InputError
from lopt.estimators.estimator import Estimator, EstimatorState
from lopt.optimizer import Optimizer

INLINE_BYTES = 64 * 2**10  # Ray's own limit for an argument is 100 kB


class _Held(NamedTuple):
    """In the place of a state that workers hold."""


class RayEngine(Engine):
    r"""Workers of a Ray cluster hold the estimators and their inner problems; the outer step stays in this process.

    Synchronous, with `staleness=None`: a meta-step waits for one estimate of every estimator. The meta-parameters are bit for bit those of
    `Local(devices=1)` in a process of one thread, whatever the number of workers.

    Asynchronous: workers never wait for each other. A meta-step takes the first $M$ estimates that come,

    $$\theta_{t+1} = \theta_t + U_\text{outer}\Big(\frac1M \sum_{m=1}^M \hat g_m(\theta_{t - a_m})\Big), \qquad a_m \le K,$$

    and an estimate that is older than $K$ meta-steps is dropped and counted. Estimators on faster workers weigh more.
    A call is for $\lfloor M / W \rfloor$ estimates, with $W$ the number of workers that are asked for; at least one, and at most one of each estimator that a
    worker has. While a worker computes, a second call waits there, unless $K M$ estimates are under way already; with $K = 0$ never.
    Mean ages that were measured are 1.0 to 1.7 meta-steps for one to $M$ workers, and 3.7 for $2 M$.

    A worker that dies or hangs is replaced; see `WorkerPool`. Its estimators go on from their last snapshot, at the workers that are left; workers that
    come later take their share. The answer of a call is used at most once. A snapshot travels with an estimate, so that nobody waits for it.

    Metrics: `workers`, `utilisation` (the part of their time that they compute), `replaced` workers so far; asynchronous also `staleness`, the
    mean age of the estimates in meta-steps, and `dropped`, estimates so far.

    Args:
        workers: processes of one thread; each needs a CPU of the cluster.
        address: of a cluster, as in `lopt.engine.connection.connect`; a new one on this machine if `None`.
        staleness: $K$, or `None` for synchronous.
        accumulate: $M$; as many as there are estimators if `None`.
        patience: seconds to wait for a worker where there is none, and for a sign of life of one that is there. Estimates may take longer.
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
        self.pool: WorkerPool | None = None
        self._reset()

    def _reset(self) -> None:
        self.spare: deque[tuple[Call, list[Answer]]] = deque()  # answers that no meta-step has used yet
        self.version = self.dropped = 0
        self.wasted = 0.0  # seconds of dropped estimates since the last meta-step
        self.given: dict[int, int] = {}  # how often each unit was given out
        self.handed: Any = None  # the states that `begin` returned
        self.last = time.perf_counter()

    @property
    def traceable(self) -> bool:
        """False: other processes compute the meta-gradients, so that the outer step alone is compiled here."""
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
        replicas, promises = self._replicas(count), [self.ray.put(pack(e)) for e in estimators]
        self.pool = WorkerPool(self.ray, self.workers, promises, self.ray.put(pack(optimizer)), replicas, self.patience)
        self.pool.start()
        keys = _keys(key, count, replicas)
        self.pool.every("begin", lambda units: ([keys[unit] for unit in units],))
        self.handed = self._states(self.pool)
        return self.handed

    def gradients(
        self,
        optimizer: Optimizer,
        estimators: Sequence[Estimator],
        states: tuple[EstimatorState, ...],
        key: PRNGKeyArray,
    ) -> Gradients:
        """One estimate of every estimator, or the first that come; see the class."""
        if self.pool is None:
            raise InputError("The engine has no workers; call begin first.")
        pool, replicas = self.pool, self.pool.replicas
        if not all(isinstance(state, _Held) for state in states) and states is not self.handed:
            self.spare.clear()
            pool.load([pack(s) for state in states for s in (state if replicas > 1 else (state,))])
        self.handed = None
        if self.version and self.version % self.snapshot_steps == 0:
            pool.due.update(pool.units)
        meta_params = self._sent(optimizer)
        if self.staleness is None:
            answers, ages = self._all(pool, meta_params, key), [0]
        else:
            answers, ages = self._first(pool, meta_params, key, self.staleness, self.accumulate or len(estimators))
        self.version += 1
        steps = [e.inner_steps for e in estimators]
        numbers = [unit // replicas for unit, _ in answers]
        found = [(a.gradient, a.metrics) for _, a in answers]
        gradient, metrics = _merge(jax.tree.structure(optimizer), found, tuple(steps[i] for i in numbers))
        now = time.perf_counter()
        told: dict[str, float] = {"workers": len(pool.living), "replaced": pool.replaced}
        seconds = max(1e-9, (now - self.last) * max(1, len(pool.living)))
        told["utilisation"] = min(1.0, (sum(a.seconds for _, a in answers) + self.wasted) / seconds)
        self.wasted = 0.0
        if self.staleness is not None:
            told |= {"staleness": sum(ages) / len(ages), "dropped": self.dropped}
        self.last = now
        metrics |= {name: np.float32(value) for name, value in told.items()}
        return Gradients(gradient, tuple(_Held() for _ in estimators), metrics)

    def gather(self, states: tuple[EstimatorState, ...]) -> tuple[EstimatorState, ...]:
        """The states of the workers. Where one is lost meanwhile, the last snapshots of its units.

        Asynchronous, they are the last snapshots, because nobody waits for the slowest worker. New ones come with the next estimates, for the next
        checkpoint.
        """
        if self.pool is None or not all(isinstance(state, _Held) for state in states):
            return states
        if self.staleness is not None:
            found = self._states(self.pool)
            self.pool.due.update(self.pool.units)
            return found
        if self.pool.living:
            with contextlib.suppress(Unreachable):  # the next meta-step says so
                self.pool.every("state")
        return self._states(self.pool)

    def status(self) -> list[WorkerStatus]:
        """The workers as they are now."""
        return [] if self.pool is None else self.pool.status()

    def stop(self) -> None:
        """End the workers; the cluster goes on."""
        if self.pool is not None:
            self.pool.stop()
        self.pool = None
        self._reset()

    def close(self) -> None:
        """End the workers, and the cluster where this engine started it."""
        if self.ray is not None and self.ray.is_initialized():
            self.stop()
            if self.began_cluster:
                self.ray.shutdown()
        self.ray = None

    def _all(self, pool: WorkerPool, meta_params: Any, key: PRNGKeyArray) -> list[tuple[int, Answer]]:
        """One estimate of every unit, in their order."""
        keys = _keys(key, len(pool.units), 1)

        def others(units: list[int]) -> tuple[Any, ...]:
            return meta_params, [keys[unit] for unit in units], pool.take_due(units)

        return sorted(pool.every("estimates", others, version=self.version).items())

    def _first(
        self, pool: WorkerPool, meta_params: Any, key: PRNGKeyArray, staleness: int, wanted: int
    ) -> tuple[list[tuple[int, Answer]], list[int]]:
        """The first estimates that are not too old, and their ages."""
        taken: list[tuple[int, Answer]] = []
        ages: list[int] = []
        while True:
            while self.spare and len(taken) < wanted:
                call, answers = self.spare.popleft()
                age = self.version - call.version
                if age > staleness:
                    self.dropped += len(answers)
                    self.wasted += sum(answer.seconds for answer in answers)
                    continue
                used = min(len(answers), wanted - len(taken))
                taken += zip(call.units[:used], answers[:used], strict=True)
                ages += [age] * used
                if used < len(answers):
                    self.spare.appendleft((call._replace(units=call.units[used:]), answers[used:]))
            if len(taken) == wanted:
                return taken, ages
            # A second call waits at each worker, so that it need not wait for the driver. With K M estimates under way another would probably be too old.
            for under_way in (0, 1):
                for worker in pool.ready(under_way=under_way):
                    asked = [c for c in pool.under_way.values() if c.method == "estimates"]
                    if under_way and sum(len(c.units) for c in asked) >= staleness * wanted:
                        break
                    share = max(1, wanted // self.workers)
                    if staleness == 0:  # more than this meta-step still needs would be dropped
                        coming = sum(len(c.units) for c in asked if c.version == self.version)
                        share = min(share, wanted - len(taken) - coming)
                        if share <= 0:
                            break
                    units = self._next(worker, share)
                    times = [self.given.setdefault(unit, 0) + 1 for unit in units]
                    self.given |= dict(zip(units, times, strict=True))
                    numbers = np.asarray(_numbers_of_later_keys(key, units, pool.replicas, times))
                    due = pool.take_due(units)
                    pool.call(worker, "estimates", units, meta_params, [*map(Keys, numbers)], due, version=self.version)
            self.spare += pool.answers()

    def _next(self, worker: WorkerHandle, count: int) -> list[int]:
        """The next units of a worker, which take turns; all where there are fewer."""
        count = min(count, len(worker.units))
        found = [worker.units[(worker.turn + i) % len(worker.units)] for i in range(count)]
        worker.turn += count
        return found

    def _states(self, pool: WorkerPool) -> tuple[EstimatorState, ...]:
        found, n = [unpack(pool.snapshot.get(unit)) for unit in pool.units], pool.replicas
        return tuple(found) if n == 1 else tuple(tuple(found[i : i + n]) for i in range(0, len(found), n))

    def _replicas(self, count: int) -> int:
        """How many copies there are of every estimator, each with problems of its own, so that no worker is idle."""
        return 1 if self.staleness is None else -(-self.workers // count)

    def _sent(self, optimizer: Optimizer) -> Any:
        """Leaves of meta-parameters on their way: few travel with each call, more are put once where all workers of a machine read them."""
        leaves = jax.device_get(jax.tree.leaves(optimizer))
        return leaves if sum(x.nbytes for x in leaves) < INLINE_BYTES else self.ray.put(leaves)


def _keys(key: PRNGKeyArray, estimators: int, replicas: int) -> list[Keys]:
    """Of every unit: that of its estimator, as `Local` has it, for the first replica."""
    return [Keys(numbers) for numbers in np.asarray(_numbers_of_keys(key, estimators, replicas))]


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
def _numbers_of_later_keys(key: PRNGKeyArray, units: list[Any], replicas: int, times: list[Any]) -> jax.Array:
    """The keys of units that are given out as often as `times`, this time included."""
    keys = [jax.random.fold_in(_unit_key(key, u, replicas), t) for u, t in zip(units, times, strict=True)]
    return jnp.stack([jax.random.key_data(k) for k in keys])


@partial(jax.jit, static_argnums=(0, 2))
def _merge(structure: Any, found: Sequence[tuple[list[Any], dict[str, Any]]], inner_steps: tuple[int, ...]) -> Any:
    """`merge` of meta-gradients that come as leaves of a structure."""
    return merge([(jax.tree.unflatten(structure, leaves), metrics) for leaves, metrics in found], inner_steps)


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()
