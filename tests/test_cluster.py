"""Meta-training on Ray: the numbers of `Local`, staleness, and workers, drivers and nodes that go away. One cluster for the file."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest

import lopt
from lopt import checkpoint, cli
from lopt.engine import Drawn, Local, RayEngine, Unreachable, connection, worker
from lopt.engine import cluster as cluster_module
from lopt.engine import pool as pool_module
from lopt.errors import InputError
from lopt.estimators import PES, Estimator, PerTask
from lopt.machine import one_thread
from lopt.meta_train import meta_train
from lopt.optimizers import Momentum
from lopt.population import Population, Rules, evolve
from lopt.run_directory import METRICS

KEY = jax.random.key(5)
STEPS = 60

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),  # Ray starts its own processes, which are not JAX's
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),  # those
]


def cluster(test: Any) -> Any:
    """A test that needs the cluster, which `make test-slow` runs last and alone."""
    return pytest.mark.slow(pytest.mark.ray(test))


def mixture(count: int = 3) -> tuple[Estimator, ...]:
    """Estimators of different shapes, one with a state of its own."""
    found: list[Estimator] = [
        PES(lopt.tasks.Quadratic(dim=2 + i, noise=0.1), pairs=2, truncation=5, horizon=(5, 20)) for i in range(count)
    ]
    return (PerTask(found[0], optax.scale_by_adam()), *found[1:])


def arguments(count: int = 3) -> tuple[Any, ...]:
    return Momentum(learning_rate=0.1), mixture(count), optax.adam(1e-2)


def numbers(state: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(state.optimizer)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def population(**changes: Any) -> Population:
    """Three members on two estimators; the copies take over inner problems, which the workers must be given."""
    rules = Rules(steps=3, horizon=10, problems=1, replaced=0.34, perturb=0.1)
    given: dict[str, Any] = {"cycles": 4, "key": KEY, **changes}
    members = [Momentum(learning_rate=rate) for rate in (0.01, 0.03, 0.1)]
    return evolve(members, mixture(2), [lopt.tasks.Quadratic(dim=2)], rules, **given)


# --- Without Ray. ---


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"staleness": -1}, "staleness is -1; it must be at least 0"),
        ({"accumulate": 2}, "accumulate is 2; only an asynchronous engine"),
        ({"staleness": 1, "accumulate": 0}, "accumulate is 0; it must be at least 1"),
        ({"patience": 0.0}, "patience is 0.0; it must be positive"),
        ({"snapshot_steps": 0}, "snapshot_steps is 0; it must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        RayEngine(**fields)


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="The package ray is not installed; it comes with the extra ray"):
        RayEngine(2).begin(*arguments()[:2], KEY)


def test_an_estimator_is_not_split_over_workers() -> None:
    with pytest.raises(InputError, match="workers is 4; a synchronous run has one for each of its 3 estimators"):
        RayEngine(4).begin(*arguments()[:2], KEY)


def test_the_command_line_refuses_fields_of_another_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["meta-train", "--recipe", "smoke", "--staleness", "2"])
    assert stop.value.code == 2
    assert "are for --engine ray" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nowhere", "address is 'nowhere'; it must be auto, HOST:PORT or ray://HOST:PORT"),
        ("127.0.0.1:{free}", "nothing answers there"),
        ("ray://127.0.0.1:{free}", "nothing answers there"),
    ],
)
def test_an_address_that_does_not_answer_is_refused(address: str, words: str) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # not listening
        with pytest.raises(InputError, match=words):
            connection.connect(address.format(free=held.getsockname()[1]))


class Instant:
    """In the place of a worker: an estimate of nothing, which takes two seconds, for each call."""

    class estimates:
        @staticmethod
        def remote(units: list[int], *_: Any) -> list[worker.Answer]:
            gradient = jax.tree.leaves(worker.pack(Momentum(learning_rate=0.1)))
            return [worker.Answer(None, gradient, {"meta_loss": np.zeros(())}, 2.0) for _ in units]


class Answering(pool_module.WorkerPool):
    """A pool of three such workers, by default with a unit each, whose calls are answered one at a time, the oldest first."""

    def __init__(self, units: int = 1) -> None:
        super().__init__(None, 3, [None] * 3 * units, None, 1, 1.0)
        self.living = [
            pool_module.WorkerHandle(i, Instant, None, units=[i + 3 * k for k in range(units)]) for i in range(3)
        ]
        self.homeless = []
        self.most = 0  # calls under way at a time

    def call(self, handle: Any, method: str, units: Any, *others: Any, version: int = 0) -> None:
        found = getattr(handle.actor, method).remote([*units], *others)
        self.under_way[len(self.under_way) + self.calls] = call = pool_module.Call(
            self.calls, handle, method, tuple(units), version
        )
        self.calls += 1
        self.found = {**getattr(self, "found", {}), call: found}

    def answers(self) -> Iterator[Any]:
        self.most = max(self.most, len(self.under_way))
        promise, call = next((p, c) for p, c in self.under_way.items() if c.method == "estimates")
        del self.under_way[promise]
        yield call, self.found.pop(call)


@pytest.mark.parametrize(
    ("staleness", "accumulate", "most"),
    [(5, 4, 6), (1, 4, 4), (1, 1, 3), (0, 4, 3)],
    ids=["two each", "as many as are young enough", "one each", "no second one without staleness"],
)
def test_a_second_call_waits_at_a_worker_where_it_will_not_be_too_old(
    staleness: int, accumulate: int, most: int
) -> None:
    it: Any = RayEngine(3, staleness=staleness)
    it.pool = pool = Answering()
    for _ in range(5):
        taken, ages = it._first(pool, None, KEY, staleness, accumulate)
        it.version += 1
        assert len(taken) == accumulate
        assert max(ages) <= staleness
    assert pool.most == most


@pytest.mark.parametrize(
    ("accumulate", "sizes"),
    [(2, {1}), (3, {1}), (7, {2}), (9, {3}), (12, {3})],
    ids=["fewer estimates than workers", "as many", "a part left over", "three each", "no unit twice"],
)
def test_calls_share_the_estimates_of_a_meta_step(accumulate: int, sizes: set[int]) -> None:
    """Three workers with three units each. What a meta-step leaves of an answer is the next one's, and all units take turns."""
    it: Any = RayEngine(3, staleness=5)
    it.pool = pool = Answering(units=3)
    seen: list[int] = []
    for _ in range(9):
        taken, ages = it._first(pool, None, KEY, 5, accumulate)
        it.version += 1
        assert len(taken) == len(ages) == accumulate
        seen += [unit for unit, _ in taken]
    assert {len(call.units) for call in pool.under_way.values()} == sizes
    assert set(seen) == set(range(9)) if accumulate > 2 else len(set(seen)) > 3
    assert max(seen.count(unit) for unit in set(seen)) - min(seen.count(unit) for unit in set(seen)) <= 2
    assert it.dropped == 0


