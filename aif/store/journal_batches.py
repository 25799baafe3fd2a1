"""What a journal holds, in portions that a store takes in one after the other."""

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

RECORDS = 2000  # a portion, and a transaction, at most


@dataclass
class Rubrics:
    """Rubrics by digest, made when first needed from the files that were journalled; and the marks around reasoning by
    who is read with them, `stage/name`, where these are not those of all models. `otherwise` are completions that an
    earlier version recorded with another text than is read now: text_id of that, by key."""

    files: dict[str, dict[str, str]] = field(default_factory=dict)
    tags: dict[str, Tags] = field(default_factory=dict)
    made: dict[str, Rubric | None] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    otherwise: dict[str, str] = field(default_factory=dict)

    def get(self, digest: str) -> Rubric | None:
        """The rubric, or None where its record was damaged, or is no rubric to this version: `lost` then names it."""
        if digest not in self.made and digest in self.files:
            try:
                self.made[digest] = Rubric.from_files(self.files[digest], f"rubric {digest[:12]}")
            except BadInput:
                self.made[digest] = None
        if (rubric := self.made.get(digest)) is None:
            self.lost.add(digest)
        return rubric


def entry_of(record: Record, rubrics: Rubrics) -> Entry:
    """A journalled record with what the store needs besides: a judgement's reply is read by today's reader."""
    if record["t"] == "text" and record["kind"] == "rubric":
        rubrics.files[record["digest"]] = record["content"]
    if record["t"] != "call":
        return Entry(record)
    if record["stage"] == "judgement":
        record = _shown(record, rubrics.otherwise)
    if record["text"] is None:
        return Entry(record)
    who = f"{record['stage']}/{record['identity'].partition(DIGEST_SUFFIX)[0]}"
    record = _read_again(record, rubrics.tags.get(who, "auto"))
    if record["stage"] != "judgement":
        if "was" in record and text_id(record["was"]) != text_id(record["text"]):
            rubrics.otherwise.setdefault(record["key"], text_id(record["was"]))
        return Entry(record)
    if record["kind"] not in (None, "unreadable"):  # truncated, blocked: read or not, it is no judgement
        return Entry(record)
    item = record["item"]
    if (rubric := rubrics.get(item["rubric"])) is None:
        return Entry(record)
    try:
        return Entry(record, parse_reply(rubric, item["request"], item["completions"], record["text"], item["form"]))
    except Unparseable:
        return Entry(record)


def _shown(record: Record, otherwise: dict[str, str]) -> Record:
    """A judgement's record with the texts that it was shown, where it names none and some are read otherwise now: a
    completion of that key that came since may be as it was recorded."""
    item = record["item"]
    if "shown" in item or otherwise.keys().isdisjoint(item.get("completions", ())):
        return record
    return {**record, "item": {**item, "shown": [otherwise.get(key, "") for key in item["completions"]]}}


def _read_again(record: Record, tags: Tags) -> Record:
    """A call's record with text and reasoning as they are told apart now; where an earlier version cut none, `said` is
    what came, and `was` the text. What has no text then is empty, and what was empty and has one is an answer."""
    if record["kind"] not in (None, Kind.EMPTY, Kind.UNREADABLE):
        return record
    content, thoughts = record.get("said") or (record["text"], record["reasoning"] or "")
    told = split_reasoning(content, thoughts, tags)
    if (told.text, told.mark) == (record["text"], record.get("mark")):
        return record
    again = {**record, "text": told.text, "reasoning": told.reasoning, "mark": told.mark}
    if told.text != record["text"] and "said" not in record:
        again |= {"said": [content, thoughts], "was": record["text"]}
    blank = is_blank(told.text)
    if record["stage"] == "completion" and blank == (record["kind"] is None):
        said = "The completion is empty: all of it is reasoning, as it is read now." if blank else None
        again |= {"verdict": "later", "kind": Kind.EMPTY} if blank else {"verdict": "answered", "kind": None}
        again["message"] = said
    return again


@dataclass(frozen=True, slots=True)
class Portion:
    """So many records as what the store does with them, the position behind them, and what was damaged among them."""

    position: Position
    records: int
    steps: list[Step]
    damaged: list[Damage]


def portions(folder: Path, start: Position, rubrics: Rubrics) -> Generator[Portion]:
    """The journal from `start` on. Rubrics that stand there are added to `rubrics`, and named there if lost."""
    for page in batched(_sized(folder, start), lambda line: line[2], RECORDS):
        entries = [entry_of(found, rubrics) for _, found, _ in page if not isinstance(found, Damage)]
        broken = [found for _, found, _ in page if isinstance(found, Damage)]
        yield Portion(page[-1][0], len(entries), steps(entries), broken)


def _sized(folder: Path, start: Position) -> Iterator[tuple[Position, Record | Damage, int]]:
    """What stands there, with the position behind it and the bytes up to there."""
    last = start
    for position, found in journal.replay(folder, start):
        begun = last.offset if last.segment == position.segment else 0
        yield position, found, position.offset - begun
        last = position
