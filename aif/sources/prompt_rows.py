"""One row of a source -> its prompt, with the completions and the material it brings; or why it is left out. No I/O.

A row that isn't what the pipeline file says ends the reading, before anything is spent; one that is, but asks nothing
(empty, too long, no user turn), is left out with its reason, and so is a completion without a text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, isnan
from typing import Any, Literal, TypeGuard

import orjson

from aif.config import sections
from aif.config.sections import Source
from aif.core import strict_json
from aif.core.errors import BadInput
from aif.core.strict_json import encodable, shape_of
from aif.core.types import BadRow, Message, Prompt, Provided, Role, is_blank, prompt_id

Reason = Literal["empty", "too_long", "no_user_turn", "bad_row", "empty_completion"]

META_BYTES = 4000  # of a column's JSON; what is longer is no note on the prompt but another text
MOST_SCORE = 1e300  # the difference of two is a number still, and so is the sum of a million
META_ROW_BYTES = 8 * META_BYTES  # of all of a row's

_ROLES: Mapping[Any, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    # ShareGPT's names
    "human": "user",
    "gpt": "assistant",
}
_SPELLINGS = (("role", "from"), ("content", "value"))
# what pandas' to_csv makes of a list of objects, and of one of texts (NumPy has no commas)
_PYTHON = re.compile(r"\s*\[\s*\{\s*'(\w+)'\s*:.*\}\s*\]\s*", re.DOTALL)
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None)"""
_PYTHON_TEXTS = re.compile(rf"\s*\[\s*{_QUOTED}(?:[\s,]+{_QUOTED})*[\s,]*\]\s*", re.DOTALL)
# a conversation in one text: Anthropic's HH, of which every turn has a blank line before it; whatever else has such
# labels; and what a chat template makes
_HH, _HUMAN = re.compile(r"\n\n(Human|Assistant):"), "\n\nHuman:"
_LABEL = re.compile(r"(?:^|\n|###)[ \t]*(?i:(human|user)|assistant)[ \t]*:|\s(?:(HUMAN|USER)|ASSISTANT):")
_TEMPLATED = re.compile(r"\s*(<s>\s*)?(\[INST\]|<\|[a-z_]+\|>|<start_of_turn>|<bos>|### Instruction:)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row left out, or one of its completions (`empty_completion`): why, where it stands (`file:line`, or `file row
    N` from 0), and what was found."""

    reason: Reason
    where: str
    detail: str


def read_row(row: Any, source: Source, where: str) -> list[Prompt | Skipped]:
    """What one row gives: the completions that are left out, then its prompt; or just that the row is left out.

    Raises BadInput where the row isn't what the entry says it is.
    """
    if isinstance(row, BadRow):
        return [Skipped("bad_row", where, row.why)]
    if not isinstance(row, dict):
        raise BadInput(
            f'{where}: expected an object of columns, got {shape_of(row)}; write {{"{source.field}": "..."}}'
        )
    try:
        return _read(row, source, where)
    except strict_json.Twice as error:
        return [Skipped("bad_row", where, str(error))]


def _read(row: Mapping[str, Any], source: Source, where: str) -> list[Prompt | Skipped]:
    if lost := [(name, row[name].why) for name in _used(source) if isinstance(row.get(name), BadRow)]:
        return [Skipped("bad_row", where, f"{lost[0][0]!r} can't be read: {lost[0][1]}")]
    turns = _turns(_held(row, source.field, "field", where), source.field, where)
    name = _held(row, source.source_field, "source_field", where) if source.source_field else source.source
    if not isinstance(name, str) or not name.strip():
        raise BadInput(
            f"{where}: {source.source_field!r} holds no name of a source; fill it in or leave source_field out"
        )
    material = _material(row, source.material, where)
    parts, columns = _parts(row, source.completions, where) if source.completions else ([], [])
    completions = [_completion(part, f"{where} completion {n}", source.scale) for n, part in enumerate(parts)]
    if isinstance(turns, Skipped):
        return [turns]
    if flaw := _flaw(turns, source.max_chars):
        return [Skipped(flaw[0], where, flaw[1])]
    once: dict[tuple[str, str], Provided] = {}
    came = [one for one in completions if isinstance(one, Provided)]
    again = [one for one in came if once.setdefault((one.model, one.text), one) != one]
    carried = tuple(once.values())
    texts = [name, *(turn.content for turn in turns), *material.values()]
    texts += [text for one in carried for text in (one.model, one.text)]
    if any(text != encodable(text) for text in texts):
        return [Skipped("bad_row", where, "a text with half a character (a lone surrogate)")]
    meta = _meta(row, {source.field, *source.material.values(), *columns})
    prompt = Prompt(prompt_id(turns), turns, name, meta, material, carried, tuple(again), where)
    return [*(one for one in completions if isinstance(one, Skipped)), prompt]


def _used(source: Source) -> list[str]:
    carried = source.completions
    named = [carried.field, carried.model, carried.score] if carried else []
    return [name for name in (source.field, source.source_field, *source.material.values(), *named) if name]


def _held(row: Mapping[str, Any], name: str, key: str, where: str, what: str = "column") -> Any:
    if name not in row:
        there = encodable(", ".join(map(str, row))) or "none"
        raise BadInput(
            f"{where}: no {what} {name!r} ({what}s: {there}); correct the row, or {key}: in the pipeline file"
        )
    return row[name]


def _json_list(value: Any) -> Any:
    """The list in a text that is JSON, since a cell of CSV holds no other list, a turn by itself as a list of one;
    anything else as it is. Raises Twice."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        found = strict_json.row(value)
    except strict_json.Twice:
        raise
    except (ValueError, RecursionError):
        return value
    found = [found] if isinstance(found, dict) and _is_turn(found) else found
    return found if isinstance(found, list) else value


# the conversation


def _turns(value: Any, field: str, where: str) -> tuple[Message, ...] | Skipped:
    if value is None:
        return Skipped("empty", where, f"{field!r} is null")
    if isinstance(value, str):
        turns = _transcript(value) if value.startswith(_HUMAN) else _json_list(value)
        if isinstance(turns, str):
            if found := _no_text(turns):
                return Skipped("bad_row", where, f"{field!r} holds {found}")
            return (Message("user", value),)
        value = turns
    if not isinstance(value, list):
        raise BadInput(
            f"{where}: {field!r} holds {shape_of(value)}, not a text or a list of {{role, content}}; correct the row, "
            "or field: in the pipeline file"
        )
    messages = []
    for n, turn in enumerate(value):
        message = _message(turn)
        if isinstance(message, str):
            return Skipped("bad_row", where, f"turn {n}: {message}")
        messages.append(message)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages:
        return Skipped("no_user_turn" if value else "empty", where, f"{len(value)} turns, none to be answered")
    return tuple(messages)


def _transcript(text: str) -> list[dict[str, str]] | str:
    """The turns of a text as Anthropic's HH has it, where they alternate; else the text. An empty turn of the
    assistant, with which it ends, is cut off as any other."""
    _, *parts = _HH.split(text)
    labels, said = parts[::2], parts[1::2]
    if any(label != ("Human", "Assistant")[n % 2] for n, label in enumerate(labels)):
        return text
    return [{"role": ("user", "assistant")[n % 2], "content": one.strip()} for n, one in enumerate(said)]


def _no_text(text: str) -> str | None:
    """What a text is that nobody would ask as it stands."""
    if _PYTHON_TEXTS.fullmatch(text) or ((printed := _PYTHON.fullmatch(text)) and _is_spelling(printed[1])):
        return "a list as Python prints it; write it as JSON"
    labels = list(_LABEL.finditer(text)) if "assistant" in text.lower() else []
    speakers = {bool(label[1] or label[2]) for label in labels}
    outermost = labels and not (text[: labels[0].start()].strip() and text[labels[-1].end() :].strip())
    if text.startswith(_HUMAN) or (len(speakers) == 2 and outermost):
        return "a conversation in one text; write it as a list of {role, content}"
    if _TEMPLATED.match(text):
        return "what a chat template makes; write it as a list of {role, content}"
    return None


def _are_turns(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Whether it is a list of {role, content} by its keys, whatever they hold."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and _is_turn(one) for one in value)


def _is_spelling(key: str) -> bool:
    return any(key in spellings for spellings in _SPELLINGS)


def _is_turn(value: Mapping[str, Any]) -> bool:
    return all(any(spelling in value for spelling in spellings) for spellings in _SPELLINGS)


def _spelled(turn: Mapping[str, Any]) -> tuple[Any, Any]:
    """Role and content of a turn as they stand there."""
    role, content = (turn[a] if turn.get(a) is not None else turn.get(b) for a, b in _SPELLINGS)
    return role, content


def _message(turn: Any) -> Message | str:
    """A turn, or what is wrong with it."""
    if not isinstance(turn, dict):
        return f"{shape_of(turn)}, not {{role, content}}"
    role, content = _spelled(turn)
    if not isinstance(role, str) or role not in _ROLES:
        return f"role {str(role)[:60]!r} is none of {', '.join(_ROLES)}"
    if not isinstance(content, str):
        return f"content is {shape_of(content)}, not a text"
    return Message(_ROLES[role], content)


def _flaw(turns: tuple[Message, ...], max_chars: int) -> tuple[Reason, str] | None:
    """Why well-formed turns are no prompt."""
    if any(turn.role == "system" for turn in turns[1:]):
        return "bad_row", "a system turn that is not the first"
    if turns[-1].role != "user":
        return "no_user_turn", f"the last turn is of role {turns[-1].role}"
    if is_blank(turns[-1].content):
        return "empty", "nothing but white space"
    chars = sum(len(turn.content) for turn in turns)
    return ("too_long", f"{chars} characters, max_chars is {max_chars}") if chars > max_chars else None


# what the row holds besides


def _material(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, str]:
    """By slot, what is there: a text, or the texts of a list (one for each turn) with a blank line between."""
    material = {}
    for slot, name in columns.items():
        value = _held(row, name, f"material.{slot}", where)
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if text is not None and not isinstance(text, str):
                kind = f"a list with {shape_of(text)}" if isinstance(value, list) else shape_of(value)
                raise BadInput(
                    f"{where}: {name!r} holds {kind}, not a text or a list of texts; correct the row, or "
                    f"material.{slot}: in the pipeline file"
                )
        if held := [text for text in texts if text and text.strip()]:
            material[slot] = "\n\n".join(held)
    return material


def _meta(row: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    """The columns without a use, as JSON would give them back; what JSON can't hold or is long is left out, and so is
    what is too much with the columns before it."""
    meta, room = {}, META_ROW_BYTES
    for name, value in row.items():
        if name in used or not isinstance(name, str) or isinstance(value, BadRow) or name != encodable(name):
            continue
        try:
            text = orjson.dumps(value)
        except orjson.JSONEncodeError:  # an image, bytes: nothing a record could hold
            continue
        if len(text) <= min(META_BYTES, room):
            meta[name] = orjson.loads(text)
            room -= len(text)
    return meta


# the completions it carries


@dataclass(frozen=True, slots=True)
class _Part:
    """A completion as it stands in the row, unchecked."""

    text: Any
    model: Any
    score: Any


def _parts(row: Mapping[str, Any], entry: sections.CompletionColumns, where: str) -> tuple[list[_Part], list[str]]:
    """The completions of a row by one of the layouts that `CompletionColumns` tells, and the columns they take."""
    value = _held(row, entry.field, "completions.field", where)
    if isinstance(value, str):
        if entry.model not in row and _PYTHON.fullmatch(value):
            raise BadInput(f"{where}: {entry.field!r} holds a list as Python prints it; write it as JSON")
        value = _cell(value, row.get(entry.model), entry.text)
    if value is None or value == []:
        return [], [entry.field]
    if isinstance(value, list) and any(_is_object(one, entry) for one in value):
        return _of_objects(value, entry, where), [entry.field]
    columns = [entry.field, entry.model, *([entry.score] if entry.score else [])]
    model = _held(row, entry.model, "completions.model", where)
    score = _held(row, entry.score, "completions.score", where) if entry.score else None
    if not isinstance(value, list) or (_are_turns(value) and not isinstance(_json_list(model), list)):
        return [_Part(value, model, score)], columns
    models = [model] * len(value) if _is_text(model) else _as_many(model, value, entry.model, entry.field, where)
    scores = [None] * len(value) if score is None else _as_many(score, value, entry.score, entry.field, where)
    return [_Part(*part) for part in zip(value, models, scores, strict=True)], columns


def _is_object(value: Any, entry: sections.CompletionColumns) -> bool:
    """Whether it is a completion with its model beside it, not just the turn of one."""
    return isinstance(value, dict) and (entry.model in value or not _is_turn(value))


def _cell(value: str, model: Any, key: str) -> Any:
    """The list in a text, or the text itself: a completion may be JSON, and is where one model is named for it."""
    found = _json_list(value)
    if not isinstance(found, list):
        return value
    objects = bool(found) and all(isinstance(one, dict) and key in one for one in found)
    return found if objects or _are_turns(found) or not _is_text(model) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(_json_list(value), list)


def _as_many(held: Any, texts: Sequence[Any], name: str | None, field: str, where: str) -> list[Any]:
    found = _json_list(held)
    if not isinstance(found, list) or len(found) != len(texts):
        amount = f"a list of {len(found)}" if isinstance(found, list) else shape_of(found)
        raise BadInput(
            f"{where}: {field!r} holds a list of {len(texts)}, but {name!r} {amount}; correct the row: both are lists "
            "of one length"
        )
    return found


def _of_objects(value: Sequence[Any], entry: sections.CompletionColumns, where: str) -> list[_Part]:
    parts = []
    scored = any(isinstance(one, dict) and entry.score in one for one in value)
    for n, one in enumerate(value):
        here = f"{where} completion {n}"
        if not isinstance(one, dict):
            raise BadInput(
                f"{here}: expected an object with {entry.text!r} and {entry.model!r}, got {shape_of(one)}; correct "
                "the row"
            )
        text = _held(one, entry.text, "completions.text", here, "key")
        model = _held(one, entry.model, "completions.model", here, "key")
        if entry.score and not scored:  # one object may have none; where no object has one, it goes by another name
            _held(one, entry.score, "completions.score", here, "key")
        parts.append(_Part(text, model, one.get(entry.score)))
    return parts


def _completion(part: _Part, where: str, scale: str) -> Provided | Skipped:
    text = _text(part.text, where)
    if is_blank(text):
        return Skipped("empty_completion", where, "nothing but white space" if text else "no text")
    if not isinstance(part.model, str) or not part.model.strip():
        held = "blank" if isinstance(part.model, str) else shape_of(part.model)
        raise BadInput(f"{where}: the name of its model is {held}, not a text; fill it in")
    score = _score(part.score, where)
    return Provided(part.model, text, score, None if score is None else scale)


def _text(value: Any, where: str) -> str:
    """What was said, given as a text, as the assistant's turn, or as turns that end with it; empty where null."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, str) and value.startswith(_HUMAN):
        value = _transcript(value)
    if _are_turns(value):
        role, value = _spelled(value[-1])
        if role not in ("assistant", "gpt"):
            raise BadInput(f"{where}: its last turn is of role {str(role)[:60]!r}, not the assistant's; correct it")
    if value is not None and not isinstance(value, str):
        raise BadInput(
            f"{where}: expected a text or the assistant's {{role, content}}, got {shape_of(value)}; correct it"
        )
    return value or ""


def _score(value: Any, where: str) -> float | None:
    """A finite number, also written as a text (CSV has no other). None where there is none: null, blank, or NaN, which
    is how tables of numbers say null."""
    if isinstance(value, str):
        written = value.strip()
        value = None if not written else float(written) if _NUMBER.fullmatch(written) else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        shown = repr(value[:60]) if isinstance(value, str) else shape_of(value)
        raise BadInput(f"{where}: its score is {shown}, not a number; correct it, or make it null")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if isnan(number):
        return None
    if abs(number) > MOST_SCORE:
        said = f"beyond {MOST_SCORE:g}" if isfinite(number) else "not finite"
        raise BadInput(f"{where}: its score is {said}; correct it, or make it null")
    return number