@pytest.mark.parametrize("accumulate", [2, 3, 6, 7])
def test_without_staleness_nothing_is_computed_in_vain(accumulate: int) -> None:
    it: Any = RayEngine(3, staleness=0)
    it.pool = pool = Answering(units=3)
    for _ in range(20):
        taken, ages = it._first(pool, None, KEY, 0, accumulate)
        it.version += 1
        assert len(taken) == accumulate
        assert not any(ages)
        assert not pool.under_way
    assert it.dropped == 0


def test_a_worker_that_gives_a_unit_away_is_not_asked() -> None:
    it: Any = RayEngine(3, staleness=5)
    it.pool = pool = Answering()
    pool.under_way["promise"] = pool_module.Call(0, pool.living[1], "forget", (1,), 0)
    taken, _ = it._first(pool, None, KEY, 5, 4)
    assert {unit for unit, _ in taken} == {0, 2}


def test_a_state_is_asked_for_once_and_again_where_its_worker_is_lost() -> None:
    pool = Answering()
    pool.ray = SimpleNamespace(kill=lambda actor: None)
    pool.due = {0, 1}
    assert pool.take_due([1, 2]) == [True, False]
    assert pool.take_due([1, 2]) == [False, False]
    pool._lose(pool.living[1])
    assert pool.due == {0, 1}


