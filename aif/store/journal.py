"""The append-only journal of everything paid for: JSON lines in segments, each line with its checksum.

A record is stored once `append` has returned: it is synced to disk. The journal alone is enough; the store is built
from it. Its record types (records.py) are the only format that later versions must be able to read.

    feedback.journal/000001.jsonl     8 hex digits of the line's CRC-32, a space, a JSON object, a newline

Each object has a key `at`, the place where its line was written: [segment, byte]. A *copy* is a line at another place,
in one of two cases:

- the original is still at its place;
- the same line was read before.

Copies come from a segment restored under another number, or from repeated lines. Copies are skipped, so no record is
applied twice.
"""

import os
import re
import shlex
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import orjson

from aif.core.errors import JournalDamaged

SEGMENT_BYTES = 256 * 2**20

_LINE_START = rb'[0-9a-f]{8} \{"'
_EDITOR_BYTES = b"\xef\xbb\xbf\r\n "  # what editors add before and after lines


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place between two records of the journal: the segment's number (from 1) and the byte offset in it."""

    segment: int
    offset: int


START = Position(1, 0)


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged line of the journal. What its record held is requested again, unless an old store still has it."""

    path: Path
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: byte {self.offset}: {self.reason}"


def segment(folder: Path, number: int) -> Path:
    """Return the path of the segment file with this number."""
    return folder / f"{number:06d}.jsonl"


def segments(folder: Path) -> list[int]:
    """Return the numbers of the existing segments in ascending order."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.jsonl") if re.fullmatch("[0-9]{6,}", path.stem))


def ahead(folder: Path, start: Position) -> int:
    """Return the number of bytes in the journal after `start`."""
    return sum(segment(folder, n).stat().st_size for n in segments(folder) if n >= start.segment) - start.offset


def encode(record: dict[str, Any]) -> bytes:
    """Return a record as a line of the journal."""
    body = orjson.dumps(record)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> dict[str, Any] | str:
    """Return the record in a line; if it can't be read, the reason as a str."""
    if not line.endswith(b"\n"):
        return "the line is incomplete"
    body = line[9:-1]
    if line[8:9] != b" " or line[:8] != b"%08x" % zlib.crc32(body):
        return "the checksum does not match"
    record: dict[str, Any] = orjson.loads(body)
    return record


def _lines(records: Sequence[dict[str, Any]], start: Position) -> bytes:
    data = bytearray()
    for record in records:
        data += encode({**record, "at": [start.segment, start.offset + len(data)]})
    return bytes(data)


def replay(folder: Path, start: Position = START) -> Iterator[tuple[Position, dict[str, Any] | Damage]]:
    """Yield each record after `start`, in the order written, as (position after it, record). In place of a record that
    can't be read comes a `Damage`. Copies of records are skipped."""
    copied: set[tuple[Position, bytes]] = set()
    for number in segments(folder):
        if number < start.segment:
            continue
        path = segment(folder, number)
        offset = start.offset if number == start.segment else 0
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                for record, start_byte, end_byte in _records(line, offset):
                    after = Position(number, end_byte)
                    if isinstance(record, str):
                        yield after, Damage(path, start_byte, record)
                        continue
                    written_at = Position(*record.pop("at", (number, start_byte)))
                    if written_at != Position(number, start_byte):
                        text = line[start_byte - offset : end_byte - offset]
                        if (written_at, text[:8]) in copied or _line_is_at(folder, written_at, text):
                            continue
                        copied.add((written_at, text[:8]))
                    yield after, record
                offset += len(line)


def _records(line: bytes, offset: int) -> Iterator[tuple[dict[str, Any] | str, int, int]]:
    """Yield the records in a line, each with the offset of its first byte and the offset after its last; in place of a
    record that can't be read, a str with the reason.

    A line holds several records if newlines between them are damaged, as by a program that writes \\r for \\n. (Text
    inside a record never looks like the start of one: its quotes are escaped.)
    """
    if not isinstance(record := decode(line), str):
        yield record, offset, offset + len(line)
        return
    starts = sorted({0, *(match.start() for match in re.finditer(_LINE_START, line))})
    for start, end in pairwise((*starts, len(line))):
        part = line[start:end]
        repaired = _decode_without_end(part)
        if not isinstance(repaired, str) or part.strip(_EDITOR_BYTES):
            yield record if isinstance(repaired, str) else repaired, offset + start, offset + end


def _decode_without_end(line: bytes) -> dict[str, Any] | str:
    """Decode a line, ignoring everything after its last `}`."""
    return decode(line[: line.rfind(b"}") + 1] + b"\n")


