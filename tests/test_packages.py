"""What the packages of aif may load and import, and that only the store holds SQL. `make lint` checks the contracts of
`[tool.importlinter]`; here each of them is broken on purpose, and the linter names it."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

HEAVY = ("rich", "typer", "duckdb", "datasets", "huggingface_hub", "openai", "anthropic", "pyarrow", "numpy", "aiohttp")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("aif", ()),
        ("aif.core.types", ()),
        ("aif.config.pipeline", ()),
        ("aif.pairing.pairs", ("numpy", "pyarrow")),
        ("aif.cli.views.status", ("rich",)),
    ],
)
def test_a_module_loads_no_heavy_library_that_it_does_not_need(module: str, allowed: tuple[str, ...]) -> None:
    asked = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert set(found) <= set(allowed)


def test_the_command_line_starts_without_the_packages_below() -> None:
    """`aif --help` takes 0.18 s of CPU; `aif.core.types` alone would add 0.02 s."""
    asked = "import sys, aif.cli.main; print(*(name for name in sys.modules if name.startswith('aif.')))"
    loaded = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    light = {"aif.core", "aif.core.errors", "aif.core.file_permissions"}
    assert [name for name in loaded if not name.startswith("aif.cli") and name not in light] == []


# --- SQL --------------------------------------------------------------------------------------------------------------

_SQL = re.compile(
    r"\s*(SELECT\s|INSERT\s+(OR|INTO)\s|DELETE\s+FROM\s|UPDATE\s+\w+\s+SET\s|CREATE\s+(OR|TABLE|TEMP|VIEW|MACRO)\b"
    r"|WITH\s+\w+\s+AS\s|FROM\s+\w+\s*$)"
)


def _sql_in(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each call of a database, and of each string that begins as SQL does."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="sql" | "execute" | "executemany" as name)):
                yield node.lineno, f".{name}("
            case ast.Constant(value=str(text)) if _SQL.match(text):
                yield node.lineno, text
            case _:
                pass


def test_only_the_store_holds_sql() -> None:
    outside = [path for path in ROOT.glob("aif/**/*.py") if path.parent != ROOT / "aif" / "store"]
    assert len(outside) > 100
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in outside
        for line, text in _sql_in(path.read_text(encoding="utf-8"))
        # a simulated model writes code in its replies, SQL too
        if text.startswith(".") or path != ROOT / "aif" / "simulator" / "completions.py"
    ]
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "reader.sql(query)",
        "cursor.execute(query)",
        "cursor.executemany(query, rows)",
        "query = ''' \n SELECT key FROM slots'''",
        "query = f'SELECT {column} FROM slots'",
        "query = 'INSERT INTO slots FROM rows'",
        "query = 'INSERT OR IGNORE INTO slots FROM rows'",
        "query = 'DELETE FROM slots'",
        "query = 'UPDATE slots SET n = 1'",
        "query = 'WITH own AS (FROM slots) FROM own'",
        "query = 'CREATE TABLE mine (n INTEGER)'",
        "query = 'FROM leaderboard'",
    ],
)
def test_sql_is_recognized(source: str) -> None:
    assert list(_sql_in(source))


# --- contracts broken on purpose --------------------------------------------------------------------------------------

_CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]

# By the contract's name: a module, and an import in it that breaks this contract alone.
_OFFENCES = {
    "Each package imports only what stands below it": ("core/types.py", "import aif.config.pipeline"),
    "DuckDB is used in store alone": ("engine/workload.py", "import duckdb"),
    "What a terminal shows is drawn in cli alone": ("engine/progress.py", "from rich.table import Table"),
    "OpenAI's SDK has one module": ("providers/vllm.py", "import openai"),
    "Anthropic's SDK has one module": ("providers/http.py", "import anthropic"),
    "datasets is read in sources alone": ("export/parquet.py", "import datasets"),
    "The Hub is reached where sources, models and exports come from or go to": (
        "export/card.py",
        "import huggingface_hub",
    ),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and its contracts, to break them in."""
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(ROOT / "aif", folder / "aif", ignore=shutil.ignore_patterns("__pycache__", "_resources"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_every_contract_is_broken_on_purpose() -> None:
    assert set(_OFFENCES) == {contract["name"] for contract in _CONTRACTS}


@pytest.mark.parametrize("name", _OFFENCES)
def test_a_broken_contract_is_named(name: str, copied: Path) -> None:
    module, offence = _OFFENCES[name]
    path = copied / "aif" / module
    source = path.read_text(encoding="utf-8")
    path.write_text(f"{source}\n{offence}\n", encoding="utf-8")
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    options = ["--no-logo", "--cache-dir", str(copied / "cache")]
    environ = {"PYTHONPATH": str(copied), "COLUMNS": "200"}
    linted = subprocess.run([*lint, *options], cwd=copied, env=environ, capture_output=True, text=True)
    path.write_text(source, encoding="utf-8")
    assert linted.returncode == 1, linted.stderr
    assert f"{name} BROKEN" in linted.stdout
    assert f"Contracts: {len(_OFFENCES) - 1} kept, 1 broken." in linted.stdout


@pytest.mark.parametrize("use", ["os.environ['KEY']", "os.getenv('KEY')"])
def test_the_environment_is_read_in_one_module(use: str) -> None:
    def lint(module: str) -> str:
        command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
        name = ["--stdin-filename", module, "-"]
        source = f"import os\n\nkey = {use}\n"
        return subprocess.run([*command, *name], input=source, cwd=ROOT, capture_output=True, text=True).stdout

    assert f"TID251 `{use[:9]}" in lint("aif/engine/workload.py")
    assert "TID251" not in lint("aif/core/environment.py")