def test_dropped_estimates_count_as_work() -> None:
    it: Any = RayEngine(3, staleness=1)
    it.pool, it.version, it.last = Answering(), 7, time.perf_counter() - 10
    old = pool_module.Call(0, it.pool.living[0], "estimates", (0,), 3)
    it.spare.append((old, Instant.estimates.remote([0])))
    estimators = mixture()
    held = tuple(cluster_module._Held() for _ in estimators)
    found = it.gradients(Momentum(learning_rate=0.1), estimators, held, KEY)
    assert found.metrics["dropped"] == 1
    assert found.metrics["utilisation"] == pytest.approx((3 + 1) * 2.0 / (3 * 10), rel=0.1)
    assert it.wasted == 0.0


def test_states_travel_with_their_keys() -> None:
    tree = {"key": jax.random.split(KEY, 2), "x": np.arange(3.0)}
    back = worker.unpack(worker.pack(tree))
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(tree["key"]))
    np.testing.assert_array_equal(back["x"], tree["x"])
    assert back["key"].dtype == tree["key"].dtype


def test_every_unit_has_a_key_of_its_own() -> None:
    """That of its estimator, as in one process, for the first replica; and another each time that it is given out."""

    def folded(key: Any, *numbers: int) -> np.ndarray:
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return np.asarray(jax.random.key_data(key))

    found = np.asarray(cluster_module._numbers_of_keys(KEY, 3, 2))
    expected = [folded(KEY, unit // 2, *([unit % 2] if unit % 2 else [])) for unit in range(6)]
    np.testing.assert_array_equal(found, expected)
    assert len({tuple(x) for x in found.tolist()}) == 6
    later = cluster_module._numbers_of_later_keys(KEY, [3, 0], 2, [5, 2])
    np.testing.assert_array_equal(later, [folded(KEY, 1, 1, 5), folded(KEY, 0, 2)])
    several = np.asarray(cluster_module._numbers_of_keys(jax.random.split(KEY, 4), 2, 1))  # a population
    for member, key in enumerate(jax.random.split(KEY, 4)):
        np.testing.assert_array_equal(several[:, member], [folded(key, 0), folded(key, 1)])


def test_a_worker_computes_on_one_thread_unless_its_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x")
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    first = one_thread()
    assert first == {"XLA_FLAGS": "--xla_dump_to=/x --xla_cpu_multi_thread_eigen=false", "PJRT_NPROC": "1"}
    monkeypatch.setenv("XLA_FLAGS", first["XLA_FLAGS"])
    monkeypatch.setenv("PJRT_NPROC", "2")
    assert one_thread() == first | {"PJRT_NPROC": "2"}


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (Local(), r"engine is Local\(devices=None\); a population takes one with workers, or None"),
        (
            RayEngine(2, staleness=3),
            "engine leaves out some estimates; all members of a population take their meta-steps together",
        ),
        (Drawn([1, 1]), "engine leaves out some estimates"),
    ],
)
def test_a_population_refuses_other_engines(engine: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        population(engine=engine)


def test_self_train_refuses_an_address_of_no_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["self-train", "--address", "auto"])
    assert "address is for --engine ray; the engine is local." in " ".join(capsys.readouterr().err.split())


def test_what_must_agree_does_not_name_the_workers() -> None:
    """So that a synchronous run goes on with more of them; replicas are other estimators."""
    estimators = mixture()
    assert RayEngine(1).describe(estimators) == RayEngine(3).describe(estimators)
    described = {"engine": "ray", "staleness": 4, "accumulate": 3}
    assert RayEngine(3, staleness=4).describe(estimators) == described | {"replicas": 1}
    assert RayEngine(7, staleness=4).describe(estimators) == described | {"replicas": 3}


# --- With Ray. ---


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Several nodes on this machine, of a CPU each, whatever the number of cores."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    for name, value in connection.QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": connection.STORE_BYTES}
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
    yield ray, cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def engine(ray_cluster: Any) -> Iterator[Callable[..., RayEngine]]:
    """Makes engines, and ends their workers after the test."""
    del ray_cluster
    made: list[RayEngine] = []

    def make(*args: Any, **fields: Any) -> RayEngine:
        made.append(RayEngine(*args, **fields))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    """What `Local` makes of the mixture."""
    return numbers(meta_train(*arguments(), steps=STEPS, key=KEY, engine=Local(devices=1)))


