"""What takes part in an evaluation: tuned baselines, optimizers at one setting, saved optimizers, each by a name that says all."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lopt import zoo
from lopt.errors import InputError
from lopt.evaluate.baselines import BASELINES, LEARNING_RATES, Baseline, grid, settings
from lopt.names import split_fields, unknown, with_fields
from lopt.optimizer import Optimizer
from lopt.optimizers import OPTIMIZERS, create

Fields = dict[str, Any]
ALL = "baselines"  # stands for all of them


class Contender(NamedTuple):
    """What takes part. It holds no arrays, so that it travels between processes."""

    label: str  # under which it is reported
    name: str  # of a baseline, of `lopt list`, of a saved optimizer, or a path
    fields: Fields | None  # arguments; None: a baseline that is tuned, or a saved optimizer
    fingerprint: str | None  # of a saved optimizer
    given: str = ""  # what it was called by; empty: the label
    tell_horizon: bool = True  # whether it is told how long a training lasts

    @property
    def is_tuned(self) -> bool:
        """Whether it is a baseline with a grid."""
        return self.fields is None and self.fingerprint is None

    def settings(self, learning_rates: Sequence[float] = LEARNING_RATES) -> list[Fields]:
        """What is tried: the grid of a baseline, else one setting."""
        return list(settings(self.name, learning_rates)) if self.is_tuned else [self.fields or {}]

    def optimizers(self, chosen: Sequence[Fields]) -> Optimizer:
        """A batch of it at these settings: leaves have a leading axis."""
        if self.is_tuned:
            return grid(self.name, chosen)
        return jax.tree.map(lambda x: x[None], self.optimizer(chosen[0]))

    def optimizer(self, setting: Fields) -> Optimizer:
        """It at one setting."""
        if self.fingerprint is not None:
            return zoo.load(self.name)
        if self.name in BASELINES and (self.name not in OPTIMIZERS or setting.keys() == self._tuned_fields()):
            return Baseline(self.name, dict.fromkeys(self._tuned_fields() - {"learning_rate"}, 0.0) | setting)
        return create(self.name, **setting)  # `adam` is also an optimizer of `lopt list`, with more fields

    def _tuned_fields(self) -> set[str]:
        return set(settings(self.name, (0.0,))[0])


def contender(text: str) -> Contender:
    """What takes part under this name.

    Args:
        text: a key of `BASELINES`, tuned; one of it or of `lopt list` at one setting, as `adam{"learning_rate":0.01}`, where a weight decay of a baseline
            that is not given is 0; the name of a saved optimizer; or
            the path of one, reported by the name of the file, or of its folder where the file is called `optimizer`, as those of `lopt meta-train` are.
            A saved one with `{"tell_horizon":false}` after it is not told how long a training lasts.

    Raises:
        InputError: for an unknown name, bad fields, or a saved optimizer that cannot be read.
    """
    name, fields = split_fields(text)
    if name in BASELINES and not fields:
        return Contender(name, name, None, None)
    if name in BASELINES or name in OPTIMIZERS:
        found = Contender(with_fields(name, fields), name, fields, None)
        found.optimizer(fields)
        return found
    is_path = name.endswith(".safetensors") or os.sep in name
    if not is_path and name not in zoo.available():
        known = [*BASELINES, *OPTIMIZERS, *zoo.available()]
        raise InputError(unknown("baseline, optimizer or saved optimizer", name, dict.fromkeys(known)))
    tell_horizon = fields.pop("tell_horizon", True)
    if not isinstance(tell_horizon, bool):
        raise InputError(f"tell_horizon is {tell_horizon!r}; it must be true or false.")
    if fields:
        given = " ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in fields.items())
        raise InputError(f"{name} is a saved optimizer; its fields are fixed, but {given} was given.")
    zoo.load(name)
    path = Path(name)
    label = name if not is_path else (path.resolve().parent.name if path.stem == "optimizer" else path.stem)
    label = with_fields(label, {} if tell_horizon else {"tell_horizon": False})
    where = str(path.resolve()) if is_path else name
    return Contender(label, where, None, zoo.read_card(name).fingerprint, text, tell_horizon)


def one_setting(text: str, fields: Fields | None = None) -> Optimizer:
    """The optimizer of a name, where nothing is tuned.

    Args:
        text: as for `contender`; what `lopt list` has may stand without fields, and takes its defaults.
        fields: more of them.

    Raises:
        InputError: as `contender`; for a baseline without a learning rate.

    Examples:
        >>> from lopt.evaluate.contenders import one_setting
        >>> one_setting('lion{"learning_rate":0.001}').name
        'lion'
    """
    name, own = split_fields(text)
    given = own | (fields or {})
    if name in OPTIMIZERS:
        return create(name, **given)
    if name in BASELINES and "learning_rate" not in given:
        rated = with_fields(name, given | {"learning_rate": 0.01})
        raise InputError(f"{name} is a baseline, and nothing is tuned here; give its learning rate, as '{rated}'.")
    found = contender(with_fields(name, given))
    if not found.tell_horizon:
        raise InputError(f"{text} is for a bench, which says what the optimizer is told; leave tell_horizon out here.")
    return found.optimizer(found.fields or {})


def contenders(texts: Sequence[str]) -> list[Contender]:
    """All that take part, by `contender`; `baselines` stands for all baselines. Tuned Adam, the reference, is always there.

    Raises:
        InputError: as `contender`; for an optimizer with random weights; where two would be reported under one name.
    """
    expanded = [name for text in texts for name in (BASELINES if text == ALL else (text,))]
    found = by_label(["adam", *expanded])
    for it in found.values():
        if it.fingerprint is None and is_random(it.name):
            raise InputError(f"{it.name} has random weights; name a saved optimizer or the path of one.")
    return list(found.values())


def by_label(texts: Sequence[str]) -> dict[str, Contender]:
    """Contenders by the name under which they are reported.

    Args:
        texts: as `contender` takes them; one that is there twice counts once.

    Raises:
        InputError: as `contender`; where two would be reported under one name.
    """
    found: dict[str, Contender] = {}
    given: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        it = contender(text)
        if it.label in found:
            raise InputError(f"{given[it.label]} and {text} would both be reported as {it.label}; rename a file.")
        found[it.label], given[it.label] = it, text
    return found


def is_random(name: str) -> bool:
    """Whether it is an optimizer of `lopt list` that starts with random weights."""
    return name in OPTIMIZERS and "key" in inspect.signature(OPTIMIZERS[name]).parameters


def card_of(saved: Contender) -> dict[str, Any]:
    """The card of a saved optimizer, as JSON has it."""
    return dataclasses.asdict(zoo.read_card(saved.name))


__all__ = [
    "ALL",
    "Contender",
    "by_label",
    "card_of",
    "contender",
    "contenders",
    "is_random",
    "one_setting",
]
