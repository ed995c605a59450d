"""The documentation covers every public name, its Python runs and its commands parse."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType

import jax
import pytest
import tyro

import lopt
from lopt.evaluate.bench.suites import SUITES
from registry import OPTIMIZERS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = 3  # steps that the documentation's loops and meta-trainings are cut to
FAST = {"how-to-choose"}  # pages whose Python compiles next to nothing


def load(name: str) -> ModuleType:
    """A script of the documentation as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


coverage = load("coverage")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language, but for those that say `no-run` after it."""
    return [code for lang, info, code in FENCE.findall(page.read_text()) if lang == language and "no-run" not in info]


def tiny(code: str) -> str:
    """The same code with few steps."""
    return re.sub(r"\b(steps=|STEPS = )[\d_]+", rf"\g<1>{TINY}", code)


def test_every_public_name_is_documented() -> None:
    assert coverage.missing() == []


@pytest.mark.parametrize(
    ("page", "directive", "name"),
    [
        ("optimizers.md", "lopt.optimizers.star.STAR", "lopt.optimizers.STAR"),
        ("lopt.md", "lopt.meta_train.meta_train", "lopt.meta_train"),
        ("evaluate.md", "lopt.evaluate.baselines.LEARNING_RATES", "lopt.evaluate.LEARNING_RATES"),
        ("tasks.md", "lopt.tasks.data.images.digits", "lopt.tasks.data.images.digits"),
    ],
)
def test_coverage_fails_when_a_directive_is_taken_away(page: str, directive: str, name: str, tmp_path: Path) -> None:
    api = shutil.copytree(DOCS / "api", tmp_path / "api")
    text = (api / page).read_text()
    assert f"::: {directive}\n" in text
    (api / page).write_text(text.replace(f"::: {directive}\n", f"{directive}\n"))
    found = coverage.missing(api)
    assert f"{name}: not in docs/api" in found
    assert all(line.startswith(("lopt.",)) and line.split(":")[0].endswith(name.split(".")[-1]) for line in found)


def test_coverage_fails_when_a_page_is_taken_away(tmp_path: Path) -> None:
    api = shutil.copytree(DOCS / "api", tmp_path / "api")
    (api / "zoo.md").unlink()
    found = coverage.missing(api)
    for name in lopt.zoo.__all__:
        if name != "CheckpointError":  # has its place on the page of its own module
            assert f"lopt.zoo.{name}: not in docs/api" in found
    assert "lopt.load: not in docs/api" in found


def test_coverage_fails_for_a_new_name_and_one_without_a_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare() -> None: ...

    monkeypatch.setattr(lopt.tasks, "bare", bare, raising=False)
    monkeypatch.setattr(lopt.tasks, "__all__", [*lopt.tasks.__all__, "bare"])
    assert coverage.missing() == ["lopt.tasks.bare: not in docs/api", "lopt.tasks.bare: no docstring"]


def test_coverage_ends_with_an_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    coverage.main()
    assert "are documented" in capsys.readouterr().out
    monkeypatch.setattr(coverage, "missing", lambda: ["lopt.x: not in docs/api"])
    with pytest.raises(SystemExit) as stop:
        coverage.main()
    assert stop.value.code == 1
    assert capsys.readouterr().out == "lopt.x: not in docs/api\n"


def test_the_table_of_optimizers_has_every_one_and_its_meta_parameters() -> None:
    rows = [
        line.split("|")[1:-1] for line in (DOCS / "optimizers.md").read_text().splitlines() if line.startswith("| `")
    ]
    found = {
        name: int(count.replace(",", ""))
        for row in rows
        for name, count in zip(
            re.findall(r"`(\w+)`", row[0]), re.findall(r"\d[\d,]*\d|\d", row[5].replace(", ", " ")), strict=True
        )
    }
    assert found == {row.name: row.meta_parameters for row in OPTIMIZERS}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=() if page.stem in FAST else pytest.mark.slow)
        for page in PAGES
        if blocks(page, "python")
    ],
)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page in order, in one namespace, with steps cut down."""
    monkeypatch.chdir(tmp_path)
    lopt.save("runs/demo/optimizer", lopt.create("star", precondition=False))  # what `make demo` leaves behind
    for table in (lopt.optimizers.OPTIMIZERS, lopt.tasks.TASKS):  # a page may add a row
        for name, build in list(table.items()):
            monkeypatch.setitem(table, name, build)
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    # As on a user's machine: optax's own arithmetic mixes types.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for i, code in enumerate(blocks(page, "python")):
            exec(compile(tiny(code), f"{page.name}, block {i + 1}", "exec"), vars(module))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.stem)
def test_commands_of_a_page_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lopt.cli import Command

    for line in "".join(blocks(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        if words and words[0] == "lopt":
            try:
                tyro.cli(Command, args=words[1:], config=(tyro.conf.OmitSubcommandPrefixes,))  # pyright: ignore
            except SystemExit:
                pytest.fail(f"{line}\n{capsys.readouterr()}")


def test_pages_are_finished() -> None:
    for page in [*PAGES, ROOT / "README.md", ROOT / "benchmarks" / "README.md"]:
        assert not re.search(r"(?<![\w.`/])@\w+@", page.read_text()), page
        for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / image).is_file(), f"{page}: {image}"


@pytest.mark.slow
def test_the_gallery_draws_the_same_picture_twice(tmp_path: Path) -> None:
    gallery = load("gallery")
    assert set(gallery.STARTS) == set(lopt.tasks.SURFACES)
    pictures = [tmp_path / f"{i}.png" for i in range(2)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for picture in pictures:
            gallery.main(picture, ("booth",), cells=10, steps=5)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert (DOCS / "images" / "landscapes.png").stat().st_size < 300_000


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+\.md)[^)]*\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page}: {target}"


