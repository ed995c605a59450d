"""One grammar for a task: a name, fields and wrappers, as data, as JSON and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lopt.errors import InputError
from lopt.names import split_fields, tuples, with_fields
from lopt.task import Task

WRAPPERS_KEY = "wrappers"
Wrapping = tuple[str, Mapping[str, Any]]  # the name of a wrapper and its fields


class Family(NamedTuple):
    """A row of `TASKS`: what builds a task of this name, and what `lopt tasks` says of it."""

    build: Callable[..., Task]
    source: str = ""  # where it comes from
    data: str | Callable[..., str] = "generated"  # the data that it needs, or a function of its fields that says so


@dataclasses.dataclass(frozen=True)
class TaskName:
    """A task as data: its name, its fields and what it is wrapped in. `lopt.tasks.create` builds it.

    As text it is `name{json}`. The JSON object holds the fields and, under `wrappers`, a list of names with their fields.
    Where there are neither it is the bare name.

    Args:
        name: a key of `lopt.tasks.TASKS`, or `corpus/member`.
        fields: arguments of its constructor; none for a member of a corpus.
        wrappers: keys of `lopt.tasks.WRAPPERS` with their fields, the innermost first.

    Examples:
        >>> from lopt.tasks import TaskName
        >>> task = TaskName("bowl", {"condition": 5.0}).wrapped("noisy_gradients", deviation=0.1)
        >>> str(task)
        'bowl{"condition":5.0,"wrappers":[["noisy_gradients",{"deviation":0.1}]]}'
        >>> TaskName.parse(str(task)) == task
        True
    """

    name: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    wrappers: tuple[Wrapping, ...] = ()

    @classmethod
    def parse(cls, text: str) -> TaskName:
        """The task of a text.

        Raises:
            InputError: for a text that is not of this form.
        """
        name, fields = split_fields(text)
        return cls(name, fields, _checked(text, fields.pop(WRAPPERS_KEY, ())))

    @classmethod
    def from_json(cls, entry: Any) -> TaskName:
        """The task of a JSON object with `name`, and perhaps `fields` and `wrappers`; other keys are ignored.

        Raises:
            InputError: for an object that is not of this form.
        """
        name, fields = (entry.get("name"), entry.get("fields", {})) if isinstance(entry, Mapping) else (None, {})
        if not isinstance(name, str) or not isinstance(fields, Mapping):
            raise InputError(
                f"{entry!r} is not a task: it must be an object with a text as name and, if it has fields, an object as fields."
            )
        return cls(name, tuples(dict(fields)), _checked(name, entry.get(WRAPPERS_KEY, ())))

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `from_json`, without what is empty."""
        wrappers = [[name, dict(fields)] for name, fields in self.wrappers]
        return {
            "name": self.name,
            **({"fields": dict(self.fields)} if self.fields else {}),
            **({WRAPPERS_KEY: wrappers} if wrappers else {}),
        }

    def wrapped(self, wrapper: str, /, **fields: Any) -> TaskName:
        """The task in one more wrapper, a key of `lopt.tasks.WRAPPERS`."""
        return dataclasses.replace(self, wrappers=(*self.wrappers, (wrapper, fields)))

    def __str__(self) -> str:
        wrappers = {WRAPPERS_KEY: self.wrappers} if self.wrappers else {}
        return with_fields(self.name, {**self.fields, **wrappers})


def _checked(text: str, wrappers: Any) -> tuple[Wrapping, ...]:
    """Wrappers as JSON has them, in their types."""
    pairs = tuples(wrappers)
    if not (isinstance(pairs, tuple) and all(map(_is_wrapping, pairs))):
        raise InputError(
            f'{text!r}: wrappers is {wrappers!r}; it must be a list of pairs, as [["noisy_gradients",{{"deviation":0.1}}]].'
        )
    return pairs


def _is_wrapping(pair: Any) -> bool:
    return isinstance(pair, tuple) and [*map(type, pair)] == [str, dict]


__all__ = ["Family", "TaskName"]