def kill_at(moments: set[int], engine: RayEngine) -> Callable[[Any], None]:
    def on_step(progress: Any) -> None:
        if progress.step in moments:
            os.kill(random.Random(progress.step).choice(engine.status()).pid, signal.SIGKILL)
            time.sleep(3.0 if engine.staleness is not None else 0.0)  # others would go on before Ray knows

    return on_step


@cluster
@pytest.mark.parametrize(("workers", "inline_bytes"), [(1, 0), (3, 2**16)])
def test_synchronous_numbers_are_those_of_local(
    engine: Any, expected: list[np.ndarray], workers: int, inline_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether meta-parameters travel with the call or are put where workers read them."""
    monkeypatch.setattr(cluster_module, "INLINE_BYTES", inline_bytes)
    found = meta_train(*arguments(), steps=STEPS, key=KEY, engine=engine(workers))
    for x, y in zip(numbers(found), expected, strict=True):
        np.testing.assert_array_equal(x, y)


@cluster
def test_a_synchronous_run_resumes_bit_for_bit_on_other_workers(
    engine: Any, expected: list[np.ndarray], tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.step == STEPS // 2:
            raise Stopped

    with pytest.raises(Stopped):
        meta_train(
            *arguments(),
            steps=STEPS,
            key=KEY,
            engine=engine(2),
            run_dir=tmp_path,
            checkpoint_seconds=0.0,
            on_step=stop,
        )
    found = meta_train(*arguments(), steps=STEPS, key=KEY, engine=engine(1), run_dir=tmp_path)
    for x, y in zip(numbers(found), expected, strict=True):
        np.testing.assert_array_equal(x, y)


@cluster
def test_a_population_has_the_numbers_of_one_process(engine: Any, tmp_path: Path) -> None:
    """With two workers, and resumed with one."""

    class Stopped(Exception):
        pass

    def stop(report: Any) -> None:
        if report.cycle == 2:
            raise Stopped

    expected = checkpoint.digest(population())
    both = engine(2)
    assert checkpoint.digest(population(engine=both)) == expected
    with pytest.raises(Stopped):
        population(engine=both, run_dir=tmp_path, checkpoint_seconds=0.0, on_cycle=stop)
    both.stop()
    assert checkpoint.digest(population(engine=engine(1), run_dir=tmp_path)) == expected


@cluster
@pytest.mark.parametrize("staleness", [None, 5])
def test_killed_workers_are_replaced(engine: Any, tmp_path: Path, staleness: int | None) -> None:
    """At three moments, some of them while they compute; the run has the same number of meta-steps, each logged once."""
    it = engine(2, staleness=staleness, snapshot_steps=10)  # the third CPU is for those that come
    moments = set(random.Random(7).sample(range(5, STEPS - 5), 3))
    meta_train(*arguments(), steps=STEPS, key=KEY, engine=it, run_dir=tmp_path, on_step=kill_at(moments, it))
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [*range(1, STEPS + 1)]
    assert found[-1]["replaced"] == 3
    assert all(np.isfinite(line["meta_loss"]) for line in found)


@cluster
def test_old_estimates_are_dropped_and_counted(engine: Any, tmp_path: Path) -> None:
    """With one estimate a meta-step, two of three workers are always late: they are used where the limit allows, and not asked where none would be."""

    def metrics(staleness: int) -> list[dict[str, Any]]:
        folder, it = tmp_path / str(staleness), engine(3, staleness=staleness, accumulate=1)
        # Slow enough that all workers have compiled long before the end.
        meta_train(*arguments(), steps=STEPS, key=KEY, engine=it, run_dir=folder, on_step=lambda _: time.sleep(0.2))
        it.stop()  # its workers, for the CPUs of the next one's
        return lines(folder)

    none, strict, loose = metrics(0), metrics(1), metrics(9)
    assert max(line["staleness"] for line in none) == 0
    assert none[-1]["dropped"] == 0
    assert max(line["staleness"] for line in strict) <= 1
    assert strict[-1]["dropped"] > 0
    assert 1 < max(line["staleness"] for line in loose) <= 9
    assert loose[-1]["dropped"] < strict[-1]["dropped"]
    assert all(0 <= line["utilisation"] <= 1 for line in loose)
    assert max(line["utilisation"] for line in loose) > 0


@cluster
def test_no_answer_is_used_twice(engine: Any) -> None:
    """What a meta-step averages are answers of calls of their own; each answer that came is in one meta-step, is dropped, or waits."""
    it = engine(2, staleness=50, accumulate=2)
    came: list[tuple[int, Any]] = []
    merged: list[Any] = []
    first = it._first

    def noted(pool: Any, *others: Any) -> Any:
        if not merged:
            answers = pool.answers

            def note() -> Iterator[Any]:
                for call, found in answers():
                    came.extend((call.number, answer) for answer in found)
                    yield call, found

            pool.answers = note
        taken, ages = first(pool, *others)
        merged.extend(answer for _, answer in taken)
        return taken, ages

    it._first = noted
    meta_train(*arguments(), steps=STEPS, key=KEY, engine=it, on_step=kill_at({20}, it))
    assert it.pool.replaced == 1
    of = {id(answer): number for number, answer in came}
    numbers = [of[id(answer)] for answer in merged]
    assert len(numbers) == len(set(numbers)) == 2 * STEPS
    assert len({number for number, _ in came}) == len(came) == 2 * STEPS + it.dropped + len(it.spare)


@cluster
def test_a_worker_that_dies_at_its_start_is_replaced(
    engine: Any, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner problems are drawn again at the others: nothing is lost, so the numbers are those of `Local`."""
    call, killed = pool_module.WorkerPool.call, []

    def kill(pool: Any, worker: Any, method: str, *others: Any, **fields: Any) -> None:
        if method == "begin" and not killed:
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
        call(pool, worker, method, *others, **fields)

    monkeypatch.setattr(pool_module.WorkerPool, "call", kill)
    it = engine(2)
    found = meta_train(*arguments(), steps=STEPS, key=KEY, engine=it)
    assert it.pool.replaced == 1
    for x, y in zip(numbers(found), expected, strict=True):
        np.testing.assert_array_equal(x, y)


@cluster
def test_a_worker_that_hangs_is_replaced(engine: Any, tmp_path: Path) -> None:
    """And its process is ended, or it would keep the memory and, once it wakes, the CPU of another."""
    it, hanging = engine(2), []

    def on_step(progress: Any) -> None:
        if progress.step == 7:
            it.pool.patience = 8.0
            hanging.append(it.status()[0].pid)
            os.kill(hanging[0], signal.SIGSTOP)

    meta_train(*arguments(), steps=STEPS, key=KEY, engine=it, run_dir=tmp_path, on_step=on_step)
    assert [line["step"] for line in lines(tmp_path)] == [*range(1, STEPS + 1)]
    assert lines(tmp_path)[-1]["replaced"] == 1
    until = time.monotonic() + 60
    while runs(hanging[0]):
        assert time.monotonic() < until, "the process is there still"
        time.sleep(0.2)


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@cluster
def test_a_long_estimate_is_no_hang(engine: Any) -> None:
    it, seconds = engine(1), []
    estimator = PES(lopt.tasks.Quadratic(dim=2, noise=0.1), pairs=1, truncation=6_000_000, horizon=6_000_000)

    def on_step(_: Any) -> None:
        seconds.append(time.monotonic())
        it.pool.patience = 3.0

    optimizer, _, outer = arguments()
    meta_train(optimizer, estimator, outer, steps=2, key=KEY, engine=it, on_step=on_step)
    assert seconds[1] - seconds[0] > 2 * it.pool.patience
    assert it.pool.replaced == 0


@cluster
def test_workers_that_cannot_start_end_no_run_that_has_others(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying:
        def __init__(self, *_: Any):
            os._exit(1)

        def hello(self) -> None: ...

    it = engine(2)

    def on_step(progress: Any) -> None:
        if progress.step == 5:
            monkeypatch.setattr(pool_module, "Worker", Dying)
            os.kill(it.status()[0].pid, signal.SIGKILL)
        waits = 5 <= progress.step < STEPS and it.pool.failed <= pool_module.MOST_FAILED_STARTS
        time.sleep(0.5 if waits else 0.0)

    meta_train(*arguments(), steps=STEPS, key=KEY, engine=it, run_dir=tmp_path, on_step=on_step)
    assert it.pool.failed > pool_module.MOST_FAILED_STARTS
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [*range(1, STEPS + 1)]
    assert found[-1]["workers"] == 1
    it.stop()
    with pytest.raises(Unreachable, match="Workers cannot start"):
        it.begin(*arguments()[:2], KEY)


@cluster
def test_snapshots_and_checkpoints_wait_for_no_worker(engine: Any) -> None:
    """Asynchronous, states come with estimates: nothing else is asked for, and a checkpoint has what has come."""
    it = engine(2, staleness=9, snapshot_steps=5)
    digests, asked = [], []

    def on_step(progress: Any) -> None:
        asked.append({call.method for call in it.pool.under_way.values()})
        if progress.step % 20 == 0:
            calls = it.pool.calls
            digests.append(checkpoint.digest(it.gather((cluster_module._Held(),))))
            assert it.pool.calls == calls

    meta_train(*arguments(), steps=STEPS, key=KEY, engine=it, on_step=on_step)
    assert set.union(*asked) == {"estimates"}
    assert len(set(digests)) == 3


@cluster
def test_a_process_has_one_cluster(ray_cluster: Any) -> None:
    _, cluster = ray_cluster
    port = cluster.address.rpartition(":")[2]
    for address in (None, "auto", cluster.address, f"127.0.0.1:{port}", f"localhost:{port}"):
        connection.connect(address)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(InputError, match=f"address is '{address}'; this process is connected to the cluster at"):
            connection.connect(address)


@cluster
def test_a_node_leaves_and_another_joins(ray_cluster: Any, engine: Any, tmp_path: Path) -> None:
    """The work of its worker moves to the one that is left, and a part of it to the node that joins."""
    _, cluster = ray_cluster
    first = cluster.add_node(num_cpus=1, object_store_memory=connection.STORE_BYTES)
    cluster.wait_for_nodes()
    it = engine(4, staleness=5, snapshot_steps=5)
    seen: list[tuple[int, int]] = []  # workers, and those that have something to do
    joined: list[Any] = []

    def on_step(progress: Any) -> None:
        if progress.step == 10:
            cluster.remove_node(first, allow_graceful=False)
        if progress.step == 40:
            joined.append(cluster.add_node(num_cpus=1, object_store_memory=connection.STORE_BYTES))
        seen.append((len(it.status()), sum(w.units > 0 for w in it.status())))
        settled = progress.step <= 10 or ((3, 3) in seen if progress.step <= 40 else seen[-1] == (4, 4))
        time.sleep(0.0 if settled else 1.0)

    try:
        meta_train(*arguments(), steps=120, key=KEY, engine=it, run_dir=tmp_path, on_step=on_step)
    finally:
        for node in joined:
            cluster.remove_node(node)
    assert seen[0] == (4, 4)
    assert (3, 3) in seen
    assert seen[-1] == (4, 4)
    assert [line["step"] for line in lines(tmp_path)] == [*range(1, 121)]


@cluster
def test_without_a_worker_the_run_is_saved(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = engine(1)

    def on_step(progress: Any) -> None:
        if progress.step == 7:
            it.pool.patience = 1.0
            monkeypatch.setattr(it.pool, "_summon", lambda count: None)  # as where no machine is left
            os.kill(it.status()[0].pid, signal.SIGKILL)

    with pytest.raises(Unreachable, match="No worker could be reached for 1 s; the same command goes on"):
        meta_train(*arguments(), steps=STEPS, key=KEY, engine=it, run_dir=tmp_path, on_step=on_step)
    assert len(lines(tmp_path)) == 7
    meta_train(*arguments(), steps=STEPS, key=KEY, engine=engine(1), run_dir=tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [*range(1, STEPS + 1)]


DRIVER = """
import sys, lopt
sys.path.insert(0, {tests!r})
import test_cluster as t
from lopt.engine import RayEngine
t.meta_train(*t.arguments(), steps=t.STEPS, key=t.KEY, engine=RayEngine(2, address={address!r}, patience=120.0),
             run_dir={folder!r}, checkpoint_seconds=0.0)
"""


@cluster
def test_a_killed_driver_resumes_bit_for_bit(
    ray_cluster: Any, engine: Any, expected: list[np.ndarray], tmp_path: Path
) -> None:
    """At three moments; the same call goes on each time."""
    _, cluster = ray_cluster
    code = DRIVER.format(tests=str(Path(__file__).parent), address=cluster.address, folder=str(tmp_path))
    metrics = tmp_path / METRICS
    for moment in sorted(random.Random(3).sample(range(2, STEPS - 5), 3)):
        driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 200
        while (not metrics.exists() or len(metrics.read_bytes().splitlines()) < moment) and time.monotonic() < until:
            assert driver.poll() is None, "the driver ended before it could be killed"
            time.sleep(0.01)
        driver.kill()
        driver.wait()
    assert len(metrics.read_bytes().splitlines()) < STEPS
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert [line["step"] for line in lines(tmp_path)] == [*range(1, STEPS + 1)]
    found = meta_train(*arguments(), steps=STEPS, key=KEY, engine=engine(2), run_dir=tmp_path)
    for x, y in zip(numbers(found), expected, strict=True):
        np.testing.assert_array_equal(x, y)


@cluster
def test_more_workers_than_the_cluster_has_cpus_are_refused(engine: Any) -> None:
    with pytest.raises(InputError, match=r"workers is 99; the cluster has \d+ CPUs for them"):
        engine(99, staleness=1).begin(*arguments()[:2], KEY)


@cluster
def test_workers_of_another_version_are_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "versions", lambda: worker.versions() | {"lopt": "9.9"})
    with pytest.raises(InputError, match=r"lopt is 9\.9 here and .* at the worker on .*; install one"):
        engine(1).begin(*arguments()[:2], KEY)


@cluster
def test_a_late_worker_of_another_version_ends_no_run(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, which one warning says, and the run goes on with the others."""
    it = engine(2)

    def on_step(progress: Any) -> None:
        if progress.step == 5:
            monkeypatch.setattr(pool_module, "versions", lambda: worker.versions() | {"lopt": "9.9"})
            os.kill(it.status()[0].pid, signal.SIGKILL)
        time.sleep(0.5 if 5 <= progress.step < STEPS and it.pool.failed < 2 else 0.0)

    with pytest.warns(UserWarning, match="refused") as warned:
        meta_train(*arguments(), steps=STEPS, key=KEY, engine=it, run_dir=tmp_path, on_step=on_step)
    assert it.pool.failed >= 2
    (said,) = [str(warning.message) for warning in warned if "refused" in str(warning.message)]
    assert "the run goes on without it: lopt is 9.9 here" in said
    assert [line["step"] for line in lines(tmp_path)] == [*range(1, STEPS + 1)]
    assert lines(tmp_path)[-1]["workers"] == 1


@cluster
def test_the_units_of_a_bench_run_on_the_cluster(ray_cluster: Any) -> None:
    """A job that raises and a worker that dies are outcomes; the rest is done."""
    del ray_cluster
    from lopt.evaluate.bench.cluster import RayWorkers
    from lopt.evaluate.bench.workers import Job, work

    jobs = [Job(i % 2, i, divmod, (7, i)) for i in range(4)] + [Job(2, "dies", os._exit, (3,))]
    found = {name: (result, error) for name, result, error in work(jobs, 2, kind=RayWorkers())}
    assert found.pop("dies") == (None, "the worker died")
    result, error = found.pop(0)
    assert result is None
    assert error.startswith("ZeroDivisionError")
    assert found == {i: (divmod(7, i), None) for i in (1, 2, 3)}
