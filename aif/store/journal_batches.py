"""Read the journal in batches that the store applies one by one; parse judges' replies with the current parser."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aif.core.batching import batched
from aif.core.errors import BadInput
from aif.core.reasoning import Tags, split_reasoning
from aif.core.types import DIGEST_SUFFIX, is_blank, text_id
from aif.judging.parse import Unparseable, parse_reply
from aif.judging.rubric import Rubric
from aif.providers.base import Kind
from aif.store import journal
from aif.store.ingest import Entry, Step, steps
from aif.store.journal import Damage, Position
from aif.store.records import Record

RECORDS = 2000  # at most, in a batch, which is applied in one transaction


@dataclass
class Rubrics:
    """The rubrics and reasoning tags with which the replies in the journal are parsed.

    files: the files of each rubric, by the rubric's digest.
    tags: the reasoning tags of each model and judge, by `stage/identity`. Those with the default, `auto`, are left out.
    loaded: the rubrics made from `files`, by digest; None for a rubric that this version can't load.
    lost: digests of rubrics that replies need and that are missing or invalid.
    old_text_ids: for each completion to which the current tags give a new text, the digest of its recorded text. By the
        completion's key.
    """

    files: dict[str, dict[str, str]] = field(default_factory=dict)
    tags: dict[str, Tags] = field(default_factory=dict)
    loaded: dict[str, Rubric | None] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    old_text_ids: dict[str, str] = field(default_factory=dict)

    def get(self, digest: str) -> Rubric | None:
        """Return the rubric with this digest. If its record was damaged, or this version can't load it, return None and
        add the digest to `lost`."""
        if digest not in self.loaded and digest in self.files:
            try:
                self.loaded[digest] = Rubric.from_files(self.files[digest], f"rubric {digest[:12]}")
            except BadInput:
                self.loaded[digest] = None
        if (rubric := self.loaded.get(digest)) is None:
            self.lost.add(digest)
        return rubric


def parse_record(record: Record, rubrics: Rubrics) -> Entry:
    """Turn a record into an `Entry`: split its reply into text and reasoning, and parse the ratings if it is a judge's
    reply. A rubric in the record is added to `rubrics`."""
    if record["t"] == "text" and record["kind"] == "rubric":
        rubrics.files[record["digest"]] = record["content"]
    if record["t"] != "call":
        return Entry(record)
    if record["stage"] == "judgement":
        record = _with_shown_text_ids(record, rubrics.old_text_ids)
    if record["text"] is None:
        return Entry(record)
    author = f"{record['stage']}/{record['identity'].partition(DIGEST_SUFFIX)[0]}"
    record = _split_again(record, rubrics.tags.get(author, "auto"))
    if record["stage"] != "judgement":
        if "was" in record and text_id(record["was"]) != text_id(record["text"]):
            rubrics.old_text_ids.setdefault(record["key"], text_id(record["was"]))
        return Entry(record)
    if record["kind"] not in (None, "unreadable"):  # truncated or blocked: not a judgement, even if it can be parsed
        return Entry(record)
    item = record["item"]
    if (rubric := rubrics.get(item["rubric"])) is None:
        return Entry(record)
    try:
        return Entry(record, parse_reply(rubric, item["request"], item["completions"], record["text"], item["form"]))
    except Unparseable:
        return Entry(record)


def _with_shown_text_ids(record: Record, old_text_ids: dict[str, str]) -> Record:
    """Return a judgement's record. If the current tags give one of its completions a new text, `shown` is added to the
    record.

    `shown` has the text_ids (digests) of the texts that the judge saw. An added `shown` has "" for completions without
    a new text. Without `shown`, the judgement would count for the new text.
    """
    item = record["item"]
    if "shown" in item or old_text_ids.keys().isdisjoint(item.get("completions", ())):
        return record
    return {**record, "item": {**item, "shown": [old_text_ids.get(key, "") for key in item["completions"]]}}


def _split_again(record: Record, tags: Tags) -> Record:
    """Return a call's record with its reply split into text and reasoning again, with the current tags.

    - `said` is the reply as received; a record has it only if something was cut from the reply. If a record without
      `said` gets another text, `said` is added, and `was`: the text as first recorded.
    - A completion that is left without text becomes a failure.
    - A completion that failed as empty but now has text becomes an answer.
    """
    if record["kind"] not in (None, Kind.EMPTY, Kind.UNREADABLE):
        return record
    content, thoughts = record.get("said") or (record["text"], record["reasoning"] or "")
    parts = split_reasoning(content, thoughts, tags)
    if (parts.text, parts.mark) == (record["text"], record.get("mark")):
        return record
    changed = {**record, "text": parts.text, "reasoning": parts.reasoning, "mark": parts.mark}
    if parts.text != record["text"] and "said" not in record:
        changed |= {"said": [content, thoughts], "was": record["text"]}
    blank = is_blank(parts.text)
    if record["stage"] == "completion" and blank == (record["kind"] is None):
        changed |= {"verdict": "later", "kind": Kind.EMPTY} if blank else {"verdict": "answered", "kind": None}
        changed["message"] = (
            "The completion is empty: all of it is reasoning, with the current tags." if blank else None
        )
    return changed


@dataclass(frozen=True, slots=True)
class JournalBatch:
    """The journal's next lines, at most RECORDS (2,000), turned into steps for the store.

    position: the journal position after these lines.
    records: the number of readable records in them.
    steps: what `Store.apply` inserts.
    damaged: the damaged lines among them.
    """

    position: Position
    records: int
    steps: list[Step]
    damaged: list[Damage]


def read_batches(folder: Path, start: Position, rubrics: Rubrics) -> Generator[JournalBatch]:
    """Yield the records of the journal after `start` in batches. Rubrics among them are added to `rubrics`."""
    for page in batched(_with_sizes(folder, start), lambda line: line[2], RECORDS):
        entries = [parse_record(record, rubrics) for _, record, _ in page if not isinstance(record, Damage)]
        damaged = [record for _, record, _ in page if isinstance(record, Damage)]
        yield JournalBatch(page[-1][0], len(entries), steps(entries), damaged)


def _with_sizes(folder: Path, start: Position) -> Iterator[tuple[Position, Record | Damage, int]]:
    """Yield each record after `start`, or a `Damage` in place of an unreadable one, as (position after it, record, its
    size in bytes)."""
    last = start
    for position, record in journal.replay(folder, start):
        begin = last.offset if last.segment == position.segment else 0
        yield position, record, position.offset - begin
        last = position
