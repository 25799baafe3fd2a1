"""Prompts in: rows of a JSONL file or a Hub dataset become `Prompt`s, one at a time, in their order.

A row that can't be read as the entry says ends the reading before anything is spent; one that can be read but asks
nothing (empty, too long, no user turn) is left out with its reason. The same prompt twice is the caller's to notice.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from aif import resources
from aif.entries import Source
from aif.errors import BadInput
from aif.records import Message, Prompt, Role, digest, prompt_id

Reason = Literal["empty", "too_long", "no_user_turn", "bad_row"]

META_BYTES = 4000  # of a column's JSON; what is longer is no note on the prompt but another text

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    # ShareGPT's names
    "human": "user",
    "gpt": "assistant",
}
_SPELLINGS = (("role", "from"), ("content", "value"))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row left out: why, where it stands (`file:line` or `dataset row N`, rows from 0), and what was found."""

    reason: Reason
    where: str
    detail: str


def read(source: Source, *, beside: Path | None) -> Iterator[Prompt | Skipped]:
    """The prompts of one entry of a pipeline's `prompts`, up to its `limit` (which counts prompts, not rows left out).

    `beside` is the folder where relative paths are looked for first. Raises BadInput, naming the row, where a row or
    the whole source can't be read.
    """
    rows = _file_rows(source, beside) if source.file else _hub_rows(source, beside)
    taken = 0
    for where, row in rows:
        item = read_row(row, source, where)
        yield item
        taken += isinstance(item, Prompt)
        if taken == source.limit:
            return


def fingerprint(source: Source, *, beside: Path | None) -> str:
    """64 hex digits that stay the same while the content of a source and how it is read do.

    A file or a local folder is hashed whole; a Hub dataset is asked for the commit of its revision. Raises BadInput
    where it can't be read or reached.
    """
    settings = source.model_dump(exclude={"file", "hub"})
    if source.file:
        return digest([settings, _sha256(_file(source.file, beside))])
    name = source.hub or ""
    if folder := _folder(name, beside):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
        return digest([settings, [[path.relative_to(folder).as_posix(), _sha256(path)] for path in files]])
    return digest([settings, name, _commit(name, source.revision)])


def read_row(row: Any, source: Source, where: str) -> Prompt | Skipped:
    """One row as a prompt. Raises BadInput where the row isn't what the entry says it is."""
    if not isinstance(row, dict):
        raise BadInput(f'{where}: expected an object of columns, got {_kind(row)}; write {{"{source.field}": "..."}}')
    value = _column(row, source.field, "field", where)
    name = _column(row, source.source_field, "source_field", where) if source.source_field else source.source
    if not isinstance(name, str) or not name.strip():
        raise BadInput(
            f"{where}: {source.source_field!r} holds no name of a source; fill it in or leave source_field out"
        )
    turns = _turns(value, source.field, where)
    if isinstance(turns, Skipped):
        return turns
    if flaw := _flaw(turns, source.max_chars):
        return Skipped(flaw[0], where, flaw[1])
    return Prompt(prompt_id(turns), turns, name, _meta(row, source.field))


def _column(row: Mapping[str, Any], name: str, key: str, where: str) -> Any:
    if name not in row:
        columns = ", ".join(map(str, row)) or "none"
        raise BadInput(
            f"{where}: no column {name!r} (columns: {columns}); correct the row, or {key}: in the pipeline file"
        )
    return row[name]


def _turns(value: Any, field: str, where: str) -> tuple[Message, ...] | Skipped:
    if value is None:
        return Skipped("empty", where, f"{field!r} is null")
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, list):
        raise BadInput(
            f"{where}: {field!r} holds {_kind(value)}, not a text or a list of {{role, content}}; correct the row, or "
            "field: in the pipeline file"
        )
    turns = []
    for n, turn in enumerate(value):
        message = _message(turn)
        if isinstance(message, str):
            return Skipped("bad_row", where, f"turn {n}: {message}")
        turns.append(message)
    while turns and turns[-1].role == "assistant":
        turns.pop()
    if not turns:
        return Skipped("no_user_turn" if value else "empty", where, f"{len(value)} turns, none to be answered")
    return tuple(turns)