def ends_at(folder: Path, end: Position) -> bool:
    """Return whether a line of the journal ends at this position. If not, a store that is up to date to this position
    was built from another journal."""
    with segment(folder, end.segment).open("rb") as file:
        file.seek(max(0, end.offset - 1))
        return not end.offset or file.read(1) == b"\n"


def _line_is_at(folder: Path, at: Position, line: bytes) -> bool:
    path = segment(folder, at.segment)
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(at.offset)
        return file.read(len(line)) == line


class Journal:
    """The journal, open for appending. The store's lock keeps other processes out; only one thread calls `append`."""

    def __init__(self, folder: Path, position: Position, segment_bytes: int) -> None:
        self.folder = folder
        self.position = position
        self._segment_bytes = segment_bytes
        self._file = os.open(segment(folder, position.segment), os.O_WRONLY | os.O_CREAT, 0o600)
        self._sync_folder()

    @classmethod
    def open(cls, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> tuple[Self, Damage | None]:
        """Open the journal to append after its last complete line.

        An incomplete line that a crash left at the end is removed and returned as Damage. Raises JournalDamaged if
        segments are missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        numbers = segments(folder)
        if missing := sorted({*range(1, max(numbers, default=0))} - {*numbers}):
            empty = " ".join(shlex.quote(str(segment(folder, n))) for n in missing)
            raise JournalDamaged(
                f"{folder}: segments are missing (there are {numbers}); restore them from a backup. To continue "
                f"without them:\n  touch {empty}\nThe records that the store still has are then written back, and the "
                "rest is requested and paid for again."
            )
        last = numbers[-1] if numbers else 1
        path = segment(folder, last)
        size = path.stat().st_size if path.exists() else 0
        end = _complete_bytes(path) if size else 0
        removed = None
        if end < size and _is_incomplete(path, end):
            os.truncate(path, end)
            removed = Damage(path, end, f"an incomplete last line of {size - end} bytes was removed")
        elif end < size:
            with path.open("ab") as file:
                end = size + file.write(b"\n")
        return cls(folder, Position(last, end), segment_bytes), removed

    @property
    def emptied(self) -> list[Path]:
        """The paths of empty segments, except the last segment. Their records were moved to other files or are lost."""
        paths = (segment(self.folder, n) for n in segments(self.folder) if n < self.position.segment)
        return [path for path in paths if not path.stat().st_size]

    def mark_emptied(self) -> None:
        """Write an invalid line into each emptied segment, so that it counts as one damaged line now, and is no longer
        empty when the journal is opened again."""
        for path in self.emptied:
            path.write_bytes(b"emptied\n")

    def append(self, records: Sequence[dict[str, Any]]) -> Position:
        """Write the records and sync them to disk. Return the position after the last one.

        On an error (disk full) the file is cut back to its former end: none of these records is stored, and no
        incomplete line is left.
        """
        if self.position.offset >= self._segment_bytes:
            self._next_segment()
        before = self.position
        data = memoryview(_lines(records, before))
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], before.offset + written)
            os.fsync(self._file)
            self.position = Position(before.segment, before.offset + written)
        except BaseException as error:  # also an interrupt: nothing was reported as stored
            os.ftruncate(self._file, before.offset)
            self.position = before
            if isinstance(error, OSError):
                error.filename = str(segment(self.folder, before.segment))
            raise
        return self.position

    def close(self) -> None:
        """Close the file. Remove an empty journal, so that no store is rebuilt from its folder."""
        os.close(self._file)
        if self.position == START:
            segment(self.folder, START.segment).unlink()
            with suppress(OSError):  # not empty
                self.folder.rmdir()

    def _next_segment(self) -> None:
        position = Position(self.position.segment + 1, 0)
        file = os.open(segment(self.folder, position.segment), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.close(self._file)
        self._file, self.position = file, position
        self._sync_folder()

    def _sync_folder(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_incomplete(path: Path, at: int) -> bool:
    """Return whether the bytes from `at` to the end of the file are the rest of an interrupted write: the start of one
    line, or zero bytes. Other bytes (complete records without newlines, foreign text) stay and count as damage."""
    with path.open("rb") as file:
        file.seek(at)
        rest = file.read()
    started = re.fullmatch(rb"[0-9a-f]{0,8}|[0-9a-f]{8} .*|\0*", rest, re.DOTALL)
    return bool(started) and isinstance(_decode_without_end(rest), str) and len(re.findall(_LINE_START, rest)) < 2


def _complete_bytes(path: Path, block: int = 1 << 16) -> int:
    """Return the length of a file up to and including its last newline. It is read from the end, `block` bytes at a
    time."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            if (at := file.read(end - start).rfind(b"\n")) >= 0:
                return start + at + 1
            end = start
    return 0
