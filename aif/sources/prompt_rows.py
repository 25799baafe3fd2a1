"""Turn a row of a source, with its completions and its texts for the judge, into a prompt, or skip the row. No I/O.

A row is *skipped*, with the reason, in these cases (`aif.engine.read_prompts` counts the skipped rows):

- a used cell can't be read;
- the conversation is empty, longer than `max_chars`, or of an unknown shape;
- the conversation has no user turn at its end, after assistant turns there were removed.

A row that contradicts the pipeline file (a missing column, another type) raises BadInput, before anything is spent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, isnan
from typing import Any, Literal, TypeGuard

import orjson

from aif.config.sections import CompletionColumns, Source
from aif.core import strict_json
from aif.core.errors import BadInput
from aif.core.strict_json import json_type, replace_surrogates
from aif.core.types import BadRow, Message, Prompt, ProvidedCompletion, Role, is_blank, prompt_id

Reason = Literal["empty", "too_long", "no_user_turn", "bad_row", "empty_completion"]

META_BYTES = 4000  # of a column's JSON; a longer one is probably a text, not a note on the prompt
META_ROW_BYTES = 8 * META_BYTES  # of all such columns of a row
MAX_SCORE = 1e300  # so that the difference of two scores and the sum of a million are finite

_ROLES: Mapping[Any, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    # ShareGPT's names
    "human": "user",
    "gpt": "assistant",
}
_SPELLINGS = (("role", "from"), ("content", "value"))
# what pandas' to_csv writes for a list of objects, and for a list of texts (NumPy writes no commas)
_PYTHON_OBJECTS = re.compile(r"\s*\[\s*\{\s*'(\w+)'\s*:.*\}\s*\]\s*", re.DOTALL)
_QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None)"""
_PYTHON_TEXTS = re.compile(rf"\s*\[\s*{_QUOTED}(?:[\s,]+{_QUOTED})*[\s,]*\]\s*", re.DOTALL)
# a conversation in one text: Anthropic's HH, with a blank line before every turn; other texts with such labels; the
# output of a chat template
_HH, _HUMAN = re.compile(r"\n\n(Human|Assistant):"), "\n\nHuman:"
_LABEL = re.compile(r"(?:^|\n|###)[ \t]*(?i:(human|user)|assistant)[ \t]*:|\s(?:(HUMAN|USER)|ASSISTANT):")
_TEMPLATED = re.compile(r"\s*(<s>\s*)?(\[INST\]|<\|[a-z_]+\|>|<start_of_turn>|<bos>|### Instruction:)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row, or one of its completions, that is left out.

    reason: `empty_completion` for a completion; any other reason is for the whole row.
    where: the row's place: `file:line`, or `file row N` (from 0).
    detail: the end of the message to the user, such as "no text".
    """

    reason: Reason
    where: str
    detail: str


def read_row(row: Any, source: Source, where: str) -> list[Prompt | Skipped]:
    """Parse a row. Return a `Skipped` for each completion that is left out, then the prompt; or a single `Skipped` for
    the whole row. `where` is the row's place.

    Raises BadInput if the row contradicts the source's settings in the pipeline file.
    """
    if isinstance(row, BadRow):
        return [Skipped("bad_row", where, row.reason)]
    if not isinstance(row, dict):
        raise BadInput(
            f'{where}: expected an object of columns, got {json_type(row)}; write {{"{source.field}": "..."}}'
        )
    try:
        return _parse(row, source, where)
    except strict_json.DuplicateKeyError as error:
        return [Skipped("bad_row", where, str(error))]


def _parse(row: Mapping[str, Any], source: Source, where: str) -> list[Prompt | Skipped]:
    if bad := [(name, row[name].reason) for name in _used_columns(source) if isinstance(row.get(name), BadRow)]:
        return [Skipped("bad_row", where, f"{bad[0][0]!r} can't be read: {bad[0][1]}")]
    turns = _parse_turns(_column(row, source.field, "field", where), source.field, where)
    name = _column(row, source.source_field, "source_field", where) if source.source_field else source.source
    if not isinstance(name, str) or not name.strip():
        raise BadInput(
            f"{where}: {source.source_field!r} holds no name of a source; fill it in or leave source_field out"
        )
    material = _material(row, source.material, where)
    raw, columns = _raw_completions(row, source.completions, where) if source.completions else ([], [])
    parsed = [_completion(item, f"{where} completion {n}", source.scale) for n, item in enumerate(raw)]
    if isinstance(turns, Skipped):
        return [turns]
    if flaw := _why_no_prompt(turns, source.max_chars):
        return [Skipped(flaw[0], where, flaw[1])]
    unique: dict[tuple[str, str], ProvidedCompletion] = {}
    completions = [item for item in parsed if isinstance(item, ProvidedCompletion)]
    rescored = [item for item in completions if unique.setdefault((item.model, item.text), item) != item]
    provided = tuple(unique.values())
    texts = [name, *(turn.content for turn in turns), *material.values()]
    texts += [text for completion in provided for text in (completion.model, completion.text)]
    if any(text != replace_surrogates(text) for text in texts):
        return [Skipped("bad_row", where, "a text with half a character (a lone surrogate)")]
    meta = _meta(row, {source.field, *source.material.values(), *columns})
    prompt = Prompt(prompt_id(turns), turns, name, meta, material, provided, tuple(rescored), where)
    return [*(item for item in parsed if isinstance(item, Skipped)), prompt]


def _used_columns(source: Source) -> list[str]:
    entry = source.completions
    of_completions = [entry.field, entry.model, entry.score] if entry else []
    columns = (source.field, source.source_field, *source.material.values(), *of_completions)
    return [name for name in columns if name]


def _column(row: Mapping[str, Any], name: str, setting: str, where: str, kind: str = "column") -> Any:
    """Return the value that a row has under `name`. Raises BadInput if the row lacks it.

    setting: the setting of the pipeline file that the message says to correct.
    where: the row's place.
    kind: the message's word for what is missing: "column", or "key" of an object.
    """
    if name not in row:
        present = replace_surrogates(", ".join(map(str, row))) or "none"
        raise BadInput(
            f"{where}: no {kind} {name!r} ({kind}s: {present}); correct the row, or {setting}: in the pipeline file"
        )
    return row[name]


def _json_list(value: Any) -> Any:
    """Return the parsed list if the value is a text that holds a JSON list (CSV files have no other lists). A text that
    holds a single turn in JSON becomes a list with this turn; any other value is returned unchanged. Raises
    DuplicateKeyError if an object in the JSON has a key twice."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        parsed = strict_json.parse_row(value)
    except strict_json.DuplicateKeyError:
        raise
    except (ValueError, RecursionError):
        return value
    parsed = [parsed] if isinstance(parsed, dict) and _is_turn(parsed) else parsed
    return parsed if isinstance(parsed, list) else value


# the conversation


def _parse_turns(value: Any, field: str, where: str) -> tuple[Message, ...] | Skipped:
    """Parse the value of the prompt column `field` into turns, without assistant turns at the end. Return a `Skipped`
    if it is null, is a conversation of an unknown shape, or has nothing but assistant turns. Raises BadInput if it is
    neither a text nor a list."""
    if value is None:
        return Skipped("empty", where, f"{field!r} is null")
    if isinstance(value, str):
        turns = _hh_turns(value) if value.startswith(_HUMAN) else _json_list(value)
        if isinstance(turns, str):
            if shape := _unparsed_conversation(turns):
                return Skipped("bad_row", where, f"{field!r} holds {shape}")
            return (Message("user", value),)
        value = turns
    if not isinstance(value, list):
        raise BadInput(
            f"{where}: {field!r} holds {json_type(value)}, not a text or a list of {{role, content}}; correct the row, "
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


def _hh_turns(text: str) -> list[dict[str, str]] | str:
    """Return the turns of a text in the format of Anthropic's HH; the text itself if speakers don't alternate."""
    _, *parts = _HH.split(text)
    labels, contents = parts[::2], parts[1::2]
    if any(label != ("Human", "Assistant")[n % 2] for n, label in enumerate(labels)):
        return text
    return [{"role": ("user", "assistant")[n % 2], "content": content.strip()} for n, content in enumerate(contents)]


def _unparsed_conversation(text: str) -> str | None:
    """Return a message if the text holds a conversation in a shape that aif doesn't parse, else None. The message names
    the shape and says how to write the conversation instead."""
    if _PYTHON_TEXTS.fullmatch(text) or ((match := _PYTHON_OBJECTS.fullmatch(text)) and _is_turn_key(match[1])):
        return "a list as Python prints it; write it as JSON"
    labels = list(_LABEL.finditer(text)) if "assistant" in text.lower() else []
    speakers = {bool(label[1] or label[2]) for label in labels}
    outermost = labels and not (text[: labels[0].start()].strip() and text[labels[-1].end() :].strip())
    if text.startswith(_HUMAN) or (len(speakers) == 2 and outermost):
        return "a conversation in one text; write it as a list of {role, content}"
    if _TEMPLATED.match(text):
        return "the output of a chat template; write it as a list of {role, content}"
    return None


def _are_turns(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Return whether a value is a list, not empty, of objects with the keys of a turn; the values of these keys are not
    checked."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and _is_turn(item) for item in value)


def _is_turn_key(key: str) -> bool:
    return any(key in spellings for spellings in _SPELLINGS)


def _is_turn(value: Mapping[str, Any]) -> bool:
    return all(any(spelling in value for spelling in spellings) for spellings in _SPELLINGS)


def _role_and_content(turn: Mapping[str, Any]) -> tuple[Any, Any]:
    role, content = (turn[a] if turn.get(a) is not None else turn.get(b) for a, b in _SPELLINGS)
    return role, content


def _message(turn: Any) -> Message | str:
    """Return the message of a turn, or what is wrong with the turn."""
    if not isinstance(turn, dict):
        return f"{json_type(turn)}, not {{role, content}}"
    role, content = _role_and_content(turn)
    if not isinstance(role, str) or role not in _ROLES:
        return f"role {str(role)[:60]!r} is none of {', '.join(_ROLES)}"
    if not isinstance(content, str):
        return f"content is {json_type(content)}, not a text"
    return Message(_ROLES[role], content)


def _why_no_prompt(turns: tuple[Message, ...], max_chars: int) -> tuple[Reason, str] | None:
    """Return why well-formed turns can't be a prompt (a reason, and a detail for the message); None if they can."""
    if any(turn.role == "system" for turn in turns[1:]):
        return "bad_row", "a system turn that is not the first"
    if turns[-1].role != "user":
        return "no_user_turn", f"the last turn is of role {turns[-1].role}"
    if is_blank(turns[-1].content):
        return "empty", "nothing but white space"
    chars = sum(len(turn.content) for turn in turns)
    return ("too_long", f"{chars} characters, max_chars is {max_chars}") if chars > max_chars else None


# the other columns


def _material(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, str]:
    """Return the texts that the judge sees beside the conversation, by the name of their placeholder in the rubric.

    `columns` maps each name to a column, which holds a text or a list of texts (one for each turn). The texts of a list
    are joined by blank lines.
    """
    material = {}
    for slot, name in columns.items():
        value = _column(row, name, f"material.{slot}", where)
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if text is not None and not isinstance(text, str):
                kind = f"a list with {json_type(text)}" if isinstance(value, list) else json_type(value)
                raise BadInput(
                    f"{where}: {name!r} holds {kind}, not a text or a list of texts; correct the row, or "
                    f"material.{slot}: in the pipeline file"
                )
        if filled := [text for text in texts if text and text.strip()]:
            material[slot] = "\n\n".join(filled)
    return material


def _meta(row: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    """Return the columns of a row that are not in `used`, as plain JSON values. Left out are values that JSON can't
    hold, values of more than META_BYTES (4,000) bytes, and values that would bring the row above META_ROW_BYTES
    (32,000)."""
    meta, room = {}, META_ROW_BYTES
    for name, value in row.items():
        if name in used or not isinstance(name, str) or isinstance(value, BadRow) or name != replace_surrogates(name):
            continue
        try:
            text = orjson.dumps(value)
        except orjson.JSONEncodeError:  # an image, bytes
            continue
        if len(text) <= min(META_BYTES, room):
            meta[name] = orjson.loads(text)
            room -= len(text)
    return meta


# the completions that a row brings


@dataclass(frozen=True, slots=True)
class _RawCompletion:
    """A completion as it is in the row, unchecked."""

    text: Any
    model: Any
    score: Any


def _raw_completions(
    row: Mapping[str, Any], entry: CompletionColumns, where: str
) -> tuple[list[_RawCompletion], list[str]]:
    """Return the completions of a row, and the columns that hold them. The column `entry.field` holds a list of
    objects, a list of texts, or a single text."""
    value = _column(row, entry.field, "completions.field", where)
    if isinstance(value, str):
        if entry.model not in row and _PYTHON_OBJECTS.fullmatch(value):
            raise BadInput(f"{where}: {entry.field!r} holds a list as Python prints it; write it as JSON")
        value = _list_in_cell(value, row.get(entry.model), entry.text)
    if value is None or value == []:
        return [], [entry.field]
    if isinstance(value, list) and any(_is_completion_object(item, entry) for item in value):
        return _from_objects(value, entry, where), [entry.field]
    columns = [entry.field, entry.model, *([entry.score] if entry.score else [])]
    model = _column(row, entry.model, "completions.model", where)
    score = _column(row, entry.score, "completions.score", where) if entry.score else None
    if not isinstance(value, list) or (_are_turns(value) and not isinstance(_json_list(model), list)):
        return [_RawCompletion(value, model, score)], columns
    models = [model] * len(value) if _is_text(model) else _parallel_list(model, value, entry.model, entry.field, where)
    scores = [None] * len(value) if score is None else _parallel_list(score, value, entry.score, entry.field, where)
    return [_RawCompletion(*parts) for parts in zip(value, models, scores, strict=True)], columns


def _is_completion_object(value: Any, entry: CompletionColumns) -> bool:
    """Return whether a value is an object with a completion, not just a turn of a conversation."""
    return isinstance(value, dict) and (entry.model in value or not _is_turn(value))


def _list_in_cell(value: str, model: Any, key: str) -> Any:
    """Return the parsed list if a cell's text is a JSON list of completions, else the text unchanged.

    If `model` is a single name, only a list of turns, or of objects with `key`, counts as a list of completions. Any
    other JSON list is then the answer of that model.

    model: the row's value in the column of model names.
    key: the key that holds a completion's text, in a list of objects.
    """
    parsed = _json_list(value)
    if not isinstance(parsed, list):
        return value
    objects = bool(parsed) and all(isinstance(item, dict) and key in item for item in parsed)
    return parsed if objects or _are_turns(parsed) or not _is_text(model) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(_json_list(value), list)


def _parallel_list(value: Any, texts: Sequence[Any], name: str | None, field: str, where: str) -> list[Any]:
    """Return the content of a column as a list of models or scores, one for each completion. Raises BadInput if it is
    no list or of another length.

    value: the column's content.
    texts: the completions.
    name: the column's name, for the message.
    field: the name of the completions' column, for the message.
    """
    parsed = _json_list(value)
    if not isinstance(parsed, list) or len(parsed) != len(texts):
        actual = f"a list of {len(parsed)}" if isinstance(parsed, list) else json_type(parsed)
        raise BadInput(
            f"{where}: {field!r} holds a list of {len(texts)}, but {name!r} {actual}; correct the row: both must be "
            "lists of the same length"
        )
    return parsed


def _from_objects(value: Sequence[Any], entry: CompletionColumns, where: str) -> list[_RawCompletion]:
    completions = []
    scored = any(isinstance(item, dict) and entry.score in item for item in value)
    for n, item in enumerate(value):
        item_where = f"{where} completion {n}"
        if not isinstance(item, dict):
            raise BadInput(
                f"{item_where}: expected an object with {entry.text!r} and {entry.model!r}, got {json_type(item)}; "
                "correct the row"
            )
        text = _column(item, entry.text, "completions.text", item_where, "key")
        model = _column(item, entry.model, "completions.model", item_where, "key")
        if entry.score and not scored:  # a few objects may lack a score; if all do, the setting names a wrong key
            _column(item, entry.score, "completions.score", item_where, "key")
        completions.append(_RawCompletion(text, model, item.get(entry.score)))
    return completions


def _completion(raw: _RawCompletion, where: str, scale: str) -> ProvidedCompletion | Skipped:
    text = _completion_text(raw.text, where)
    if is_blank(text):
        return Skipped("empty_completion", where, "nothing but white space" if text else "no text")
    if not isinstance(raw.model, str) or not raw.model.strip():
        actual = "blank" if isinstance(raw.model, str) else json_type(raw.model)
        raise BadInput(f"{where}: the name of its model is {actual}, not a text; fill it in")
    score = _score(raw.score, where)
    return ProvidedCompletion(raw.model, text, score, None if score is None else scale)


def _completion_text(value: Any, where: str) -> str:
    """Return the text of a completion. It may be given as a text, as an assistant turn, or as turns that end with one;
    null is empty."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, str) and value.startswith(_HUMAN):
        value = _hh_turns(value)
    if _are_turns(value):
        role, value = _role_and_content(value[-1])
        if role not in ("assistant", "gpt"):
            raise BadInput(f"{where}: its last turn is of role {str(role)[:60]!r}, not the assistant's; correct it")
    if value is not None and not isinstance(value, str):
        raise BadInput(
            f"{where}: expected a text or the assistant's {{role, content}}, got {json_type(value)}; correct it"
        )
    return value or ""


def _score(value: Any, where: str) -> float | None:
    """Return a score as a finite number; it may be given as text (as always in CSV). None for null, a blank text, and
    NaN, which tables of numbers use for null. Raises BadInput for anything else, and beyond MAX_SCORE (1e300)."""
    if isinstance(value, str):
        text = value.strip()
        value = None if not text else float(text) if _NUMBER.fullmatch(text) else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        actual = repr(value[:60]) if isinstance(value, str) else json_type(value)
        raise BadInput(f"{where}: its score is {actual}, not a number; correct it, or make it null")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if isnan(number):
        return None
    if abs(number) > MAX_SCORE:
        actual = f"beyond {MAX_SCORE:g}" if isfinite(number) else "not finite"
        raise BadInput(f"{where}: its score is {actual}; correct it, or make it null")
    return number
