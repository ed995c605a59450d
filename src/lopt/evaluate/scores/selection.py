"""Of the trainings of a grid, choose the setting to report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lopt.errors import InputError
from lopt.evaluate.runs import Run, sorted_json


def select(runs: Iterable[Run], *, by: Literal["train", "valid"] = "train") -> list[Run]:
    """Of each task, optimizer and horizon the runs of the best setting: lowest final training loss, averaged over seeds.

    A setting with a seed that is not finite ranks behind all that have none, the fewer such seeds the better; ties go to the smaller
    learning rate, then to the smaller weight decay. Settings that dropped out after some of the seeds do not take part (`finalists`). Runs keep their order.

    Args:
        runs: of any number of settings.
        by: the loss that decides: of training, or of validation, as for test losses.

    Raises:
        InputError: where settings do not have the same seeds, so that their means do not compare.
    """
    runs = list(runs)
    kept: set[int] = set()
    for group in _by(runs, lambda r: (r.task, r.optimizer, r.horizon)).values():
        by_setting = _by(finalists(group), lambda r: sorted_json(r.config))
        best = min(by_setting.values(), key=lambda rs: (*_standing(rs, by), *_tie(rs[0].config)))
        kept.update(map(id, best))
    return [run for run in runs if id(run) in kept]


def finalists(runs: Sequence[Run]) -> list[Run]:
    """Of one task, optimizer and horizon the runs of the settings that trained all seeds.

    Args:
        runs: of any number of settings.

    Raises:
        InputError: where a setting has seeds that those with the most do not have, so that their means do not compare.
    """
    by_setting = {text: {r.seed for r in rs} for text, rs in _by(runs, lambda r: sorted_json(r.config)).items()}
    most = max(by_setting.values(), key=len)
    if not all(seeds <= most for seeds in by_setting.values()):
        raise InputError(f"The settings of {runs[0].optimizer} on {runs[0].task} do not have the same seeds.")
    return [run for run in runs if by_setting[sorted_json(run.config)] == most]


def promising(runs: Iterable[Run], count: int) -> list[Mapping[str, Any]]:
    """The settings that a grid is thinned out to: what may turn out best by any of the losses that are reported.

    The `count` best by the final train loss, as many by the final validation loss, and at every evaluation the one with the lowest train loss, from which
    the envelope of a speed-up is made.

    Args:
        runs: of one task, optimizer and horizon, all settings with the same seeds.
        count: at least 1.
    """
    by_setting = _by(runs, lambda r: sorted_json(r.config))
    kept: set[str] = set()
    for by in ("train", "valid"):
        best = sorted(by_setting, key=lambda s: (*_standing(by_setting[s], by), *_tie(by_setting[s][0].config)))
        kept.update(best[:count])
    names = list(by_setting)
    with np.errstate(invalid="ignore", over="ignore"):
        curves = np.array([np.mean([r.train_loss.astype(float) for r in by_setting[n]], axis=0) for n in names])
    lowest = np.where(np.isfinite(curves), curves, np.inf).argmin(axis=0)[1:]  # at the start they are all alike
    kept.update(names[i] for i in lowest)
    return [rs[0].config for name, rs in by_setting.items() if name in kept]


def within_suite(runs: Iterable[Run], protocol: Mapping[str, Any]) -> list[Run]:
    """Without those beyond the horizons of the suite: trainings of the reference from which speed-up alone is read.

    Args:
        runs: of an archive.
        protocol: of the same; where it names no `cells`, all runs are scored.
    """
    cells = {tuple(cell) for cell in protocol.get("cells", ())}
    return [run for run in runs if not cells or (run.task, run.horizon) in cells]


def select_one_setting(runs: Iterable[Run]) -> list[Run]:
    r"""Of each optimizer the runs of one setting for all tasks and horizons: as if it came without tuning.

    $$r_{\tau s} = \min\left(1, \frac{\ell_{\tau s} - \ell^*_\tau}{\ell^0_\tau - \ell^*_\tau}\right)$$

    is the regret of a setting $s$ on a task $\tau$ at its own horizon, where $\ell_{\tau s}$ is its final training loss, averaged over seeds,
    $\ell^*_\tau$ the lowest that any setting of this optimizer reached and $\ell^0_\tau$ the loss at the start; it is 1 where a seed is not finite.
    The lowest mean regret over tasks wins; ties as for `select`. The bound keeps one task from deciding for all. A task at several horizons counts
    once for each.

    Args:
        runs: of any number of settings. Settings that some task lacks do not take part. Where some dropped out after the first seeds, these alone
            decide, and of the chosen setting these alone are kept.

    Raises:
        InputError: where no setting is there for all tasks of an optimizer.
    """
    runs = list(runs)
    kept: set[int] = set()
    for optimizer, group in _by(runs, lambda r: r.optimizer).items():
        cells = _by(group, lambda r: (r.task, r.horizon)).values()
        tasks = [_by(_with_common_seeds(rs), lambda r: sorted_json(r.config)) for rs in cells]
        everywhere = set.intersection(*(set(t) for t in tasks))
        if not everywhere:
            raise InputError(f"No setting of {optimizer} was run on all tasks and horizons.")
        regrets = [_regrets(t) for t in tasks]
        settings_of = {text: tasks[0][text][0].config for text in everywhere}
        best = min(everywhere, key=lambda s: (sum(r[s] for r in regrets), *_tie(settings_of[s])))
        kept.update(id(run) for t in tasks for run in t[best])
    return [run for run in runs if id(run) in kept]


def _with_common_seeds(runs: Sequence[Run]) -> list[Run]:
    common = set.intersection(*({r.seed for r in rs} for rs in _by(runs, lambda r: sorted_json(r.config)).values()))
    return [run for run in runs if run.seed in common]


def _regrets(by_setting: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    final = {text: _standing(rs)[0] for text, rs in by_setting.items()}
    best = min(final.values())
    start = float(np.mean([run.train_loss[0] for rs in by_setting.values() for run in rs], dtype=np.float64))
    if not best < start:  # nothing went down
        return {text: float(loss > best) if math.isfinite(loss) else 1.0 for text, loss in final.items()}
    return {text: min(1.0, (loss - best) / (start - best)) for text, loss in final.items()}


def _by(runs: Iterable[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def _standing(runs: Sequence[Run], by: str = "train") -> tuple[float, int]:
    """How a setting did: mean final loss over seeds, infinite if one is not finite; and how many are not."""
    final = np.asarray([getattr(run, f"{by}_loss")[-1] for run in runs], np.float64)
    bad = int((~np.isfinite(final)).sum())
    return (math.inf if bad else float(final.mean())), bad


def _tie(config: Mapping[str, Any]) -> tuple[float, float, str]:
    """Of settings that did alike the one that moves less: the smaller learning rate, then the smaller weight decay."""
    return float(config.get("learning_rate", 0)), float(config.get("weight_decay", 0)), sorted_json(config)
