"""How far does meta-training scale? What was measured here, and a discrete-event simulation of 1 to 10,000 asynchronous workers.

Run: `python benchmarks/scaling.py` (a simulation with the given costs), or `--measured 1 2` to measure the costs here first, and to compare
the simulation with real runs. Writes `benchmarks/results/scaling.json`.

The model: a worker computes for a log-normal time, in some steps many times longer; its answer passes the driver's network card and waits for the
driver, which takes estimates one after the other and makes an outer step of every so many. Workers fail at random and are replaced. Three ways
to run: each worker on its own; a hundred workers behind an accumulator that sends one sum for every hundred estimates; workers with ten times the particles.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import simpy
import tyro

from common import RESULTS, header, machine, show, write


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds and bytes, as measured; see `measure`."""

    step: float = 0.05  # of one estimate
    sigma: float = 0.3  # of the logarithm of that time
    stragglers: float = 0.01  # the part of the steps that take ten times as long
    estimate: float = 0.0015  # of the driver, for each estimate
    outer: float = 0.002  # of the driver, for each outer step
    message: int = 20_000  # each way
    bandwidth: float = 1.25e8  # bytes a second of the driver's network card
    latency: float = 0.0005
    life: float = 24 * 3600.0  # mean time until a worker fails
    replace: float = 20.0


@dataclasses.dataclass
class Outcome:
    """What a simulation found."""

    taken: int = 0
    dropped: int = 0
    steps: int = 0
    seconds: float = 0.0
    driver: float = 0.0  # busy seconds
    card: float = 0.0
    ages: list[int] = dataclasses.field(default_factory=list)


