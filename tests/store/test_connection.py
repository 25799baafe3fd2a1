"""How DuckDB is opened, and what its want of memory is to the rest of the house."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from aif.core.errors import Exit, StoreOutOfMemory
from aif.store import connection
from aif.store.connection import SETTINGS, connect, twice

Asked = list[tuple[int]]


def limit(db: duckdb.DuckDBPyConnection) -> str:
    return str(db.execute("SELECT current_setting('memory_limit')").fetchall()[0][0])


def long_text(db: duckdb.DuckDBPyConnection, megabytes: int) -> Callable[[], Asked]:
    """Asks for a text of so many MB."""
    query = f"SELECT length(string_agg(repeat('x', 1000), '')) FROM range({megabytes * 1000})"
    return lambda: db.execute(query).fetchall()


def test_what_finds_no_room_is_asked_once_more_with_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "memory_limit", "20MB")
    with connect(tmp_path / "s.duckdb") as db:
        before = limit(db)
        assert twice(db, tmp_path, long_text(db, 50)) == [(50_000_000,)]
        assert limit(db) != before


def test_what_finds_no_room_twice_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "AMPLE", "21MB")
    monkeypatch.setitem(SETTINGS, "memory_limit", "20MB")
    with connect(tmp_path / "s.duckdb") as db:
        with pytest.raises(
            StoreOutOfMemory, match=r"21MB of memory is too little .* is kept\. Lower max_chars"
        ) as raised:
            twice(db, tmp_path / "s.duckdb", long_text(db, 50))
        assert raised.value.exit == Exit.DISK
        db.begin()  # the second try finds the transaction ended by the first
        with pytest.raises(StoreOutOfMemory):
            twice(db, tmp_path, long_text(db, 50))


def test_a_commit_that_the_system_gives_no_memory_is_told_as_that(tmp_path: Path) -> None:
    """What DuckDB says under `ulimit -v`."""

    def ask() -> None:
        raise duckdb.TransactionException("Failed to commit: Failed to re-allocate block of 32 bytes (bad allocation)")

    with connect(tmp_path / "s.duckdb") as db, pytest.raises(StoreOutOfMemory):
        twice(db, tmp_path, ask)


def test_what_is_no_want_of_memory_is_asked_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        raise duckdb.BinderException("no such column")

    with connect(tmp_path / "s.duckdb") as db, pytest.raises(duckdb.BinderException):
        twice(db, tmp_path, ask)
    assert asked == [1]


def test_a_store_is_opened_for_reads_by_key(tmp_path: Path) -> None:
    """By zstd a row is read with all before it; and more keys than the threshold read all rows that stand together."""
    with connect(tmp_path / "s.duckdb") as db:
        db.execute("CREATE TABLE t AS SELECT i, repeat(md5(i::VARCHAR), 1000) AS text FROM range(50) r(i)")
        db.execute("CHECKPOINT")
        found = db.execute("SELECT DISTINCT compression FROM pragma_storage_info('t') WHERE segment_type = 'VARCHAR'")
        assert ("ZSTD",) not in found.fetchall()
        assert int(db.execute("SELECT current_setting('dynamic_or_filter_threshold')").fetchall()[0][0]) >= 2000
