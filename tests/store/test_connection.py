"""DuckDB's settings, and how its memory errors are handled."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from aif.core.errors import Exit, StoreOutOfMemory
from aif.store import connection
from aif.store.connection import SETTINGS, connect, with_more_memory

Asked = list[tuple[int]]


def limit(db: duckdb.DuckDBPyConnection) -> str:
    return str(db.execute("SELECT current_setting('memory_limit')").fetchall()[0][0])


def long_text(db: duckdb.DuckDBPyConnection, megabytes: int) -> Callable[[], Asked]:
    """Return a query that makes a text of this many MB."""
    query = f"SELECT length(string_agg(repeat('x', 1000), '')) FROM range({megabytes * 1000})"
    return lambda: db.execute(query).fetchall()


def test_a_query_that_runs_out_of_memory_is_repeated_with_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "memory_limit", "20MB")
    with connect(tmp_path / "s.duckdb") as db:
        before = limit(db)
        assert with_more_memory(db, tmp_path, long_text(db, 50)) == [(50_000_000,)]
        assert limit(db) != before


def test_a_query_that_runs_out_of_memory_twice_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_MEMORY", "21MB")
    monkeypatch.setitem(SETTINGS, "memory_limit", "20MB")
    with connect(tmp_path / "s.duckdb") as db:
        with pytest.raises(
            StoreOutOfMemory, match=r"needs more than 21MB of memory; .* is stored\. Lower max_chars"
        ) as raised:
            with_more_memory(db, tmp_path / "s.duckdb", long_text(db, 50))
        assert raised.value.exit == Exit.DISK
        db.begin()  # the first attempt ends the transaction
        with pytest.raises(StoreOutOfMemory):
            with_more_memory(db, tmp_path, long_text(db, 50))


def test_a_commit_without_system_memory_is_a_memory_error(tmp_path: Path) -> None:
    """As DuckDB does under `ulimit -v`."""

    def ask() -> None:
        raise duckdb.TransactionException("Failed to commit: Failed to re-allocate block of 32 bytes (bad allocation)")

    with connect(tmp_path / "s.duckdb") as db, pytest.raises(StoreOutOfMemory):
        with_more_memory(db, tmp_path, ask)


def test_other_errors_are_not_repeated(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        raise duckdb.BinderException("no such column")

    with connect(tmp_path / "s.duckdb") as db, pytest.raises(duckdb.BinderException):
        with_more_memory(db, tmp_path, ask)
    assert asked == [1]


def test_a_store_is_opened_with_settings_for_reads_by_key(tmp_path: Path) -> None:
    """With zstd a row is read with all rows before it; above the threshold of keys, with all rows of its block."""
    with connect(tmp_path / "s.duckdb") as db:
        db.execute("CREATE TABLE t AS SELECT i, repeat(md5(i::VARCHAR), 1000) AS text FROM range(50) r(i)")
        db.execute("CHECKPOINT")
        found = db.execute("SELECT DISTINCT compression FROM pragma_storage_info('t') WHERE segment_type = 'VARCHAR'")
        assert ("ZSTD",) not in found.fetchall()
        assert int(db.execute("SELECT current_setting('dynamic_or_filter_threshold')").fetchall()[0][0]) >= 2000
