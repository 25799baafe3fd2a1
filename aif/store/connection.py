"""Open the store's DuckDB file, and turn DuckDB's errors about files and memory into aif's own."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import duckdb

from aif.core.errors import DISK_FULL, StoreDamaged, StoreLocked, StoreOutOfMemory
from aif.store.lock import busy_message, holder_text, is_held, read_note
from aif.store.paths import StorePaths

SCHEMA_VERSION = 5

T = TypeVar("T")

# DuckDB 2.0 files can't be read by 1.x unless written in an older format, and 1.5 is what most people have. The memory
# limit is DuckDB's share of a run's memory; beyond it sorts and joins spill to disk beside the store. Over 200,000
# prompts with two completions a run takes at most 740 MB with 320 MB; pairs take no longer than with 512 MB. A
# checkpoint rewrites indexes: at every 16 MB of log (DuckDB's default) 1,000,000 calls took 192 s of CPU, at every
# 128 MB 134 s. Up to the filter threshold, DuckDB reads a column only for the rows whose keys a query names, instead of
# all 2,048 rows around each: 400 MB for texts of 200 KB.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "storage_compatibility_version": "v1.5.0",
    "memory_limit": "320MB",
    "wal_autocheckpoint": "128MB",
    "dynamic_or_filter_threshold": 2048,
}

# DuckDB compresses texts above 4 KB with zstd, and then reads a row together with all rows before it: 160 rows of
# 100 KB took 38 s, and 0.05 s without. (As a setting at opening, DuckDB 2.0 ignores it.)
_NO_ZSTD = "SET disabled_compression_methods = 'zstd'"

REBUILD_MEMORY = "500MB"  # the memory limit during a rebuild: with 1GB a rebuild takes 1.3 GB in all
MOST_MEMORY = "1GB"  # the limit to which a query that runs out of memory raises it


def connect(path: Path, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Open a store file with aif's DuckDB settings.

    Raises StoreDamaged if DuckDB can't read it, StoreLocked if another process has it open, and
    StoreOutOfMemory if opening it needs too much memory.
    """
    settings = {**SETTINGS, "temp_directory": str(path.with_suffix(".spill"))}
    if read_only:
        del settings["storage_compatibility_version"]
    try:
        try:
            db = duckdb.connect(str(path), read_only=read_only, config=settings)
        except duckdb.OutOfMemoryException:  # opening replays the write-ahead log
            db = duckdb.connect(str(path), read_only=read_only, config=settings | {"memory_limit": MOST_MEMORY})
        db.execute(_NO_ZSTD)
    except duckdb.OutOfMemoryException as error:
        raise memory_error(path) from error
    except duckdb.Error as error:
        if "Could not set lock" in str(error):
            raise StoreLocked(_locked_message(path, str(error))) from error
        raise file_error(path, "DuckDB can't open it", error) from error
    return db


def _locked_message(path: Path, message: str) -> str:
    """Return aif's message for a store file that another process has open. It names the aif process that writes to the
    store. If there is none, it names the program that DuckDB's error message (`message`) names."""
    lock = StorePaths(path).lock
    if is_held(lock) and not ((note := read_note(lock)) and note.mine):
        return busy_message(path, holder_text(lock))
    match = re.search(r"held in (.+) \(PID (\d+)\)", message)
    program = f"process {match[2]} ({Path(match[1]).name})" if match else "another program"
    return f"{path}: {program} has it open"


# DuckDB's exceptions for a damaged file. A flipped byte shows only when its block is read; DuckDB 2.0 then raises the
# base class `duckdb.Error` itself.
DAMAGE = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)


def _disk_full(error: duckdb.Error, path: Path) -> OSError | None:
    """Return an OSError if DuckDB's error is about a full disk, else None. Only the text of DuckDB's error shows that:
    the class of the error is TransactionException in a commit and FatalException in a checkpoint."""
    return next((OSError(n, os.strerror(n), str(path)) for n in DISK_FULL if os.strerror(n) in str(error)), None)


def file_error(path: Path, message: str, error: duckdb.Error) -> Exception:
    """Return the exception for a DuckDB error about a file: OSError for a full disk, else StoreDamaged with
    `message`."""
    return _disk_full(error, path) or StoreDamaged(f"{path}: {message} ({str(error).splitlines()[0]})")


_NO_MEMORY = ("Out of Memory Error", "bad allocation")  # the latter if the system has none left


@contextmanager
def larger_memory_limit() -> Iterator[None]:
    """Give stores that are opened inside this context the largest memory limit for DuckDB (MOST_MEMORY, 1 GB)."""
    before, SETTINGS["memory_limit"] = SETTINGS["memory_limit"], MOST_MEMORY
    try:
        yield
    finally:
        SETTINGS["memory_limit"] = before


def memory_error(path: Path) -> StoreOutOfMemory:
    """Return the exception for a query that fails even with the largest memory limit."""
    return StoreOutOfMemory(
        f"{path}: a query needs more than {MOST_MEMORY} of memory; what was answered is stored. Lower max_chars or "
        "limit of the source with the longest prompts, and run the same command"
    )


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turn DuckDB's errors about damage, a full disk and memory into StoreDamaged, OSError and StoreOutOfMemory.

    An interrupted query raises KeyboardInterrupt; other errors pass unchanged.
    """
    try:
        yield
    except duckdb.Error as error:
        # also a rollback that lacks memory, and every query after it
        if any(words in str(error) for words in _NO_MEMORY):
            raise memory_error(path) from error
        if not isinstance(error, DAMAGE) and type(error) is not duckdb.Error and not _disk_full(error, path):
            raise
        raise file_error(path, "the store is damaged", error) from error
    except RuntimeError as error:
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise


def with_more_memory(db: duckdb.DuckDBPyConnection, path: Path, query: Callable[[], T]) -> T:
    """Return `query()`. If it runs out of memory, raise the connection's memory limit permanently to MOST_MEMORY (1 GB)
    and try once more.

    Raises StoreOutOfMemory if that fails too, or if the connection is in a transaction that can't continue.
    """
    try:
        with translated_errors(path):
            return query()
    except StoreOutOfMemory as starved:
        try:
            db.execute(f"SET memory_limit = '{MOST_MEMORY}'")
        except duckdb.Error:
            raise starved from None
    with translated_errors(path):
        return query()


def check_version(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Raise StoreDamaged if the file that `db` has open is not an aif store, or has another schema version. `path` is
    named in the message."""
    try:
        rows = db.execute("SELECT schema_version FROM about").fetchall()
    except duckdb.Error as error:
        raise file_error(path, "not an aif store, or damaged", error) from error
    if rows != [(SCHEMA_VERSION,)]:
        version = rows[0][0] if rows else "?"
        raise StoreDamaged(f"{path}: made by another version of aif (schema {version}, now {SCHEMA_VERSION})")


def limit_condition(limit: int | None) -> str:
    """Return an SQL condition on column `position` for the rows of the first `limit` selected prompts (None: all)."""
    return "true" if limit is None else f"position < {limit}"
