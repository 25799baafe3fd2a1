"""Rebuild journal records from the rows that a set-aside store has and the current store lacks. A *set-aside* store was
renamed because it can't be used, and is kept for the records that nothing else has (set_aside.py).

The rows of a store hold everything of a call except:

- a judge's reasoning and finish reason;
- the text of a second answer to the same completion or judgement;
- the record's field `item`, if no call for this completion or judgement got a result.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import orjson

from aif.core.types import Prompt, ProvidedCompletion, as_messages, provided_identity
from aif.store import records
from aif.store.reader import Reader
from aif.store.records import Record
from aif.store.set_aside import SetAsideStore

ROWS_AT_ONCE = 40  # 40 prompts of 400,000 Chinese characters are 48 MB, and several times that while being converted
PAGE = 2000  # prompts

Row = dict[str, Any]

# By table: its key, and a function from a row to its record.
_SIMPLE_TABLES: dict[str, tuple[str, Callable[[Row], Record]]] = {
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


def missing_records(old_store: SetAsideStore, reader: Reader, retried: bool = False) -> Iterator[list[Record]]:
    """Yield, in batches, records of everything that the old store has and the reader's store lacks. Store each batch
    before taking the next.

    Calls are yielded before answers. An answer is yielded only if its call is still not in the reader's store then. In
    that case the call's row in the old store is damaged.

    `retried` says that `--retry-failed` was used since the old store was last written.
    """
    for name, (keys, record_of) in _SIMPLE_TABLES.items():
        for rows in _missing_rows(old_store, reader, name, keys, name, keys):
            yield [record_of(row) for row in rows]
    for rows in _missing_rows(old_store, reader, "calls", "id", "calls", "id"):
        yield _call_records(old_store, reader, rows, retried)
    provided_key = "CASE WHEN call_id IS NULL THEN key END AS key"
    for rows in _missing_rows(old_store, reader, "completions", provided_key, "completions", "key"):
        yield [records.carried(row["key"], row["prompt_id"], _provided(row)) for row in rows]
    # compared by call: the current parser may find no answer in the same reply
    for stage in ("completion", "judgement"):
        for rows in _missing_rows(old_store, reader, f"{stage}s", "call_id AS id", "calls", "id"):
            yield _answer_records(old_store, stage, rows)


def selection_records(old_store: SetAsideStore) -> Iterator[list[Record]]:
    """Yield batches of the records that restore the old store's selection of prompts."""
    start, query = 0, "SELECT prompt_id, source FROM selection WHERE position >= ? AND position < ? ORDER BY position"
    while rows := old_store.rows(query, [start, start + PAGE]):
        carried = "FROM carried WHERE prompt_id IN (SELECT unnest(?)) ORDER BY prompt_id, n"
        completions = old_store.rows(carried, [[row["prompt_id"] for row in rows]])
        provided = ((row["prompt_id"], row["key"], row["score"], row.get("source")) for row in completions)
        yield [records.page(start, (tuple(row.values()) for row in rows), provided)]
        start += len(rows)
    counts = {(row["source"], row["reason"]): row["rows"] for row in old_store.rows("FROM intake")}
    marks = old_store.rows("SELECT value FROM marks WHERE name = 'sources'")
    if marks and not old_store.torn:
        yield [records.selected(marks[0]["value"], counts)]


def _missing_rows(
    old_store: SetAsideStore, reader: Reader, name: str, columns: str, ours: str, keys: str
) -> Iterator[list[Row]]:
    """Yield, in batches, the rows of the old store's table that the reader's table lacks. Rows are compared by key.

    name: the old store's table.
    columns: the key in the old store (SQL).
    ours: the reader's table.
    keys: the key in the reader's table: column names, separated by commas.
    """
    for rows in old_store.columns(name, columns):
        lacking = reader.missing_rows(ours, keys, rows)
        for n in range(0, len(lacking), ROWS_AT_ONCE):
            yield old_store.rows_at(name, lacking[n : n + ROWS_AT_ONCE])


def _prompt(row: Row) -> Prompt:
    material = orjson.loads(row["material"] or "{}")
    return Prompt(row["prompt_id"], as_messages(row["messages"]), "", orjson.loads(row["meta"]), material)


