"""Every public name of lopt has a docstring and a place in the API reference: `python docs/coverage.py` lists those that have not.

Public are the names in a module's `__all__`, and where it has none the functions and classes that it defines without a leading
underscore. A name is in the reference if a page of `docs/api` has a directive for the object, under any of its names.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lopt

API = Path(__file__).parent / "api"
# The command line has a page of its own, written for its users; the rest serves it and promises nothing.
INTERNAL = {"lopt.cli", "lopt.console", "lopt.demo", "lopt.machine", "lopt.names"}
# Imported only where what they need is installed.
OPTIONAL = {"lopt.torch": "torch"}
DIRECTIVE = re.compile(r"^::: *([\w.]+)", re.MULTILINE)


def modules() -> list[ModuleType]:
    """The public modules of lopt, itself included."""
    names = (info.name for info in pkgutil.walk_packages(lopt.__path__, "lopt.", onerror=lambda name: None))
    public = [n for n in names if n not in INTERNAL and not n.rpartition(".")[2].startswith("_") and is_importable(n)]
    # Not by attribute: `lopt.unroll` is a function and `lopt.unroll` a module.
    return [importlib.import_module(name) for name in ("lopt", *public)]


def is_importable(name: str) -> bool:
    """Whether what a module of lopt needs is installed."""
    needs = next((needed for prefix, needed in OPTIONAL.items() if f"{name}.".startswith(f"{prefix}.")), None)
    return needs is None or importlib.util.find_spec(needs) is not None


def public_names(module: ModuleType) -> dict[str, Any]:
    """The public names of a module and what they stand for."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: thing
        for name, thing in vars(module).items()
        if _is_code(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
    }


def has_docstring(thing: Any) -> bool:
    """Whether a function or class has a docstring of its own, neither inherited nor made up from its signature."""
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    return bool(text) and not text.startswith(f"{thing.__name__}(")


def _is_code(thing: Any) -> bool:
    return inspect.isclass(thing) or (callable(thing) and inspect.isfunction(inspect.unwrap(thing)))


def directives(api_folder: Path) -> Iterator[str]:
    """The names that the pages of a folder ask to be documented."""
    for page in sorted(api_folder.rglob("*.md")):
        yield from DIRECTIVE.findall(page.read_text())


def missing(api_folder: Path = API) -> list[str]:
    """What is wrong, a line a name; empty if nothing is.

    Args:
        api_folder: the pages of the API reference.
    """
    known = {module.__name__: module for module in modules()}
    paths = set(directives(api_folder))
    things = [getattr(known.get(m), n, None) for m, _, n in (path.rpartition(".") for path in paths)]
    problems = []
    for module in known.values():
        if not module.__doc__:
            problems.append(f"{module.__name__}: no docstring")
        for name, thing in public_names(module).items():
            path = f"{module.__name__}.{name}"
            if inspect.ismodule(thing):
                documented = any(p == path or p.startswith(f"{path}.") for p in paths)
            else:
                documented = path in paths or any(thing is other for other in things)
            if not documented:
                problems.append(f"{path}: not in docs/api")
            if _is_code(thing) and not has_docstring(thing):
                problems.append(f"{path}: no docstring")
    return problems


def main() -> None:
    """Print what is missing; exit code 1 if anything is."""
    problems = missing()
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print(f"All {sum(len(public_names(m)) for m in modules())} public names are documented.")


if __name__ == "__main__":
    main()
