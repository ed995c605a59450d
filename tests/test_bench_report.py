"""The interactive page of a benchmark."""

from __future__ import annotations

import csv
import html
import itertools
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from lopt.cli import main
from lopt.errors import InputError
from lopt.evaluate.bench.archive import Archive
from lopt.evaluate.bench.run import standings
from lopt.evaluate.report import Provenance, archive_report, benchmark_page, summary_markdown
from lopt.evaluate.report._curves import SPLITS, curves, failures, looks, rounded
from lopt.evaluate.report._origin import SEVERAL, origins_table, seen_table
from lopt.evaluate.report._summary import COLUMNS, number, row_text
from lopt.evaluate.report.page import Html, table
from lopt.evaluate.runs import Run, Timing, Unit
from lopt.evaluate.scores.summary import Scores, score
from lopt.evaluate.scores.untuned import without_tuning

BASELINES = (
    "adam",
    "nadamw",
    "adamw",
    "lion",
    "muon",
    "sgd",
    "momentum",
    "rmsprop",
    "adafactor",
    "prodigy",
    "schedule_free",
)


def synthetic(
    optimizers: tuple[str, ...] = ("star", "adam", "sgd"),
    tasks: int = 3,
    seeds: int = 3,
    evals: int = 20,
    horizons: tuple[int, ...] = (200,),
    learned: int = 1,
) -> tuple[list[Run], list[Timing]]:
    """Curves that fall, each optimizer at its own speed on each task; the first ones are learned."""
    runs, timings = [], []
    for t in range(tasks):
        for o, name in enumerate(optimizers):
            for horizon in horizons:
                speed = np.random.default_rng((t, o)).uniform(1, 6)
                for seed in range(seeds):
                    rng = np.random.default_rng((t, o, seed))
                    steps = np.unique(np.linspace(0, horizon, evals + 1).astype(int))
                    train = (
                        (2 + 0.1 * rng.normal())
                        * (0.03 + np.exp(-speed * steps / horizons[0]))
                        * np.exp(0.05 * rng.normal(size=len(steps)))
                    )
                    runs.append(
                        Run(
                            f"digits_mlp{t}",
                            name,
                            {} if o < learned else {"learning_rate": 10 ** -(1 + o % 4), "weight_decay": 0.1 * (o % 2)},
                            f"{o:064x}" if o < learned else None,
                            horizon,
                            seed,
                            steps,
                            train,
                            1.1 * train,
                            1.2 * train + 0.05,
                            {"test_accuracy": np.exp(-train)},
                        )
                    )
            for turn in range(3):
                timings.append(Timing(f"digits_mlp{t}", name, horizons[0], turn, 1e-4 * (1 + o) * (1 + 0.05 * turn)))
    return runs, timings


def diverged(run: Run, at: int = 3) -> Run:
    """The same run, infinite from an evaluation on, after an explosion."""
    train = run.train_loss.copy()
    train[at - 1], train[at], train[at + 1 :] = 1e12, math.inf, math.nan
    return run._replace(train_loss=train, valid_loss=train, test_loss=train)


def scored(runs: list[Run], timings: Sequence[Timing] = ()) -> Scores:
    return score(runs, timings, baselines=BASELINES, resamples=200)


def text_of(runs: list[Run], timings: list[Timing], title: str = "A benchmark", **options: Any) -> str:
    provenance = Provenance(["lopt bench smoke"], {"cpu": "a processor", "jax": "0"}, {"star": {"horizon": [10, 100]}})
    return benchmark_page(title, runs, timings, scored(runs, timings), provenance, **options)


