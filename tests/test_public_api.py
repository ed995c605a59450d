"""Adding is one file and one row; every public name is documented and exported; importing is cheap and silent."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import lopt
from lopt.errors import InputError
from lopt.evaluate import report
from lopt.evaluate.report import bench as page
from lopt.tasks.data import images, points, tables
from registry import ANALYSES, ESTIMATORS, OPTIMIZERS, TASKS

SOURCE = Path(lopt.__file__).parent
DOCS = Path(__file__).parents[1] / "docs" / "api"

# Files that are no optimizer, task or estimator, and why.
SHARED: dict[str, dict[str, str]] = {
    "optimizers": {"from_optax": "the bridge to optax: it has no meta-parameters and no name to be created by"},
    "tasks": {
        "catalogue": "lists tasks",
        "corpora/corpus": "names collections of tasks",
        "corpora/measured": "reads what was measured on tasks",
        "corpora/sampling": "what the sampled tasks are, as plain data",
        "corpora/wichrowska": "names tasks of other files; test_analytic_tasks.py has every one of them",
        "naming": "what a task is as data, with tests of its own",
        "data/images": "loads the arrays that tasks hold",
        "data/points": "draws and takes rows of the arrays that tasks hold",
        "data/tables": "loads the arrays that tasks hold",
        "data/text": "loads the arrays that tasks hold",
        "networks/layers": "what their networks are made of",
        "networks/learning": "the abstract classes of problems of learning from examples",
    },
    "estimators": {
        "estimator": "the abstract class",
        "objectives": "what all estimators make of losses",
        "particles": "what all estimators on unrolls share",
        "schedules": "an argument of all estimators, with tests of its own",
        "per_task": "wraps any estimator, with tests of its own",
    },
    "analyze": {
        "certificate": "the record that stability makes",
        "descent": "asks nothing: paths on landscapes; test_watch.py has its tests",
        "watch": "the page of these paths; test_watch.py has its tests",
        "eigenvalues": "what ARPACK finds of any matrix, with tests of its own in test_stability.py",
        "linear": "one training step as a linear map, for all analyses; test_stability.py has its tests",
        "page": "asks all questions about mechanisms; test_mechanisms.py has its tests",
        "probing": "the tensor that rules are put to, for all mechanisms; test_mechanisms.py",
        "recording": "the training that state_space and explain look at; test_mechanisms.py",
        "noisy_quadratic": "a model in closed form, without an optimizer; test_noisy_quadratic.py has its tests",
        "problem": "makes a task of a user's loss",
    },
}

ROWS: dict[str, set[str]] = {
    "optimizers": {inspect.getmodule(row.kind).__name__.rpartition(".")[2] for row in OPTIMIZERS},  # pyright: ignore[reportOptionalMemberAccess]
    "tasks": {row.module for row in TASKS},
    "analyze": {row.module for row in ANALYSES},
    "estimators": {inspect.getmodule(row.kind).__name__.rpartition(".")[2] for row in ESTIMATORS},  # pyright: ignore[reportOptionalMemberAccess]
}


def public_names(source: str) -> list[str]:
    """Classes and functions that a file defines for others."""
    return re.findall(r"^(?:class|def) ([A-Za-z]\w*)", source, re.MULTILINE)


def omissions(
    folder: Path, shared: Mapping[str, str], rows: Iterable[str], exported: Iterable[str], docs: str
) -> list[str]:
    """What is missing for the files of a folder: a row in the registry, an export, a line in the docs.

    Args:
        folder: of a package.
        shared: its files that need no row.
        rows: files that have a row.
        exported: the package's `__all__`.
        docs: all pages of the API reference.
    """
    found = []
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.py"))
        if not path.stem.startswith("_")
    }
    for name, path in files.items():
        if name in shared:
            continue
        names = public_names(path.read_text())
        if name not in rows:
            found.append(f"{path.name} has no row in tests/registry.py")
        if not set(names) & set(exported):
            found.append(f"{path.name} exports nothing in {folder.name}/__init__.py")
        for public in sorted(set(names) & set(exported)) or names:
            if not re.search(rf"\b{public}\b", docs):
                found.append(f"{public} of {path.name} has no line in docs/api")
    found += [f"{name} is listed but has no file {name}.py" for name in sorted({*shared, *rows} - set(files))]
    return found


def docs() -> str:
    return "\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))


@pytest.mark.parametrize("package", SHARED)
def test_every_file_has_a_row_an_export_and_a_line_in_the_docs(package: str) -> None:
    exported = importlib.import_module(f"lopt.{package}").__all__
    assert omissions(SOURCE / package, SHARED[package], ROWS[package], exported, docs()) == []


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A package of two rules, all in order."""
    folder = tmp_path / "optimizers"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "_private.py").write_text("")
    (folder / "shared.py").write_text("class Base: ...\n")
    (folder / "lion.py").write_text("class Lion: ...\n\n\nclass _Helper: ...\n")
    (folder / "tiger.py").write_text("class Tiger: ...\n\n\ndef stripes(): ...\n")
    return folder


