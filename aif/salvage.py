"""What a store that was set aside holds and another lacks, as the journal's records: each store is a second copy of what
was paid for.

Of a call it holds all that the journal does but for three things: how a judge reasoned and how it finished, the words of
an answer that came when there was one already, and what a call was for that came to nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from typing import Any

import orjson

from aif import events
from aif.events import Record
from aif.queries import Former, Reader
from aif.records import CARRIED, carried_identity

AT_ONCE = 50  # rows: with the longest replies they still fit into memory
PAGE = 2000  # prompts

Row = dict[str, Any]

_OF_CALL = ("id", "stage", "key", "prompt_id", "endpoint", "n", "seconds", "verdict", "kind", "message", "raw", "usd")
_OF_ITEM = {
    "completion": ("sample", "seed", "principle", "system"),
    "judgement": ("pass", "request", "rubric", "spec", "material", "form", "completions"),
}
_USAGE = {"input": "input", "output": "output", "cached": "cached", "reasoning": "reasoning", "written": "cache_write"}


def missing(former: Former, reader: Reader) -> Iterator[list[Record]]:
    """The records that the reader's store lacks. Each batch is to be kept before the next is asked for."""
    tables: tuple[tuple[str, str, str, str, Callable[[Former, list[Row]], list[Record]]], ...] = (
        ("texts", "digest", "texts", "digest", _texts),  # a judgement is read by its rubric: so these come first
        ("prompts", "prompt_id", "prompts", "prompt_id", _prompts),
        ("reserved", "run, n", "reserved", "run, n", _reserves),
        ("splits", "asked", "splits", "asked", _splits),
        ("calls", "id", "calls", "id", _calls),
        ("completions", "key", "completions", "key", _completions),
        # of calls whose own rows could not be read
        ("judgements", f"coalesce(call_id, '{CARRIED}') AS id", "calls", "id", _judgements),
    )
    for theirs, columns, ours, keys, made in tables:
        for rows in former.columns(theirs, columns):
            lacking = reader.lacks(ours, keys, rows)
            for n in range(0, len(lacking), AT_ONCE):
                if records := made(former, former.at(theirs, lacking[n : n + AT_ONCE])):
                    yield records


def selection(former: Former) -> Iterator[list[Record]]:
    """Which prompts the sources held, as that store was last told."""
    if (fingerprint := former.marked("sources")) is None:
        return
    start = 0
    while rows := former.rows(
        "SELECT prompt_id, source FROM selection WHERE position >= ? AND position < ? ORDER BY position",
        [start, start + PAGE],
    ):
        carried = former.rows(
            "SELECT prompt_id, key, score FROM carried WHERE prompt_id IN (SELECT unnest(?)) ORDER BY prompt_id, n",
            [[row["prompt_id"] for row in rows]],
        )
        came = ((one["prompt_id"], one["key"], one["score"]) for one in carried)
        yield [events.page(start, ((row["prompt_id"], row["source"]) for row in rows), came)]
        start += len(rows)
    counts = {(row["source"], row["reason"]): row["rows"] for row in former.rows("FROM intake")}
    yield [events.selected(fingerprint, counts)]


def _texts(former: Former, rows: list[Row]) -> list[Record]:
    return [events.text(row["digest"], row["kind"], orjson.loads(row["content"])) for row in rows]


def _prompts(former: Former, rows: list[Row]) -> list[Record]:
    return [
        {
            "t": "prompt", "v": 1, "prompt_id": row["prompt_id"], "messages": row["messages"],
            "meta": orjson.loads(row["meta"]), "material": orjson.loads(row["material"] or "{}"),
        }
        for row in rows
    ]  # fmt: skip


def _reserves(former: Former, rows: list[Row]) -> list[Record]:
    return [events.reserve(row["run"], row["n"], row["usd"]) for row in rows]


def _splits(former: Former, rows: list[Row]) -> list[Record]:
    return [events.split(row["asked"], row["threshold"]) for row in rows]


def _calls(former: Former, rows: list[Row]) -> list[Record]:
    ids = [row["id"] for row in rows]
    had = {row["call_id"]: row for row in _among(former, "completions", "call_id", ids)}
    had |= {row["call_id"]: row for row in _among(former, "judgements", "call_id", ids)}
    failed = {row["key"]: row for row in _among(former, "failed", "key", [row["key"] for row in rows])}
    records = []
    for row in rows:
        fate = failed.get(row["key"], {})
        records.append(_call(row, had.get(row["id"]) or (fate if fate.get("started") == row["started"] else {})))
    return records


def _completions(former: Former, rows: list[Row]) -> list[Record]:
    own = carried_identity("")
    came = [
        {"t": "carried", "v": 1, "key": row["key"], "prompt_id": row["prompt_id"], "text": row["text"],
         "model": row["identity"].removeprefix(own)}
        for row in rows if row["call_id"] is None
    ]  # fmt: skip
    return came + _of_answers(former, "completion", [row for row in rows if row["call_id"] is not None])


def _judgements(former: Former, rows: list[Row]) -> list[Record]:
    return _of_answers(former, "judgement", [row for row in rows if row["call_id"] is not None])


def _of_answers(former: Former, stage: str, rows: list[Row]) -> list[Record]:
    """The calls of answers, made of these where their own rows can't be read: what they cost is not known then."""
    calls = {row["id"]: row for row in _among(former, "calls", "id", [row["call_id"] for row in rows])}
    return [
        _call(
            calls.get(row["call_id"])
            or {
                "id": row["call_id"], "stage": stage, "key": row["key"], "prompt_id": row["prompt_id"],
                "endpoint": row.get("judge", row["identity"]), "verdict": "answered",
            },
            row,
        )
        for row in rows
    ]  # fmt: skip


def _among(former: Former, name: str, key: str, values: Sequence[str]) -> list[Row]:
    return former.rows(f"SELECT * FROM {name} WHERE {key} IN (SELECT unnest(?))", [list(values)])


def _call(row: Row, had: Row) -> Record:
    """A call's record. `had`: the completion, the judgement or the failure that came of it, if one stands."""
    item = {name: had.get(name) for name in _OF_ITEM[row["stage"]]} if had else {}
    if had and row["stage"] == "judgement":
        item["completions"] = had.get("completions") or had["answers"]
    tokens = {name: row.get(f"{column}_tokens") for name, column in _USAGE.items()}
    started = row.get("started")
    return {
        "t": "call",
        "v": 1,
        **{name: row.get(name) for name in _OF_CALL},
        "identity": had.get("identity"),
        "item": item,
        "started": started.replace(tzinfo=UTC).isoformat() if started else None,
        "usage": None if tokens["input"] is None else tokens,
        **({} if row.get("bound") is None else {"bound": row["bound"]}),
        "sent": orjson.loads(row.get("sent") or "{}"),
        "served": orjson.loads(row.get("served") or "{}"),
        **{name: had.get(name) for name in ("text", "reasoning", "finish")},
    }