def test_equations_become_mathml_or_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("markdown")
    mathml = load("mathml")
    page = '<p>With <span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[x\\]</div>'
    monkeypatch.setattr(mathml, "convert", None)
    shown = mathml.MathML().run(page)
    assert "<code>a &lt; b</code>" in shown
    monkeypatch.setattr(mathml, "convert", lambda tex, display: f"<math {display}>{tex}</math>")
    assert mathml.MathML().run(page) == (
        '<p>With <span class="arithmatex"><math inline>a < b</math></span></p>'
        '<div class="arithmatex"><math block>x</math></div>'
    )


def test_the_page_on_evaluation_says_what_the_suites_do() -> None:
    text = " ".join((DOCS / "evaluation.md").read_text().split())
    suites = {name: build() for name, build in SUITES.items()}
    (named,) = re.findall(r"of each split; ((?:`\w+`(?:, | and )?)+) on 64 pieces of a text", text)
    of_text = {name: set(suite.eval_sizes.values()) for name, suite in suites.items() if suite.eval_sizes}
    assert of_text == {name: {64} for name in re.findall(r"`(\w+)`", named)}
    # Whose longest horizon is the reference.
    own = {name: set(suite.tasks) - {task for task, _ in suite.reference_cells()} for name, suite in suites.items()}
    assert {name: tasks for name, tasks in own.items() if tasks} == {
        "held_out": set(suites["held_out"].tasks),
        "meta_valid": set(suites["meta_valid"].tasks),
        "generalisation": {"digits_mlp"},
    }
    assert "all of `held_out` and `meta_valid`, and `digits_mlp` in `generalisation`" in text


def test_every_name_of_the_page_on_evaluation_is_below_a_heading() -> None:
    found = re.findall(r"^::: ([\w.]+)\n((?:    .*\n)*)", (DOCS / "api" / "evaluate.md").read_text(), re.MULTILINE)
    assert len(found) > 100
    assert [name for name, options in found if "heading_level: 3" not in options] == []


# Plain words.

LONGEST = 35  # words of a sentence
GENERATED = {"held_out", "laptop"}  # written by docs/benches.py, whose fixed prose is read instead
PROSE = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *(page for page in PAGES if page.stem not in GENERATED),
]
ABBREVIATIONS = re.compile(r"\b(et al|e\.g|i\.e|vs|cf)\.")
ELSEWHERE = re.compile(r"/work\b|/root\b|/tmp/|\b(?:agents?|assistants?|sessions?|this machine)\b", re.IGNORECASE)


def plain(text: str) -> str:
    """Markdown without its code, with one word for each inline code and formula, and the text of each link."""
    text = re.sub(r"^```.*?^```$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\$\$.*?\$\$$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]+`|\$[^$\n]+\$", "code", text)
    return re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)


def paragraphs(text: str) -> list[str]:
    """Paragraphs, list items and table cells; headings are none."""
    found = [""]
    for line in plain(text).splitlines():
        line = line.strip().lstrip("> ")
        if not line or line.startswith("#"):
            found.append("")
        elif line.startswith("|"):
            found += [*line.split("|"), ""]
        else:
            found += [""] if re.match(r"[-*+] |\d+\. ", line) else []
            found[-1] += f" {line}"
    return [part.strip() for part in found if part.strip()]


def sentences(text: str) -> list[str]:
    """The sentences of a page. A colon or a semicolon does not end one."""
    ends = re.compile(r"(?<=[.!?])[\"*_)]*\s+")
    return [part for paragraph in paragraphs(text) for part in ends.split(ABBREVIATIONS.sub(r"\1", paragraph)) if part]


def too_long(text: str) -> list[str]:
    return [s for s in sentences(text) if len([w for w in s.split() if re.search(r"\w", w)]) > LONGEST]


@pytest.mark.parametrize("page", PROSE, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_sentences_of_a_page_are_short(page: Path) -> None:
    assert too_long(page.read_text()) == []


def test_sentences_of_the_pages_of_benches_are_short() -> None:
    benches = load("benches")
    for text in [benches.COST, *benches.HEADS.values(), benches.MISSING, benches.PASSAGE, benches.WHERE]:
        assert too_long(text) == []


@pytest.mark.parametrize("page", sorted({*PROSE, *PAGES}), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_page_speaks_of_the_project_alone(page: Path) -> None:
    assert ELSEWHERE.findall(page.read_text()) == []


def test_the_check_of_sentences_sees_a_36th_word() -> None:
    words = "word " * 34
    long = f"A {words}end."  # 36
    assert len(long.split()) == 36
    fine = f"A {words.removesuffix('word ')}end."
    shown = [
        long,
        f"Short. {long}",
        f"- one\n- {long}",
        f"> {long}",
        f"| a | {long} |",
        f"See [{long}](x.md)",
        f"1. {long}",
    ]
    for text in shown:
        assert len(too_long(text)) == 1, text
    for text in [
        fine,
        f"{fine} {fine}",
        f"# {long}",
        f"```\n{long}\n```",
        f"`{long}`",
        f"- {fine}\n- {fine}",
        f"{fine}\n\n{fine}",
    ]:
        assert too_long(text) == [], text
    assert len(sentences("Metz et al. 2019 use 1.5 times as many. It ends.")) == 2
    assert len(sentences("It works (see below). **It** ends. `code` follows.")) == 3