def check_fake(folder: Path) -> list[str]:
    text = "::: lopt.optimizers.lion.Lion\n\nAnd `Tiger`, a class."
    return omissions(folder, {"shared": "a base"}, {"lion", "tiger"}, ["Lion", "Tiger"], text)


def test_a_package_in_order_passes_the_check(fake: Path) -> None:
    assert check_fake(fake) == []


def test_a_new_file_without_anything_fails_the_check(fake: Path) -> None:
    (fake / "wolf.py").write_text("class Wolf: ...\n")
    assert check_fake(fake) == [
        "wolf.py has no row in tests/registry.py",
        "wolf.py exports nothing in optimizers/__init__.py",
        "Wolf of wolf.py has no line in docs/api",
    ]


@pytest.mark.parametrize("missing", ["row", "export", "docs", "file"])
def test_each_omission_alone_fails_the_check(fake: Path, missing: str) -> None:
    if missing == "file":
        (fake / "tiger.py").unlink()
    found = omissions(
        fake,
        {"shared": "a base"},
        {"lion"} if missing == "row" else {"lion", "tiger"},
        ["Lion"] if missing == "export" else ["Lion", "Tiger"],
        "Lion" if missing == "docs" else "Lion, Tiger, stripes",
    )
    assert (
        found
        == {
            "row": ["tiger.py has no row in tests/registry.py"],
            "export": ["tiger.py exports nothing in optimizers/__init__.py"],
            "docs": ["Tiger of tiger.py has no line in docs/api"],
            "file": ["tiger is listed but has no file tiger.py"],
        }[missing]
    )


def test_the_registry_has_every_name_that_can_be_created() -> None:
    assert {row.name: row.kind for row in OPTIMIZERS} == lopt.optimizers.OPTIMIZERS
    assert {row.name: row.kind for row in ESTIMATORS} == lopt.estimators.ESTIMATORS
    assert set(lopt.tasks.TASKS) <= {row.kind for row in TASKS}
    for table in (OPTIMIZERS, TASKS, ESTIMATORS):
        names = [row.name for row in table]
        assert len(set(names)) == len(names)


# Documentation.


def modules() -> Iterator[ModuleType]:
    yield lopt
    for info in pkgutil.walk_packages(lopt.__path__, "lopt.", onerror=lambda name: None):
        optional = info.name.split(".")[1] == "torch" and importlib.util.find_spec("torch") is None
        if not info.name.endswith("__main__") and not optional:
            yield importlib.import_module(info.name)


def undocumented(module: ModuleType) -> list[str]:
    """The module, its public classes and functions, and their public methods, where they have no docstring of their own."""
    found = [] if module.__doc__ else [module.__name__]
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if not (inspect.isclass(member) or inspect.isfunction(member)):
            continue
        qualified = f"{module.__name__}.{name}"
        # Dataclasses and named tuples without a docstring get their signature for one.
        found += [qualified] if (member.__doc__ or f"{name}(").startswith(f"{name}(") else []
        if inspect.isclass(member):
            methods = {k: v for k, v in vars(member).items() if not k.startswith("_") and inspect.isfunction(v)}
            found += [f"{qualified}.{k}" for k, v in methods.items() if not v.__doc__]
    return found