def carried(text: str) -> dict[str, Any]:
    """What the page hands to its JavaScript."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# --- What is made of runs. ---


def test_curves_are_means_and_ranges_over_seeds() -> None:
    runs, timings = synthetic(tasks=1, seeds=2)
    curve = curves(runs, timings)["digits_mlp0", 200][0]
    for split in SPLITS:
        values = np.stack([getattr(run, f"{split}_loss") for run in runs[:2]])
        mean, low, high = (np.array(v) for v in curve.bands[split])
        np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-3)
        np.testing.assert_allclose(low, values.min(axis=0), rtol=1e-3)
        np.testing.assert_allclose(high, values.max(axis=0), rtol=1e-3)
    assert curve.seconds == pytest.approx(1.05e-4), "the median of the turns"
    assert curves(runs, [])["digits_mlp0", 200][0].seconds is None


def test_a_mean_ends_where_a_seed_is_not_finite() -> None:
    runs, _ = synthetic(("adam",), tasks=1, seeds=2, learned=0)
    mean, low, high = curves([diverged(runs[0]), runs[1]], [])["digits_mlp0", 200][0].bands["train"]
    assert [v is None for v in mean] == [False] * 3 + [True] * 18
    assert low[3:] == high[3:] == rounded(runs[1].train_loss[3:]), "the range is that of the other seed"
    assert curves([diverged(runs[0])], [])["digits_mlp0", 200][0].bands["train"][1][3:] == [None] * 18


@pytest.mark.parametrize("count", [1, 7, 8, 20, 40])
def test_no_two_optimizers_look_alike_without_colour_or_by_it(count: int) -> None:
    found = looks(["adam", *(f"o{i}" for i in range(count - 1))], ["o3"])
    assert len({(k.color, k.shape) for k in found}) == count
    assert count > 25 or len({(k.color, k.dash) for k in found}) == count
    assert count > 16 or len({k.shape for k in found}) == count, "told apart by shape alone"
    assert all(a.dash != b.dash for a, b in itertools.pairwise(found))
    assert sum(k.shown for k in found) == min(count, 8)
    assert all(k.shown for k in found if k.name in ("adam", "o3"))


def test_failures_are_listed() -> None:
    runs, _ = synthetic(tasks=2, seeds=3)
    assert failures(runs, BASELINES) == []
    runs[1] = diverged(runs[1])
    runs[3] = runs[3]._replace(train_loss=runs[3].train_loss[::-1].copy())
    lacking = [run for run in runs if not (run.optimizer == "sgd" and run.task == "digits_mlp1")]
    assert [(f.optimizer, *f.problem, f.what) for f in failures(lacking, BASELINES)] == [
        ("star", "digits_mlp0", 200, "diverged in 1 of 3 seeds, not finite from step 30"),
        ("adam", "digits_mlp0", 200, "ended above its initial train loss in 1 of 3 seeds"),
        ("sgd", "digits_mlp1", 200, "was not run"),
    ]


def test_the_page_the_standings_and_the_scores_agree_on_what_diverged() -> None:
    runs, _ = synthetic(("star", "adam", "sgd", "calm"), tasks=2, seeds=2)
    far, back = runs[0].train_loss.copy(), runs[6].train_loss.copy()
    far[-1], back[5] = 1e6, math.nan  # finite, but far above the start; not finite, but on the way only
    runs[0], runs[6] = runs[0]._replace(train_loss=far), runs[6]._replace(train_loss=back)
    runs[2] = diverged(runs[2])
    assert {s.optimizer: s.diverged for s in scored(runs).summaries} == {
        "star": 0.25,
        "adam": 0.25,
        "sgd": 0,
        "calm": 0,
    }
    assert {s.optimizer: s.diverged for s in standings(runs)} == {"star": 1, "adam": 1, "sgd": 0, "calm": 0}
    assert {f.optimizer: f.what for f in failures(runs, BASELINES)} == {
        "star": "diverged in 1 of 2 seeds, with finite losses far above the start",
        "adam": "diverged in 1 of 2 seeds, not finite from step 30",
        "calm": "had a loss that was not finite on the way in 1 of 2 seeds, and came back",
    }


# --- Who wins where. ---


def fixed(finals: dict[str, list[list[float]]], learned: Sequence[str] = ("star",)) -> Scores:
    """Scores of trainings that start at 1 and end at what is given: for each optimizer a list of seeds a task."""
    steps = np.array([0, 10])
    runs = [
        Run(f"t{t}", name, {}, "0" if name in learned else None, 10, seed, steps, *[np.array([1.0, x])] * 3, {})
        for name, tasks in finals.items()
        for t, seeds in enumerate(tasks)
        for seed, x in enumerate(seeds)
    ]
    return scored(runs)


def rows_of(scores: Scores) -> dict[str, dict[str, str]]:
    """The summary table, by optimizer and column."""
    return {s.optimizer: dict(zip(COLUMNS[1:], map(str, row_text(s, scores)), strict=True)) for s in scores.ranked}


WON, LOWEST = "tasks won against tuned Adam", "tasks below every tuned baseline"


def test_the_table_says_who_wins_and_how_clearly() -> None:
    found = rows_of(fixed({"adam": [[0.5, 0.51]] * 2, "sgd": [[0.6, 0.61]] * 2, "star": [[0.1, 0.12]] * 2}))
    assert list(found) == ["star", "adam", "sgd"], "the best first"
    assert found["star"][WON].startswith("2 of 2 (")
    assert "clear: 2 won, 0 lost" in found["star"][WON]
    assert found["star"][LOWEST] == "2 of 2"
    assert (found["adam"][WON], found["adam"][LOWEST]) == ("–", "2 of 2"), "of the others"
    worse = rows_of(fixed({"star": [[0.8, 0.82]] * 3, "adam": [[0.5, 0.52]] * 3}))["star"]
    assert worse[WON].startswith("0 of 3 (")
    assert "clear: 0 won, 3 lost" in worse[WON]
    assert worse[LOWEST] == "0 of 3"
    tied = rows_of(fixed({"adam": [[0.5, 0.6]] * 2, "star": [[0.5, 0.6]] * 2}))["star"]
    assert tied[WON].startswith("1 of 2 ("), "a tie is half"
    assert tied[LOWEST] == "0 of 2"
    open_ = rows_of(fixed({"adam": [[0.3, 0.7, 0.5]], "star": [[0.75, 0.45, 0.2]]}))["star"]
    assert "clear: 0 won, 0 lost" in open_[WON]
    lost = rows_of(fixed({"adam": [[0.5, 0.6]], "star": [[math.inf, math.inf]]}))["star"]
    assert "clear: 0 won, 1 lost" in lost[WON], "divergence"


def test_the_table_is_of_the_tasks_that_all_ran() -> None:
    adam, sgd = [[0.5, 0.51]] * 3, [[0.6, 0.61]] * 3
    found = rows_of(fixed({"adam": adam, "sgd": sgd, "star": [[0.1, 0.12]] * 2}))
    assert [found[name]["tasks"] for name in ("star", "adam", "sgd")] == ["2 of 3", "3 of 3", "3 of 3"]
    assert found["star"][LOWEST] == "2 of 2"
    apart = scored([r for r in synthetic(tasks=2)[0] if (r.optimizer == "star") == (r.task == "digits_mlp0")])
    assert "–" in summary_markdown(apart, ["star"])


def test_a_table_escapes_what_is_not_html() -> None:
    text = table(["<a>", '"c"'], [["<b>", Html("<i>x</i>")]], marked=["learned"])
    assert "&lt;a&gt;" in text
    assert '<tr class="learned"><th>&lt;b&gt;</th><td data-column="&quot;c&quot;"><i>x</i></td></tr>' in text


def test_the_summary_in_markdown() -> None:
    runs, timings = synthetic(("star|`x`", "adam", "sgd"))
    text = summary_markdown(scored(runs, timings), ["star|`x`"])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({line.count("|") for line in table}) == 1, "every row has every column, whatever the names"
    assert sum("**" in line for line in table) == 1


def test_a_baseline_without_one_setting_is_named() -> None:
    runs, _ = synthetic(tasks=2)
    apart = [r._replace(config={"learning_rate": 9.0}) if r[:2] == ("digits_mlp0", "sgd") else r for r in runs]
    for trained, named in ((runs, False), (apart, True)):
        scores = scored(trained)
        untuned = without_tuning(trained, scores, resamples=100)
        text = summary_markdown(scores, ["star"], untuned=untuned)
        assert ("No setting of sgd was run on all its tasks." in text) == named
        assert len(untuned) == 3 - named


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.0, "0.000"), (-0.0001, "0.000"), (-0.25, "−0.250"), (math.nan, "–"), (math.inf, "∞"), (3e7, "3.0e+07")],
)
def test_numbers(x: float, text: str) -> None:
    assert number(x) == text


def test_the_table_says_what_is_censored_and_what_is_not_known() -> None:
    scores = fixed({"adam": [[0.5, 0.5]] * 3, "star": [[0.1, 0.1]] * 3})
    star, adam = (dict(zip(COLUMNS[1:], map(str, row_text(s, scores)), strict=True)) for s in scores.ranked)
    assert star["speed-up over tuned Adam"] == "≥ 1.00× (1.00 to 1.00; 3 of 3 censored)"
    assert star["tasks won against tuned Adam"].startswith("3 of 3 (")
    assert adam["tasks won against tuned Adam"] == "–"
    assert star["time of a step, × Adam"] == "–"
    assert star["diverged"] == "0"


# --- Where runs and optimizers come from. ---


def test_versions_and_machines_are_told_where_there_are_several() -> None:
    one = {"cpu": "fast", "cores": 2, "lopt": "0.1.0", "jax": "1", "XLA_FLAGS": ""}
    for same in ([], [(one, 9)], [({}, 9)]):
        assert origins_table(same) is None
    found = origins_table([(one, 1), (one | {"lopt": "0.2.0", "cores": 4}, 1500), ({"jax": "1"}, 2)])
    assert found is not None
    assert found.columns == ("units of work", "cpu", "cores", "lopt", "XLA_FLAGS")
    assert [row[0] for row in found.rows] == ["1", "1,500", "2"]
    assert found.rows[1][1:4] == ("fast", "4", "0.2.0")
    assert found.rows[2][3] == "not written"


def test_who_was_meta_trained_on_tasks_of_the_bench_is_told() -> None:
    tasks = ["digits_mlp", 'digits_mlp{"widths":[128]}', "bowl"]
    cards = {
        "a": {
            "tasks": [
                {"name": "digits_mlp"},
                {"name": "digits_mlp", "fields": {"widths": [128]}, "tell_horizon": False},
            ]
        },
        "b": {"tasks": [{"name": "small_images/digits_128"}]},
        "c": {},
        "d": {"tasks": [{"name": "two_moons"}]},
    }
    found = seen_table(cards, tasks)
    assert found is not None
    assert dict(found.rows) == {
        "a": 'digits_mlp, digits_mlp{"widths":[128]}',
        "b": 'digits_mlp{"widths":[128]}',
        "c": "the card does not say",
        "d": "none",
    }
    assert seen_table({}, tasks) is None


# --- From an archive. ---


def test_a_report_of_one_horizon_reads_speed_up_from_all(tmp_path: Path) -> None:
    runs, _ = synthetic(("star", "adam", "sgd"), tasks=2, horizons=(200, 1000))
    with Archive(tmp_path / "bench.sqlite") as archive:
        for unit in dict.fromkeys(Unit(r.task, r.optimizer, r.horizon) for r in runs):
            archive.add(unit, [r for r in runs if Unit(r.task, r.optimizer, r.horizon) == unit], machine={})
        short, long = (archive_report(archive, horizon=h) for h in (200, 1000))
        assert set(short.scores.horizons.values()) == {200}
        assert set(long.scores.horizons.values()) == {1000}
        assert "Benchmark, 1,000 steps" in long.page
        assert "--horizon 1000" in html.unescape(long.page)
        by_name = {s.optimizer: s for s in short.scores.summaries}
        assert max(c.speedup for c in short.scores.cells if c.optimizer == "star") > 1, (
            "Adam's longer trainings are read"
        )
        assert by_name["adam"].tasks == ("digits_mlp0", "digits_mlp1")
        with pytest.raises(InputError, match="horizon is 300; the archive has trainings of 200, 1000 steps"):
            archive_report(archive, horizon=300)


def test_a_report_says_which_of_several_horizons_it_scores(tmp_path: Path) -> None:
    runs, _ = synthetic(("star", "adam"), tasks=2, horizons=(200, 1000, 5000), evals=4)
    protocol = {"suite": "meta_valid", "seeds": 3, "finalists": 4711}
    for name, kept in (("all", runs), ("one", [r for r in runs if r.horizon == 200 or r.task == "digits_mlp1"])):
        with Archive(tmp_path / f"{name}.sqlite") as archive:
            archive.settle(protocol if name == "all" else protocol | {"suite": "held_out", "finalists": None})
            for unit in dict.fromkeys(Unit(r.task, r.optimizer, r.horizon) for r in kept):
                archive.add(unit, [r for r in kept if Unit(r.task, r.optimizer, r.horizon) == unit], machine={})
    with Archive(tmp_path / "all.sqlite") as archive:
        plain, long = archive_report(archive), archive_report(archive, horizon=1000)
    purpose, also = plain.notes
    assert "to choose by" in purpose
    assert "1,000, 5,000" in also
    for note in plain.notes:
        assert f'<p class="note">{html.escape(note)}</p>' in plain.page
        assert f"- {note}\n" in plain.markdown
    assert re.search(r"finalists</t[hd]><td>4711<", plain.page)
    assert long.notes == [purpose], "one horizon was asked for"
    with Archive(tmp_path / "one.sqlite") as archive:
        one = archive_report(archive)
    assert one.notes == [also]
    assert "finalists" not in one.page


def test_the_command_writes_page_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, timings = synthetic(("star", "adam", "sgd"), tasks=2)
    worse = [
        run._replace(config={"learning_rate": 9.0}, train_loss=run.train_loss + 1)
        for run in runs
        if not run.fingerprint
    ]
    with Archive(tmp_path / "bench.sqlite") as archive:
        archive.settle({"suite": "smoke", "seeds": 4, "axes": {"width": ["digits_mlp0", "digits_mlp1"]}})
        archive.add_card(
            f"{0:064x}", {"horizon": [1, 2], "command": "lopt meta-train", "tasks": [{"name": "digits_mlp1"}]}
        )
        for unit in dict.fromkeys(Unit(r.task, r.optimizer, r.horizon) for r in runs):
            archive.add(
                unit,
                [r for r in [*runs, *worse] if Unit(r.task, r.optimizer, r.horizon) == unit],
                machine={"cpu": "a processor"} | ({"lopt": "0.0.1"} if unit.optimizer == "sgd" else {}),
            )
        archive.add_given({"star": "my runs/star.safetensors"})
        archive.add_failure(Unit("digits_mlp1", "lion", 200), "out of memory", machine={"cpu": "a processor"})
        archive.add_timings(timings)
    out, summary, table = (tmp_path / name for name in ("report.html", "summary.md", "cells.csv"))
    files = ["--out", str(out), "--markdown", str(summary), "--cells", str(table)]
    main(["report", str(tmp_path / "bench.sqlite"), *files, "--title", "A title"])
    with table.open() as file:
        rows = list(csv.DictReader(file))
    cell = {(r["task"], r["optimizer"]): r for r in rows}
    assert set(cell) == {(f"digits_mlp{i}", name) for i in (0, 1) for name in ("star", "adam", "sgd")}, (
        "what failed and never ran has no row"
    )
    ends = [run.train_loss[-1] for run in runs if (run.task, run.optimizer) == ("digits_mlp0", "star")]
    star = cell["digits_mlp0", "star"]
    assert float(star["train_loss"]) == pytest.approx(np.mean(ends), rel=1e-4)
    assert float(star["train_loss_sd"]) == pytest.approx(np.std(ends, ddof=1), rel=1e-3)
    assert (star["steps"], star["seeds"], star["config"], star["diverged"]) == ("200", "3", "{}", "0")
    text = out.read_text()
    for expected in (
        "<title>A title</title>",
        html.escape(
            f"lopt bench smoke --optimizers adam sgd 'my runs/star.safetensors' --seeds 4 --archive {tmp_path / 'bench.sqlite'}"
        ),
        html.escape(f"lopt report {tmp_path / 'bench.sqlite'}"),
        "† lowest rate",
        "lion on digits_mlp1 (200 steps): out of memory",
        "a processor",
        f"{0:064x}",
        "lopt meta-train",
        'id="axis-0"',
    ):
        assert expected in text
    assert "learning_rate 9" not in text, "only the best settings"
    printed = capsys.readouterr().out
    markdown = summary.read_text()
    assert re.search(r"star +│ +−?\d\.\d+ \(", printed), "the summary"
    assert SEVERAL in printed
    for words in (SEVERAL, "Origins of the runs", "0.0.1", "Seen in meta-training", "digits_mlp1"):
        assert words in text
        assert words in markdown
    assert "| `star` | digits_mlp1 |" in markdown
    untuned = markdown.split("## One setting for all tasks")[1].split("## ")[0]
    rows = {line.split("|")[1].strip(): line for line in untuned.splitlines() if line.startswith("| ")}
    assert rows.keys() == {"optimizer", "`adam`", "`sgd`", "**`star`**"}
    assert "| learning_rate 0.01, weight_decay 0.1 |" in rows["`adam`"]
    assert "| as it comes |" in rows["**`star`**"]
    assert 'id="one-setting"' in text


def test_archives_that_cannot_be_reported_end_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Archive(tmp_path / "empty.sqlite").close()
    for name, sentence in (("none.sqlite", "no archive"), ("empty.sqlite", "has no runs")):
        with pytest.raises(SystemExit, match="2"):
            main(["report", str(tmp_path / name), "--out", str(tmp_path / "report.html")])
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


# --- The page as text. ---


def test_the_page_carries_every_curve() -> None:
    runs, timings = synthetic()
    data = carried(text_of([diverged(runs[0]), *runs[1:]], timings))
    names = [look["name"] for look in data["looks"]]
    assert sorted(names) == ["adam", "sgd", "star"]
    assert [sorted(names[c["o"]] for c in problem["curves"]) for problem in data["problems"]] == [sorted(names)] * 3


def test_names_are_text() -> None:
    evil = "</script><script>window.hacked=1</script><img src=x onerror=hacked=1>\"'&amp; %{x}"
    runs, timings = synthetic((evil, "adam"), tasks=1)
    runs = [run._replace(task=evil, config={evil: evil}, fingerprint=None) for run in [diverged(runs[0]), *runs[1:]]]
    timings = [timing._replace(task=evil) for timing in timings]
    provenance = Provenance([evil], {evil: evil}, {evil: {evil: evil}}, [evil], [evil])
    scores = scored(runs, timings)._replace(notes=(evil,))
    untuned = without_tuning(runs, scores, resamples=100)
    text = benchmark_page(evil, runs, timings, scores, provenance, axes={evil: {evil: evil}}, untuned=untuned)
    assert "<script>window" not in text
    assert "<img" not in text.replace(get_plotlyjs(), "")
    assert evil not in text
    assert text.count(html.escape(evil)) >= 15
    assert evil in [look["name"] for look in carried(text)["looks"]]


def test_the_page_of_a_laptop_bench_is_small() -> None:
    runs, timings = synthetic((*BASELINES, "a", "b", "c", "d"), tasks=20, learned=0)
    assert len(runs) == 15 * 20 * 3
    text = text_of(runs, timings)
    assert len(text.encode()) < 8e6
    assert len(text.encode()) - len(get_plotlyjs().encode()) < 1.5e6, "what is ours"


@pytest.mark.parametrize("card", [{}, {"horizon": None}, {"horizon": [0, 0]}])
def test_cards_without_a_horizon_make_no_plot_of_longer_ones(card: dict[str, Any]) -> None:
    runs, timings = synthetic(tasks=1, horizons=(100, 200))
    text = benchmark_page("A benchmark", runs, timings, scored(runs, timings), Provenance(cards={"star": card}))
    assert 'id="longer"' not in text
    assert 'id="longer"' in text_of(runs, timings)


def test_no_runs_and_no_plotly_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, _ = synthetic(tasks=1)
    with pytest.raises(InputError, match="runs is empty"):
        benchmark_page("A benchmark", [], [], scored(runs))
    with pytest.raises(InputError, match="other optimizers"):
        benchmark_page("A benchmark", runs[:1], [], scored(runs))
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"with the extra report: pip install"):
        text_of(*synthetic(tasks=1))


# --- In a browser. ---


class Tab(NamedTuple):
    """A page in Chromium, what it complained of and what it asked for."""

    page: Any
    complaints: list[str]
    requests: list[str]

    def visible(self) -> int:
        """How many curves of means are drawn."""
        return self.page.locator("#curves .scatterlayer path.js-line").count()

    def style(self, selector: str, name: str) -> str:
        return self.page.evaluate("([s, n]) => getComputedStyle(document.querySelector(s))[n]", [selector, name])

    def width(self) -> list[int]:
        """Of what can be scrolled, and of the window."""
        return self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")


PATIENCE = 240_000  # milliseconds: a browser on a busy machine is slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if shutil.which("chromium") is None:
        pytest.skip("the chromium binary is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"], timeout=PATIENCE
        )
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    contexts = []

    def open_page(text: str, width: int = 1200, **context: Any) -> Tab:
        path = tmp_path / "report.html"
        path.write_text(text)
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **context))
        contexts[-1].set_default_timeout(PATIENCE)
        tab = Tab(contexts[-1].new_page(), [], [])
        tab.page.on("console", lambda message: tab.complaints.append(message.text))
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.slow
def test_the_page_works(opened: Callable[..., Tab]) -> None:
    runs, timings = synthetic()
    tab = opened(text_of([diverged(runs[0]), *runs[1:]], timings))
    page = tab.page
    assert tab.visible() == 3

    # The legend hides an optimizer and shows it again, in the curves and in the small pictures.
    star = page.locator(".key", has_text="star")
    small = page.locator(f".small polyline.o{star.get_attribute('data-o')}").first
    assert small.is_visible()
    star.click()
    assert (tab.visible(), star.get_attribute("aria-pressed"), small.is_visible()) == (2, "false", False)
    star.click()
    assert (tab.visible(), star.get_attribute("aria-pressed"), small.is_visible()) == (3, "true", True)
    star.dblclick()
    assert tab.visible() == 1, "it alone"
    page.locator("#all").click()
    assert tab.visible() == 3

    # Split, axis, task.
    def drawn() -> tuple[list[float], list[float]]:
        """The reference's curve."""
        return tuple(page.evaluate(f"(() => {{ const t = byId('curves').data.find({ADAM}); return [t.x, t.y]; }})()"))

    def title(axis: str) -> str:
        return page.locator(f"#curves .{axis}title").text_content()

    adam = curves(runs, timings)["digits_mlp0", 200][1]
    assert drawn() == (adam.steps, adam.bands["train"][0])
    page.locator("#split").select_option("test")
    assert drawn() == (adam.steps, adam.bands["test"][0])
    assert title("y") == "test loss"
    page.locator("#clock").select_option("seconds")
    assert adam.seconds is not None
    np.testing.assert_allclose(drawn()[0], np.array(adam.steps) * adam.seconds)
    assert title("x") == "seconds of training"
    assert page.evaluate("byId('curves').layout.yaxis.type") == "log"
    page.locator("#log-y").uncheck()
    page.locator("#log-x").check()
    assert page.evaluate("['x', 'y'].map(a => byId('curves').layout[a + 'axis'].type)") == ["log", "linear"]
    page.locator(".small a").nth(2).click()
    assert page.locator("#problem").input_value() == "2"
    assert drawn()[1] == curves(runs, timings)["digits_mlp2", 200][1].bands["test"][0]

    # Hovering says whose the point is.
    page.locator("#log-x").uncheck()
    page.locator("#curves").scroll_into_view_if_needed()
    box = page.locator("#curves .scatterlayer .trace:last-child .point").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#curves .hoverlayer .hovertext").first.wait_for()
    assert re.match(r"(star|adam|sgd)step 200.*test loss", page.locator("#curves .hovertext").first.text_content())

    # No button sends the data away.
    assert {b.get_attribute("data-title") for b in page.locator(".modebar-btn").all()} == {
        "Download plot as a PNG",
        *("Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"),
    }
    assert tab.complaints == []
    assert tab.requests == [page.url.partition("#")[0]], "nothing but the page itself"


