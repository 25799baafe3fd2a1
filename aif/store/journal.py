"""The append-only journal of everything paid for: JSON lines in segments, each line with its checksum.

A record counts as kept once `append` has returned: it is synced to disk. The journal is enough by itself; the store is
derived from it. Its record types (records.py) are the only format that later versions must go on reading.

    feedback.journal/000001.jsonl     8 hex digits of the line's CRC-32, a space, a JSON object, a newline

Each object says under `at` where its line begins: [segment, byte]. So a line that stands elsewhere is known for a copy
where it also stands there, or has been met before (a segment restored behind another, lines doubled), and nothing is
taken in twice.
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

_BEGIN = rb'[0-9a-f]{8} \{"'  # of a line
_NOTHING = b"\xef\xbb\xbf\r\n "  # what editors put before and behind lines


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place between two records: the segment's number (from 1) and the byte in it."""

    segment: int
    offset: int


START = Position(1, 0)


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that can't be trusted: what it held is lost, and is asked again."""

    path: Path
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: byte {self.offset}: {self.reason}"


def segment(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.jsonl"


def segments(folder: Path) -> list[int]:
    """The numbers of the segments there are, in order."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.jsonl") if re.fullmatch("[0-9]{6,}", path.stem))


def ahead(folder: Path, start: Position) -> int:
    """How many bytes of journal there are from `start` on."""
    return sum(segment(folder, n).stat().st_size for n in segments(folder) if n >= start.segment) - start.offset


def encode(record: dict[str, Any]) -> bytes:
    """A record as its line."""
    body = orjson.dumps(record)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> dict[str, Any] | str:
    """A line's record, or the reason why it has none."""
    if not line.endswith(b"\n"):
        return "the line is torn"
    body = line[9:-1]
    if line[8:9] != b" " or line[:8] != b"%08x" % zlib.crc32(body):
        return "the checksum does not match"
    record: dict[str, Any] = orjson.loads(body)
    return record


def _lines(records: Sequence[dict[str, Any]], begin: Position) -> bytes:
    data = bytearray()
    for record in records:
        data += encode({**record, "at": [begin.segment, begin.offset + len(data)]})
    return bytes(data)


def replay(folder: Path, start: Position = START) -> Iterator[tuple[Position, dict[str, Any] | Damage]]:
    """Every record from `start` on, once, each with the position behind it; damaged lines come as Damage."""
    moved: set[tuple[Position, bytes]] = set()
    for number in segments(folder):
        if number < start.segment:
            continue
        path = segment(folder, number)
        offset = start.offset if number == start.segment else 0
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                for found, begin, end in _records(line, offset):
                    behind = Position(number, end)
                    if isinstance(found, str):
                        yield behind, Damage(path, begin, found)
                        continue
                    written = Position(*found.pop("at", (number, begin)))
                    if written != Position(number, begin):
                        said = line[begin - offset : end - offset]
                        if (written, said[:8]) in moved or _stands(folder, written, said):
                            continue
                        moved.add((written, said[:8]))
                    yield behind, found
                offset += len(line)


def _records(line: bytes, offset: int) -> Iterator[tuple[dict[str, Any] | str, int, int]]:
    """What a line holds: a record, or the reason why not; with its begin and end. There are several where the end of a
    line is damaged, or of all, as by a program that puts \\r in the place of \\n. (No text within a record looks like
    the begin of one: its quotes are escaped.)"""
    if not isinstance(found := decode(line), str):
        yield found, offset, offset + len(line)
        return
    begins = sorted({0, *(one.start() for one in re.finditer(_BEGIN, line))})
    for begin, end in pairwise((*begins, len(line))):
        part = line[begin:end]
        whole = _whole(part)
        if not isinstance(whole, str) or part.strip(_NOTHING):
            yield found if isinstance(whole, str) else whole, offset + begin, offset + end


def _whole(line: bytes) -> dict[str, Any] | str:
    """The record of a line, whatever stands at its end."""
    return decode(line[: line.rfind(b"}") + 1] + b"\n")


def ends_at(folder: Path, end: Position) -> bool:
    """Whether a line ends there: else whoever stopped there read another state of the journal."""
    with segment(folder, end.segment).open("rb") as file:
        file.seek(max(0, end.offset - 1))
        return not end.offset or file.read(1) == b"\n"


def _stands(folder: Path, at: Position, line: bytes) -> bool:
    """Whether this very line stands there."""
    path = segment(folder, at.segment)
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(at.offset)
        return file.read(len(line)) == line


class Journal:
    """The writing end. One process writes (the store's lock sees to that); one thread calls `append`."""

    def __init__(self, folder: Path, position: Position, segment_bytes: int) -> None:
        self.folder = folder
        self.position = position
        self._segment_bytes = segment_bytes
        self._file = os.open(segment(folder, position.segment), os.O_WRONLY | os.O_CREAT, 0o600)
        self._sync_folder()

    @classmethod
    def open(cls, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> tuple[Self, Damage | None]:
        """Opens for writing behind the last whole line. What a crash left torn behind it is cut off and told."""
        folder.mkdir(parents=True, exist_ok=True)
        numbers = segments(folder)
        if missing := sorted({*range(1, max(numbers, default=0))} - {*numbers}):
            empty = " ".join(shlex.quote(str(segment(folder, n))) for n in missing)
            raise JournalDamaged(
                f"{folder}: segments are missing (found {numbers}); put them back from a copy. To go on without:\n"
                f"  touch {empty}\nWhat the store has of theirs is put back, and the rest is asked and paid for again."
            )
        last = numbers[-1] if numbers else 1
        path = segment(folder, last)
        size = path.stat().st_size if path.exists() else 0
        whole = _whole_lines(path) if size else 0
        torn = None
        if whole < size and _is_torn(path, whole):
            os.truncate(path, whole)
            torn = Damage(path, whole, f"a torn last line of {size - whole} bytes was cut off")
        elif whole < size:
            with path.open("ab") as file:
                whole = size + file.write(b"\n")
        return cls(folder, Position(last, whole), segment_bytes), torn

    @property
    def emptied(self) -> list[Path]:
        """Segments before the last that hold nothing: what was in them was moved away, or is lost."""
        paths = (segment(self.folder, n) for n in segments(self.folder) if n < self.position.segment)
        return [path for path in paths if not path.stat().st_size]

    def hold_place(self) -> None:
        """Puts a line that is none into each of `emptied`, so that it counts as damage and is told of once."""
        for path in self.emptied:
            path.write_bytes(b"emptied\n")

    def append(self, records: Sequence[dict[str, Any]]) -> Position:
        """Writes the records and syncs them. Returns the position behind the last one.

        On an error (disk full) the file is cut back to the last synced record, so that none of these is kept and no
        torn line stays inside.
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
        except BaseException as error:  # an interrupt, too: what it leaves behind was never acknowledged
            os.ftruncate(self._file, before.offset)
            self.position = before
            if isinstance(error, OSError):
                error.filename = str(segment(self.folder, before.segment))
            raise
        return self.position

    def close(self) -> None:
        """A journal that holds nothing leaves nothing: a folder would be taken for one to make a store from."""
        os.close(self._file)
        if self.position == START:
            segment(self.folder, START.segment).unlink()
            with suppress(OSError):  # something else is in it
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


def _is_torn(path: Path, at: int) -> bool:
    """Whether what stands there is what a crash leaves: one line begun, or room that was never written. Else lines have
    lost their ends, or it is nothing of ours: that stays, as damage."""
    with path.open("rb") as file:
        file.seek(at)
        rest = file.read()
    begun = re.fullmatch(rb"[0-9a-f]{0,8}|[0-9a-f]{8} .*|\0*", rest, re.DOTALL)
    return bool(begun) and isinstance(_whole(rest), str) and len(re.findall(_BEGIN, rest)) < 2


def _whole_lines(path: Path, block: int = 1 << 16) -> int:
    """The length of a file up to and with its last newline."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            if (at := file.read(end - start).rfind(b"\n")) >= 0:
                return start + at + 1
            end = start
    return 0