def test_every_public_name_has_a_docstring() -> None:
    assert [name for module in modules() for name in undocumented(module)] == []


def test_the_docstring_check_sees_omissions() -> None:
    module = ModuleType("lopt.bare")
    module.Bare = type("Bare", (), {"method": lambda self: None, "__module__": "lopt.bare"})
    module.Pair = NamedTuple("Pair", [("a", int)])
    module.function = lambda: None
    module.Pair.__module__ = module.function.__module__ = "lopt.bare"
    expected = ["lopt.bare", "lopt.bare.Bare", "lopt.bare.Bare.method", "lopt.bare.Pair", "lopt.bare.function"]
    assert undocumented(module) == expected


def test_everything_exported_exists_once() -> None:
    for module in modules():
        exported = getattr(module, "__all__", [])
        assert len(set(exported)) == len(exported), module.__name__
        for name in exported:
            assert hasattr(module, name), f"{module.__name__}.{name}"
            assert name == "__version__" or not name.startswith("_")


def test_what_others_build_on_is_there() -> None:
    names = {"Optimizer", "Task", "start", "unroll", "meta_train", "create", "load", "save", "train"}
    packages = {"blocks", "convert", "estimators", "evaluate", "optimizers", "tasks", "zoo"}
    assert names | packages <= set(lopt.__all__)
    assert lopt.create is lopt.optimizers.create


EXAMPLES = [
    pytest.param(test, id=test.name)
    for module in modules()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    if test.examples
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_in_docstrings_run(example: doctest.DocTest) -> None:
    result = doctest.DocTestRunner(verbose=False).run(example)
    assert result.attempted == len(example.examples)
    assert result.failed == 0


def test_the_main_entry_points_have_examples() -> None:
    with_examples = {param.id for param in EXAMPLES}
    assert with_examples >= {
        "lopt.optimizer.Optimizer.to_optax",
        "lopt.optimizers.create",
        "lopt.tasks.create",
        "lopt.meta_train.meta_train",
        "lopt.evaluate.training.train",
        "lopt.zoo.load",
    }


# Import.

HEAVY = (
    "torch",
    "ray",
    "matplotlib",
    "sklearn",
    "scipy",
    "tyro",
    "rich",
    "plotly",
    "msgpack",
    "flax",
    "haiku",
    "tensorflow",
    "pandas",
)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)


def test_import_is_silent_and_light() -> None:
    code = f"import sys, lopt; found = sorted(set({HEAVY!r}) & set(sys.modules)); sys.exit(', '.join(found) or 0)"
    result = run_python(code)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_import_starts_no_backend() -> None:
    """Device counts and platforms can still be chosen after the import."""
    result = run_python(
        "import lopt; from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert lopt.__version__ == version("lopt")


# Extras.

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
MODULES = {"scikit-learn": "sklearn"}  # distributions whose module has another name


def brings(requirements: Iterable[str]) -> set[str]:
    """The modules that requirements bring."""
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}
    return {MODULES.get(name, name) for name in names}


CORE = brings(PYPROJECT["project"]["dependencies"])
EXTRAS = {name: brings(found) for name, found in PYPROJECT["project"]["optional-dependencies"].items()}
USED = {name: modules for name, modules in EXTRAS.items() if name not in ("all", "dev", "docs")}


def unguarded(source: str) -> list[str]:
    """Packages that are neither core dependencies nor imported inside `needs_extra` of their extra.

    A file that imports a package so at its top may import from it again below.
    """
    tree = ast.parse(source)
    guarded: set[ast.AST] = set()
    at_the_top: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.With(
                items=[
                    ast.withitem(
                        context_expr=ast.Call(func=ast.Name(id="needs_extra"), args=[ast.Constant(value=extra)])
                    )
                ]
            ):
                right = {inner for inner in ast.walk(node) if set(top_levels(inner)) <= USED.get(str(extra), set())}
                guarded |= right
                at_the_top |= {name for inner in right if node in tree.body for name in top_levels(inner)}
    allowed = CORE | sys.stdlib_module_names | at_the_top | {"lopt"}
    return sorted({n for node in ast.walk(tree) if node not in guarded for n in top_levels(node)} - allowed)


