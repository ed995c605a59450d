"""How far does meta-training scale? A discrete-event simulation of 1 to 10,000 asynchronous workers, beside real runs.

Run: `python benchmarks/scaling.py` simulates, in two minutes. It writes `benchmarks/results/scaling.json` and draws
`docs/images/workers-throughput.png`. `--measured 1 2 4 8` first makes real runs with so many workers and writes what was measured into
`benchmarks/results/scaling_measured.json`. With or without it the simulation of real runs has the costs of that file's first run.

The model: a worker computes for a log-normal time, in some steps many times longer; its answer passes the driver's network card and waits for the
driver, which takes estimates one after the other and makes an outer step of every so many. A second call waits at each worker, as in `RayEngine`; one
behind an accumulator takes the newest meta-parameters there. Three ways to run: each worker on its own; a hundred
workers behind an accumulator that sends one sum for every hundred estimates; workers with ten times the particles. Workers fail at random and are
replaced. That is rare in the time that a table's row takes, so what failures cost has rows of its own, of minutes.
"""

from __future__ import annotations

import dataclasses
import json
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

FIGURE = Path(__file__).parent.parent / "docs" / "images" / "workers-throughput.png"
WAYS = ("alone", "accumulators", "ten times the particles")


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds and bytes. What the driver takes is measured, on the mixture of `demo`; the rest is assumed."""

    step: float = 0.05  # of one estimate
    sigma: float = 0.3  # of the logarithm of that time
    stragglers: float = 0.01  # the part of the steps that take ten times as long
    call: float = 0.0009  # of the driver, for each call or message of an accumulator
    estimate: float = 0.0003  # and for each estimate in it; an accumulator's message has one
    outer: float = 0.0014  # of the driver, for each outer step
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
    failures: int = 0
    seconds: float = 0.0
    driver: float = 0.0  # busy seconds
    card: float = 0.0
    begun: int = 0  # estimates
    computed: float = 0.0  # seconds that they take
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
        cpus: that workers and the driver share, which goes before them; one each if `None`.
    """
    env, rng, found = simpy.Environment(), random.Random(seed), Outcome()
    driver, card = simpy.Resource(env), simpy.Resource(env)
    cores = None if cpus is None else simpy.PriorityResource(env, cpus)
    share = max(1, accumulate // workers) if group == 1 else 1  # estimates of a call
    state = {"version": 0, "sum": 0, "under way": 0}
    waiting: dict[int, list[int]] = {}
    asked = [simpy.Store(env) for _ in range(workers)]  # calls that wait: the versions of their meta-parameters
    under_way = [0] * workers
    end = estimates * costs.step * math.exp(costs.sigma**2 / 2) * (1 + 9 * costs.stragglers)
    wire = costs.message / costs.bandwidth

    def compute(seconds: float, priority: int) -> Generator[Any, Any, None]:
        """On a core, which may have to become free first."""
        if cores is None:
            yield env.timeout(seconds)
            return
        with cores.request(priority) as turn:
            yield turn
            yield env.timeout(seconds)

    def ask(number: int) -> None:
        """Let a worker have two calls, the second where its estimate would not be too old."""
        while not under_way[number] or (under_way[number] < 2 and state["under way"] < staleness * accumulate):
            asked[number].put(state["version"])
            under_way[number] += 1
            state["under way"] += share

    def deliver(versions: list[int], number: int | None = None) -> Generator[Any, Any, None]:
        """One message to the driver, whatever it sums up; then the worker of this number, if it is one's, is asked again."""
        if number is not None:
            yield env.timeout(2 * costs.latency)
        with card.request() as turn:
            yield turn
            yield env.timeout(2 * wire)
            found.card += 2 * wire
        with driver.request() as turn:
            yield turn
            took = costs.call + costs.estimate * (1 if group > 1 else len(versions))
            yield from compute(took, 0)
            found.driver += took
            for version in versions:
                age = state["version"] - version
                if age > staleness:
                    found.dropped += 1
                    continue
                found.taken += 1
                found.ages.append(age)
                state["sum"] += 1
            while state["sum"] >= accumulate:
                yield from compute(costs.outer, 0)
                found.driver += costs.outer
                state["sum"] -= accumulate
                state["version"] += 1
        if number is not None:
            under_way[number] -= 1
            state["under way"] -= share
            ask(number)

    def estimate_seconds() -> float:
        return costs.step * rng.lognormvariate(0, costs.sigma) * (10 if rng.random() < costs.stragglers else 1)

    def worker(number: int) -> Generator[Any, Any, None]:
        fails = rng.expovariate(1 / costs.life)
        yield env.timeout(rng.random() * costs.step)
        if group == 1:
            ask(number)
        while True:
            version = state["version"] if group > 1 else (yield asked[number].get())
            seconds = sum(estimate_seconds() for _ in range(share))
            found.begun += share
            found.computed += seconds
            yield from compute(seconds, 1)
            if env.now > fails:
                found.failures += 1
                yield env.timeout(costs.replace)
                fails = env.now + rng.expovariate(1 / costs.life)
                if group == 1:  # what it was asked for, but for answers that are on their way, is void
                    lost = 1 + len(asked[number].items)
                    asked[number].items.clear()
                    under_way[number] -= lost
                    state["under way"] -= lost * share
                    ask(number)
                continue
            if group == 1:
                env.process(deliver([version] * share, number))
                continue
            yield env.timeout(2 * costs.latency)
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


def summary(name: str, workers: int, found: Outcome, particles: int = 1) -> dict[str, Any]:
    """What a table says of a simulation. Ideal are workers that compute all the time, for as long an estimate as these did on average."""
    ideal = workers * found.seconds * found.begun / found.computed
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
        "failures": found.failures,
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
    waited: list[float] = []
    first = engine._first

    def timed(*args: Any) -> Any:
        began = time.perf_counter()
        answers, found = first(*args)
        waited.append(time.perf_counter() - began)
        seconds.extend(answer.seconds for _, answer in answers)
        ages.extend(found)
        return answers, found

    engine._first = timed
    at: list[float] = []
    processor: list[float] = []
    first_step: int | None = None  # from which on every estimator has been computed, each by its worker

    def on_step(_: Any) -> None:
        nonlocal first_step
        if first_step is None:
            time.sleep(0.5)  # else the first workers do all meta-steps while the others compile
        at.append(time.perf_counter())
        processor.append(time.process_time())
        if first_step is None and all(engine.given.get(unit, 0) > 2 for unit in engine.pool.units):  # two are under way
            first_step = len(at)

    meta_train(optimizer, estimators, outer, steps=steps, key=jax.random.key(1), engine=engine, on_step=on_step)
    engine.close()
    if first_step is None or first_step > steps - 10:
        raise SystemExit(f"{steps} meta-steps ended before {workers} workers had compiled; give more.")
    took = at[-1] - at[first_step]
    count = (len(at) - 1 - first_step) * len(estimators)
    steady = np.array(seconds[-count:])
    sent = sum(x.nbytes for x in jax.tree.leaves(worker.pack(optimizer)))
    return {
        "workers": workers,
        "accumulate": len(estimators),
        "estimates_per_second": count / took,
        "step_median": float(np.median(steady)),
        "step_sigma": float(np.std(np.log(steady))),
        "driver_cpu_seconds_a_meta_step": (processor[-1] - processor[first_step]) / (len(at) - 1 - first_step),
        "driver_seconds_an_outer_step": float(
            np.median(np.diff(at[first_step:]) - np.array(waited[first_step + 1 : len(at)]))
        ),
        "message_bytes": sent,
        "staleness_mean": float(np.mean(ages[-count:])),
    }


def costs_of(real: list[dict[str, Any]], costs: Costs) -> Costs:
    """Those of real runs: of one worker, whose calls are for several estimates, and of as many workers as estimates, whose calls are for one.

    What the driver's process computes is for calls, their estimates and the outer step, which is measured on its own.
    """
    (one,) = (run for run in real if run["workers"] == 1)
    (many,) = (run for run in real if run["workers"] == run["accumulate"])
    outer = max(0.0, one["driver_seconds_an_outer_step"])
    of_several, of_one = (run["driver_cpu_seconds_a_meta_step"] - outer for run in (one, many))
    of_one /= many["accumulate"]
    estimate = max(0.0, (of_several - of_one) / (one["accumulate"] - 1))
    return dataclasses.replace(
        costs,
        step=one["step_median"],
        sigma=one["step_sigma"],
        stragglers=0.0,
        call=max(0.0, of_one - estimate),
        estimate=estimate,
        outer=outer,
        message=one["message_bytes"],
    )


def beside(found: dict[str, Any], costs: Costs, cpus: int) -> dict[str, Any]:
    """A real run, and what the simulation says of it."""
    predicted = simulate(
        found["workers"], costs, accumulate=found["accumulate"], staleness=50, estimates=1000, cpus=cpus
    )
    return {
        "workers": found["workers"],
        "measured_estimates_per_second": round(found["estimates_per_second"], 1),
        "simulated_estimates_per_second": round(predicted.taken / predicted.seconds, 1),
        "measured_staleness_mean": round(found["staleness_mean"], 2),
        "simulated_staleness_mean": round(statistics.mean(predicted.ages), 2),
    }


def draw(results: list[dict[str, Any]], figure: Path) -> None:
    """The picture of the docs: the simulation, and the simulation of real runs beside them."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for way, colour, marker in zip(WAYS, ("#0072B2", "#009E73", "#D55E00"), "o^s", strict=True):
        rows = [r for r in results if r.get("way") == way]
        left.plot(*_points(rows, "estimates_per_second"), marker=marker, color=colour, label=way)
    alone = [r for r in results if r.get("way") == WAYS[0]]
    one = alone[0]["estimates_per_second"] / alone[0]["efficiency"] / alone[0]["workers"]
    left.plot([r["workers"] for r in alone], [r["workers"] * one for r in alone], color="black", ls=":", label="ideal")
    left.set(xscale="log", yscale="log", title="simulated, 50 ms an estimate")
    real = [r["beside"] for r in results if "beside" in r]
    right.plot(*_points(real, "simulated_estimates_per_second"), color="#0072B2", label="simulated")
    right.plot(*_points(real, "measured_estimates_per_second"), "D", color="black", label="measured")
    right.set(title="demo on two cores", ylim=(0, None))
    for ax in (left, right):
        ax.set(xlabel="workers", ylabel="estimates a second")
        ax.grid(alpha=0.3)
        ax.legend()
    fig.savefig(figure, dpi=130)


def _points(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    return [r["workers"] for r in rows], [r[name] for r in rows]


def main(
    workers: tuple[int, ...] = (1, 2, 4, 8, 32, 100, 320, 1_000, 3_200, 10_000),
    lives: tuple[float, ...] = (24 * 3600.0, 3600.0, 600.0, 60.0),
    measured: tuple[int, ...] = (),
    steps: int = 400,
    cpus: int = 2,
    costs: Costs = Costs(),
    measurements: Path = RESULTS / "scaling_measured.json",
    out: Path = RESULTS / "scaling.json",
    figure: Path = FIGURE,
) -> None:
    """Simulate, and first measure where numbers of workers are given for that.

    Args:
        workers: to simulate.
        lives: mean seconds until a worker fails, to simulate.
        measured: numbers of workers of real runs.
        steps: meta-steps of a real run.
        cpus: that the workers and the driver of real runs share.
        costs: of the simulation.
        measurements: where what was measured goes, and comes from.
        out: where the simulation goes.
        figure: the picture to draw.
    """
    if measured:
        from lopt.engine.connection import connect

        connect(cpus=max(measured))
    facts = machine()
    real: list[dict[str, Any]] = []
    for count in measured:
        real.append(measure(count, steps))
        print(real[-1])
        write(measurements, facts, real)
    real = json.loads(measurements.read_text())["results"]

    results: list[dict[str, Any]] = []
    header("workers", "estimates/s, measured", "simulated", "mean staleness, measured", "simulated")
    given = costs_of(real, costs)
    for found in real:
        row = beside(found, given, cpus)
        show(*row.values())
        results.append({"beside": row})
    results.append({"costs_beside": dataclasses.asdict(given)})

    print()
    results.append({"costs": dataclasses.asdict(costs)})
    columns = "way, workers, estimates/s, efficiency, median staleness, 95 %, dropped, failures, driver busy, card busy, bottleneck"
    header(*columns.split(", "))
    large = dataclasses.replace(costs, step=10 * costs.step)
    for count in workers:
        for name, given, group, particles in zip(WAYS, (costs, costs, large), (1, 100, 1), (1, 1, 10), strict=True):
            if count < 100 and name != WAYS[0]:
                continue
            estimates = min(2_000, max(20, 100_000 // count))
            found = simulate(count, given, accumulate=max(4, count), staleness=5, group=group, estimates=estimates)
            results.append(summary(name, count, found, particles))
            show(*results[-1].values())

    print()
    header("mean life of a worker, s", "failures", "estimates/s", "efficiency")
    for life in lives:
        given = dataclasses.replace(costs, life=life)
        found = simulate(100, given, accumulate=100, staleness=5, group=100, estimates=4_000)
        row = summary(WAYS[1], 100, found)
        row = {"life": life, "seconds": round(found.seconds, 1), "workers": 100} | {
            name: row[name] for name in ("failures", "estimates_per_second", "efficiency")
        }
        results.append({"failing": row})
        show(life, *list(row.values())[3:])
    write(out, facts, results)
    draw(results, figure)


if __name__ == "__main__":
    tyro.cli(main)
