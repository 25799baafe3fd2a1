"""What a store that was set aside holds and another lacks, as the journal's records.

Of a call a store has all that the journal has, but for how a judge reasoned and finished, the words of an answer that
came when there was one already, and what a call was for of which nothing came.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import orjson

from aif.core.types import Prompt, ProvidedCompletion, as_messages, provided_identity
from aif.store import records
from aif.store.reader import Reader
from aif.store.records import Record
from aif.store.set_aside import Former

AT_ONCE = 40  # rows: of prompts of 400,000 Chinese characters they are 48 MB, and several times that on their way
PAGE = 2000  # prompts

Row = dict[str, Any]

_PLAIN: dict[str, tuple[str, Callable[[Row], Record]]] = {  # tables, by what tells their rows
    "texts": ("digest", lambda row: records.text(row["digest"], row["kind"], orjson.loads(row["content"]))),
    "prompts": ("prompt_id", lambda row: records.prompt(_prompt(row))),
    "reserved": ("run, n", lambda row: records.reserve(**row)),
    "splits": ("asked", lambda row: records.split(**row)),
}
_CALL = ("id", "stage", "key", "prompt_id", "endpoint", "n", "seconds", "verdict", "kind", "message", "raw", "usd")
_ITEM = {
    "completion": ("sample", "seed", "principle", "system"),
    "judgement": ("pass", "request", "rubric", "spec", "material", "form", "completions"),
}
_USAGE = {"input": "input", "output": "output", "cached": "cached", "reasoning": "reasoning", "written": "cache_write"}


def missing(former: Former, reader: Reader, retried: bool = False) -> Iterator[list[Record]]:
    """The records that the reader's store lacks. Each batch is to be kept before the next is asked for: answers are
    looked for once calls are there, of which some rows may be damaged. `retried`: since the former store was written
    to, failures for good were told to be asked again."""
    for name, (keys, made) in _PLAIN.items():
        for rows in _lacking(former, reader, name, keys, name, keys):
            yield [made(row) for row in rows]
    for rows in _lacking(former, reader, "calls", "id", "calls", "id"):
        yield _calls(former, reader, rows, retried)
    came = "CASE WHEN call_id IS NULL THEN key END AS key"
    for rows in _lacking(former, reader, "completions", came, "completions", "key"):
        yield [records.carried(row["key"], row["prompt_id"], _carried(row)) for row in rows]
    # by their calls: read otherwise now, an answer may be none
    for stage in ("completion", "judgement"):
        for rows in _lacking(former, reader, f"{stage}s", "call_id AS id", "calls", "id"):
            yield _calls_of(former, stage, rows)


def selection(former: Former) -> Iterator[list[Record]]:
    """Which prompts the sources held, as that store was last told."""
    start, page = 0, "SELECT prompt_id, source FROM selection WHERE position >= ? AND position < ? ORDER BY position"
    while rows := former.rows(page, [start, start + PAGE]):
        carried = "FROM carried WHERE prompt_id IN (SELECT unnest(?)) ORDER BY prompt_id, n"
        came = former.rows(carried, [[row["prompt_id"] for row in rows]])
        brought = ((one["prompt_id"], one["key"], one["score"], one.get("source")) for one in came)
        yield [records.page(start, (tuple(row.values()) for row in rows), brought)]
        start += len(rows)
    counts = {(row["source"], row["reason"]): row["rows"] for row in former.rows("FROM intake")}
    marks = former.rows("SELECT value FROM marks WHERE name = 'sources'")
    if marks and not former.torn:
        yield [records.selected(marks[0]["value"], counts)]


def _lacking(former: Former, reader: Reader, name: str, columns: str, ours: str, keys: str) -> Iterator[list[Row]]:
    """Rows of a table by keys that the reader's store has not in its own."""
    for rows in former.columns(name, columns):
        lacking = reader.lacks(ours, keys, rows)
        for n in range(0, len(lacking), AT_ONCE):
            yield former.at(name, lacking[n : n + AT_ONCE])


def _prompt(row: Row) -> Prompt:
    material = orjson.loads(row["material"] or "{}")
    return Prompt(row["prompt_id"], as_messages(row["messages"]), "", orjson.loads(row["meta"]), material)


def _carried(row: Row) -> ProvidedCompletion:
    return ProvidedCompletion(row["identity"].removeprefix(provided_identity("")), row["text"])


def _calls(former: Former, reader: Reader, rows: list[Row], retried: bool) -> list[Record]:
    """The calls of these rows, with what came of them: an answer, or how the item stands since."""
    ids, keys = [row["id"] for row in rows], [row["key"] for row in rows]
    had = {
        row["call_id"]: row
        for name in ("completions", "judgements")
        for row in _among(former.rows, name, "call_id", ids)
    }
    stands = _stands(former, reader, keys, retried)
    return [_call(row, had.get(row["id"]) or stands.get((row["key"], row["started"]), {})) for row in rows]


def _stands(former: Former, reader: Reader, keys: list[str], retried: bool) -> dict[tuple[str, datetime], Row]:
    """How these items stand by their last calls, where no answer came; but for those on which the reader's store has
    the word of a call that the former never heard of: that one is later."""
    words = {(row["key"], row["started"]) for row in _among(reader._query, "failed", "key", keys)}
    heard = {(row["key"], row["started"]) for row in _among(former.rows, "calls", "key", [key for key, _ in words])}
    later = {key for key, _ in words - heard}
    now = {"verdict": "later"} if retried else {}
    rows = _among(former.rows, "failed", "key", keys)
    return {(row["key"], row["started"]): row | now for row in rows if row["key"] not in later}


def _calls_of(former: Former, stage: str, answers: list[Row]) -> list[Record]:
    """The calls of these answers, made of them alone where a call's row can't be read: its cost is not known then."""
    calls = {row["id"]: row for row in _among(former.rows, "calls", "id", [one["call_id"] for one in answers])}
    return [
        _call(
            calls.get(one["call_id"])
            or one | {"id": one["call_id"], "stage": stage, "endpoint": one.get("judge"), "verdict": "answered"},
            one,
        )
        for one in answers
    ]


def _among(ask: Callable[[str, list[Any]], list[Row]], name: str, key: str, values: list[str]) -> list[Row]:
    return ask(f"SELECT * FROM {name} WHERE {key} IN (SELECT unnest(?))", [values]) if values else []


def _call(row: Row, had: Row) -> Record:
    item: Row = {name: had.get(name) for name in _ITEM[row["stage"]]} if had else {}
    if "answers" in had:  # of a judgement that failed the order is not known
        item["completions"] = had.get("completions") or had["answers"]
        if had.get("shown"):
            shown = dict(zip(had["answers"], had["shown"], strict=True))
            item["shown"] = [shown[key] for key in item["completions"]]
    tokens = {name: row.get(f"{column}_tokens") for name, column in _USAGE.items()}
    return {
        "t": "call",
        "v": 1,
        **{name: row.get(name) for name in _CALL},
        "verdict": had.get("verdict", "failed") if row["verdict"] == "failed" else row["verdict"],  # it may be retried
        "identity": had.get("identity"),
        "item": item,
        "started": row["started"].replace(tzinfo=UTC).isoformat() if row.get("started") else None,
        "usage": tokens if set(tokens.values()) != {None} else None,
        **({"bound": row["bound"]} if row.get("bound") is not None else {}),
        "sent": orjson.loads(row.get("sent") or "{}"),
        "served": orjson.loads(row.get("served") or "{}"),
        **{name: had.get(name) for name in ("text", "reasoning", "finish")},
        **({"said": orjson.loads(had["said"])} if had.get("said") else {}),
    }
