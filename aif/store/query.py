"""A read-only connection to the store, and methods for SQL queries that its subclasses use."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import duckdb
import orjson

from aif.core.batching import KEYS_PER_QUERY
from aif.core.errors import BadInput, StoreDamaged
from aif.store.connection import check_version, connect, with_more_memory
from aif.store.paths import StorePaths

if TYPE_CHECKING:  # these load numpy, 0.2 s of CPU, which `aif status` does not need
    import pyarrow as pa

    from aif.store.database import Store

_KEY = {"prompts": "prompt_id", "completions": "key", "texts": "digest"}  # each table's primary key


def _dictionary_encoded(rows: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    def encoded(column: "pa.ChunkedArray") -> "pa.ChunkedArray | pa.Array":
        if pa.types.is_string(column.type):
            return column.dictionary_encode()
        # copied, since a view would keep DuckDB's whole buffer in memory, texts included
        return pa.array(column.to_numpy().copy(), column.type)

    return pa.table({name: encoded(rows[name]) for name in rows.column_names})


class Queries:
    """A read-only connection to a store. Use each instance in one thread only."""

    def __init__(self, db: duckdb.DuckDBPyConnection, path: Path) -> None:
        self._db = db
        self._path = path

    @classmethod
    def of(cls, store: "Store") -> Self:
        """Connect to a store that this process has open for writing. Call it in the thread that owns the store."""
        return cls(store.cursor(), store.path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a store that no process writes to.

        Raises BadInput if there is none, StoreDamaged if it can't be read or if only its journal exists, StoreLocked if
        another process has it open for writing.
        """
        if not path.exists() and StorePaths(path).journal.exists():
            raise StoreDamaged(f"{path}: the store is missing")
        if not path.exists():
            raise BadInput(f"{path}: no store here yet; `aif run` makes it")
        db = connect(path, read_only=True)
        try:
            check_version(db, path)
        except StoreDamaged:
            db.close()
            raise
        return cls(db, path)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _query(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Run an SQL query and return its rows as dicts, by column name."""

        def run() -> list[dict[str, Any]]:
            rows = self._db.execute(query, parameters)
            names = [name for name, *_ in rows.description]
            return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]

        return with_more_memory(self._db, self._path, run)

    def _rows(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Run an SQL query and return its rows as tuples."""
        return with_more_memory(self._db, self._path, lambda: self._db.execute(query, parameters).fetchall())

    def _arrow(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> "pa.Table":
        """Run an SQL query and return its rows as an Arrow table."""
        table = with_more_memory(self._db, self._path, lambda: self._db.sql(query, params=parameters).to_arrow_table())
        assert table is not None
        return table

    def _arrow_by_number(self, query: str) -> "pa.Table":
        """Run an SQL query and return its rows as an Arrow table with dictionary-encoded text columns, which store a
        text once and refer to it by number: 2,500,000 pairs take 0.1 GB in place of 0.6. Only text columns may hold
        NULLs."""
        import pyarrow as pa

        def run() -> list[pa.Table]:
            rows = self._db.sql(query).to_arrow_reader(100_000)
            parts = (_dictionary_encoded(pa.Table.from_batches([batch])) for batch in rows)
            return [_dictionary_encoded(rows.schema.empty_table()), *parts]

        return pa.concat_tables(with_more_memory(self._db, self._path, run)).unify_dictionaries()

    def _column(self, table: str, column: str, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of a column by primary key, for those of the `keys` that exist. DuckDB reads only the rows
        with these keys."""
        key, values, remaining = _KEY[table], dict[str, Any](), iter(dict.fromkeys(keys))
        while page := list(islice(remaining, KEYS_PER_QUERY)):
            values |= self._rows(f"SELECT {key}, {column} FROM {table} WHERE {key} IN (SELECT unnest(?))", [page])
        return values

    def texts(self, kind: str) -> dict[str, Any]:
        """Return all stored texts of a kind (`principle`, `rubric`, `material`, `model`) by digest, each parsed from
        JSON."""
        return {
            digest: orjson.loads(text)
            for digest, text in self._rows("SELECT digest, content FROM texts WHERE kind = ?", [kind])
        }

    def get_mark(self, name: str) -> str | None:
        """Return the value stored under this name by `Store.set_mark`; None if there is none."""
        rows = self._rows("SELECT value FROM marks WHERE name = ?", [name])
        return str(rows[0][0]) if rows else None
