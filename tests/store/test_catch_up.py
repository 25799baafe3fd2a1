"""A store catches up with its journal, read by this process or by another."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident

import pytest

from aif.core.errors import AifError
from aif.store import records as events
from aif.store.catch_up import OTHER_PROCESS_BYTES, catch_up
from aif.store.database import Store
from aif.store.ingest import Step
from aif.store.journal import START, Journal, Position
from aif.store.journal_batches import RECORDS, Rubrics
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from tests.support.building import build
from tests.support.processes import alive

WAYS = pytest.mark.parametrize("far", [OTHER_PROCESS_BYTES, 0], ids=["here", "elsewhere"])
TABLES = ("prompts", "selection", "intake", "texts", "completions", "judgements", "calls", "failed", "reserved")


@contextmanager
def anew(path: Path) -> Iterator[Store]:
    store = Store.open(path)
    try:
        yield store
    finally:
        store.close()


def journal(folder: Path, records: int) -> Path:
    journal, _ = Journal.open(folder)
    journal.append([events.reserve("run", n, 1.0) for n in range(records)])
    journal.close()
    return folder


def reserved(store: Store) -> int:
    with Reader.of(store) as reader:
        return int(reader._query("SELECT count(*) AS n FROM reserved")[0]["n"])


@WAYS
def test_a_rebuilt_store_holds_the_same_rows(tmp_path: Path, far: int) -> None:
    pipeline, rubric, journaled = build(tmp_path)
    places = StorePaths(pipeline.store)
    journaled.close()
    held = _tables(places.store)
    rubrics = Rubrics()
    with anew(tmp_path / "again.duckdb") as store:
        taken_in, damaged = catch_up(store, places.journal, rubrics, far)
        assert catch_up(store, places.journal, rubrics, far) == (0, [])
    assert _tables(tmp_path / "again.duckdb") == held
    assert taken_in >= sum(len(held[name]) for name in ("calls", "prompts", "texts"))
    assert not damaged
    assert rubrics.get(rubric.digest) == rubric
    assert not rubrics.lost


def _tables(store: Path) -> dict[str, list[dict[str, object]]]:
    with Reader.open(store) as reader:
        return {table: reader._query(f"SELECT * FROM {table} ORDER BY ALL") for table in TABLES}


@WAYS
def test_a_damaged_line_is_reported_and_the_records_after_it_are_applied(tmp_path: Path, far: int) -> None:
    folder = journal(tmp_path / "j", RECORDS + 10)
    segment = folder / "000001.jsonl"
    text = bytearray(segment.read_bytes())
    text[text.index(b'"n":5,')] ^= 0x20
    segment.write_bytes(text)
    with anew(tmp_path / "s.duckdb") as store:
        taken_in, damaged = catch_up(store, folder, Rubrics(), far)
        assert (taken_in, store.damaged_lines, reserved(store)) == (RECORDS + 9, 1, RECORDS + 9)
    assert [one.reason for one in damaged] == ["the checksum does not match"]


@WAYS
def test_a_rubric_that_is_lost_is_named(tmp_path: Path, far: int) -> None:
    pipeline, rubric, journaled = build(tmp_path, 2)
    journaled.close()
    places = StorePaths(pipeline.store)
    segment = places.journal / "000001.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(line for line in lines if b'"kind":"rubric"' not in line))
    rubrics = Rubrics()
    with anew(tmp_path / "again.duckdb") as store:
        catch_up(store, places.journal, rubrics, far)
    assert rubrics.lost == {rubric.digest}


@WAYS
def test_a_journal_that_cannot_be_read_is_an_error(tmp_path: Path, far: int) -> None:
    folder = tmp_path / "j"
    (folder / "000001.jsonl").mkdir(parents=True)
    with anew(tmp_path / "s.duckdb") as store, pytest.raises(IsADirectoryError):
        catch_up(store, folder, Rubrics(), far)


class Watched(Store):
    """Records the threads it was used in and the reader processes; kills these if `ends_them`."""

    threads: set[int]
    readers: set[int]
    ends_them: bool

    @classmethod
    def at(cls, path: Path, ends_them: bool = False) -> "Watched":
        store = cls.open(path)
        store.threads, store.readers, store.ends_them = set(), set(), ends_them
        return store

    def apply(self, steps: Sequence[Step], position: Position, damaged: int = 0) -> None:
        self.threads.add(get_ident())
        self.readers |= _readers()
        super().apply(steps, position, damaged)
        if self.ends_them:
            for reader in _readers():
                os.kill(reader, signal.SIGKILL)


def _readers() -> set[int]:
    """The ids of the processes that read a journal for this one."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words, command = stat.read_text().rpartition(")")[2].split(), stat.with_name("cmdline").read_text()
        except OSError:  # it has ended
            continue
        if int(words[1]) == os.getpid() and "aif.store.catch_up" in command:
            found.add(int(stat.parent.name))
    return found


