"""The journal: acknowledged records survive kills, full disks and damaged bytes."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aif.core.errors import JournalDamaged
from aif.core.types import Message, Prompt, ProvidedCompletion, Usage
from aif.providers.base import CallError, Kind, Reply
from aif.store import records as events
from aif.store.journal import START, Damage, Journal, Position, decode, encode, replay, segments

Record = dict[str, Any]
RECORDS: list[Record] = [{"n": n, "text": f"Zeile {n}: ä\n\u2028" * n} for n in range(6)]


@contextmanager
def writing(folder: Path, segment_bytes: int = 2**20) -> Iterator[Journal]:
    journal, torn = Journal.open(folder, segment_bytes)
    assert torn is None
    try:
        yield journal
    finally:
        journal.close()


def written(folder: Path, records: list[Record] = RECORDS, segment_bytes: int = 2**20) -> list[Position]:
    """Write a journal, record by record; return the positions after them."""
    with writing(folder, segment_bytes) as journal:
        return [journal.append([record]) for record in records]


def kept(folder: Path, start: Position = START) -> list[Record]:
    return [found for _, found in replay(folder, start) if not isinstance(found, Damage)]


def damaged(folder: Path) -> list[Damage]:
    return [found for _, found in replay(folder) if isinstance(found, Damage)]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_appended_records_are_replayed_in_order(tmp_path: Path) -> None:
    with writing(tmp_path / "runs" / "journal") as journal:
        assert journal.position == START
        journal.append(RECORDS[:2])
        assert journal.append([]) == journal.position
        end = journal.append(RECORDS[2:])
    assert kept(journal.folder) == RECORDS
    assert [position for position, _ in replay(journal.folder)][-1] == end


def test_a_line_is_a_checksum_and_a_json_object(tmp_path: Path) -> None:
    """The format is a promise."""
    written(tmp_path, [{"t": "prompt", "v": 1}])
    body = b'{"t":"prompt","v":1,"at":[1,0]}'
    assert (
        (tmp_path / "000001.jsonl").read_bytes()
        == b"%08x %s\n" % (zlib.crc32(body), body)
        == b"00a30b37 " + body + b"\n"
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8")),
    lambda below: st.lists(below) | st.dictionaries(st.text(st.characters(codec="utf-8")), below),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES))
def test_a_record_is_encoded_as_one_line_and_decoded(record: Record) -> None:
    line = encode(record)
    assert line.count(b"\n") == 1
    assert decode(line) == record


def test_replay_starts_at_any_position(tmp_path: Path) -> None:
    positions = written(tmp_path, segment_bytes=120)
    assert len(segments(tmp_path)) > 2
    assert positions == sorted(set(positions))
    for n, position in enumerate(positions):
        assert kept(tmp_path, position) == RECORDS[n + 1 :]
        assert [p for p, _ in replay(tmp_path, position)] == positions[n + 1 :]


def test_a_full_segment_is_followed_by_another(tmp_path: Path) -> None:
    line = len(encode({"n": 0, "at": [1, 0]}))
    with writing(tmp_path, segment_bytes=2 * line) as journal:
        positions = [journal.append([{"n": n}]) for n in range(5)]
    assert positions == [
        Position(1, line),
        Position(1, 2 * line + 1),  # its offset has a digit more
        Position(2, line),
        Position(2, 2 * line + 1),
        Position(3, line),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.jsonl", "000002.jsonl", "000003.jsonl"]


def test_records_appended_together_stay_in_one_segment(tmp_path: Path) -> None:
    with writing(tmp_path, segment_bytes=10) as journal:
        journal.append(RECORDS)
        journal.append(RECORDS)
    assert segments(tmp_path) == [1, 2]
    assert kept(tmp_path) == RECORDS * 2


@pytest.mark.parametrize("segment_bytes", [1, 60, 2**20])
def test_a_reopened_journal_appends_after_the_last_record(tmp_path: Path, segment_bytes: int) -> None:
    end = START
    for record in RECORDS:
        with writing(tmp_path, segment_bytes) as journal:
            assert journal.position == end
            end = journal.append([record])
    assert kept(tmp_path) == RECORDS


def test_a_journal_that_was_never_written_to_is_empty(tmp_path: Path) -> None:
    assert kept(tmp_path / "nowhere") == []
    written(tmp_path, [])
    assert kept(tmp_path) == []


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_last_line_incomplete_at_any_byte_is_removed_and_reported(tmp_path: Path) -> None:
    *_, whole, end = written(tmp_path)
    path = tmp_path / "000001.jsonl"
    content = path.read_bytes()
    for cut in range(whole.offset + 1, end.offset - 1):
        path.write_bytes(content[:cut])
        journal, torn = Journal.open(tmp_path)
        assert str(torn) == (
            f"{path}: byte {whole.offset}: an incomplete last line of {cut - whole.offset} bytes was removed"
        )
        assert journal.position == whole
        journal.append([RECORDS[-1]])
        journal.close()
        assert path.read_bytes() == content


def test_a_last_line_without_its_newline_is_complete(tmp_path: Path) -> None:
    end = written(tmp_path)[-1]
    os.truncate(tmp_path / "000001.jsonl", end.offset - 1)
    written(tmp_path, [{"n": 99}])
    assert kept(tmp_path) == [*RECORDS, {"n": 99}]
    assert damaged(tmp_path) == []


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"", b"\0"])
def test_lines_with_other_newlines_are_read_and_appended_to(tmp_path: Path, end: bytes) -> None:
    """As unix2dos, an editor or a transfer leaves them, with a byte order mark; one line is there twice."""
    written(tmp_path, segment_bytes=300)
    for path in tmp_path.iterdir():
        lines = path.read_bytes().splitlines()
        path.write_bytes(b"\xef\xbb\xbf" + b"".join(line + end for line in [*lines, lines[0]]))
    assert kept(tmp_path) == RECORDS
    assert damaged(tmp_path) == []
    written(tmp_path, [{"n": 99}], segment_bytes=300)
    assert kept(tmp_path) == [*RECORDS, {"n": 99}]


def test_lines_without_newlines_are_counted_one_by_one(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"").replace(b'"n":', b'"m":'))
    assert len(damaged(tmp_path)) == len(RECORDS)
    Journal.open(tmp_path)[0].close()
    assert len(damaged(tmp_path)) == len(RECORDS), "they are not taken for one incomplete line"


def test_text_in_a_record_is_not_taken_for_a_line(tmp_path: Path) -> None:
    """Whatever a model writes: quotes in a record are escaped."""
    line = encode({"t": "call", "at": [1, 0]}).decode().strip()
    (behind,) = written(tmp_path, [{"text": f"so: {line}\r\n{line}"}])
    path = tmp_path / "000001.jsonl"
    path.write_bytes(path.read_bytes()[:-10] + b"?" + path.read_bytes()[-9:])
    assert kept(tmp_path) == []
    assert [one.offset for one in damaged(tmp_path)] == [0]
    assert behind.offset == path.stat().st_size


def test_a_segment_of_zero_bytes_is_emptied(tmp_path: Path) -> None:
    """Longer than the block searched at a time."""
    (tmp_path / "000001.jsonl").write_bytes(b"\0" * 200_000)
    journal, torn = Journal.open(tmp_path)
    assert torn == Damage(tmp_path / "000001.jsonl", 0, "an incomplete last line of 200000 bytes was removed")
    assert (tmp_path / "000001.jsonl").read_bytes() == b""
    journal.close()


def test_bytes_that_no_crash_leaves_are_not_removed(tmp_path: Path) -> None:
    """A compressed or foreign file."""
    path = tmp_path / "000001.jsonl"
    path.write_bytes(b"\x1f\x8b" + b"x" * 200_000)
    journal, torn = Journal.open(tmp_path)
    journal.append([{"n": 1}])
    journal.close()
    assert torn is None
    assert path.read_bytes().startswith(b"\x1f\x8b" + b"x" * 200_000)
    assert kept(tmp_path) == [{"n": 1}]
    assert len(damaged(tmp_path)) == 1


def test_an_incomplete_line_longer_than_a_block_is_removed(tmp_path: Path) -> None:
    end = written(tmp_path)[-1]
    with (tmp_path / "000001.jsonl").open("ab") as file:
        file.write(b"\0" * 200_000)
    journal, torn = Journal.open(tmp_path)
    journal.close()
    assert torn is not None
    assert journal.position == end
    assert kept(tmp_path) == RECORDS


def test_replay_reports_an_incomplete_line(tmp_path: Path) -> None:
    *_, whole, end = written(tmp_path)
    os.truncate(tmp_path / "000001.jsonl", end.offset - 2)
    assert kept(tmp_path) == RECORDS[:-1]
    assert damaged(tmp_path) == [Damage(tmp_path / "000001.jsonl", whole.offset, "the line is incomplete")]


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_a_flipped_byte_loses_its_record_and_no_other(tmp_path: Path, flip: int) -> None:
    """At every byte of the file. A newline holds nothing that could be lost."""
    positions = written(tmp_path)
    path = tmp_path / "000001.jsonl"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
        n = next(n for n, position in enumerate(positions) if at < position.offset)
        lost = set() if at + 1 in {position.offset for position in positions} else {n}
        assert kept(tmp_path) == [record for i, record in enumerate(RECORDS) if i not in lost], at
        reasons = {damage.reason for damage in damaged(tmp_path)}
        assert reasons <= {"the checksum does not match", "the line is incomplete"}
        assert len(damaged(tmp_path)) == len(lost)


def test_damage_says_where(tmp_path: Path) -> None:
    positions = written(tmp_path)
    path = tmp_path / "000001.jsonl"
    content = bytearray(path.read_bytes())
    content[positions[2].offset + 12] ^= 1
    path.write_bytes(content)
    assert [str(damage) for damage in damaged(tmp_path)] == [
        f"{path}: byte {positions[2].offset}: the checksum does not match"
    ]
    assert [position for position, _ in replay(tmp_path)] == positions


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_a_reason(line: bytes) -> None:
    assert isinstance(decode(line), str)


def test_an_upper_case_checksum_is_invalid() -> None:
    line = encode({"n": 3})
    assert line[:8] != line[:8].upper()
    assert decode(line[:8].upper() + line[8:]) == "the checksum does not match"


@pytest.mark.parametrize("gone", [1, 2])
def test_a_missing_segment_is_refused(tmp_path: Path, gone: int) -> None:
    written(tmp_path, segment_bytes=1)
    (tmp_path / f"{gone:06d}.jsonl").unlink()
    left = [n for n in range(1, 7) if n != gone]
    with pytest.raises(
        JournalDamaged, match=re.escape(f"segments are missing (there are {left}); restore them from a backup")
    ):
        Journal.open(tmp_path)


def test_other_files_in_the_folder_are_no_segments(tmp_path: Path) -> None:
    written(tmp_path)
    for name in ("notes.jsonl", "1.jsonl", "000002.jsonl.zst", "000002.json", "2 copy.jsonl"):
        (tmp_path / name).write_text("?")
    assert segments(tmp_path) == [1]
    assert kept(tmp_path) == RECORDS


# --- copies ----------------------------------------------------------------------------------------------------------


def test_a_copied_segment_is_read_once(tmp_path: Path) -> None:
    """Copied after the others, as by a restore; records appended after the copy are read."""
    written(tmp_path, segment_bytes=120)
    last = segments(tmp_path)[-1]
    (tmp_path / f"{last + 1:06d}.jsonl").write_bytes((tmp_path / "000001.jsonl").read_bytes())
    assert kept(tmp_path) == RECORDS
    written(tmp_path, [{"n": 99}])
    assert kept(tmp_path) == [*RECORDS, {"n": 99}]


@settings(deadline=None)
@given(st.lists(st.integers(0, len(RECORDS) - 1), max_size=12))
def test_copied_lines_are_read_once(again: list[int]) -> None:
    """Any lines, in any order; records appended after them are read."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        written(folder)
        path = folder / "000001.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        with path.open("ab") as file:
            file.writelines(lines[n] for n in again)
        written(folder, [{"n": 99}])
        assert kept(folder) == [*RECORDS, {"n": 99}]


