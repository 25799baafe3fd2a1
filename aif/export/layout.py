"""A layout describes one kind of data file: its columns, the function that makes a row, and the checks on a row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import fastjsonschema
import orjson
import pyarrow as pa

from aif.core.resources import shipped

Row = dict[str, Any]
Turns = Sequence[dict[str, str]]

# What a row is made from: a pair, a prompt's best completion, a completion with a label, a prompt with all completions.
RowKind = Literal["pairs", "best", "labels", "prompts"]

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True, slots=True)
class Layout:
    """One kind of data file.

    name: names the JSON Schema `data/schemas/<name>.schema.json`, which every row must fit.
    kind: what a row is made from: a Pair ("pairs"), a ScoredCompletion ("best", "labels") or an AnnotatedPrompt
        ("prompts").
    schema: the columns.
    row: makes a row from a value of this kind.
    faults: yields the faults of a row that a JSON Schema can't express, such as relations between columns.
    """

    name: str
    kind: RowKind
    schema: pa.Schema
    row: Callable[[Any], Row]
    faults: Callable[[Row], Iterator[str]]

    def check(self, row: Row) -> str | None:
        """Return the first fault of a row of this layout, None if it has none."""
        try:
            _validator(self.name)(row)
        except fastjsonschema.JsonSchemaValueException as error:
            return str(error.message)
        return next(self.faults(row), None)


@cache
def _validator(layout: str) -> Callable[[Row], Any]:
    schema = orjson.loads(shipped("data", "schemas", f"{layout}.schema.json").read_bytes())
    validator: Callable[[Row], Any] = fastjsonschema.compile(schema)
    return validator


def arrow_schema(**types: pa.DataType) -> pa.Schema:
    """Return an Arrow schema with a column for each keyword argument, in their order. For a nested column, pass
    `pa.struct(schema)` as its type, where `schema` is one that this function returned."""
    return pa.schema(list(types.items()))


def assistant_turn(text: str) -> dict[str, str]:
    """Return an answer as a message of the assistant."""
    return {"role": "assistant", "content": text}


def last_turn_faults(turns: Turns) -> Iterator[str]:
    """Yield a fault if the last of a prompt's turns isn't the user's."""
    if turns[-1]["role"] != "user":
        yield "the turn that is answered is not the user's"
