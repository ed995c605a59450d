"""What the command line shows while it works."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from lopt.analyze.certificate import Certificate
from lopt.engine import RayEngine, WorkerStatus
from lopt.errors import needs_extra
from lopt.evaluate.bench.run import Progress as BenchProgress
from lopt.evaluate.bench.run import Standing
from lopt.evaluate.compare import COLUMNS, Comparison, row_text
from lopt.evaluate.scores.summary import Scores
from lopt.meta_train import Progress as MetaProgress
from lopt.population import Report as Cycle
from lopt.tasks.catalogue import Entry

with needs_extra("cli"):
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from rich.table import Table

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 120  # tables in a file or a pipe
PLAIN_SECONDS = 10.0  # between lines where the output is no terminal


@contextmanager
def meta_training_progress(engine: RayEngine | None = None) -> Iterator[Callable[[MetaProgress], None]]:
    """A live line a meta-training: meta-loss and its moving average, speed, time left; below it a table of the engine's workers.

    Plain lines where there is no terminal.
    """
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
    progress = Progress(*columns, console=console)
    bar = progress.add_task("meta-training", numbers="compiling")
    with Live(progress, console=console) as live:

        def show(p: MetaProgress) -> None:
            progress.update(bar, total=p.steps, completed=p.step, numbers=_numbers(p))
            if engine is not None:
                live.update(Group(progress, workers_table(engine.status())))

        yield show


def workers_table(workers: Sequence[WorkerStatus]) -> Table:
    """The workers of an engine, a row each."""
    table = Table("worker", "host", "process", "estimators", "now")
    for w in workers:
        table.add_row(str(w.number), w.host, str(w.pid), str(w.units), "computes" if w.busy else "waits")
    return table


@contextmanager
def self_training_progress() -> Iterator[Callable[[Cycle], None]]:
    """A live line a population: log meta-loss of its best and its median member, and who trains whom. Plain lines where there is no terminal."""
    if not console.is_terminal:
        last = time.monotonic()

        def tell(c: Cycle) -> None:
            nonlocal last
            if c.cycle in (1, c.cycles) or time.monotonic() - last > PLAIN_SECONDS:
                last = time.monotonic()
                console.print(f"cycle {c.cycle}/{c.cycles}  {_population(c)}")

        yield tell
        return
    columns = (
        TextColumn("self-training"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console) as live:
        bar = live.add_task("self-training", numbers="compiling")
        yield lambda c: live.update(bar, total=c.cycles, completed=c.cycle, numbers=_population(c))


def _population(c: Cycle) -> str:
    minutes, seconds = divmod(int(c.seconds_left), 60)
    trainers = " ".join(f"{t}>{i}" for i, t in enumerate(c.trainers))
    best, median = c.losses.min(), sorted(c.losses)[len(c.losses) // 2]
    return f"best {best:.3f}, median {median:.3f}  {trainers}  {c.copies} copies  {minutes}:{seconds:02d} left"


def _numbers(p: MetaProgress) -> str:
    minutes, seconds = divmod(int(p.seconds_left), 60)
    text = f"meta-loss {p.meta_loss:.4f} (average {p.smoothed:.4f})  {p.inner_steps_per_second:,.0f} inner steps/s  {minutes}:{seconds:02d} left"
    return text if p.diverged == 0 else f"{text}  {p.diverged:.1%} of losses not finite"


def comparison_table(found: Comparison) -> Table:
    """A comparison as a table."""
    adam = found.rows[-1]
    table = Table(
        title=f"{found.task}: {found.steps} steps, {found.seeds} seeds, mean ± 95 % interval",
        title_justify="left",
        caption=f"target: tuned Adam's final train loss, {found.target:.4f}; its learning rate {found.adam.setting['learning_rate']:g}; "
        f"a step of it takes {adam.milliseconds_per_step.median:.3g} ms",
        caption_justify="left",
    )
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in found.rows:
        table.add_row(*row_text(row))
    return table


def summary_table(scores: Scores) -> Table:
    """The scores of a bench, best first: what fits a terminal of the summary."""
    from lopt.evaluate.report import _summary

    shown = (
        "normalised final train loss",
        "tasks won against tuned Adam",
        "tasks below every tuned baseline",
        "diverged",
    )
    table = Table("optimizer", caption=f"of {len(scores.common)} tasks that all ran; the report explains the columns")
    for column in shown:
        table.add_column(column, justify="right")
    for summary in scores.ranked:
        texts = dict(zip(_summary.COLUMNS[1:], _summary.row_text(summary, scores), strict=True))
        table.add_row(summary.optimizer, *(str(texts[column]) for column in shown))
    return table


def certificate_table(found: Certificate, task: str) -> Table:
    """A certificate as a table, a row each checkpoint."""
    table = Table(
        title=f"{found.optimizer} on {task}: {found.horizon} steps",
        title_justify="left",
        caption="margin: by how much the curvature could grow before steps overshoot; below 1 they do. Overshoot: growth a step along the direction that does; "
        "exponent: of any small difference, over the 40 steps from there",
        caption_justify="left",
    )
    for title, *_ in CERTIFICATE:
        table.add_column(title, justify="right")
    for i in range(len(found.steps)):
        table.add_row(*(format(getattr(found, field)[i], style) for _, field, style in CERTIFICATE))
    return table


CERTIFICATE = (
    ("step", "steps", "d"),
    ("loss", "loss", ".4g"),
    ("sharpness", "sharpness", ".3g"),
    ("critical", "critical_sharpness", ".3g"),
    ("margin", "margin", ".3g"),
    ("overshoot", "overshoot", ".3f"),
    ("radius", "spectral_radius", ".3f"),
    ("exponent", "exponent", "+.4f"),
    ("noise", "noise_amplification", ".3g"),
)


@contextmanager
def bench_progress() -> Iterator[Callable[[BenchProgress], None]]:
    """A live line a bench: units of work done, what was started last, time left. Plain lines where there is no terminal."""
    if not console.is_terminal:
        last = time.monotonic() - PLAIN_SECONDS

        def tell(p: BenchProgress) -> None:
            nonlocal last
            if p.done == p.total or time.monotonic() - last > PLAIN_SECONDS:
                last = time.monotonic()
                console.print(f"{p.stage} {p.done}/{p.total}  {p.what}", soft_wrap=True)

        yield tell
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=600) as live:
        bars: dict[str, TaskID] = {}

        def show(p: BenchProgress) -> None:
            if p.stage not in bars:
                bars[p.stage] = live.add_task(p.stage, total=p.total, completed=p.done, what="")
            live.update(bars[p.stage], total=p.total, completed=p.done, what=p.what)

        yield show


def standings_table(title: str, rows: Sequence[Standing]) -> Table:
    """Who did how well, in short."""
    caption = (
        "rank: of the final train loss of the best setting, mean over seeds, among all optimizers of the table, mean over tasks and horizons; "
        "time a step: one training, over tuned Adam's in the same turn, median over tasks"
    )
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("optimizer")
    for column in ("mean rank", "first on", "diverged on", "time a step"):
        table.add_column(column, justify="right")
    for row in rows:
        rank, ratio = (
            "–" if math.isnan(x) else f"{x:.{digits}f}{sign}"
            for x, digits, sign in ((row.rank, 2, ""), (row.relative_time, 2, "×"))
        )
        table.add_row(row.optimizer, rank, f"{row.firsts} of {row.cells}", str(row.diverged), ratio)
    return table


def task_tables(
    corpus: str | None, entries: Sequence[Entry], sizes: Mapping[str, Mapping[str, int]]
) -> Iterator[Table]:
    """The catalogue of tasks as tables: tasks or a corpus's members, then the corpora."""
    caption = "ms a step of Adam, one training alone; × that of digits_mlp, measured in turns; – where not measured"
    table = Table(
        title=f"{corpus}: its members are named {corpus}/NAME" if corpus else "tasks",
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    for column in ("name", *(["split"] if corpus else []), "parameters", "ms a step", "× digits_mlp", "data", "source"):
        number = column in ("parameters", "ms a step", "× digits_mlp")
        table.add_column(column, justify="right" if number else "left", no_wrap=number or column == "name")
    for name, split, figures, data, source in entries:
        cost = ("–", "–", "–")
        if figures is not None:
            cost = (f"{figures.parameters:,}", f"{figures.step_ms:.2g}", f"{figures.ratio_to_digits_mlp:.2g}")
        shown = name.removeprefix(f"{corpus}/")
        table.add_row(shown, *([split] if corpus else []), *cost, data, source or "–")
    yield table
    if sizes:
        table = Table("corpora")
        for column in ("train", "valid", "test"):
            table.add_column(column, justify="right")
        for name, counts in sizes.items():
            table.add_row(name, *(f"{n:,}" for n in counts.values()))
        table.caption, table.caption_justify = "lopt tasks --corpus NAME lists its members", "left"
        yield table
