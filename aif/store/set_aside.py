"""A store that was set aside."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import duckdb

from aif.core.errors import StoreDamaged
from aif.store.connection import connect
from aif.store.query import Queries

if TYPE_CHECKING:
    import pyarrow as pa

_TOGETHER = 2048  # rows of which DuckDB reads all or none; to ask further, row by row, took 24 s of one bad block


class Former(Queries):
    """A store that was set aside: of whichever version, and however damaged. `torn`: some of it could not be read."""

    torn = False

    @classmethod
    def open(cls, path: Path) -> Self:
        return cls(connect(path, read_only=True), path)

    def said(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> "pa.Table | None":
        """An answer, or None where the file can't give it."""
        try:
            return self._arrow(query, parameters)
        except (StoreDamaged, duckdb.Error):
            self.torn = True
            return None

    def rows(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """As much of an answer as the file gives: all of it or nothing."""
        found = self.said(query, parameters)
        return found.to_pylist() if found is not None else []

    def columns(self, name: str, columns: str, page: int = 16_384) -> "Iterator[pa.Table]":
        """Some columns of a table, with the numbers of its rows, by the page: where one can't be read, by the half of
        it, down to the rows that DuckDB reads together."""
        for found in self.rows(f"SELECT max(rowid) AS last FROM {name}"):
            for start in range(0, (found["last"] or 0) + 1, page):
                yield from self._between(name, columns, start, start + page)

    def _between(self, name: str, columns: str, start: int, end: int) -> "Iterator[pa.Table]":
        query = f"SELECT rowid AS row, {columns} FROM {name} WHERE rowid >= ? AND rowid < ?"
        if (rows := self.said(query, [start, end])) is not None:
            yield rows
        elif end - start > _TOGETHER:
            half = (start + end) // 2
            yield from self._between(name, columns, start, half)
            yield from self._between(name, columns, half, end)

    def at(self, name: str, numbers: list[int]) -> list[dict[str, Any]]:
        """Whole rows of a table by their numbers, in order; of those that can't be read together, each that can."""
        first, last = min(numbers), max(numbers)
        query = (
            f"SELECT * FROM {name} WHERE rowid IN (SELECT unnest($n)) AND rowid BETWEEN $first AND $last ORDER BY rowid"
        )
        found = self.said(query, {"n": numbers, "first": first, "last": last})
        if found is not None or len(numbers) == 1:
            return found.to_pylist() if found is not None else []
        half = len(numbers) // 2
        return self.at(name, numbers[:half]) + self.at(name, numbers[half:])
