"""Where nobody tunes for the task: every tuned baseline at one setting for all tasks, beside what comes as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lopt.errors import InputError
from lopt.evaluate.runs import Run, Unit
from lopt.evaluate.scores.selection import select, select_one_setting
from lopt.evaluate.scores.summary import Scores, Summary, score


class Untuned(NamedTuple):
    """An optimizer that is not tuned for the task."""

    optimizer: str
    config: Mapping[str, Any]  # its one setting; empty for a saved optimizer
    summary: Summary  # at that setting; rank and AlgoPerf scores are among those of the tuned ones as well
    tuned: Summary | None  # at its best setting on each task; None: it has nothing to tune


def without_tuning(
    trained: Sequence[Run],
    scores: Scores,
    *,
    sweep: Sequence[Run] = (),
    failed: Iterable[Unit] = (),
    resamples: int = 4000,
) -> list[Untuned]:
    """Every optimizer of a benchmark at one setting for all tasks, the lowest normalised final train loss first.

    A baseline's setting is that of `select_one_setting`. Losses have the scale of `scores`: 0 is the best baseline that was tuned on the task. Tasks
    are those that all optimizers ran.

    Args:
        trained: runs of all settings, without those beyond the scored horizons.
        scores: of the same runs, each at its best setting on each task.
        sweep: as for `score`.
        failed: as for `score`.
        resamples: of each interval.

    Returns:
        Without the baselines of which no setting was run on all their tasks.

    Raises:
        InputError: as `score`.
    """
    trained = [run for run in trained if run.horizon == scores.horizons.get(run.task)]
    runs, chosen = select(trained), []
    for name in scores.baselines:
        try:
            chosen += select_one_setting(run for run in trained if run.optimizer == name)
        except InputError:
            continue
    own = {_label(name): name for name in scores.baselines}  # beside the tuned ones, which set the scale
    units = [Unit(*unit) for unit in failed]
    found = score(
        [*runs, *(run._replace(optimizer=_label(run.optimizer)) for run in chosen)],
        baselines=scores.baselines,
        reference=scores.reference,
        sweep=sweep,
        failed=[*units, *(unit._replace(optimizer=_label(unit.optimizer)) for unit in units)],
        horizons=scores.horizons,
        resamples=resamples,
    )
    tuned = {s.optimizer: s for s in scores.summaries}
    config = {run.optimizer: run.config for run in (*runs, *chosen)}
    return [
        Untuned(name, config[name], s._replace(optimizer=name), tuned[name] if s.optimizer in own else None)
        for s in found.ranked
        if (name := own.get(s.optimizer, s.optimizer)) not in scores.baselines or s.optimizer in own
    ]


def _label(optimizer: str) -> str:
    return f"{optimizer}, one setting"


__all__ = ["Untuned", "without_tuning"]
