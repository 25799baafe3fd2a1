"""The project's language: no word that stops a reader, no name that says nothing.

The phrases are those at which strangers stopped when they first read the project. Names in journal records, tables and
exports stay; so do rubrics, since a changed word of a rubric would request every judgement again.
"""

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("aif/*/__init__.py"))
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "pipelines/*",
        "data/*",
        "data/starter/*",
        "data/schemas/*",
        "examples/**/*",
        "Makefile",
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
)

# Each phrase with the words to use instead.
PHRASES = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bbooks\b": "accounting, counts",
    r"\breckon(s|ed|ing)?\b": "estimate",
    r"\bill\b": "server error",
    r"\banew\b": "again",
    r"\bso many\b": "N, at most N",
    r"\bmade good\b": "recovered",
    r"\b(made|makes|make) again\b": "rebuilt, retried",
    r"\b(taken|takes|take|took) in\b": "applied, added",
    r"\b(goes|go|went) on\b": "resumes, continues",
    r"\bthe endpoint's doing\b": "endpoint at fault",
    r"\d gone\b": "elapsed",
    r"\bspares? (it|you|them)\b": "avoid",
    r"\bunasked\b": "without confirmation",
    r"\bnobody can be asked\b": "no terminal to confirm",
    r"\ball that is wanted\b": "complete",
    r"\ba quarter (below|above)\b": "p25, p75",
    r"\bother way round\b": "prefers the rejected answer",
    r"\bread as before\b": "unchanged",
    r"\bas another state of\b": "a different version of",
    r"\bgiven up until\b": "stopped; fix this and rerun",
    r"\bnot all was answered\b": "finished with failures",
    r"\bhow it was\b": "how this was estimated",
    r"\bwhere it lies\b": "files",
    r"\bwaits for --retry-failed\b": "retry with --retry-failed",
    r"\bno export of aif's\b": "isn't an aif export",
    r"\bwhat answers there\b": "that address",
    r"\bwhat is looked for\b": "use the dataset's prompt_id",
    r"\bfail(s|ed)? for good\b": "permanent failure",
    r"\bbefall(s|en)?\b": "fault",
    r"\bwhat a policy makes\b": "preview the pairs",
    r"\bback to everything\b": "show everything about",
    r"\btoday's reader\b": "current parser",
    r"\bcan't be had\b|\bcould be had\b|\bcan be had\b": "could not get",
    r"\bterms not told\b|\bnobody has said\b": "not stated",
    r"\b(is|are) told\b|\bwas told\b": "reported, shown",
    r"\bnobody is asked\b": "no confirmation",
}
PATTERN = re.compile("|".join(f"(?:{phrase})" for phrase in PHRASES), re.IGNORECASE)
EMPTY_NAMES = {"one", "found", "said", "told"}
# Record types and keys of files on users' disks, and sentences of the simulated models.
LITERALS = {"mended", "books"}
SIMULATED_TEXTS = ROOT / "aif/simulator/phrases.py"


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / "aif" / package).rglob("*.py"))


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the string literals, docstrings and blocks of comments of a module, with their first lines."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    comments = {
        token.start[0]: token.string[1:]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for line in comments:
        if line - 1 not in comments:
            block = itertools.takewhile(comments.__contains__, itertools.count(line))
            yield line, " ".join(comments[number] for number in block)


def _phrases(text: str) -> Iterator[str]:
    """Yield the phrases of PHRASES in a text, except in `code` and as the first column of a table of record types."""
    prose = re.sub(r"`[^`]*`|^ +(mended|books)  +", "``", text, flags=re.MULTILINE)
    for match in PATTERN.finditer(" ".join(prose.split())):
        yield match[0]


def test_phrases_are_found_across_lines_and_not_in_code() -> None:
    assert list(_phrases("What goes\n    on is made\nagain, `so many` times")) == ["goes on", "made again"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_speaks_plainly(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}"
        for path in _modules(package)
        if path != SIMULATED_TEXTS
        for line, text in _texts(path)
        if text not in LITERALS
        for phrase in _phrases(text)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_speaks_plainly(path: Path) -> None:
    blocks = re.split(r"\n\s*\n|\n(?=[|#*-])", path.read_text(encoding="utf-8"))
    assert [phrase for block in blocks for phrase in _phrases(block)] == []


def _bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.ImportFrom(module=str(module)) if module.startswith("aif"):
                yield from ((node.lineno, f"{alias.name} as {alias.asname}") for alias in node.names if alias.asname)
            case _:
                pass


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_says_what_it_holds(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in _modules(package)
        for line, name in _bound_names(ast.parse(path.read_text(encoding="utf-8")))
        if name in EMPTY_NAMES or " as " in name or "mend" in name.lower().split("_")
    ]
    assert not wrong, "\n" + "\n".join(wrong)
