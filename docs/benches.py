"""Writes a bench's page and table in `docs` from its archive: `python docs/benches.py runs/bench-laptop.sqlite`."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from lopt.checkpoint import write_text
from lopt.errors import InputError
from lopt.evaluate.baselines import BASELINES
from lopt.evaluate.bench.archive import Archive
from lopt.evaluate.report import archive_report
from lopt.evaluate.scores.selection import within_suite
from lopt.evaluate.scores.summary import Scores

DOCS = Path(__file__).parent
COST = """The {units} units of work took {hours:.1f} hours of one core in all, compilation and evaluation included.
The final loss of each optimizer at its best setting, the mean over seeds, is in [{name}.csv](data/{name}.csv).

"""
HEADS = {
    "laptop": """# The laptop bench

The suite [`laptop`](evaluation.md#suites): {optimizers} optimizers on {tasks} tasks, in short trainings of {horizons} steps, {seeds} seeds each.
No corpus here meta-trains on these tasks. Every baseline is tuned on every task over its whole grid; nothing is tuned for a learned optimizer.
[Scores](scores.md) says what the columns mean.

```bash
{command}
lopt report runs/laptop.sqlite
```

""",
    "held_out": """# The held-out bench

The suite [`held_out`](evaluation.md#suites): {optimizers} optimizers on {tasks} tasks, trained to {horizons} steps, {seeds} seeds each.
No corpus here meta-trains on these tasks. Every baseline has the best of nine learning rates for each task and horizon,
those with weight decay the better of two decays too.
Nothing is tuned for a learned optimizer. `general-2` is told the horizon, `general-2{{"tell_horizon":false}}` is not.
[Scores](scores.md) says what the columns mean.

```bash
{command}
lopt bench held_out --optimizers adam --no-timing --archive runs/held_out.sqlite
lopt report runs/held_out.sqlite --horizon 1000
```

The rule of `general-2` was changed twice after this bench had shown a weakness: rates on networks with normalisation layers, which were too low,
and the growth of weights, which cost test loss. Both changes were chosen on training tasks ([its page](zoo/general-2.md)).
`general-1` and Celo were measured before, against an Adam with 15 rates ([its page](zoo/general-1.md#held-out)).

Speed-up is read from Adam's trainings to all horizons of a task. Adam alone was trained to 5,000 steps.

""",
}
MISSING = """Not trained yet, and in no figure here: {tasks}.

"""
PASSAGE = """
First passage is the part of the training after which an optimizer first reaches tuned Adam's final loss. Median over tasks: {medians}.
"""
WHERE = """
##{deeper} Who wins where

The lowest final training loss on each task, mean over seeds, and the losses of some other optimizers there. The test loss stands behind the training loss.

"""


def where(rows: Sequence[dict[str, str]], shown: Sequence[str]) -> str:
    """A row for each task and horizon: the best optimizer, its loss, and the losses of some."""
    lines = [
        f"| task | steps | lowest | its loss | {' | '.join(f'`{name}`' for name in shown)} |",
        "|---|---:|---|---:|" + "---:|" * len(shown),
    ]

    def losses(row: dict[str, str]) -> str:
        return f"{float(row['train_loss']):.3g} / {float(row['test_loss']):.3g}"

    for cell in dict.fromkeys((row["task"], row["steps"]) for row in rows):
        here = {row["optimizer"]: row for row in rows if (row["task"], row["steps"]) == cell}
        best = min(here.values(), key=lambda row: float(row["train_loss"]))
        others = (losses(here[name]) if name in here else "–" for name in shown)
        name = cell[0].partition("/")[2] or cell[0]
        lines.append(f"| `{name}` | {cell[1]} | `{best['optimizer']}` | {losses(best)} | {' | '.join(others)} |")
    return "\n".join(lines) + "\n"


def passage(scores: Scores, shown: Sequence[str]) -> str:
    """How early some optimizers pass Adam's final loss, and on how many tasks they do."""
    said = []
    for name in shown:
        cells = [cell for cell in scores.table.get(name, {}).values() if not np.isnan(cell.target)]
        parts = np.array([cell.steps_to_target / cell.horizon for cell in cells])
        if len(parts):
            median = f"{np.median(parts):.2f}" if np.isfinite(np.median(parts)) else "never"
            said.append(f"`{name}` {median} (on {np.isfinite(parts).sum()} of {len(parts)} tasks)")
    return PASSAGE.format(medians=", ".join(said)) if said else ""


def listed(horizons: Sequence[int], *, range_of: bool) -> str:
    """Horizons in words."""
    words = [f"{horizon:,}" for horizon in horizons]
    if range_of and len(words) > 1:
        return f"{words[0]} to {words[-1]}"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def main(archive: tyro.conf.Positional[Path]) -> None:
    """Write page and table.

    Args:
        archive: what `lopt bench laptop` or `lopt bench held_out` wrote.
    """
    with Archive(archive, create=False) as bench:
        protocol, log, given = bench.protocol(), bench.log(), bench.given()
        suite = protocol["suite"]
        if suite not in HEADS:
            raise InputError(f"The archive is of the suite {suite}; there are pages for {', '.join(HEADS)}.")
        runs = within_suite(bench.runs(), protocol)
        trained = sorted({run.horizon for run in runs if run.optimizer not in BASELINES})
        if not trained:
            raise InputError("The archive has no learned optimizer; a page compares one with baselines.")
        several = suite == "held_out"  # a table for each horizon; elsewhere each task has its own
        found = {h: archive_report(bench, horizon=h) for h in (trained if several else [None])}
    first = next(iter(found.values())).scores
    learned = [name for name in first.optimizers if name not in BASELINES]
    baselines = [name for name in first.optimizers if name in BASELINES]
    baselines = ["baselines"] if len(baselines) == len(BASELINES) else baselines
    names = [f"runs/{name}.safetensors" if Path(given[name]).is_absolute() else given[name] for name in learned]
    command = ["lopt", "bench", suite, "--optimizers", *baselines, *names]
    if several:
        command += ["--longest", str(trained[-1]), "--no-timing"]
    page = HEADS[suite].format(
        optimizers=len(first.optimizers),
        tasks=len(first.tasks),
        horizons=listed(trained, range_of=not several),
        seeds=protocol["seeds"],
        command=shlex.join([*command, "--archive", f"runs/{suite}.sqlite"]),
    )
    left = [task for task in dict.fromkeys(task for task, _ in protocol["cells"]) if task not in first.tasks]
    if left:
        page += MISSING.format(tasks=", ".join(f"`{task}`" for task in left))
    page += COST.format(units=len(log), hours=sum(done.seconds for done in log) / 3600, name=suite)
    tables: list[str] = []
    for horizon, report in found.items():
        cells = report.cells.splitlines(keepends=True)
        tables += cells if not tables else cells[1:]
        rows = list(csv.DictReader(io.StringIO(report.cells)))
        deeper = "" if horizon is None else "#"
        if horizon is not None:
            page += f"\n## {horizon:,} steps\n\n"
        summary, *rest = report.markdown.replace("\n## ", f"\n##{deeper} ").split(f"\n##{deeper} ")
        page += (
            summary
            + (passage(report.scores, learned) if several else "")
            + WHERE.format(deeper=deeper)
            + where(rows, ["adam", *learned])
        )
        page += "".join(f"\n##{deeper} {part}" for part in rest)
    write_text(DOCS / f"{suite}.md", page)
    (DOCS / "data").mkdir(exist_ok=True)
    write_text(DOCS / "data" / f"{suite}.csv", "".join(tables))


if __name__ == "__main__":
    tyro.cli(main)
