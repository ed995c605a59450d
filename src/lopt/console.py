"""What the command line shows while it works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from lopt.evaluate.compare import COLUMNS, Comparison, cells
from lopt.meta_train import Progress as MetaProgress

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 120  # tables in a file or a pipe
PLAIN_SECONDS = 10.0  # between lines where the output is no terminal


@contextmanager
def meta_training_progress() -> Iterator[Callable[[MetaProgress], None]]:
    """A live line a meta-training: meta-loss and its moving average, speed, time left. Plain lines where there is no terminal."""
    if not console.is_terminal:
        last = time.monotonic()

        def tell(p: MetaProgress) -> None:
            nonlocal last
            if p.step == p.steps or time.monotonic() - last > PLAIN_SECONDS:
                last = time.monotonic()
                console.print(f"meta-step {p.step}/{p.steps}  {_numbers(p)}")

        yield tell
        return
    columns = (
        TextColumn("meta-training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console) as live:
        bar = live.add_task("meta-training", numbers="compiling")
        yield lambda p: live.update(bar, total=p.steps, completed=p.step, numbers=_numbers(p))


def _numbers(p: MetaProgress) -> str:
    minutes, seconds = divmod(int(p.seconds_left), 60)
    text = f"meta-loss {p.meta_loss:.4f} (average {p.smoothed:.4f})  {p.inner_steps_per_second:,.0f} inner steps/s  {minutes}:{seconds:02d} left"
    return text if p.diverged == 0 else f"{text}  {p.diverged:.1%} of losses not finite"


def comparison_table(found: Comparison) -> Table:
    """A comparison as a table."""
    table = Table(
        title=f"{found.task}: {found.steps} steps, {found.seeds} seeds, mean ± 95 % interval",
        title_justify="left",
        caption=f"target: tuned Adam's final train loss, {found.target:.4f}; its learning rate {found.sweep.best:g}",
        caption_justify="left",
    )
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in found.rows:
        table.add_row(*cells(row))
    return table
