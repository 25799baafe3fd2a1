"""Stores that were set aside: renamed because they can't be used, and not deleted at once because they may hold records
that the journal lacks."""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import duckdb

from aif.core.errors import StoreDamaged
from aif.store.connection import connect
from aif.store.query import Queries

if TYPE_CHECKING:
    import pyarrow as pa

# If one row can't be read, DuckDB reads none of this many rows. Trying them one by one took 24 s for a damaged block.
_ROWS_TOGETHER = 2048


class SetAsideStore(Queries):
    """A store that was set aside, of any version and with any damage. Queries return only what can be read.

    `torn` becomes true when a query fails: part of the store can't be read.
    """

    torn = False

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file. Raises StoreDamaged if DuckDB can't open it."""
        return cls(connect(path, read_only=True), path)

    def table(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> "pa.Table | None":
        """Return the result as an Arrow table, or None if the query fails."""
        try:
            return self._arrow(query, parameters)
        except (StoreDamaged, duckdb.Error):
            self.torn = True
            return None

    def rows(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Return the result as dicts; empty if the query fails."""
        table = self.table(query, parameters)
        return table.to_pylist() if table is not None else []

    def columns(self, name: str, columns: str, page: int = 16_384) -> "Iterator[pa.Table]":
        """Yield the `columns` (SQL) of a table in Arrow tables of at most `page` rows, with the number of each row
        (`row`). Damaged rows are left out, with the other rows that DuckDB can only read together with them."""
        for last in self.rows(f"SELECT max(rowid) AS last FROM {name}"):
            for start in range(0, (last["last"] or 0) + 1, page):
                yield from self._columns_between(name, columns, start, start + page)

    def _columns_between(self, name: str, columns: str, start: int, end: int) -> "Iterator[pa.Table]":
        query = f"SELECT rowid AS row, {columns} FROM {name} WHERE rowid >= ? AND rowid < ?"
        if (rows := self.table(query, [start, end])) is not None:
            yield rows
        elif end - start > _ROWS_TOGETHER:
            half = (start + end) // 2
            yield from self._columns_between(name, columns, start, half)
            yield from self._columns_between(name, columns, half, end)

    def rows_at(self, name: str, numbers: list[int]) -> list[dict[str, Any]]:
        """Return the rows of a table with these numbers (column `row` of `columns`), with all columns, in the order of
        the numbers. Unreadable rows are left out."""
        first, last = min(numbers), max(numbers)
        query = (
            f"SELECT * FROM {name} WHERE rowid IN (SELECT unnest($n)) AND rowid BETWEEN $first AND $last ORDER BY rowid"
        )
        table = self.table(query, {"n": numbers, "first": first, "last": last})
        if table is not None or len(numbers) == 1:
            return table.to_pylist() if table is not None else []
        half = len(numbers) // 2
        return self.rows_at(name, numbers[:half]) + self.rows_at(name, numbers[half:])


# --- the files --------------------------------------------------------------------------------------------------------


def store_files(path: Path) -> tuple[Path, Path]:
    """Return the paths of a store's file and its write-ahead log."""
    return path, path.with_name(path.name + ".wal")


def free_path(path: Path, suffix: str) -> Path:
    """Return an unused path: `path` with `suffix` added. An `.aside` at the end of `path` is replaced by `suffix`. A
    number is added if the path, or the path of its write-ahead log, is in use."""
    name = re.sub(r"\.aside\d*$", "", path.name) + suffix
    paths = (path.with_name(f"{name}{n or ''}") for n in chain([0], count(2)))
    return next(path for path in paths if not any(map(os.path.lexists, store_files(path))))


def set_aside(path: Path, suffix: str = ".aside") -> Path:
    """Rename a store and its write-ahead log to unused paths, since they may hold records that nothing else has; return
    the store's new path. The log is renamed first: after a kill between the two, the log's name shows which store it
    belongs to."""
    renames = planned_renames(path, suffix)
    for file, new_path in renames:
        if os.path.lexists(file):
            file.rename(new_path)
    return renames[-1][1]


def planned_renames(path: Path, suffix: str = ".aside") -> list[tuple[Path, Path]]:
    """Return the renames that `set_aside` makes, as (path, new path), in order: the write-ahead log, then the store."""
    return list(zip(reversed(store_files(path)), reversed(store_files(free_path(path, suffix))), strict=True))


def restore_log(path: Path) -> None:
    """Undo a `set_aside` that was killed between its two renames: give the store its write-ahead log back."""
    _, log = store_files(path)
    logs_alone = (moved for moved in asides(path, ".wal") if not moved.with_suffix("").exists())
    if path.exists() and not log.exists() and (moved := next(logs_alone, None)):
        moved.rename(log)


def asides(path: Path, end: str = "") -> list[Path]:
    """Return the stores set aside from this path that still exist, sorted by name. With `end` ".wal", return their
    write-ahead logs instead."""
    name = re.compile(re.escape(path.name + ".aside") + r"\d*" + re.escape(end))
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name))


def delete_aside(path: Path) -> None:
    """Delete a set-aside store whose records are all in the journal. Its write-ahead log is deleted first: a log that
    is left alone would be restored by `restore_log`."""
    for name in reversed(store_files(path)):
        name.unlink(missing_ok=True)
