"""All named tasks: what there is, what data they need, where they come from. Nothing is loaded before a task is built."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from lopt import tasks
from lopt.task import Task
from lopt.tasks.corpora.corpus import CORPORA, find_corpus, find_member
from lopt.tasks.corpora.measured import Figures, figures_of
from lopt.tasks.corpora.sampling import task_recipe

GENERATED = "generated"
WICHROWSKA_EVERY = 4


class Entry(NamedTuple):
    """A line of the catalogue."""

    name: str
    split: str  # of its corpus; empty for a named task
    figures: Figures | None
    data: str
    source: str


def builder(name: str) -> Callable[[], Task]:
    """What builds a named task at its defaults, or a member of a corpus, as it is: not `Normalized`."""
    return find_member(name) if "/" in name else tasks.TASKS[name]


def content(name: str) -> str:
    """What a task is, whatever it is called: what is called to build it, with what."""
    function, arguments = _called(builder(name))
    return repr((function, sorted(arguments.items())))


def entries(corpus: str | None = None, figures: dict[str, Figures] | None = None) -> list[Entry]:
    """The named tasks, or the members of a corpus.

    Args:
        corpus: a key of `CORPORA`.
        figures: what was measured; the package's own by default.

    Raises:
        InputError: for an unknown corpus.
    """
    if corpus is None:
        builders = [("", name, b) for name, b in tasks.TASKS.items()]
        fallback = ""
    else:
        splits = find_corpus(corpus)._asdict()
        builders = [(split, f"{corpus}/{m}", b) for split, members in splits.items() for m, b in members.items()]
        fallback = _line("Source", CORPORA[corpus])
    return [
        Entry(name, split, figures_of(name, figures), data_of(build), source_of(build) or fallback)
        for split, name, build in builders
    ]


def corpus_sizes() -> dict[str, dict[str, int]]:
    """How many members every corpus has, by split."""
    return {name: {split: len(b) for split, b in find_corpus(name)._asdict().items()} for name in CORPORA}


def to_measure(corpus: str | None = None) -> list[str]:
    """The tasks that `lopt tasks --measure` measures.

    Without a corpus all named tasks, all members of `small_images` and `held_out`, and of the large corpora a selection, lest it take hours: every
    `WICHROWSKA_EVERY`th member of `wichrowska2017_full` and one of each family of `taskset`. With a corpus all its members, but of `taskset` the same few.

    Args:
        corpus: only its members.
    """
    if corpus is None:
        whole = [name for c in ("small_images", "held_out") for name in to_measure(c)]
        ensemble = to_measure("wichrowska2017_full")[::WICHROWSKA_EVERY]
        return [*tasks.TASKS, *whole, *ensemble, *to_measure("taskset")]
    members = [name for split in find_corpus(corpus) for name in split]
    if corpus == "taskset":
        first = {}
        for member in members:
            first.setdefault(task_recipe(int(member.removeprefix("sampled_"))).config.family, member)
        members = list(first.values())
    return [f"{corpus}/{member}" for member in members]


def data_of(build: Callable[..., Any]) -> str:
    """The data that a builder's task needs: the name of its argument `images`, `table` or `text`, else what its docstring says after `Data:`."""
    function, arguments = _called(build)
    if function is tasks.sample_task:
        return task_recipe(arguments["seed"]).config.dataset
    named = (arguments[name] for name in ("images", "table", "text") if isinstance(arguments.get(name), str))
    return next(named, "") or _line("Data", function) or _of_part(data_of, arguments) or GENERATED


def source_of(build: Callable[..., Any]) -> str:
    """Where a builder's task comes from: what its docstring, that of what it returns or that of its file says after `Source:`."""
    function, _ = _called(build)
    module = sys.modules[function.__module__]
    returned = getattr(module, str(getattr(function, "__annotations__", {}).get("return")), None)
    private = function.__name__.startswith("_")
    return _line("Source", function) or _line("Source", returned) or (_line("Source", module) if private else "")


def _called(build: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What a builder calls, and with what."""
    function, args, fields = build, (), {}
    if isinstance(build, functools.partial):
        function, args, fields = build.func, build.args, build.keywords
    bound = inspect.signature(function).bind_partial(*args, **fields)
    bound.apply_defaults()
    return function, bound.arguments | bound.arguments.get("fields", {})


def _of_part(fact: Callable[[Callable[..., Any]], str], arguments: dict[str, Any]) -> str:
    """The fact about the builder that a builder of wrapped tasks wraps."""
    inner = arguments.get("build")
    return fact(inner) if callable(inner) else ""


def _line(label: str, thing: Any) -> str:
    """What a docstring says after a label, up to the end of the paragraph."""
    found = re.search(rf"\b{label}: (.+?)(?:\n\s*\n|\Z)", inspect.getdoc(thing) or "", re.DOTALL) if thing else None
    return " ".join(found[1].split()).rstrip(".") if found else ""
