"""The export formats: the columns of each, how its rows are made from pairs and completions, and its splits. Pure.

- `trl`: pairs, for TRL's DPOTrainer.
- `h4`: pairs, in the columns and splits of ultrafeedback_binarized. DPOTrainer can't read it without conversion.
- `reward`: pairs, for TRL's RewardTrainer.
- `kto`: completions with a label, for TRL's KTOTrainer.
- `sft`: each prompt's best completion, for TRL's SFTTrainer.
- `ultrafeedback` (ultrafeedback.py): prompts with all completions and their ratings.

Prompts are exported without the principle (system prompt) that a model was given. Each completion of a prompt may have
had another principle.

To add a column to `trl`:
- Add it to `_TRL_SCHEMA` and `_trl` here.
- Add it to data/schemas/trl.schema.json. Every row is checked against this file.
- Add it to the table in docs/formats.md. A test compares the table with the columns.
- If `Pair` lacks the value, add it to `Pair` and `pairs_with_texts` in store/result_queries.py.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import pyarrow as pa

from aif.core.types import as_dicts
from aif.export.layout import TURNS, Layout, Row, RowKind, Turns, arrow_schema, assistant_turn, last_turn_faults
from aif.export.ultrafeedback import ULTRAFEEDBACK
from aif.store.result_queries import Pair, ScoredCompletion

Part = Literal["train", "test"]

PARTS: tuple[Part, ...] = ("train", "test")

# --- pairs ------------------------------------------------------------------------------------------------------------


def _pair_values(pair: Pair) -> Row:
    """Return the columns that `trl` and `reward` share: the prompt's id and source, both scores, and both models."""
    return {
        "prompt_id": pair.prompt_id,
        "source": pair.source,
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
        "chosen_model": pair.chosen_model,
        "rejected_model": pair.rejected_model,
    }


def _trl(pair: Pair) -> Row:
    return {
        "prompt": as_dicts(pair.messages),
        "chosen": [assistant_turn(pair.chosen)],
        "rejected": [assistant_turn(pair.rejected)],
        **_pair_values(pair),
    }


def _reward(pair: Pair) -> Row:
    turns = as_dicts(pair.messages)
    return {
        "chosen": [*turns, assistant_turn(pair.chosen)],
        "rejected": [*turns, assistant_turn(pair.rejected)],
        "margin": pair.score_chosen - pair.score_rejected,
        **_pair_values(pair),
    }


def _h4(pair: Pair) -> Row:
    turns = as_dicts(pair.messages)
    chosen = [*turns, assistant_turn(pair.chosen)]
    return {
        "prompt": _first_user_turn(turns),
        "prompt_id": pair.prompt_id,
        "chosen": chosen,
        "rejected": [*turns, assistant_turn(pair.rejected)],
        "messages": chosen,
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
    }


def _h4_gen(pair: Pair) -> Row:
    return _h4(pair) | {"messages": as_dicts(pair.messages)}


def _first_user_turn(turns: Turns) -> str | None:
    return next((turn["content"] for turn in turns if turn["role"] == "user"), None)