def test_doubled_lines_are_read_once(tmp_path: Path) -> None:
    """Each after itself, so that only the first is where it was written."""
    written(tmp_path)
    path = tmp_path / "000001.jsonl"
    path.write_bytes(b"".join(line * 2 for line in path.read_bytes().splitlines(keepends=True)))
    assert kept(tmp_path) == RECORDS


def test_an_equal_record_is_no_copy(tmp_path: Path) -> None:
    """Sources changed back make the same records as before."""
    written(tmp_path, [RECORDS[1], RECORDS[2], RECORDS[1]])
    assert kept(tmp_path) == [RECORDS[1], RECORDS[2], RECORDS[1]]


def test_moved_lines_are_no_copies(tmp_path: Path) -> None:
    """A user deleted a line: the lines after it are only elsewhere than they say."""
    positions = written(tmp_path)
    path = tmp_path / "000001.jsonl"
    path.write_bytes(path.read_bytes()[positions[0].offset :])
    assert kept(tmp_path) == RECORDS[1:]


# --- failure while writing -------------------------------------------------------------------------------------------


def test_an_unencodable_record_leaves_nothing_behind(tmp_path: Path) -> None:
    with writing(tmp_path) as journal:
        journal.append(RECORDS[:1])
        for bad in ({"text": "\ud800"}, {"n": 2**70}, {"n": object()}):
            with pytest.raises(orjson.JSONEncodeError):
                journal.append([RECORDS[1], bad])
        journal.append(RECORDS[1:])
    assert kept(tmp_path) == RECORDS