def simulate(
    workers: int,
    costs: Costs,
    *,
    accumulate: int,
    staleness: int,
    group: int = 1,
    estimates: int = 20,
    seed: int = 0,
    cpus: int | None = None,
) -> Outcome:
    """Asynchronous workers until each has made about so many estimates.

    Args:
        workers: how many.
        costs: of everything.
        accumulate: estimates an outer step.
        staleness: the greatest age, in outer steps.
        group: workers behind one accumulator; 1 for none.
        estimates: a worker.
        seed: of all times.
        cpus: that workers share; one each if `None`.
    """
    env, rng, found = simpy.Environment(), random.Random(seed), Outcome()
    driver, card = simpy.Resource(env), simpy.Resource(env)
    cores = None if cpus is None else simpy.Resource(env, cpus)
    state = {"version": 0, "sum": 0}
    waiting: dict[int, list[int]] = {}
    end = estimates * costs.step * math.exp(costs.sigma**2 / 2) * (1 + 9 * costs.stragglers)
    wire = costs.message / costs.bandwidth

    def deliver(versions: list[int]) -> Generator[Any, Any, None]:
        """One message to the driver, whatever it sums up."""
        with card.request() as turn:
            yield turn
            yield env.timeout(2 * wire)
            found.card += 2 * wire
        with driver.request() as turn:
            yield turn
            yield env.timeout(costs.estimate)
            found.driver += costs.estimate
            for version in versions:
                age = state["version"] - version
                if age > staleness:
                    found.dropped += 1
                    continue
                found.taken += 1
                found.ages.append(age)
                state["sum"] += 1
            while state["sum"] >= accumulate:
                yield env.timeout(costs.outer)
                found.driver += costs.outer
                state["sum"] -= accumulate
                state["version"] += 1

    def worker(number: int) -> Generator[Any, Any, None]:
        fails = rng.expovariate(1 / costs.life)
        yield env.timeout(rng.random() * costs.step)
        while True:
            version = state["version"]
            seconds = costs.step * rng.lognormvariate(0, costs.sigma) * (10 if rng.random() < costs.stragglers else 1)
            if cores is None:
                yield env.timeout(seconds)
            else:
                with cores.request() as turn:
                    yield turn
                    yield env.timeout(seconds)
            if env.now > fails:
                yield env.timeout(costs.replace)
                fails = env.now + rng.expovariate(1 / costs.life)
                continue
            yield env.timeout(2 * costs.latency)
            if group == 1:
                yield from deliver([version])
                continue
            queue = waiting.setdefault(number // group, [])
            queue.append(version)
            if len(queue) >= min(group, workers):
                versions, queue[:] = [*queue], []
                env.process(deliver(versions))

    for number in range(workers):
        env.process(worker(number))
    env.run(until=end)
    found.steps, found.seconds = state["version"], end
    return found


def row(name: str, workers: int, found: Outcome, costs: Costs, particles: int = 1) -> dict[str, Any]:
    """What a table says of a simulation."""
    ideal = workers * found.seconds / (costs.step * math.exp(costs.sigma**2 / 2) * (1 + 9 * costs.stragglers))
    ages = sorted(found.ages) or [0]
    used = {"the driver": found.driver / found.seconds, "its network card": found.card / found.seconds}
    most = max(used, key=lambda k: used[k])
    return {
        "way": name,
        "workers": workers,
        "estimates_per_second": round(particles * found.taken / found.seconds, 1),
        "efficiency": round(found.taken / ideal, 3),
        "staleness_median": statistics.median(ages),
        "staleness_95": ages[int(0.95 * (len(ages) - 1))],
        "dropped": round(found.dropped / max(1, found.taken + found.dropped), 4),
        "driver_busy": round(used["the driver"], 3),
        "card_busy": round(used["its network card"], 3),
        "bottleneck": most if used[most] > 0.9 else "none",
    }


def measure(workers: int, steps: int) -> dict[str, Any]:
    """A real asynchronous run on the demo's mixture: throughput, staleness, and the costs of its parts."""
    import jax
    import numpy as np

    from lopt.engine import RayEngine, worker
    from lopt.meta_train import meta_train
    from lopt.recipes import recipe

    optimizer, estimators, outer = recipe("demo").build(jax.random.key(0), steps)
    engine: Any = RayEngine(workers, staleness=50, accumulate=len(estimators), patience=300.0)
    seconds: list[float] = []
    ages: list[int] = []
    answers, first = engine._answers, engine._first

    def noted() -> Any:
        for call, answer in answers():
            seconds.append(answer[1])
            ages.append(engine.version - call.version)
            yield call, answer

    engine._answers = noted
    waited: list[float] = []

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return first(*args)
        finally:
            waited.append(time.perf_counter() - began)

    engine._first = timed
    at: list[float] = []
    processor: list[float] = []

    def on_step(_: Any) -> None:
        at.append(time.perf_counter())
        processor.append(time.process_time())

    meta_train(optimizer, estimators, outer, steps=steps, key=jax.random.key(1), engine=engine, on_step=on_step)
    engine.close()
    half = len(at) // 2  # before that, programs are compiled
    took = at[-1] - at[half]
    count = (len(at) - 1 - half) * len(estimators)
    steady = np.array(seconds[len(seconds) // 2 :])
    sent = sum(x.nbytes for x in jax.tree.leaves(worker.pack(optimizer)))
    return {
        "workers": workers,
        "estimates_per_second": count / took,
        "step_median": float(np.median(steady)),
        "step_sigma": float(np.std(np.log(steady))),
        "driver_cpu_seconds_an_estimate": (processor[-1] - processor[half]) / count,
        "driver_seconds_an_outer_step": float(np.median(np.diff(at[half:]) - np.array(waited[half + 1 : len(at)]))),
        "message_bytes": sent,
        "staleness_mean": float(np.mean(ages[len(ages) // 2 :])),
    }


def main(
    workers: tuple[int, ...] = (1, 2, 4, 8, 32, 100, 320, 1_000, 3_200, 10_000),
    measured: tuple[int, ...] = (),
    steps: int = 60,
    cpus: int = 2,
    costs: Costs = Costs(),
    out: Path = RESULTS / "scaling.json",
) -> None:
    """Simulate, and first measure where numbers of workers are given for that.

    Args:
        workers: to simulate.
        measured: numbers of workers of real runs, whose costs are then those of the simulation.
        steps: meta-steps of a real run.
        cpus: that workers of real runs share.
        costs: of the simulation, where nothing is measured.
        out: where the figures go.
    """
    results: list[dict[str, Any]] = []
    if measured:
        from lopt.engine.connection import connect

        connect(cpus=max(measured))
    for count in measured:
        found = measure(count, steps)
        if count == measured[0]:
            costs = dataclasses.replace(
                costs,
                step=found["step_median"],
                sigma=found["step_sigma"],
                stragglers=0.0,
                estimate=found["driver_cpu_seconds_an_estimate"],
                outer=max(0.0, found["driver_seconds_an_outer_step"]),
                message=found["message_bytes"],
            )
        predicted = simulate(count, costs, accumulate=4, staleness=50, estimates=400, cpus=cpus)
        found["predicted_estimates_per_second"] = predicted.taken / predicted.seconds
        found["predicted_staleness_mean"] = statistics.mean(predicted.ages)
        results.append({"validation": found})
        write(out, machine(), results)
        print(found)
    results.append({"costs": dataclasses.asdict(costs)})
    header("way", "workers", "estimates/s", "efficiency", "staleness, median", "95 %", "dropped", "driver busy", "card busy", "bottleneck")  # fmt: skip
    large = dataclasses.replace(costs, step=10 * costs.step)
    for count in workers:
        ways: dict[str, tuple[Costs, int, int]] = {"alone": (costs, 1, 1)}
        if count >= 100:
            ways |= {"accumulators": (costs, 100, 1), "ten times the particles": (large, 1, 10)}
        for name, (given, group, particles) in ways.items():
            found = simulate(count, given, accumulate=max(4, count), staleness=5, group=group)
            results.append(row(name, count, found, given, particles))
            show(*results[-1].values())
            write(out, machine(), results)


if __name__ == "__main__":
    tyro.cli(main)
