"""What is documented is what there is: commands, exit codes, pipeline keys and defaults, schema and recipes."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import BaseModel

from aif.config.pipeline import Pipeline
from aif.core.errors import Exit
from aif.core.resources import shipped
from aif.export.formats import FORMATS
from aif.export.layout import TURNS
from aif.judging.lint import request_sizes
from aif.judging.rubric import Sheet, load
from aif.store.database import Store
from aif.store.reader import Reader
from scripts import write_docs
from tests.support.keys import keys

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("page", write_docs.PAGES)
def test_pages_printed_by_the_program_are_up_to_date(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == write_docs.PAGES[page](), "run `make docs`"


def test_every_exit_code_is_documented() -> None:
    assert set(write_docs.EXITS) == set(Exit)


FILES: dict[str, type[BaseModel]] = {"pipeline.md": Pipeline, "rubrics.md": Sheet}


def _documented(page: str) -> dict[str, str]:
    """Keys with their defaults, from the tables whose head says so."""
    tables = re.findall(
        r"^\| key \| default \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", (ROOT / "docs" / page).read_text(), re.MULTILINE
    )
    rows = re.findall(r"^\| `([\w.]+)` \|\s*([^|]*?)\s*\|", "".join(tables), re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a key stands twice"
    return dict(rows)


@pytest.mark.parametrize(("page", "model"), FILES.items())
def test_every_key_is_documented_and_no_other(page: str, model: type[BaseModel]) -> None:
    assert set(_documented(page)) == {key for key, info in keys(model) if not key.endswith(".price")}


@pytest.mark.parametrize(("page", "model"), FILES.items())
def test_documented_defaults_are_the_defaults(page: str, model: type[BaseModel]) -> None:
    documented = _documented(page)
    for key, info in keys(model):
        said = documented.get(key, "").strip()
        if re.fullmatch(r"`[^`]*`", said) and not callable(info.default_factory):
            assert said == f"`{_written(info.default)}`", key
        if said == "required":
            assert info.is_required(), key


def _written(default: object) -> str:
    return default if isinstance(default, str) and default else json.dumps(default)


def test_what_a_shipped_rubric_costs_is_what_is_documented() -> None:
    said = dict(
        re.findall(
            r"^\| `([\w-]+)` \|.*\| ([\d,]+ \| [\d,]+) \|$", (ROOT / "docs" / "rubrics.md").read_text(), re.MULTILINE
        )
    )
    for folder in shipped("prompts", "rubrics").iterdir():
        found = request_sizes(load(folder))
        tokens = (sum(one.calls * one.fixed for one in found), sum(one.calls * one.max_reply for one in found))
        for number, told in zip(tokens, said.pop(folder.name).split(" | "), strict=True):
            assert abs(number - int(told.replace(",", ""))) <= 10, (folder.name, tokens)
    assert not said


def test_the_recipes_run(tmp_path: Path) -> None:
    Store.open(tmp_path / "s.duckdb").close()
    recipes = re.findall(
        r"```sql\n(.*?)```", (ROOT / "docs" / "store.md").read_text().partition("<!-- schema -->")[0], re.DOTALL
    )
    with Reader.open(tmp_path / "s.duckdb") as reader:
        assert len(recipes) >= 4
        for recipe in recipes:
            assert reader._query(recipe) == []


def _columns(fields: pa.Schema | pa.StructType, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Columns by their path, structs within lists below them, with types as docs/formats.md names them."""
    for field in fields:
        inner = field.type.value_type if pa.types.is_list(field.type) else None
        if field.type == TURNS:
            yield f"{prefix}{field.name}", "messages"
        elif inner is not None and pa.types.is_struct(inner):
            yield f"{prefix}{field.name}", "list"
            yield from _columns(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", str(field.type) if inner is None else f"list of {inner}"


@pytest.mark.parametrize("config", FORMATS)
def test_every_column_of_every_format_is_documented_with_its_type(config: str) -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    section = page.partition(f"\n## `{config}`\n")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `([\w.-]+)` \| ([\w ]+) \|", section, re.MULTILINE)
    for _, layout in FORMATS[config].values():
        assert documented == list(_columns(layout.schema))


def test_the_readme_tree_names_every_package_in_the_order_of_imports() -> None:
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    (layers,) = (
        contract["layers"]
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    assert re.findall(r"^  (\w+)/", tree, re.MULTILINE) == layers
    assert sorted(layers) == sorted(path.parent.name for path in (ROOT / "aif").glob("*/__init__.py"))