def _pair_faults(row: Row) -> Iterator[str]:
    """Yield what is wrong with a row of any pair format. Depending on the format, its `prompt` is a list of turns, a
    text, or missing."""
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen[-1]["content"] == rejected[-1]["content"]:
        yield "chosen and rejected have the same text"
    if not row["score_chosen"] > row["score_rejected"]:
        yield "chosen is not rated higher than rejected"
    if {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        yield "the last turn of chosen or rejected is not the assistant's"
    if chosen[:-1] != rejected[:-1]:
        yield "chosen and rejected answer different turns"
    yield from last_turn_faults(chosen[:-1] or row["prompt"])


def _reward_faults(row: Row) -> Iterator[str]:
    yield from _pair_faults(row)
    if row["margin"] != row["score_chosen"] - row["score_rejected"]:
        yield "margin is not score_chosen - score_rejected"


def _h4_faults(row: Row) -> Iterator[str]:
    yield from _pair_faults(row)
    if row["messages"] != row["chosen"]:
        yield "messages are not those of chosen"
    if row["prompt"] != _first_user_turn(row["chosen"]):
        yield "prompt is not the first user turn"


def _h4_gen_faults(row: Row) -> Iterator[str]:
    """Yield what is wrong with a row of `h4`'s splits `train_gen` and `test_gen`, whose `messages` are the prompt's
    turns without an answer."""
    return _h4_faults(row | {"messages": [*row["messages"], row["chosen"][-1]]})


# --- completions ------------------------------------------------------------------------------------------------------


def _completion_values(completed: ScoredCompletion) -> Row:
    """Return the columns that `kto` and `sft` share: the prompt's id and source, the model, and the score."""
    return {
        "prompt_id": completed.prompt_id,
        "source": completed.source,
        "model": completed.model,
        "score": completed.score,
    }


def _kto(completed: ScoredCompletion) -> Row:
    return {
        "prompt": as_dicts(completed.messages),
        "completion": [assistant_turn(completed.completion)],
        "label": completed.label,
        **_completion_values(completed),
    }


def _sft(completed: ScoredCompletion) -> Row:
    messages = [*as_dicts(completed.messages), assistant_turn(completed.completion)]
    return {"messages": messages, **_completion_values(completed)}


def _kto_faults(row: Row) -> Iterator[str]:
    return last_turn_faults(row["prompt"])


def _sft_faults(row: Row) -> Iterator[str]:
    if row["messages"][-1]["role"] != "assistant" or not row["messages"][-1]["content"]:
        yield "messages don't end with an answer"
    yield from last_turn_faults(row["messages"][:-1])


# --- the formats ------------------------------------------------------------------------------------------------------

_PAIR_COLUMNS = {
    "prompt_id": pa.string(), "source": pa.string(), "score_chosen": pa.float64(), "score_rejected": pa.float64(),
    "chosen_model": pa.string(), "rejected_model": pa.string(),
}  # fmt: skip
_COMPLETION_COLUMNS = {"prompt_id": pa.string(), "source": pa.string(), "model": pa.string(), "score": pa.float64()}
_H4_SCHEMA = arrow_schema(
    prompt=pa.string(), prompt_id=pa.string(), chosen=TURNS, rejected=TURNS, messages=TURNS,
    score_chosen=pa.float64(), score_rejected=pa.float64(),
)  # fmt: skip
_TRL_SCHEMA = arrow_schema(prompt=TURNS, chosen=TURNS, rejected=TURNS, **_PAIR_COLUMNS)
_REWARD_SCHEMA = arrow_schema(chosen=TURNS, rejected=TURNS, margin=pa.float64(), **_PAIR_COLUMNS)
_KTO_SCHEMA = arrow_schema(prompt=TURNS, completion=TURNS, label=pa.bool_(), **_COMPLETION_COLUMNS)
_SFT_SCHEMA = arrow_schema(messages=TURNS, **_COMPLETION_COLUMNS)

TRL = Layout("trl", "pairs", _TRL_SCHEMA, _trl, _pair_faults)
REWARD = Layout("reward", "pairs", _REWARD_SCHEMA, _reward, _reward_faults)
H4 = Layout("h4", "pairs", _H4_SCHEMA, _h4, _h4_faults)
H4_GEN = Layout("h4_gen", "pairs", _H4_SCHEMA, _h4_gen, _h4_gen_faults)
KTO = Layout("kto", "labels", _KTO_SCHEMA, _kto, _kto_faults)
SFT = Layout("sft", "best", _SFT_SCHEMA, _sft, _sft_faults)

Splits = Mapping[str, tuple[Part, Layout]]


def _train_and_test(layout: Layout) -> Splits:
    return {part: (part, layout) for part in PARTS}


# The splits of each format, by name: whether its rows are the train or the test part, and their layout. All layouts of
# a format are of the same kind.
FORMATS: Mapping[str, Splits] = {
    "trl": _train_and_test(TRL),
    "h4": {
        f"{part}_{kind}": (part, layout)
        for kind, layout in (("prefs", H4), ("sft", H4), ("gen", H4_GEN))
        for part in PARTS
    },
    "ultrafeedback": _train_and_test(ULTRAFEEDBACK),
    "kto": _train_and_test(KTO),
    "reward": _train_and_test(REWARD),
    "sft": _train_and_test(SFT),
}


def row_kind(config: str) -> RowKind:
    """Return what the rows of a format are made from: pairs, best completions, labelled completions, or prompts."""
    _, layout = next(iter(FORMATS[config].values()))
    return layout.kind


def file_path(config: str, split: str, digest: str = "") -> str:
    """Return the path of a split's Parquet file, relative to the dataset's folder. `digest`, if given, becomes a part
    of its name."""
    return f"{config}/{split}-00000-of-00001{digest and '-'}{digest}.parquet"


_DATA_FILE = re.compile(r"[a-z0-9_]+/[a-z0-9_]+-00000-of-00001-([0-9a-f]{16})\.parquet")


def content_digest(path: str) -> str | None:
    """Return the content digest in a data file's path; None if `path` is of another file or has no digest."""
    match = _DATA_FILE.fullmatch(path)
    return match[1] if match else None