def _message(turn: Any) -> Message | str:
    """A turn, or what is wrong with it."""
    if not isinstance(turn, dict):
        return f"{_kind(turn)}, not {{role, content}}"
    role, content = (turn[a] if turn.get(a) is not None else turn.get(b) for a, b in _SPELLINGS)
    if not isinstance(role, str) or role not in _ROLES:
        return f"role {str(role)[:60]!r} is none of {', '.join(_ROLES)}"
    if not isinstance(content, str):
        return f"content is {_kind(content)}, not a text"
    return Message(_ROLES[role], content)


def _flaw(turns: tuple[Message, ...], max_chars: int) -> tuple[Reason, str] | None:
    """Why well-formed turns are no prompt."""
    if any(turn.role == "system" for turn in turns[1:]):
        return "bad_row", "a system turn that is not the first"
    if turns[-1].role != "user":
        return "no_user_turn", f"the last turn is of role {turns[-1].role}"
    if not turns[-1].content.strip():
        return "empty", "nothing but white space"
    chars = sum(len(turn.content) for turn in turns)
    return ("too_long", f"{chars} characters, max_chars is {max_chars}") if chars > max_chars else None


def _meta(row: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The other columns, as JSON would give them back; what JSON can't hold or is long is left out."""
    meta = {}
    for name, value in row.items():
        if name == field or not isinstance(name, str):
            continue
        try:
            text = orjson.dumps(value)
        except orjson.JSONEncodeError:  # an image, bytes: nothing a record could hold
            continue
        if len(text) <= META_BYTES:
            meta[name] = orjson.loads(text)
    return meta


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


# files


def _file(name: str, beside: Path | None) -> Path:
    path = resources.find(name, beside, "", "prompt file")
    if not path.is_file():
        raise BadInput(f"{path}: is a folder; file: takes a .jsonl file, and hub: the folder of a dataset")
    return path


def _file_rows(source: Source, beside: Path | None) -> Iterator[tuple[str, Any]]:
    path = _file(source.file or "", beside)
    with _readable(path), path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            if text:
                where = f"{path}:{number}"
                yield where, _json(text, where)


def _json(text: bytes, where: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON ({error}); each line is one JSON object in UTF-8: correct it") from error


def _sha256(path: Path) -> str:
    with _readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path}: can't be read: {error.strerror}; check the file and its rights") from error


# the Hub


def _folder(name: str, beside: Path | None) -> Path | None:
    """A local folder of data files that goes by this name, which comes before a dataset of the Hub."""
    places = ([] if beside is None else [beside]) + [Path.cwd()]
    with _reachable(name):
        candidates = [place.absolute() / Path(name).expanduser() for place in places]
        return next((folder for folder in candidates if folder.is_dir()), None)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _hub_rows(source: Source, beside: Path | None) -> Iterator[tuple[str, Any]]:
    import datasets  # takes a second or two

    name = source.hub or ""
    folder = _folder(name, beside)
    called = f"{folder or name} {source.split}"
    with _reachable(called):
        rows = datasets.load_dataset(
            str(folder or name), name=source.config, split=source.split, revision=source.revision, streaming=True
        )
        iterator = enumerate(rows)
    while True:
        with _reachable(called):
            item = next(iterator, None)
        if item is None:
            return
        yield f"{called} row {item[0]}", item[1]


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    with _reachable(name):
        return str(HfApi().dataset_info(name, revision=revision).sha)


@contextmanager
def _reachable(called: str) -> Iterator[None]:
    # what datasets, huggingface_hub, httpx2 and pyarrow raise for names, networks, rights and broken files has no
    # common base; their words go on in ours
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(
            f"hub dataset {called}: can't be read: {said}; check hub:, config:, split: and revision:, the network and "
            "HF_TOKEN, or give a folder with its files as hub:"
        ) from error