@pytest.mark.slow
def test_every_plot_is_drawn(opened: Callable[..., Tab]) -> None:
    runs, timings = synthetic(tasks=4, horizons=(100, 200, 500))
    axes = {"width": {"8": "digits_mlp0", "16": "digits_mlp1"}, "data": {"a": "digits_mlp2", "b": "digits_mlp3"}}
    tab = opened(text_of(runs, timings, axes=axes))
    for plot, marks in {
        "profile-steps": "path.js-line",
        "profile-seconds": "path.js-line",
        "axis-0": "path.js-line",
        "axis-1": "path.js-line",
        "generalisation": "path.point",
    }.items():
        assert tab.page.locator(f"#{plot} .scatterlayer {marks}").count() == 3, plot
    assert tab.page.locator("#speedups path.point").count() == 12, "every optimizer on every task"
    assert tab.page.locator("#horizons path.point").count() == 3, "the learned one at 1, 2 and 5 times its horizon"
    tab.page.locator(".key", has_text="star").click()
    assert tab.page.locator("#profile-steps .scatterlayer path.js-line").count() == 2
    assert tab.page.locator("#speedups path.point").count() == 12, "rows stay"
    assert tab.page.locator(".small a").count() == 4, "one horizon of each task"
    assert tab.page.locator("#problem option").count() == 12
    assert tab.complaints == []


