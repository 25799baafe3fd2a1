"""How the store is read: a connection that only reads, and the ways of asking it that its subclasses share."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import duckdb
import orjson

from aif.core.batching import KEYS_PER_QUERY
from aif.core.errors import BadInput, StoreDamaged
from aif.store.connection import check_version, connect, twice
from aif.store.lock import Places

if TYPE_CHECKING:  # these load numpy, 0.2 s of CPU, which `aif status` can do without
    import pyarrow as pa

    from aif.store.database import Store

_KEY = {"prompts": "prompt_id", "completions": "key", "texts": "digest"}


def _encoded(rows: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    def encoded(column: "pa.ChunkedArray") -> "pa.ChunkedArray | pa.Array":
        if pa.types.is_string(column.type):
            return column.dictionary_encode()
        # copied, or it keeps all that DuckDB gave with it, the texts too
        return pa.array(column.to_numpy().copy(), column.type)

    return pa.table({name: encoded(rows[name]) for name in rows.column_names})


class Queries:
    """The asking end of the store. One thread uses one reader."""

    def __init__(self, db: duckdb.DuckDBPyConnection, path: Path) -> None:
        self._db = db
        self._path = path

    @classmethod
    def of(cls, store: "Store") -> Self:
        """Reads beside the writer, in the same process. Call it from the thread that owns the store."""
        return cls(store.cursor(), store.path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads a store that no run holds."""
        if not path.exists() and Places(path).journal.exists():
            raise StoreDamaged(f"{path}: the store is gone")
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
        """Rows as dicts, for what is only shown."""

        def ask() -> list[dict[str, Any]]:
            rows = self._db.execute(query, parameters)
            names = [name for name, *_ in rows.description]
            return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]

        return twice(self._db, self._path, ask)

    def _arrow(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> "pa.Table":
        """Rows as an Arrow table."""
        table = twice(self._db, self._path, lambda: self._db.sql(query, params=parameters).to_arrow_table())
        assert table is not None
        return table

    def _numbered(self, query: str) -> "pa.Table":
        """The same, each text once and by number, and no column with NULLs but texts: of 2,500,000 pairs that is 0.1 GB
        in place of 0.6."""
        import pyarrow as pa

        def ask() -> list[pa.Table]:
            rows = self._db.sql(query).to_arrow_reader(100_000)
            return [_encoded(rows.schema.empty_table()), *(_encoded(pa.Table.from_batches([one])) for one in rows)]

        return pa.concat_tables(twice(self._db, self._path, ask)).unify_dictionaries()

    def _rows(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        return twice(self._db, self._path, lambda: self._db.execute(query, parameters).fetchall())

    def _column(self, table: str, column: str, keys: Iterable[str]) -> dict[str, Any]:
        """A column by its table's key, of those of these keys that are there. No more is read of it than that."""
        key, found, wanted = _KEY[table], dict[str, Any](), iter(dict.fromkeys(keys))
        while some := list(islice(wanted, KEYS_PER_QUERY)):
            found |= self._rows(f"SELECT {key}, {column} FROM {table} WHERE {key} IN (SELECT unnest(?))", [some])
        return found

    def texts(self, kind: str) -> dict[str, Any]:
        """Texts of one kind by digest."""
        return {
            digest: orjson.loads(text)
            for digest, text in self._rows("SELECT digest, content FROM texts WHERE kind = ?", [kind])
        }

    def marked(self, name: str) -> str | None:
        """What was remembered under this name (see `Store.mark`)."""
        rows = self._rows("SELECT value FROM marks WHERE name = ?", [name])
        return str(rows[0][0]) if rows else None