@WAYS
def test_the_store_is_written_only_in_its_owners_thread(tmp_path: Path, far: int) -> None:
    """In another, a second Ctrl-C would close it while in use, which DuckDB refuses."""
    folder = journal(tmp_path / "j", 2 * RECORDS + 1)
    store = Watched.at(tmp_path / "s.duckdb")
    assert catch_up(store, folder, Rubrics(), far) == (2 * RECORDS + 1, [])
    assert reserved(store) == 2 * RECORDS + 1
    store.close()
    assert store.threads == {get_ident()}


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")


@needs_proc
def test_a_killed_reader_process_is_reported_and_its_records_are_stored(tmp_path: Path) -> None:
    folder = journal(tmp_path / "j", 40 * RECORDS)
    store = Watched.at(tmp_path / "s.duckdb", ends_them=True)
    with pytest.raises(AifError, match=r"was killed \(signal 9\).*run the same command again"):
        catch_up(store, folder, Rubrics(), 0)
    assert len(store.readers) == 1
    assert 0 < reserved(store) < 40 * RECORDS
    store.ends_them = False
    catch_up(store, folder, Rubrics(), 0)
    assert reserved(store) == 40 * RECORDS
    store.close()


class Broken(Watched):
    """Fails after the first batch."""

    def apply(self, steps: Sequence[Step], position: Position, damaged: int = 0) -> None:
        if self.position != START:
            raise OSError(28, "No space left on device")
        super().apply(steps, position, damaged)


@needs_proc
def test_the_reader_process_ends_with_this_one(tmp_path: Path) -> None:
    folder = journal(tmp_path / "j", 40 * RECORDS)
    store = Broken.at(tmp_path / "s.duckdb")
    with pytest.raises(OSError, match="No space left"):
        catch_up(store, folder, Rubrics(), 0)
    store.close()
    assert store.readers
    assert not any(map(alive, store.readers))


def test_the_reader_process_ignores_modules_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's files named like modules are in the folder; their output is no batch."""
    folder = journal(tmp_path / "j", RECORDS + 1)
    for name in ("random", "aif", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("print('hello')\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    with anew(tmp_path / "s.duckdb") as store:
        assert catch_up(store, folder, Rubrics(), 0) == (RECORDS + 1, [])


def test_without_a_second_process_the_journal_is_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = journal(tmp_path / "j", 3)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with anew(tmp_path / "s.duckdb") as store:
        assert catch_up(store, folder, Rubrics(), 0) == (3, [])


def test_a_failed_reader_process_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = journal(tmp_path / "j", 3)
    (tmp_path / "aif.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with (
        anew(tmp_path / "s.duckdb") as store,
        pytest.raises(AifError, match=r"failed \(exit code 3\).*run the same command again"),
    ):
        catch_up(store, folder, Rubrics(), 0)


def _limit(store: Store) -> str:
    return str(store.cursor().execute("SELECT current_setting('memory_limit')").fetchall()[0][0])


def test_a_rebuild_has_more_memory_only_while_it_lasts(tmp_path: Path) -> None:
    with anew(tmp_path / "s.duckdb") as store:
        before = _limit(store)
        with pytest.raises(AifError), _stopped(store):
            assert _limit(store) != before
        assert _limit(store) == before


@contextmanager
def _stopped(store: Store) -> Iterator[None]:
    with store.more_memory():
        yield
        raise AifError("stopped")
