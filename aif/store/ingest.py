"""Turn journal records into rows of the store's tables. It reads and writes no file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
import pyarrow as pa

from aif.core.batching import utf8_size
from aif.core.reasoning import leftover_tag
from aif.core.types import Rating, provided_identity, text_id
from aif.store.records import Record

RATING = pa.struct(
    [
        ("completion", pa.string()),
        ("aspect", pa.string()),
        ("state", pa.string()),
        ("score", pa.float64()),
        ("rationale", pa.string()),
        ("types", pa.list_(pa.int32())),
    ]
)
RATINGS = pa.list_(RATING)
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def _columns(strings: str, **others: pa.DataType) -> pa.Schema:
    return pa.schema([*((name, pa.string()) for name in strings.split()), *others.items()])


COLUMNS = {
    "prompts": _columns("prompt_id meta material mark", messages=MESSAGES, bytes=pa.int64()),
    "texts": _columns("digest kind content"),
    "incoming": _columns("prompt_id source", position=pa.int64()),
    "incoming_carried": _columns("prompt_id key source", seq=pa.int64(), score=pa.float64()),
    "materials": _columns("prompt_id digest"),
    "intake": _columns("source reason", rows=pa.int64()),
    "slots": _columns(
        "prompt_id key model identity principle",
        position=pa.int64(), slot=pa.uint16(), sample=pa.uint16(), seed=pa.int64(),
    ),
    "completions": _columns(
        "key prompt_id identity principle system text reasoning said mark finish call_id text_id",
        sample=pa.uint16(), seed=pa.int64(), output_tokens=pa.int64(), chars=pa.int64(), bytes=pa.int64(),
    ),
    "judgements": _columns(
        "key prompt_id judge identity request rubric spec material form text said call_id",
        completions=pa.list_(pa.string()), answers=pa.list_(pa.string()), shown=pa.list_(pa.string()),
        ratings=RATINGS, bytes=pa.int64(),
        **{"pass": pa.uint16()},
    ),
    "calls": _columns(
        "id run stage key prompt_id endpoint verdict kind message raw sent served",
        n=pa.uint16(), started=pa.string(), seconds=pa.float64(), usd=pa.float64(), bound=pa.float64(),
        input_tokens=pa.int64(), cached_tokens=pa.int64(), cache_write_tokens=pa.int64(), output_tokens=pa.int64(),
        reasoning_tokens=pa.int64(),
    ),
    "reserved": _columns("run", n=pa.int64(), usd=pa.float64()),
    "failed": _columns(
        "key stage prompt_id endpoint verdict kind message raw started identity request spec material",
        answers=pa.list_(pa.string()), shown=pa.list_(pa.string()), **{"pass": pa.uint16()},
    ),
    "settled": _columns("", position=pa.int64(), slot=pa.uint16(), answered=pa.bool_()),
    "specs": _columns(
        "judge identity request spec instead",
        listwise=pa.bool_(), n=pa.uint16(), least=pa.uint16(), **{"pass": pa.uint16()},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A journal record, with values that the record lacks and that the store or a run needs.

    ratings: parsed from a judge's reply; None if the reply can't be parsed or the record is of another kind.
    place: set for a completion of the current run: (position of its prompt in the selection, its number within the
        prompt).
    parts: set for a judgement that exceeded the context window: the number of judgements of single completions that
        replace it.
    """

    record: Record
    ratings: tuple[Rating, ...] | None = None
    place: tuple[int, int] | None = None
    parts: int | None = None

    @cached_property
    def bytes(self) -> int:
        """The size of the call's reply in UTF-8. Cached, since four steps need it before the reply is in the store."""
        return utf8_size(
            *(self.record.get(name) for name in ("text", "reasoning", "raw")), *self.record.get("said", ())
        )


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows to insert into the store.

    tables: the rows as Arrow tables, by name of the store's table.
    answered: keys of the completions and judgements that these rows answer.
    failed: keys of the completions and judgements that these rows report as failed.
    """

    tables: dict[str, pa.Table]
    answered: list[str]
    failed: list[str]


Step = RowBatch | Record


def steps(entries: Iterable[Entry]) -> list[Step]:
    """Turn entries into steps for `Store.apply`. A step is a batch of rows, or a record that is applied on its own
    because its effect depends on all earlier rows (`page`, `selected`, `retry`, ...)."""
    steps: list[Step] = []
    rows = _Rows()
    for entry in entries:
        match entry.record["t"]:
            case "call":
                rows.add_call(entry)
            case "prompt" | "carried" | "text" | "reserve":
                rows.add(entry.record)
            case _:
                steps += [rows.batch(), entry.record]
                rows = _Rows()
    return [*steps, rows.batch()]


def arrow_table(name: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Convert rows of the store's table `name` to an Arrow table. Columns missing in a row are NULL."""
    columns = COLUMNS[name]
    return pa.Table.from_arrays([_column(rows, column) for column in columns], schema=columns)


