"""Writes `docs/laptop.md` and `docs/data/laptop.csv` from the archive of a bench: `python docs/laptop.py runs/bench-laptop.sqlite`."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

import tyro

from lopt.checkpoint import write_text
from lopt.evaluate.archive import Archive
from lopt.evaluate.baselines import BASELINES
from lopt.evaluate.report import archive_report

DOCS = Path(__file__).parent
HEAD = """# The laptop bench

{optimizers} optimizers on {tasks} tasks on which no corpus here meta-trains, in short trainings of 50 to 200 steps, three seeds each:
[`laptop`](evaluation.md#suites). Every baseline is tuned on every task over its whole grid; what is meta-trained comes as it is.
[Scores](scores.md) says what the columns mean.

```bash
{command}
lopt report runs/laptop.sqlite
```

The {units} units of work took {hours:.1f} hours of one core in all, compilation and evaluation included, on a machine that was busy with
other work; two cores share them. Every final loss is in [laptop.csv](data/laptop.csv).

"""
WHERE = """
## Who wins where

The lowest final training loss on each task, mean over seeds, and what others reach there.

"""


def where(rows: Sequence[dict[str, str]], shown: Sequence[str]) -> str:
    """A row for each task: the best optimizer, its loss, and the losses of some."""
    lines = [
        f"| task | steps | lowest | its loss | {' | '.join(f'`{name}`' for name in shown)} |",
        "|---|---:|---|---:|" + "---:|" * len(shown),
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        here = {row["optimizer"]: row for row in rows if row["task"] == task}
        best = min(here.values(), key=lambda row: float(row["train_loss"]))
        losses = (f"{float(here[name]['train_loss']):.3g}" if name in here else "–" for name in shown)
        name = task.partition("/")[2] or task
        lines.append(
            f"| `{name}` | {best['steps']} | `{best['optimizer']}` | {float(best['train_loss']):.3g} | {' | '.join(losses)} |"
        )
    return "\n".join(lines) + "\n"


def main(archive: tyro.conf.Positional[Path]) -> None:
    """Write page and table.

    Args:
        archive: what `lopt bench laptop` wrote.
    """
    with Archive(archive, create=False) as bench:
        found, log, given = archive_report(bench), bench.log(), bench.given()
    rows = list(csv.DictReader(io.StringIO(found.cells)))
    learned = [name for name in found.scores.optimizers if name not in BASELINES]
    head = HEAD.format(
        optimizers=len(found.scores.optimizers),
        tasks=len(found.scores.tasks),
        command="lopt bench laptop --optimizers baselines "
        + shlex.join([*(given[name] for name in learned), "--archive", "runs/laptop.sqlite"]),
        units=len(log),
        hours=sum(done.seconds for done in log) / 3600,
    )
    summary, *rest = found.markdown.split("\n## ")
    tables = "".join(f"\n## {part}" for part in rest)
    write_text(DOCS / "laptop.md", head + summary + WHERE + where(rows, ["adam", *learned]) + tables)
    (DOCS / "data").mkdir(exist_ok=True)
    write_text(DOCS / "data" / "laptop.csv", found.cells)


if __name__ == "__main__":
    tyro.cli(main)