def test_a_segment_that_cannot_be_created_stores_no_record(tmp_path: Path) -> None:
    with writing(tmp_path, segment_bytes=1) as journal:
        end = journal.append(RECORDS[:1])
        in_the_way = tmp_path / "000002.jsonl"
        in_the_way.mkdir()
        with pytest.raises(FileExistsError):
            journal.append(RECORDS[1:])
        assert journal.position == end
        in_the_way.rmdir()
        journal.append(RECORDS[1:])
    assert kept(tmp_path) == RECORDS


FULL_DISK = """\
import resource, sys
from pathlib import Path
from aif.store.journal import Journal

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
journal, _ = Journal.open(folder)
journal.append([{"n": 0}])
before = journal.position
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    journal.append([{"n": 1}, {"n": 2, "text": "x" * 5000}, {"n": 3}])
    sys.exit("the disk was not full")
except OSError as error:
    print(error.strerror)
assert journal.position == before
assert (folder / "000001.jsonl").stat().st_size == before.offset
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append([{"n": 4}])
journal.close()
"""


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY, reason="files are limited here already"
)
@pytest.mark.parametrize("room", [0, 1, 30, 60, 4000])
def test_a_full_disk_leaves_no_incomplete_line_and_appending_continues(tmp_path: Path, room: int) -> None:
    """A write that stops part of the way (a limit on the file's size) is undone; appending works when there is room."""
    limit = len(encode({"n": 0, "at": [1, 0]})) + room
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "File too large"
    assert [record["n"] for record in kept(tmp_path)] == [0, 4]
    assert damaged(tmp_path) == []


