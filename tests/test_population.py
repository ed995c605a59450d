"""Populations: what a cycle does, who trains whom, the lineage, and resuming after a kill."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopt
from lopt import checkpoint
from lopt.errors import InputError
from lopt.estimators import PES
from lopt.evaluate.report.page import png_of
from lopt.optimizers import SGD, Adam
from lopt.population import Diverged, Population, Report, Rules, begin, best, cycle, evolve
from lopt.population.cycle import _apply, _evaluate, _gradients, _select
from lopt.population.evolve import stack
from lopt.population.lineage import LINEAGE
from lopt.reproduce.self_training import PAPER, arms
from lopt.reproduce.self_training.acceleration import second_minus_first
from lopt.reproduce.self_training.arms import Curves, smooth
from lopt.run_directory import CHECKPOINT, METRICS

TASK = lopt.tasks.Quadratic(dim=2)
ESTIMATOR = PES(TASK, pairs=1, truncation=5, horizon=10)
RULES = Rules(steps=2, horizon=10, replaced=0.34, problems=2, perturb=0.1, change_trainer=0.5)
RATES = (1e-3, 1e-2, 0.1)
CYCLES = 4


def members(*rates: float) -> list[Any]:
    return [SGD(learning_rate=rate) for rate in rates or RATES]


def run(rules: Rules = RULES, **changes: Any) -> Population:
    given: dict[str, Any] = {"cycles": CYCLES, "key": jax.random.key(3), **changes}
    return evolve(given.pop("members", members()), ESTIMATOR, [TASK], rules, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Population]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(run_dir=folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LINEAGE).read_text().splitlines()]


def test_every_evaluation_and_every_copy_is_a_line(whole: tuple[Path, Population]) -> None:
    found = lines(whole[0])
    evaluations = [(x["cycle"], x["member"]) for x in found if x["event"] == "evaluation"]
    assert evaluations == [(c, m) for c in range(1, CYCLES + 1) for m in range(3)]
    copies = [x for x in found if x["event"] == "copy"]
    assert len(copies) == CYCLES, "a third of three members, each cycle"
    for copy in copies:
        losses = {x["member"]: x["loss"] for x in found if x["event"] == "evaluation" and x["cycle"] == copy["cycle"]}
        assert losses[copy["member"]] == max(losses.values())
        assert copy["from"] == -1 or losses[copy["from"]] == min(losses.values())


def test_copies_take_over_weights_and_trainer(whole: tuple[Path, Population]) -> None:
    rules = Rules(steps=2, horizon=10, replaced=0.34, problems=2, perturb=0.0, change_trainer=0.0)
    state = run(rules, cycles=1)
    trainers = state.members.trainer
    (worst,) = [i for i in range(3) if trainers[i] != i]
    parent = int(trainers[worst])
    rates = state.members.state.optimizer.log_learning_rate  # pyright: ignore[reportAttributeAccessIssue]
    assert rates[worst] == rates[parent]
    assert float(state.best_loss) <= float(state.losses.min())
    best_rate = best(state).log_learning_rate  # pyright: ignore[reportAttributeAccessIssue]
    assert (best_rate == rates[parent]) == (float(state.best_loss) == float(state.losses.min()))
    keys = jax.random.key_data(state.members.state.key)
    assert not np.array_equal(keys[worst], keys[parent]), "a copy draws its own problems"
    assert whole[1].members.trainer.shape == (3,)


def test_new_weights_never_recompile() -> None:
    jax.clear_caches()
    run(cycles=3)
    programs: tuple[Any, ...] = (_gradients, _evaluate, _apply, _select)
    run(cycles=3, members=members(0.3, 0.2, 0.1))
    run(dataclasses.replace(RULES, perturb=0.2, fall=2.0), cycles=3, members=members(0.3, 0.2, 0.1))
    run(cycles=2, outside=[Adam()])
    assert [program._cache_size() for program in programs] == [1, 1, 2, 3], (
        "trainers matter to their step, rules to selection"
    )


@pytest.mark.slow
def test_a_member_is_trained_by_its_trainer() -> None:
    """With SGD as trainers, the step is the rate of the trainer times the clipped meta-gradient times the factor, by hand."""
    rules = Rules(steps=1, horizon=10, problems=1, replaced=0.0)
    rates = (0.1, 0.3, 1.0)
    stacked = stack(members(*rates))
    state = begin(rules, stacked, (ESTIMATOR,), (TASK,), None, jax.random.key(0))
    who = jnp.asarray([2, 0, 0], jnp.int32)
    hired = jax.tree.map(lambda x: x[who], stacked)
    factors = jnp.asarray([0.5, 1.0, 2.0])
    state = state._replace(members=state.members._replace(trainer=who, snapshot=hired, factor=factors))
    after, _ = jax.jit(cycle, static_argnums=0)(rules, (ESTIMATOR,), (TASK,), None, state)
    before, now = (s.members.state.optimizer.log_learning_rate for s in (state, after))  # pyright: ignore[reportAttributeAccessIssue]
    moved = np.asarray(now - before)
    for i, trainer in enumerate((2, 0, 0)):
        member = jax.tree.map(lambda x, i=i: x[i], state.members.state)
        key = jax.random.fold_in(member.key, member.step + 1)
        gradient, _, _ = ESTIMATOR.estimate(member.optimizer, member.estimators[0], jax.random.fold_in(key, 0))
        expected = -float(factors[i]) * rates[trainer] * float(jnp.clip(gradient.log_learning_rate, -0.1, 0.1))
        assert moved[i] == pytest.approx(expected, rel=1e-3, abs=5e-7)  # the logarithm of a rate has an ulp of 2.4e-7


@pytest.mark.parametrize("trained_by", ["itself", "best", "nobody"])
def test_who_trains_is_a_field(trained_by: Any) -> None:
    seen: list[Report] = []
    rules = Rules(steps=1, horizon=5, problems=1, replaced=0.0, trained_by=trained_by)
    state = run(rules, cycles=2, on_cycle=seen.append)
    start = stack(members()).log_learning_rate  # pyright: ignore[reportAttributeAccessIssue]
    same = np.array_equal(state.members.state.optimizer.log_learning_rate, start)  # pyright: ignore[reportAttributeAccessIssue]
    assert same == (trained_by == "nobody")
    expected = [int(np.argmin(seen[0].losses))] * 3 if trained_by == "best" else [0, 1, 2]
    assert list(seen[1].trainers) == expected


@pytest.mark.parametrize(("restart", "steps"), [(0, 4), (1, 2)])
def test_outer_states_begin_anew(restart: int, steps: int) -> None:
    """The count of steps in the state of an Adam is that since the last restart."""
    rules = Rules(steps=2, horizon=5, problems=1, replaced=0.0, restart=restart)
    state = run(rules, cycles=2, outside=[Adam()])
    counts = [x for x in jax.tree.leaves(state.members.state.outer) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert max(int(x.max()) for x in counts) == steps


def test_only_copies_change_their_factor() -> None:
    rules = dataclasses.replace(RULES, change_factor=0.5)
    state = run(rules, cycles=1)
    (copy,) = [i for i in range(3) if state.members.factor[i] != 1.0]
    assert int(state.losses.argmax()) == copy


# --- No hand-designed optimizer: by the calls of the trace. ---


def called(trace: Callable[[], Any]) -> set[tuple[str, str]]:
    """Module and name of every function of optax, and every one of lopt's hand-designed optimizers, that is called."""
    found: set[tuple[str, str]] = set()

    def note(frame: Any, event: str, arg: Any) -> None:
        del arg
        if event != "call":
            return
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("optax", "lopt.optimizers.hand_designed", "lopt.optimizers.from_")):
            found.add((module, frame.f_code.co_name))

    jax.clear_caches()
    sys.setprofile(note)
    try:
        trace()
    finally:
        sys.setprofile(None)
    return {(module, name) for module, name in found if not name.startswith("<")}


