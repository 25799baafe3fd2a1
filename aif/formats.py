"""A pair as a row of each trainer's format, the files a format consists of, and what such a row must be. Pure.

`trl` is what TRL's DPOTrainer takes as it is. `h4` has the columns and splits of ultrafeedback_binarized; DPOTrainer
raises on it as it is, so it is a config of its own. Principles are in no row: the two sides had different ones.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import fastjsonschema
import orjson
import pyarrow as pa

from aif.queries import Pair
from aif.records import as_dicts
from aif.resources import shipped

Row = dict[str, Any]
Part = Literal["train", "test"]

_PARTS: tuple[Part, ...] = ("train", "test")

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a file and how a pair fills them. `data/schemas/<name>.schema.json` says what a row must be."""

    name: str
    schema: pa.Schema
    row: Callable[[Pair], Row]

    def check(self, row: Row) -> str | None:
        """What is wrong with a row of this layout; None if nothing is."""
        try:
            _validator(self.name)(row)
        except fastjsonschema.JsonSchemaValueException as error:
            return str(error.message)
        return next(_faults(row, self.name), None)


@cache
def _validator(layout: str) -> Callable[[Row], Any]:
    schema = orjson.loads(shipped("data", "schemas", f"{layout}.schema.json").read_bytes())
    validator: Callable[[Row], Any] = fastjsonschema.compile(schema)
    return validator


def _faults(row: Row, layout: str) -> Iterator[str]:
    """What a JSON Schema can't say: how the columns stand to each other."""
    chosen, rejected, prompt = row["chosen"], row["rejected"], row["prompt"]
    if chosen[-1]["content"] == rejected[-1]["content"]:
        yield "chosen and rejected have the same text"
    if not row["score_chosen"] > row["score_rejected"]:
        yield "chosen is not rated higher than rejected"
    if {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        yield "the last turn of chosen or rejected is not the assistant's"
    if chosen[:-1] != rejected[:-1]:
        yield "chosen and rejected answer different turns"
    asked = chosen[:-1] or prompt
    if asked[-1]["role"] != "user":
        yield "the turn that is answered is not the user's"
    if layout != "trl" and row["messages"] != (asked if layout == "h4_gen" else chosen):
        yield "messages are not those of chosen"
    if layout != "trl" and prompt != _first_user_turn(asked):
        yield "prompt is not the first user turn"


def _first_user_turn(turns: list[dict[str, str]]) -> str | None:
    return next((turn["content"] for turn in turns if turn["role"] == "user"), None)


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _trl(pair: Pair) -> Row:
    return {
        "prompt": as_dicts(pair.messages),
        "chosen": [_assistant(pair.chosen)],
        "rejected": [_assistant(pair.rejected)],
        "prompt_id": pair.prompt_id,
        "source": pair.source,
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
        "chosen_model": pair.chosen_model,
        "rejected_model": pair.rejected_model,
    }


def _h4(pair: Pair) -> Row:
    turns = as_dicts(pair.messages)
    chosen = [*turns, _assistant(pair.chosen)]
    return {
        "prompt": _first_user_turn(turns),
        "prompt_id": pair.prompt_id,
        "chosen": chosen,
        "rejected": [*turns, _assistant(pair.rejected)],
        "messages": chosen,
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
    }


def _h4_gen(pair: Pair) -> Row:
    return _h4(pair) | {"messages": as_dicts(pair.messages)}


def _columns(**types: pa.DataType) -> pa.Schema:
    return pa.schema(list(types.items()))


_TRL_COLUMNS = _columns(
    prompt=_TURNS, chosen=_TURNS, rejected=_TURNS, prompt_id=pa.string(), source=pa.string(),
    score_chosen=pa.float64(), score_rejected=pa.float64(), chosen_model=pa.string(), rejected_model=pa.string(),
)  # fmt: skip
_H4_COLUMNS = _columns(
    prompt=pa.string(), prompt_id=pa.string(), chosen=_TURNS, rejected=_TURNS, messages=_TURNS,
    score_chosen=pa.float64(), score_rejected=pa.float64(),
)  # fmt: skip

TRL = Layout("trl", _TRL_COLUMNS, _trl)
H4 = Layout("h4", _H4_COLUMNS, _h4)
H4_GEN = Layout("h4_gen", _H4_COLUMNS, _h4_gen)

# Each format's splits: which part of the pairs, in which layout.
FORMATS: Mapping[str, Mapping[str, tuple[Part, Layout]]] = {
    "trl": {part: (part, TRL) for part in _PARTS},
    "h4": {
        f"{part}_{kind}": (part, layout)
        for kind, layout in (("prefs", H4), ("sft", H4), ("gen", H4_GEN))
        for part in _PARTS
    },
}


def file_of(config: str, split: str, digest: str = "") -> str:
    """The path of a split's one file within the dataset, named as the Hub finds it, with a digest of its content."""
    return f"{config}/{split}-00000-of-00001{digest and '-'}{digest}.parquet"
