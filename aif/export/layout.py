"""What a file of a dataset is: what its rows are of, its columns, how they are filled, what a row must be. Pure."""

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

# What a row is made of: a pair, a prompt's best completion, a completion with a label, a prompt with all of its.
Of = Literal["pairs", "best", "labels", "prompts"]

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True, slots=True)
class Layout:
    """`row` makes a row of `schema` from one of what it is `of` (Pair, Completed, Whole).

    `data/schemas/<name>.schema.json` says what a row must be, and `faults` what a JSON Schema can't say: how its
    columns stand to each other.
    """

    name: str
    of: Of
    schema: pa.Schema
    row: Callable[[Any], Row]
    faults: Callable[[Row], Iterator[str]]

    def check(self, row: Row) -> str | None:
        """What is wrong with a row of this layout; None if nothing is."""
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


def columns(**types: pa.DataType) -> pa.Schema:
    """An Arrow schema, or with `pa.struct` a struct's fields, in the order given."""
    return pa.schema(list(types.items()))


def assistant(text: str) -> dict[str, str]:
    """An answer as the turn it is."""
    return {"role": "assistant", "content": text}


def unanswered(turns: Turns) -> Iterator[str]:
    """The fault of turns that don't end with the user's."""
    if turns[-1]["role"] != "user":
        yield "the turn that is answered is not the user's"