def trace_of(outside: Any) -> set[tuple[str, str]]:
    stacked = stack([lopt.create("small_fc", key=jax.random.key(i)) for i in range(2)])
    rules = Rules(steps=1, horizon=5, problems=1, replaced=0.5)
    given = (ESTIMATOR,), (TASK,), None if outside is None else stack(outside)

    def trace() -> None:
        state = jax.eval_shape(lambda: begin(rules, stacked, *given, jax.random.key(0)))
        jax.eval_shape(lambda s: cycle(rules, *given, s), state)

    return called(trace)


@pytest.mark.slow
def test_no_hand_designed_optimizer_is_used_in_self_training() -> None:
    """All that is called of optax adds an update to parameters; the same count of calls sees Adam where it is the trainer."""
    assert {name for _, name in trace_of(None)} <= {"apply_updates"}
    seen = trace_of([Adam(learning_rate=r) for r in (1e-3, 1e-2)])
    assert any("hand_designed" in module for module, _ in seen)
    assert any(module.startswith("optax") and "adam" in name for module, name in seen)


# --- Resume. ---

KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_population import run
run(run_dir=Path(sys.argv[1]), checkpoint_seconds=0.0, on_cycle=lambda r: print(r.cycle, flush=True) or __import__("time").sleep(0.3))
"""


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(whole: tuple[Path, Population], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "2":
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    resumed: list[int] = []
    state = run(run_dir=folder, on_cycle=lambda r: resumed.append(r.cycle))
    assert resumed[0] in (3, 4)
    assert checkpoint.digest(state) == checkpoint.digest(whole[1])
    assert (folder / LINEAGE).read_bytes() == (whole[0] / LINEAGE).read_bytes()


def test_lines_after_the_checkpoint_are_cut_off(whole: tuple[Path, Population], tmp_path: Path) -> None:
    """As after a kill between the two writes, of the lineage and of the checkpoint."""
    for path in whole[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / CHECKPOINT).unlink()
    (tmp_path / METRICS).unlink()
    with (tmp_path / LINEAGE).open("a") as file:
        file.write('{"cycle": 5, "ev')
    assert checkpoint.digest(run(run_dir=tmp_path)) == checkpoint.digest(whole[1])
    assert (tmp_path / LINEAGE).read_bytes() == (whole[0] / LINEAGE).read_bytes()


# --- Bad input. ---


@pytest.mark.parametrize("damage", ["half", "swapped", "gone"])
def test_a_damaged_lineage_is_refused(whole: tuple[Path, Population], tmp_path: Path, damage: str) -> None:
    for path in whole[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    kept = (tmp_path / LINEAGE).read_text().splitlines(keepends=True)
    texts = {"half": "".join(kept)[:300], "swapped": "".join([kept[1], kept[0], *kept[2:]]), "gone": ""}
    (tmp_path / LINEAGE).write_text(texts[damage])
    with pytest.raises(InputError, match=r"lineage\.jsonl is damaged: .*\.$"):
        run(run_dir=tmp_path)


def test_all_members_diverged_stops_and_says_when(tmp_path: Path) -> None:
    huge = [SGD(learning_rate=1e30)] * 3
    with pytest.raises(Diverged, match=rf"^All 3 members diverged in cycle 1 of {CYCLES}\.$"):
        run(members=huge, run_dir=tmp_path)


@pytest.mark.slow
def test_the_last_good_cycle_is_kept(tmp_path: Path) -> None:
    """A trainer whose steps are huge makes all members diverge, though they begin well."""
    rules = Rules(steps=2, horizon=10, replaced=0.0, problems=2)
    seen: list[Report] = []
    slow = [SGD(learning_rate=150.0)]  # 15 in the logarithm of the rate, at most, each meta-step
    with pytest.raises(Diverged, match=r"^All 3 members diverged in cycle \d+ of 50") as caught:
        run(rules, outside=slow, cycles=50, run_dir=tmp_path, on_cycle=seen.append)
    good = len({line["cycle"] for line in lines(tmp_path)}) if (tmp_path / LINEAGE).exists() else 0
    assert good == len(seen)
    assert math.isfinite(float(caught.value.best.log_learning_rate))  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"members": []}, "members is empty; give at least one optimizer."),
        ({"members": [SGD(), Adam()]}, "members[1] differs from members[0] in architecture, fields or sizes"),
        ({"outside": [SGD(), Adam()]}, "outside[1] differs from outside[0]"),
        ({"outside": []}, "outside is empty; give at least one optimizer."),
        ({"cycles": 0}, "cycles is 0; it must be at least 1."),
        (
            {"outside": members(), "rules": Rules(trained_by="best")},
            "with trainers from outside; it must be 'snapshot'",
        ),
    ],
)
def test_bad_input_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        run(**changes)
    assert said in str(caught.value)


def test_a_trainer_that_wants_a_validation_loss_is_refused() -> None:
    wants = [lopt.create("hierarchical_lstm", key=jax.random.key(0))]
    assert wants[0].validation_every
    with pytest.raises(InputError, match="wants a validation loss, which a meta-training has not"):
        run(outside=wants)


@pytest.mark.parametrize("field", [{"replaced": 0.6}, {"change_trainer": -0.1}, {"clip": 0.0}, {"steps": 0}])
def test_rules_out_of_range_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(field))} is "):
        Rules(**field)


# --- The arithmetic of the claims. ---


def test_acceleration_is_that_of_a_parabola() -> None:
    t = np.linspace(0.0, 1.0, 41)
    assert second_minus_first(np.stack([-t, -(t**2), t**2])) == pytest.approx([0.0, 0.125, -0.125])


def test_smoothing_is_a_mean_of_what_there_is() -> None:
    assert smooth(np.asarray([1.0, 3.0, 5.0, 7.0]), 2) == pytest.approx([1.0, 2.0, 4.0, 6.0])


def known(name: str, *, seed: int, cycles: int, **_: Any) -> Curves:
    """Populations whose curves are known: the self-trained one accelerates and ends lowest."""
    t = np.linspace(0.0, 1.0, cycles)
    fall = {"self": 2.0 * t**2, "adam": 1.9 * np.sqrt(t)}.get(name, 0.5 * t)
    losses = np.stack([0.01 * seed - fall, 1.0 - fall], axis=1)
    return Curves(losses, np.zeros((cycles, 2), int), [(2, 1, 0), (3, 0, -1)], SGD())


@pytest.mark.parametrize("worse", [False, True])
def test_verdicts_follow_the_curves(monkeypatch: pytest.MonkeyPatch, worse: bool) -> None:
    """Held for populations that do as the paper says, and not where the self-trained one does as the controls."""

    def found(name: str, **given: Any) -> Curves:
        return known("sgd" if worse and name == "self" else name, **given)

    monkeypatch.setattr(arms, "run_arm", found)
    monkeypatch.setattr(importlib.import_module("lopt.reproduce.self_training.parity"), "run_arm", found)
    for name in ("parity", "acceleration", "controls"):
        spec = PAPER.claims[name]
        claim = spec.measure(jax.random.key(0), seeds=3, cycles=40)
        assert claim.held is not worse, claim.found
        assert png_of(spec.draw(claim)).startswith(b"\x89PNG")
        assert claim.rows