ADAM = "t => t.mode === 'lines+markers' && data.looks[t.o].name === 'adam'"


@pytest.mark.slow
def test_the_page_on_a_phone(opened: Callable[..., Tab]) -> None:
    names = ("a_learned_optimizer_with_quite_a_long_name", *BASELINES)
    runs, timings = synthetic(names, tasks=6)
    axes = {"width": {"8": "digits_mlp0", "16": "digits_mlp1"}}
    untuned = without_tuning(runs, scored(runs), resamples=100)
    tab = opened(text_of(runs, timings, axes=axes, untuned=untuned), 375, is_mobile=True, has_touch=True)
    rows = tab.page.locator("section:has(#one-setting) tbody tr")
    assert (rows.count(), tab.page.locator("section:has(#one-setting) tr.learned").count()) == (12, 1)
    assert tab.width() == [375, 375]
    for details in tab.page.locator("summary").all():
        details.tap()
    assert tab.width() == [375, 375]
    assert tab.visible() == 8
    tab.page.locator("#all").tap()
    assert tab.visible() == 12
    assert tab.page.evaluate("byId('curves').layout.dragmode") is False, "a finger scrolls the page"
    assert tab.complaints == []


PLOT_HAS_THE_TEXT_COLOUR = """() => {
    const fill = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
    return fill("#curves .xtitle", "fill") === fill("body", "color");
}"""


