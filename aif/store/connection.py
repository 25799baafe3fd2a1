"""The file of the store as DuckDB opens it, and what DuckDB says of a file that it can't read."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import duckdb

from aif.core.errors import DISK_FULL, StoreDamaged, StoreLocked, StoreOutOfMemory
from aif.store.lock import Places, busy, holder, is_held, note_in

SCHEMA_VERSION = 5

T = TypeVar("T")

# 2.0 files can't be read by 1.x unless made so, and 1.5 is what most people have. The memory limit is DuckDB's share of
# a run's footprint; beyond it sorts and joins spill beside the store. Over 200,000 prompts with two completions a run
# takes 740 MB at most with 320 MB; pairs take no longer than with 512. A checkpoint writes indexes anew: each 16 MB of
# log, as DuckDB has it, 1,000,000 calls took 192 s of CPU, and each 128 MB they took 134. Up to the threshold a column
# is read of the rows alone whose keys a query names, else of all 2,048 that stand together: 400 MB of texts of 200 KB.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "storage_compatibility_version": "v1.5.0",
    "memory_limit": "320MB",
    "wal_autocheckpoint": "128MB",
    "dynamic_or_filter_threshold": 2048,
}

# By zstd, which DuckDB takes for texts above 4 KB, a row is read with all before it: 160 of 100 KB took 38 s, and take
# 0.05 without. (Named at the opening, 2.0 passes over it.)
_SCATTERED = "SET disabled_compression_methods = 'zstd'"

ROOMY = "500MB"  # the memory limit while a store is made again: with 1GB that takes 1.3 GB in all
AMPLE = "1GB"  # and where another was too little


def connect(path: Path, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Opens the file. Raises StoreDamaged where DuckDB can't read it."""
    settings = {**SETTINGS, "temp_directory": str(path.with_suffix(".spill"))}
    if read_only:
        del settings["storage_compatibility_version"]
    try:
        try:
            db = duckdb.connect(str(path), read_only=read_only, config=settings)
        except duckdb.OutOfMemoryException:  # its log is taken in while it is opened
            db = duckdb.connect(str(path), read_only=read_only, config=settings | {"memory_limit": AMPLE})
        db.execute(_SCATTERED)
    except duckdb.OutOfMemoryException as error:
        raise starved(path) from error
    except duckdb.Error as error:
        if "Could not set lock" in str(error):
            raise StoreLocked(_open_elsewhere(path, str(error))) from error
        raise unreadable(path, "DuckDB can't open it", error) from error
    return db


def _open_elsewhere(path: Path, why: str) -> str:
    """Who has the file open: whoever writes to it, or a program that reads it, by DuckDB's own words."""
    lock = Places(path).lock
    if is_held(lock) and not ((note := note_in(lock)) and note.mine):
        return busy(path, holder(lock))
    found = re.search(r"held in (.+) \(PID (\d+)\)", why)
    program = f"process {found[2]} ({Path(found[1]).name})" if found else "another program"
    return f"{path}: {program} has it open"


# What DuckDB raises when the file under it is not what it wrote. A flipped byte shows when its block is read, as the
# base class itself (2.0).
DAMAGE = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)


def _full(error: duckdb.Error, path: Path) -> OSError | None:
    """What a full disk is to the rest of the house. DuckDB tells of one in words only: in a commit by a
    TransactionException, in a checkpoint by a FatalException."""
    return next((OSError(n, os.strerror(n), str(path)) for n in DISK_FULL if os.strerror(n) in str(error)), None)


def unreadable(path: Path, what: str, error: duckdb.Error) -> Exception:
    """What DuckDB's error about a file is to the rest of the house: a full disk, or a damaged store."""
    return _full(error, path) or StoreDamaged(f"{path}: {what} ({str(error).splitlines()[0]})")


_WANT = ("Out of Memory Error", "bad allocation")  # the latter where the system gives none


@contextmanager
def roomier() -> Iterator[None]:
    """Within it stores are opened with more memory."""
    before, SETTINGS["memory_limit"] = SETTINGS["memory_limit"], AMPLE
    try:
        yield
    finally:
        SETTINGS["memory_limit"] = before


def starved(path: Path) -> StoreOutOfMemory:
    return StoreOutOfMemory(
        f"{path}: {AMPLE} of memory is too little for what the store was asked; what was answered is kept. Lower "
        "max_chars of the source that has the longest prompts, or its limit, and run the same command"
    )


@contextmanager
def noticing(path: Path) -> Iterator[None]:
    """Turns DuckDB's words for a damaged file, a full disk, want of memory and Ctrl-C into ours."""
    try:
        yield
    except duckdb.Error as error:
        # also of a rollback that finds no room, and of all that is asked after it
        if any(words in str(error) for words in _WANT):
            raise starved(path) from error
        if not isinstance(error, DAMAGE) and type(error) is not duckdb.Error and not _full(error, path):
            raise
        raise unreadable(path, "the store is damaged", error) from error
    except RuntimeError as error:
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise


def twice(db: duckdb.DuckDBPyConnection, path: Path, ask: Callable[[], T]) -> T:
    """What is asked of DuckDB. Where it finds no room, it has more from then on, and is asked once more, if it still
    takes questions: with a transaction that was begun before it may not."""
    try:
        with noticing(path):
            return ask()
    except StoreOutOfMemory as starving:
        try:
            db.execute(f"SET memory_limit = '{AMPLE}'")
        except duckdb.Error:
            raise starving from None
    with noticing(path):
        return ask()


def check_version(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Raises StoreDamaged where this is no store of ours, or one of another version."""
    try:
        rows = db.execute("SELECT schema_version FROM about").fetchall()
    except duckdb.Error as error:
        raise unreadable(path, "this is no store of aif's, or a damaged one", error) from error
    if rows != [(SCHEMA_VERSION,)]:
        made = rows[0][0] if rows else "?"
        raise StoreDamaged(f"{path}: made by another version of aif (schema {made}, now {SCHEMA_VERSION})")


def within(limit: int | None) -> str:
    """The condition, in SQL, that a row's prompt is among the first `limit`."""
    return "true" if limit is None else f"position < {limit}"