class Interruption(BaseException):
    """Raised by a signal during an append."""


def test_an_interrupted_append_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interruption

    had = signal.signal(signal.SIGALRM, interrupt)
    big = [{"n": n, "text": "x" * 100_000} for n in range(10)]
    rng, interrupted, whole = Random(7), 0, 0
    try:
        with writing(tmp_path, segment_bytes=2**30) as journal:
            path = tmp_path / "000001.jsonl"
            for _ in range(60):
                before = journal.position
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.004))
                    journal.append(big)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interruption:
                    interrupted += 1
                assert path.stat().st_size == journal.position.offset
                whole += journal.position != before
                if path.stat().st_size > 5_000_000:  # do not fill the disk
                    os.truncate(path, 0)
                    journal.position, whole = START, 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, had)
    assert interrupted > 0
    assert [record["n"] for record in kept(tmp_path)] == list(range(10)) * whole


APPENDING = """\
import sys
from pathlib import Path
from aif.store.journal import Journal

journal, _ = Journal.open(Path(sys.argv[1]), segment_bytes=20_000)
n = 0
while True:
    batch = list(range(n, n + 7))
    journal.append([{"n": i, "text": "x" * (i * 37 % 900)} for i in batch])
    n += 7
    print(n, flush=True)
"""


@pytest.mark.parametrize("after", [1, 10, 40])
def test_a_killed_process_loses_no_acknowledged_record(tmp_path: Path, after: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", APPENDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for _ in range(after):
        process.stdout.readline()
    time.sleep(0.003)  # during the next ones
    process.kill()
    acknowledged = [int(line) for line in process.stdout.read().splitlines()] or [after * 7]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    journal, _ = Journal.open(tmp_path)
    journal.close()
    assert damaged(tmp_path) == []
    numbers = [record["n"] for record in kept(tmp_path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= acknowledged[-1] >= after * 7


# --- the records -----------------------------------------------------------------------------------------------------

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
ITEM = events.CallItem("judgement", "k", "p", "gpt", "gpt@1", {"pass": 0})
REPLY = Reply("Ja.", "stop", Usage(10, 2, cached=4), reasoning="Hm.", sent={"seed": 1}, served={"model": "gpt-1"})


def call(reply: Reply | None = None, error: CallError | None = None) -> Record:
    return events.call(
        ITEM, id="r-1", n=2, started=NOON, seconds=1.23456, verdict="done", reply=reply, error=error, usd=0.5
    )


def test_the_records_shapes_are_pinned() -> None:
    """They are a promise: later versions read them."""
    one = Prompt("p", (Message("user", "Why?"),), "facts", {"row": 7})
    assert events.prompt(one) == {
        "t": "prompt",
        "v": 1,
        "prompt_id": "p",
        "messages": [{"role": "user", "content": "Why?"}],
        "meta": {"row": 7},
        "material": {},
    }
    assert events.page(500, [("p", "facts")], [("p", "k", 0.5)]) == {
        "t": "page",
        "v": 1,
        "start": 500,
        "rows": [["p", "facts"]],
        "carried": [["p", "k", 0.5]],
    }
    assert events.carried("k", "p", ProvidedCompletion("gpt", "Because.", 0.5)) == {
        "t": "carried",
        "v": 1,
        "key": "k",
        "prompt_id": "p",
        "model": "gpt",
        "text": "Because.",
    }
    assert events.selected("f", {("facts", "empty"): 3}) == {
        "t": "selected",
        "v": 1,
        "fingerprint": "f",
        "counts": [["facts", "empty", 3]],
    }
    assert events.text("d", "rubric", {"role.md": ""}) == {
        "t": "text",
        "v": 1,
        "digest": "d",
        "kind": "rubric",
        "content": {"role.md": ""},
    }
    assert events.retry(NOON) == {"t": "retry", "v": 1, "started": "2026-01-02T12:00:00+00:00"}
    assert events.split(0.05, 0.049) == {"t": "split", "v": 1, "asked": 0.05, "threshold": 0.049}
    assert call(REPLY) == {
        "t": "call",
        "v": 1,
        "id": "r-1",
        "stage": "judgement",
        "key": "k",
        "prompt_id": "p",
        "endpoint": "gpt",
        "identity": "gpt@1",
        "item": {"pass": 0},
        "n": 2,
        "started": "2026-01-02T12:00:00+00:00",
        "seconds": 1.2346,
        "verdict": "done",
        "kind": None,
        "message": None,
        "raw": None,
        "usage": {"input": 10, "output": 2, "cached": 4, "reasoning": 0, "written": 0},
        "usd": 0.5,
        "sent": {"seed": 1},
        "served": {"model": "gpt-1"},
        "text": "Ja.",
        "reasoning": "Hm.",
        "finish": "stop",
    }


def test_an_unusable_reply_is_recorded_whole() -> None:
    failed = call(error=CallError(Kind.UNREADABLE, "no rating", reply=REPLY))
    differing = {key: value for key, value in failed.items() if call(REPLY)[key] != value}
    assert differing == {"kind": "unreadable", "message": "no rating"}


def test_a_response_that_is_no_reply_is_recorded_raw() -> None:
    failed = call(error=CallError(Kind.BAD_REPLY, "not JSON", raw="<html>"))
    assert (failed["kind"], failed["raw"]) == ("bad_reply", "<html>")
    assert [failed[key] for key in ("usage", "text", "reasoning", "finish")] == [None] * 4
    assert failed["sent"] == failed["served"] == {}


def test_every_record_survives_the_journal(tmp_path: Path) -> None:
    records = [
        call(REPLY),
        call(error=CallError(Kind.TIMEOUT, "too slow")),
        events.page(0, [("p", "s")]),
        events.split(0.05, 0.1 + 0.2),
    ]
    written(tmp_path, records)
    assert kept(tmp_path) == records
    assert [record for record in kept(tmp_path) if record["t"] == "page"] == [records[2]]
