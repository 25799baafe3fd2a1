"""The rows of a data file: JSONL, Parquet or CSV, streamed, each with the place where it stands.

A file that can't be read as what its name says ends the reading with a line that names the place.
"""

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from aif.core import strict_json
from aif.core.errors import BadInput
from aif.core.paging import PAGE_BYTES
from aif.core.types import BadRow

BATCH = 256  # Parquet rows in memory at a time, and fewer where they are long

_BOM = b"\xef\xbb\xbf"
_CELL = 2**31 - 1

csv.field_size_limit(_CELL)  # of the whole process; the default of 131,072 characters is less than a long conversation


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row of a file stands, and its columns. Raises BadInput.

    The place is `file:line`; of Parquet, which has no lines, `file row N` from 0. A row of JSONL may be any JSON value.
    A cell of CSV is a text, and the first line names the columns. What makes no sense by itself, but leaves the rest
    readable, is `BadRow`.
    """
    with readable(path), path.open("rb") as file:
        yield from _READERS[path.suffix.lower()](path, file)


def sha256(path: Path) -> str:
    """Of a file's bytes. Raises BadInput."""
    with readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what the system says of a file into BadInput."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path}: can't be read: {error.strerror or error}; check the file and its rights") from error


def _lines(path: Path, file: BinaryIO, cr: bool = False) -> Iterator[str]:
    """A file's lines. A CR by itself ends one if it ends the first (old Macs), or if `cr`: elsewhere it may be text."""
    number = 0
    for n, line in enumerate(file):
        if n == 0:
            line = line.removeprefix(_BOM)
            cr = cr or b"\r" in line.rstrip(b"\r\n")
        for part in line.splitlines(keepends=True) if cr else (line,):
            number += 1
            yield _decoded(part, f"{path}:{number}")


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8", "surrogatepass")  # half a character is the row's fault, not the file's
    except UnicodeDecodeError as error:
        if line.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            raise BadInput(f"{where}: compressed; unpack the file") from error
        byte = line[error.start]
        raise BadInput(f"{where}: not UTF-8 (byte {byte:#04x}); save the file as UTF-8") from error


def _jsonl(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(path, file, cr=True), start=1):
        if text := line.strip(" \t\r\n\ufeff"):  # files that were put together have several marks
            yield f"{path}:{number}", _json(text, f"{path}:{number}")


def _json(text: str, where: str) -> Any:
    try:
        return strict_json.row(text)
    except strict_json.Twice as error:
        return BadRow(str(error))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not JSON ({error}); each line is one JSON object in UTF-8: correct it") from error


# CSV


def _csv(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, str]]]:
    records = _records(path, _lines(path, file))
    first, header = next(records, (None, []))
    if first is None:
        raise BadInput(f"{path}: empty; the first line of a .csv file names its columns")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise BadInput(f"{first}: column {twice[0]!r} is named twice; name each once")
    for where, cells in records:
        if len(cells) != len(header):
            raise BadInput(
                f"{where}: cells: {len(cells)}, columns: {len(header)}; correct the row, and put quotes around cells "
                "that hold commas or line breaks"
            )
        yield where, dict(zip(header, cells, strict=True))


def _records(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Where each record begins, and its cells. Blank lines are none."""
    reader = csv.reader(lines, strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            said = str(error).partition(" - ")[0]  # what follows is advice on Python's open()
            raise BadInput(
                f"{where}: not CSV ({said}); put quotes around cells that hold commas, quotes or line breaks, "
                "write a quote in them twice, and end all lines alike"
            ) from error
        if cells is None:
            return
        if cells:
            yield where, cells


# Parquet (its library loads numpy, 0.2 s of CPU, which commands that read none can do without)


def _parquet(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    with _sound(str(path)):
        # by default a row group is read whole: one of 600 MB took 700 MB of memory, and 125 MB like this
        table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        names = table.schema_arrow.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path}: column {twice[0]!r} is there twice; name each once")
    groups = [table.metadata.row_group(n) for n in range(table.num_row_groups)]
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    batches, read = table.iter_batches(batch_size=max(1, min(BATCH, PAGE_BYTES // max(1, longest)))), 0
    while True:
        with _sound(f"{path} row {read}"):
            batch = next(batches, None)
        if batch is None:
            break
        for n in range(batch.num_rows):
            yield f"{path} row {read + n}", record(batch.slice(n, 1))
        read += batch.num_rows
    if read != table.metadata.num_rows:
        raise BadInput(f"{path}: says it has {table.metadata.num_rows} rows, but {read} can be read; write it anew")


def record(row: Any) -> dict[str, Any]:
    """The one row of an Arrow table. What Python can't hold (a date after 9999, a text that is not UTF-8) is
    `BadRow`, so that nothing is lost for a column without a use."""
    return {name: _cell(column) for name, column in zip(row.schema.names, row.columns, strict=True)}


def _cell(column: Any) -> Any:
    import pyarrow as pa

    try:
        (value,) = column.to_pylist()
        return _unpacked(value, column.type) if _has_json(column.type) else value
    except (pa.ArrowException, ValueError, OverflowError, KeyError, RecursionError) as error:  # KeyError: a time zone
        return BadRow(" ".join(str(error).split())[:300])


@cache
def _has_json(type: Any) -> bool:
    return "arrow.json" in str(type)


def _unpacked(value: Any, type: Any) -> Any:
    """A value with what is JSON in it read: the type in which `datasets` keeps lists of unlike objects."""
    import pyarrow as pa

    if value is None:
        return None
    if isinstance(type, pa.JsonType):
        return strict_json.row(value)
    if pa.types.is_struct(type):
        return {part.name: _unpacked(value[part.name], part.type) for part in type}
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return [_unpacked(one, type.value_type) for one in value]
    return value


@contextmanager
def _sound(where: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:  # damage has many names
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"{where}: can't be read as Parquet: {said}; check the file, or write it anew") from error


_READERS: Mapping[str, Callable[[Path, BinaryIO], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