def top_levels(node: ast.AST) -> list[str]:
    """First names of the modules that a statement imports."""
    match node:
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
        case ast.ImportFrom(level=0, module=str(module)):
            return [module.partition(".")[0]]
    return []


def test_optional_packages_are_imported_where_an_error_names_their_extra() -> None:
    found = {str(path.relative_to(SOURCE)): unguarded(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import jax, os", []),
        ("def f():\n    from sklearn.datasets import load_wine", ["sklearn"]),
        ("with needs_extra('data'):\n    from sklearn.datasets import load_wine", []),
        ("with needs_extra('plot'):\n    from sklearn.datasets import load_wine", ["sklearn"]),
        ("with needs_extra('cli'):\n    import rich\ndef f():\n    from rich.table import Table", []),
        ("def f():\n    with needs_extra('cli'):\n        import rich\nimport rich", ["rich"]),
        ("import pandas", ["pandas"]),
    ],
)
def test_the_check_of_extras_sees_imports_that_are_not_guarded(source: str, found: list[str]) -> None:
    assert unguarded(source) == found


def test_all_extras_are_in_all_and_for_developers() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    # PyTorch and Ray are large packages: whoever wants one says so.
    assert extras["all"] == [f"lopt[{','.join(name for name in USED if name not in ('torch', 'ray'))}]"]
    assert "lopt[all,ray]" in extras["dev"]
    assert "lopt[all]" in extras["docs"]
    assert not CORE & set().union(*USED.values())


NEEDS: list[tuple[str, str, Callable[[], object]]] = [
    ("data", "sklearn", lambda: images.digits.__wrapped__()),
    ("data", "sklearn", tables.wine),
    ("data", "sklearn", lambda: points.moons.__wrapped__(0.1)),
    ("plot", "matplotlib", lambda: report.page.panels()),
    ("report", "plotly", lambda: page._plotly()),
    ("convert", "msgpack", lambda: lopt.convert.read_flax("none")),
    ("torch", "torch", lambda: importlib.reload(importlib.import_module("lopt.torch"))),
    ("ray", "ray", lopt.engine.connection.connect),
    ("cli", "tyro", lambda: importlib.reload(importlib.import_module("lopt.cli"))),
]


@pytest.mark.parametrize(("extra", "package", "call"), NEEDS)
def test_a_missing_package_is_a_sentence_that_names_its_extra(
    extra: str, package: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        InputError,
        match=rf"^The package {package} is not installed; it comes with the extra {extra}: pip install .*\[{extra}\]'\.$",
    ):
        call()


def test_every_extra_has_a_case_above() -> None:
    assert {extra for extra, *_ in NEEDS} == set(USED)


def test_the_command_without_its_extra_says_so() -> None:
    found = run_python("import sys; sys.modules['tyro'] = None; from lopt.__main__ import main; main()")
    assert (found.returncode, found.stdout) == (2, "")
    assert (
        found.stderr
        == "lopt: The package tyro is not installed; it comes with the extra cli: pip install 'PATH-TO-CLONE[cli]'.\n"
    )


# Floors.


def floors() -> list[list[str]]:
    """The modules of each floor of docs/design.md, from the first, which imports from none of the others."""
    text = (DOCS.parent / "design.md").read_text().split("## Floors")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE)
    return [[name.removesuffix(".py").rstrip("/") for name in re.findall(r"`([\w./]+)`", row)] for row in rows]


def test_the_contract_of_the_floors_is_that_of_the_design() -> None:
    """`make lint` enforces the contract; the page shows it to readers."""
    contract = next(c for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    layers = [re.findall(r"[\w.]+", layer) for layer in reversed(contract["layers"])]
    height = {room: i for i, rooms in enumerate(layers) for room in rooms}
    shown = [[height[room] for room in rooms] for rooms in floors()]
    assert len(shown) > 8
    assert all(max(below) < min(above) for below, above in itertools.pairwise(shown)), floors()
    assert {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} <= {
        "__init__",
        *height,
    }