@pytest.mark.slow
def test_the_page_follows_the_colour_scheme(opened: Callable[..., Tab]) -> None:
    tab = opened(text_of(*synthetic()), color_scheme="light")

    def colours() -> tuple[str, ...]:
        tab.page.wait_for_function(PLOT_HAS_THE_TEXT_COLOUR)
        lines = tab.page.evaluate("[...document.querySelectorAll('#curves path.js-line')].map(p => p.style.stroke)")
        title = tab.style("#curves .xtitle", "fill")
        return (tab.style("html", "backgroundColor"), tab.style("body", "color"), title, *lines)

    light = colours()
    tab.page.emulate_media(color_scheme="dark")
    dark = colours()
    assert len(light) == len(dark) == 6
    assert all(a != b for a, b in zip(light, dark, strict=True)), "page, text, plot and every curve"
    tab.page.emulate_media(color_scheme="light")
    assert colours() == light
    assert tab.complaints == []


@pytest.mark.slow
def test_hostile_names_do_nothing_in_a_browser(opened: Callable[..., Tab]) -> None:
    evil = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1"><b>bold</b>'
    runs, timings = synthetic((evil, "adam"), tasks=1)
    runs = [run._replace(task=evil, config={evil: 1}) for run in runs]
    tab = opened(text_of(runs, timings, title=evil))
    assert tab.page.locator("h1").text_content() == evil
    assert evil in tab.page.locator(".key").all_text_contents()
    assert any(evil.startswith(text.rstrip("…")) for text in tab.page.locator("#speedups .ytick").all_text_contents())
    tab.page.evaluate(
        """name => {
            const at = byId("curves").data.findIndex((t) => t.mode === "lines+markers" && data.looks[t.o].name === name);
            Plotly.Fx.hover("curves", [{ curveNumber: at, pointNumber: 5 }]);
        }""",
        evil,
    )
    assert (tab.page.locator("#curves .hovertext").first.text_content() or "").startswith(evil)
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("img, b > b, svg a").count() == 0
    assert tab.complaints == []
    assert len(tab.requests) == 1