def _column(rows: Sequence[dict[str, Any]], column: pa.Field) -> pa.Array:
    values: list[Any] = [row.get(column.name) for row in rows]
    return _ratings(values) if column.type == RATINGS else pa.array(values, column.type)


def _ratings(rows: Sequence[Sequence[Rating]]) -> pa.Array:
    """Return an Arrow array with a list of ratings for each judgement. It is built column by column: a row of table
    `judgements` with 16 ratings takes 22 µs, and 57 µs with a dict for each rating."""
    ends, flat = [0], list[Rating]()
    for ratings in rows:
        flat += ratings
        ends.append(len(flat))
    columns = zip(*flat, strict=True) if flat else [()] * len(RATING)
    arrays = [pa.array(column, part.type) for column, part in zip(columns, RATING, strict=True)]
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.StructArray.from_arrays(arrays, fields=list(RATING)))


@dataclass
class _Rows:
    """Collects rows by table, in order. Tables `prompts` and `failed` (in `last`) keep only the last row of each
    key."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    last: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"prompts": {}, "failed": {}})

    def batch(self) -> RowBatch:
        rows = self.tables | {name: list(rows.values()) for name, rows in self.last.items()}
        answered = [row["key"] for row in (*self.tables["completions"], *self.tables["judgements"])]
        return RowBatch(
            {name: arrow_table(name, rows[name]) for name in COLUMNS if rows[name]}, answered, list(self.last["failed"])
        )

    def add(self, r: Record) -> None:
        match r["t"]:
            case "prompt":
                meta, material = _json(r["meta"]), _json(r["material"]) if r.get("material") else None
                self.last["prompts"][r["prompt_id"]] = {
                    "prompt_id": r["prompt_id"], "messages": r["messages"], "meta": meta, "material": material,
                    "mark": next((mark for turn in r["messages"] if turn["role"] == "assistant"
                                  and (mark := leftover_tag(turn["content"]))), None),
                    "bytes": utf8_size(*(turn["content"] for turn in r["messages"]), meta, material),
                }  # fmt: skip
            case "carried":
                row = {name: r[name] for name in ("key", "prompt_id", "text")}
                row |= {"identity": provided_identity(r["model"]), "sample": 0, "seed": 0, "finish": "stop"}
                row |= _text_facts(r["text"]) | {"mark": leftover_tag(r["text"])}
                self.tables["completions"].append(row)
            case "reserve":
                self.tables["reserved"].append({name: r[name] for name in ("run", "n", "usd")})
            case _:
                self.tables["texts"].append({"digest": r["digest"], "kind": r["kind"], "content": _json(r["content"])})

    def add_call(self, entry: Entry) -> None:
        r, usage = entry.record, entry.record["usage"] or {}
        has_text = r["verdict"] == "answered" and r["text"] is not None
        answered = has_text if r["stage"] == "completion" else entry.ratings is not None
        self.tables["calls"].append(
            {
                **{name: r[name] for name in _CALL},
                "run": r["id"].rpartition("-")[0],
                "bound": r.get("bound"),
                "raw": r["raw"] if answered else _unusable_reply(r),
                "sent": _json(r["sent"]),
                "served": _json(r["served"]),
                **{f"{part}_tokens": usage.get(part) for part in ("input", "cached", "output", "reasoning")},
                "cache_write_tokens": usage.get("written"),
            }
        )
        if answered:
            self.last["failed"].pop(r["key"], None)
            if entry.ratings is None:
                self._add_completion(r, usage)
            else:
                self._add_judgement(r, entry.ratings)
        elif r["item"]:
            self._add_failed(r)
        if entry.place and (answered or r["verdict"] == "failed"):
            position, slot = entry.place
            self.tables["settled"].append({"position": position, "slot": slot, "answered": answered})

    def _add_completion(self, r: Record, usage: dict[str, Any]) -> None:
        self.tables["completions"].append(
            {
                **{name: r[name] for name in ("key", "prompt_id", "identity", "text", "reasoning", "finish")},
                **{name: r["item"][name] for name in ("sample", "seed", "principle", "system")},
                "output_tokens": usage.get("output"),
                "call_id": r["id"],
                "said": _json(r["said"]) if "said" in r else None,
                "mark": r.get("mark"),
                **_text_facts(r["text"], r["reasoning"]),
            }
        )

    def _add_judgement(self, r: Record, ratings: tuple[Rating, ...]) -> None:
        item = r["item"]
        self.tables["judgements"].append(
            {
                **{name: r[name] for name in ("key", "prompt_id", "identity", "text")},
                **{name: item[name] for name in ("pass", "request", "rubric", "spec", "form", "completions")},
                "material": item.get("material"),
                "judge": r["endpoint"],
                "answers": sorted(item["completions"]),
                "shown": _shown_text_ids(item),
                "ratings": ratings,
                "call_id": r["id"],
                "said": _json(r["said"]) if "said" in r else None,
                "bytes": utf8_size(r["text"], *(rating.rationale for rating in ratings)),
            }
        )

    def _add_failed(self, r: Record) -> None:
        item = r["item"]
        row = {
            name: r[name]
            for name in ("key", "stage", "prompt_id", "endpoint", "kind", "message", "started", "identity")
        }
        # any other verdict is retried: also `answered`, when the current parser can't read the reply
        row["verdict"] = "failed" if r["verdict"] == "failed" else "later"
        row["kind"] = r["kind"] or "unreadable"
        row["message"] = r["message"] or "an earlier version could parse this reply; the current parser can't"
        row["raw"] = _unusable_reply(r)
        if r["stage"] == "judgement":
            row |= {name: item[name] for name in ("pass", "request", "spec")} | {"material": item.get("material")}
            row |= {"answers": sorted(item["completions"]), "shown": _shown_text_ids(item)}
        self.last["failed"][r["key"]] = row


_CALL = ("id", "stage", "key", "prompt_id", "endpoint", "n", "started", "seconds", "verdict", "kind", "message", "usd")


def _unusable_reply(r: Record) -> str | None:
    """Return the reply, as received, of a call without a usable answer; None if no reply was received. A reply that is
    all reasoning is returned too."""
    raw: str | None = r["said"][0] if r["raw"] is None and "said" in r else r["raw"]
    return r["text"] if raw is None else raw


def _shown_text_ids(item: dict[str, Any]) -> list[str] | None:
    """Return the text_ids (digests) of the texts that a judge was shown, in the order of their completions' sorted
    keys; None if the record doesn't have them. `item` is the field `item` of the judgement's record."""
    return (
        [text for _, text in sorted(zip(item["completions"], item["shown"], strict=True))] if "shown" in item else None
    )


def _text_facts(text: str, reasoning: str | None = None) -> dict[str, Any]:
    """Return columns with a text's id, its length in characters, and its size in bytes (with its `reasoning`). They
    save queries from reading the text."""
    return {"text_id": text_id(text), "chars": len(text), "bytes": utf8_size(text, reasoning)}


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
