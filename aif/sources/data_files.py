"""Stream the rows of a data file (JSONL, Parquet or CSV), each with its place in the file.

A file that can't be parsed in the format of its suffix raises BadInput with the place.
"""

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from aif.core import strict_json
from aif.core.batching import MAX_BATCH_BYTES
from aif.core.errors import BadInput
from aif.core.types import BadRow

BATCH_ROWS = 256  # Parquet rows in memory at a time; fewer if they are long

_BOM = b"\xef\xbb\xbf"
_MAX_CELL = 2**31 - 1

csv.field_size_limit(
    _MAX_CELL
)  # holds for the process; a conversation may be longer than the default, 131,072 characters


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file as (its place, the row as a dict of its columns). Raises BadInput if the file can't be
    read or parsed.

    The place is `file:line`, or `file row N` (from 0) for Parquet. A JSONL row may be any JSON value; CSV cells are
    texts, and the first line names the columns. If only single rows or cells can't be read, a `BadRow` replaces
    each of them.
    """
    with bad_input_on_os_error(path), path.open("rb") as file:
        yield from _READERS[path.suffix.lower()](path, file)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex. Raises BadInput if the file can't be read."""
    with bad_input_on_os_error(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def bad_input_on_os_error(path: Path) -> Iterator[None]:
    """Turn an OSError raised inside this context into BadInput that names `path`."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{path}: can't be read: {error.strerror or error}; check the file and its permissions"
        ) from error


def _lines(path: Path, file: BinaryIO, cr: bool = False) -> Iterator[str]:
    """Yield a file's lines. If `cr` is set, or if a lone CR ends the first line (files of old Macs), each lone CR ends
    a line; otherwise a CR is part of the text."""
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
        return line.decode("utf-8", "surrogatepass")  # a lone surrogate makes the row bad, not the file
    except UnicodeDecodeError as error:
        if line.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            raise BadInput(f"{where}: compressed; unpack the file") from error
        byte = line[error.start]
        raise BadInput(f"{where}: not UTF-8 (byte {byte:#04x}); save the file as UTF-8") from error


def _jsonl(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(path, file, cr=True), start=1):
        if text := line.strip(" \t\r\n\ufeff"):  # concatenated files have several byte order marks
            yield f"{path}:{number}", _json(text, f"{path}:{number}")


def _json(text: str, where: str) -> Any:
    try:
        return strict_json.parse_row(text)
    except strict_json.DuplicateKeyError as error:
        return BadRow(str(error))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not JSON ({error}); each line must be a JSON object in UTF-8: correct it") from error


# CSV


def _csv(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, str]]]:
    records = _records(path, _lines(path, file))
    first, header = next(records, (None, []))
    if first is None:
        raise BadInput(f"{path}: empty; the first line of a .csv file names its columns")
    if duplicates := sorted({name for name in header if header.count(name) > 1}):
        raise BadInput(f"{first}: two columns are named {duplicates[0]!r}; rename one")
    for where, cells in records:
        if len(cells) != len(header):
            raise BadInput(
                f"{where}: cells: {len(cells)}, columns: {len(header)}; correct the row, and put quotes around cells "
                "that hold commas or line breaks"
            )
        yield where, dict(zip(header, cells, strict=True))


def _records(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each record of a CSV file as (the place where it begins, its cells). Blank lines are skipped."""
    reader = csv.reader(lines, strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = str(error).partition(" - ")[0]  # the rest is advice on Python's open()
            raise BadInput(
                f"{where}: not CSV ({reason}); put quotes around cells that hold commas, quotes or line breaks, "
                "write a quote in them twice, and end all lines alike"
            ) from error
        if cells is None:
            return
        if cells:
            yield where, cells


# Parquet (pyarrow is imported late: it loads numpy, 0.2 s of CPU, and most commands read no Parquet)


def _parquet(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    with _parquet_errors(str(path)):
        # by default a row group is read whole: a group of 600 MB took 700 MB of memory; with these settings 125 MB
        table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        names = table.schema_arrow.names
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{path}: two columns are named {duplicates[0]!r}; rename one")
    groups = [table.metadata.row_group(n) for n in range(table.num_row_groups)]
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    batches, read = table.iter_batches(batch_size=max(1, min(BATCH_ROWS, MAX_BATCH_BYTES // max(1, longest)))), 0
    while True:
        with _parquet_errors(f"{path} row {read}"):
            batch = next(batches, None)
        if batch is None:
            break
        for n in range(batch.num_rows):
            yield f"{path} row {read + n}", arrow_row(batch.slice(n, 1))
        read += batch.num_rows
    if read != table.metadata.num_rows:
        raise BadInput(f"{path}: only {read} of its {table.metadata.num_rows} rows can be read; write the file again")


def arrow_row(row: Any) -> dict[str, Any]:
    """Return the only row of an Arrow table or batch, as a dict of its columns. A value that Python can't represent (a
    date after 9999, a text that is not UTF-8) becomes a `BadRow`, so that the row can be used if the pipeline doesn't
    use that column."""
    return {name: _cell(column) for name, column in zip(row.schema.names, row.columns, strict=True)}


def _cell(column: Any) -> Any:
    import pyarrow as pa

    try:
        (value,) = column.to_pylist()
        return _parse_json(value, column.type) if _has_json(column.type) else value
    except (pa.ArrowException, ValueError, OverflowError, KeyError, RecursionError) as error:  # KeyError: a time zone
        return BadRow(" ".join(str(error).split())[:300])


@cache
def _has_json(type: Any) -> bool:
    return "arrow.json" in str(type)


def _parse_json(value: Any, type: Any) -> Any:
    """Return a value of an Arrow column of type `type`, with the JSON texts in it parsed. (The library `datasets`
    stores lists of objects with different keys as JSON.)"""
    import pyarrow as pa

    if value is None:
        return None
    if isinstance(type, pa.JsonType):
        return strict_json.parse_row(value)
    if pa.types.is_struct(type):
        return {field.name: _parse_json(value[field.name], field.type) for field in type}
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return [_parse_json(item, type.value_type) for item in value]
    return value


@contextmanager
def _parquet_errors(where: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (
        pa.ArrowException,
        ValueError,
        OverflowError,
        OSError,
    ) as error:  # pyarrow raises all of these for damaged files
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{where}: can't be read as Parquet: {reason}; check the file, or write it again") from error


_READERS: Mapping[str, Callable[[Path, BinaryIO], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