def _provided(row: Row) -> ProvidedCompletion:
    return ProvidedCompletion(row["identity"].removeprefix(provided_identity("")), row["text"])


def _call_records(old_store: SetAsideStore, reader: Reader, rows: list[Row], retried: bool) -> list[Record]:
    """Return the records of the calls in `rows`, each with the fields of its answer, or of the failure that it caused.
    `retried` says that `--retry-failed` was used since the old store was last written."""
    ids, keys = [row["id"] for row in rows], [row["key"] for row in rows]
    answers = {
        row["call_id"]: row
        for name in ("completions", "judgements")
        for row in _matching(old_store.rows, name, "call_id", ids)
    }
    failures = _last_failures(old_store, reader, keys, retried)
    return [_call_record(row, answers.get(row["id"]) or failures.get((row["key"], row["started"]), {})) for row in rows]


def _last_failures(
    old_store: SetAsideStore, reader: Reader, keys: list[str], retried: bool
) -> dict[tuple[str, datetime], Row]:
    """Return the old store's rows of table `failed` for these `keys`, by (key, start of the failed call).

    - A row is left out if the reader's store has a failure of the key from a call that the old store lacks: that
      failure is later.
    - If `--retry-failed` was used since the old store was written (`retried`), the failures are no longer permanent.
    """
    ours = {(row["key"], row["started"]) for row in _matching(reader._query, "failed", "key", keys)}
    known = {
        (row["key"], row["started"]) for row in _matching(old_store.rows, "calls", "key", [key for key, _ in ours])
    }
    later = {key for key, _ in ours - known}
    changes = {"verdict": "later"} if retried else {}
    rows = _matching(old_store.rows, "failed", "key", keys)
    return {(row["key"], row["started"]): row | changes for row in rows if row["key"] not in later}


def _answer_records(old_store: SetAsideStore, stage: str, answers: list[Row]) -> list[Record]:
    """Return the call record of each of these answers. If the call's row can't be read, the record is made from the
    answer alone, and its cost is unknown."""
    calls = {
        row["id"]: row for row in _matching(old_store.rows, "calls", "id", [answer["call_id"] for answer in answers])
    }
    return [
        _call_record(
            calls.get(answer["call_id"])
            or answer
            | {"id": answer["call_id"], "stage": stage, "endpoint": answer.get("judge"), "verdict": "answered"},
            answer,
        )
        for answer in answers
    ]


def _matching(query: Callable[[str, list[Any]], list[Row]], name: str, key: str, values: list[str]) -> list[Row]:
    return query(f"SELECT * FROM {name} WHERE {key} IN (SELECT unnest(?))", [values]) if values else []


def _call_record(row: Row, result: Row) -> Record:
    """Build a call's record from its row and its answer's or failure's row (empty if it has none)."""
    item: Row = {name: result.get(name) for name in _ITEM[row["stage"]]} if result else {}
    if "answers" in result:  # a failed judgement's row doesn't have the order shown
        item["completions"] = result.get("completions") or result["answers"]
        if result.get("shown"):
            shown = dict(zip(result["answers"], result["shown"], strict=True))
            item["shown"] = [shown[key] for key in item["completions"]]
    tokens = {name: row.get(f"{column}_tokens") for name, column in _USAGE.items()}
    return {
        "t": "call",
        "v": 1,
        **{name: row.get(name) for name in _CALL},
        "verdict": result.get("verdict", "failed")
        if row["verdict"] == "failed"
        else row["verdict"],  # it may be pending again
        "identity": result.get("identity"),
        "item": item,
        "started": row["started"].replace(tzinfo=UTC).isoformat() if row.get("started") else None,
        "usage": tokens if set(tokens.values()) != {None} else None,
        **({"bound": row["bound"]} if row.get("bound") is not None else {}),
        "sent": orjson.loads(row.get("sent") or "{}"),
        "served": orjson.loads(row.get("served") or "{}"),
        **{name: result.get(name) for name in ("text", "reasoning", "finish")},
        **({"said": orjson.loads(result["said"])} if result.get("said") else {}),
    }
