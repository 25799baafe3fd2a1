"""Each export format: the files it consists of, and how pairs and completions become their rows. Pure.

`trl` is what TRL's DPOTrainer takes as it is, `reward` its RewardTrainer, `kto` its KTOTrainer, `sft` its SFTTrainer.
`h4` has the columns and splits of ultrafeedback_binarized; DPOTrainer raises on it as it is, so it is a config of its
own. `ultrafeedback` (in ultrafeedback.py) has all completions. Principles are in no prompt: completions had different
ones.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import pyarrow as pa

from aif.core.types import as_dicts
from aif.export.layout import TURNS, Layout, Of, Row, Turns, assistant, columns, unanswered
from aif.export.ultrafeedback import ULTRAFEEDBACK
from aif.store.result_queries import Pair, ScoredCompletion

Part = Literal["train", "test"]

PARTS: tuple[Part, ...] = ("train", "test")

# --- pairs ------------------------------------------------------------------------------------------------------------


def _sides(pair: Pair) -> Row:
    """The columns of `_SIDES`."""
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
        "chosen": [assistant(pair.chosen)],
        "rejected": [assistant(pair.rejected)],
        **_sides(pair),
    }


def _reward(pair: Pair) -> Row:
    turns = as_dicts(pair.messages)
    return {
        "chosen": [*turns, assistant(pair.chosen)],
        "rejected": [*turns, assistant(pair.rejected)],
        "margin": pair.score_chosen - pair.score_rejected,
        **_sides(pair),
    }


def _h4(pair: Pair) -> Row:
    turns = as_dicts(pair.messages)
    chosen = [*turns, assistant(pair.chosen)]
    return {
        "prompt": _first_user_turn(turns),
        "prompt_id": pair.prompt_id,
        "chosen": chosen,
        "rejected": [*turns, assistant(pair.rejected)],
        "messages": chosen,
        "score_chosen": pair.score_chosen,
        "score_rejected": pair.score_rejected,
    }


def _h4_gen(pair: Pair) -> Row:
    return _h4(pair) | {"messages": as_dicts(pair.messages)}


def _first_user_turn(turns: Turns) -> str | None:
    return next((turn["content"] for turn in turns if turn["role"] == "user"), None)


def _pair_faults(row: Row) -> Iterator[str]:
    """Of a pair in any layout, where `prompt` may be turns, a text or not there."""
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen[-1]["content"] == rejected[-1]["content"]:
        yield "chosen and rejected have the same text"
    if not row["score_chosen"] > row["score_rejected"]:
        yield "chosen is not rated higher than rejected"
    if {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        yield "the last turn of chosen or rejected is not the assistant's"
    if chosen[:-1] != rejected[:-1]:
        yield "chosen and rejected answer different turns"
    yield from unanswered(chosen[:-1] or row["prompt"])


def _reward_faults(row: Row) -> Iterator[str]:
    yield from _pair_faults(row)
    if row["margin"] != row["score_chosen"] - row["score_rejected"]:
        yield "margin is not how far chosen lies above rejected"


def _h4_faults(row: Row) -> Iterator[str]:
    yield from _pair_faults(row)
    if row["messages"] != row["chosen"]:
        yield "messages are not those of chosen"
    if row["prompt"] != _first_user_turn(row["chosen"]):
        yield "prompt is not the first user turn"


def _h4_gen_faults(row: Row) -> Iterator[str]:
    """As of `h4`, but messages end with the turn to be answered."""
    return _h4_faults(row | {"messages": [*row["messages"], row["chosen"][-1]]})


# --- completions ------------------------------------------------------------------------------------------------------


def _one(one: ScoredCompletion) -> Row:
    """The columns of `_ONE`."""
    return {"prompt_id": one.prompt_id, "source": one.source, "model": one.model, "score": one.score}


def _kto(one: ScoredCompletion) -> Row:
    return {
        "prompt": as_dicts(one.messages),
        "completion": [assistant(one.completion)],
        "label": one.label,
        **_one(one),
    }


def _sft(one: ScoredCompletion) -> Row:
    return {"messages": [*as_dicts(one.messages), assistant(one.completion)], **_one(one)}


def _kto_faults(row: Row) -> Iterator[str]:
    return unanswered(row["prompt"])


def _sft_faults(row: Row) -> Iterator[str]:
    if row["messages"][-1]["role"] != "assistant" or not row["messages"][-1]["content"]:
        yield "messages don't end with an answer"
    yield from unanswered(row["messages"][:-1])


# --- the formats ------------------------------------------------------------------------------------------------------

_SIDES = {
    "prompt_id": pa.string(), "source": pa.string(), "score_chosen": pa.float64(), "score_rejected": pa.float64(),
    "chosen_model": pa.string(), "rejected_model": pa.string(),
}  # fmt: skip
_ONE = {"prompt_id": pa.string(), "source": pa.string(), "model": pa.string(), "score": pa.float64()}
_H4_COLUMNS = columns(
    prompt=pa.string(), prompt_id=pa.string(), chosen=TURNS, rejected=TURNS, messages=TURNS,
    score_chosen=pa.float64(), score_rejected=pa.float64(),
)  # fmt: skip

TRL = Layout("trl", "pairs", columns(prompt=TURNS, chosen=TURNS, rejected=TURNS, **_SIDES), _trl, _pair_faults)
REWARD = Layout(
    "reward", "pairs", columns(chosen=TURNS, rejected=TURNS, margin=pa.float64(), **_SIDES), _reward, _reward_faults
)
H4 = Layout("h4", "pairs", _H4_COLUMNS, _h4, _h4_faults)
H4_GEN = Layout("h4_gen", "pairs", _H4_COLUMNS, _h4_gen, _h4_gen_faults)
KTO = Layout("kto", "labels", columns(prompt=TURNS, completion=TURNS, label=pa.bool_(), **_ONE), _kto, _kto_faults)
SFT = Layout("sft", "best", columns(messages=TURNS, **_ONE), _sft, _sft_faults)

Splits = Mapping[str, tuple[Part, Layout]]


def _plain(layout: Layout) -> Splits:
    return {part: (part, layout) for part in PARTS}


# Each format's splits: which part of the rows, in which layout. All layouts of a format are of the same.
FORMATS: Mapping[str, Splits] = {
    "trl": _plain(TRL),
    "h4": {
        f"{part}_{kind}": (part, layout)
        for kind, layout in (("prefs", H4), ("sft", H4), ("gen", H4_GEN))
        for part in PARTS
    },
    "ultrafeedback": _plain(ULTRAFEEDBACK),
    "kto": _plain(KTO),
    "reward": _plain(REWARD),
    "sft": _plain(SFT),
}


def made_of(config: str) -> Of:
    """What the rows of a format are made of."""
    _, layout = next(iter(FORMATS[config].values()))
    return layout.of


def file_of(config: str, split: str, digest: str = "") -> str:
    """The path of a split's one file within the dataset, named as the Hub finds it, with a digest of its content."""
    return f"{config}/{split}-00000-of-00001{digest and '-'}{digest}.parquet"


_DATA_FILE = re.compile(r"[a-z0-9_]+/[a-z0-9_]+-00000-of-00001-([0-9a-f]{16})\.parquet")


def digest_of(path: str) -> str | None:
    """The digest a data file is named with; None for a path that `file_of` doesn't make."""
    found = _DATA_FILE.fullmatch(path)
    return found[1] if found else None
