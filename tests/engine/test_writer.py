"""The one writer: no written entry is lost, however a run ends."""

import asyncio
import errno
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aif.core import batching
from aif.core.errors import StoreDamaged
from aif.core.types import Usage
from aif.engine.writer import Writer
from aif.providers.base import Reply
from aif.store import journal, records
from aif.store.ingest import Entry
from aif.store.journaled_store import JournaledStore
from aif.store.reader import Reader
from tests.support.building import STARTED, Fate, build


def entries(journaled: JournaledStore, n: int, text: str = "words") -> list[Entry]:
    item = records.CallItem(
        "completion", "k", "p", "able", "able", {"sample": 0, "seed": 1, "principle": None, "system": "role"}
    )
    reply = Reply(text, "stop", Usage(1, 1))
    return [
        Entry(
            records.call(
                records.CallItem("completion", f"key{i}", item.prompt_id, item.endpoint, item.identity, item.details),
                id=f"call{i}", n=1, started=STARTED, seconds=1, verdict="answered", reply=reply, error=None, usd=0.0,
            )
        )
        for i in range(n)
    ]  # fmt: skip


def journaled_calls(folder: Path) -> set[str]:
    return {r["id"] for _, r in journal.replay(folder) if isinstance(r, dict) and r["t"] == "call"}


@pytest.fixture
def journaled(tmp_path: Path) -> Any:
    _, _, opened = build(tmp_path, 1, complete=lambda n, m: Fate.PENDING)
    yield opened
    with suppress(OSError):  # a test may have closed it
        opened.close()


async def test_everything_is_synced_and_stored_in_order(journaled: JournaledStore) -> None:
    seen: list[str] = []
    writer = Writer(
        journaled, 4, 2, lambda synced: seen.extend(e.record["id"] for e in synced), lambda: None, lambda: None
    )
    running = asyncio.create_task(writer.run())
    for entry in entries(journaled, 500):
        await writer.write(entry)
    await writer.flush()

    assert seen == [f"call{i}" for i in range(500)]
    assert journaled.store.position == journaled.journal.position
    await writer.close()
    await running


async def test_a_flush_waits_only_for_entries_written_before_it(journaled: JournaledStore) -> None:
    """Judges keep writing when generation has ended: the queue may not be empty for an hour."""
    writer = Writer(journaled, 4, 2, lambda synced: None, lambda: None, lambda: None)
    running = asyncio.create_task(writer.run())
    all_entries = entries(journaled, 3000)
    for entry in all_entries[:200]:
        await writer.write(entry)

    async def write_on() -> None:
        for entry in all_entries[200:]:
            await writer.write(entry)
            await asyncio.sleep(0)

    more = asyncio.create_task(write_on())
    async with asyncio.timeout(30):
        await writer.flush()
    with Reader.of(journaled.store) as reader:
        assert reader._query("SELECT count(*) AS n FROM calls")[0]["n"] >= 200
    await more
    await writer.close()
    await running
    assert len(journaled_calls(journaled.journal.folder)) == len(all_entries)


@pytest.mark.parametrize("turns", [0, 1, 5, 50])
async def test_a_run_that_is_cancelled_journals_every_written_entry(journaled: JournaledStore, turns: int) -> None:
    writer = Writer(journaled, 4, 2, lambda synced: None, lambda: None, lambda: None)
    running = asyncio.create_task(writer.run())
    await asyncio.sleep(0)
    for entry in entries(journaled, 300):
        await writer.write(entry)
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert journaled_calls(journaled.journal.folder) == {f"call{i}" for i in range(300)}
    journaled.close()
    with JournaledStore.open(journaled.paths.store, print) as reopened:
        (row,) = reopened.store.cursor().execute("SELECT count(*), count(DISTINCT id) FROM calls").fetchall()
        assert row == (300, 300)


async def test_a_store_that_fails_loses_no_journal_entry(journaled: JournaledStore) -> None:
    writer = Writer(journaled, 4, 2, lambda synced: None, lambda: None, lambda: None)
    journaled.store.close()  # what a failing disk looks like to the committing thread
    running = asyncio.create_task(writer.run())
    for entry in entries(journaled, 300):
        await writer.write(entry)
    with pytest.raises(BaseExceptionGroup):
        await running

    assert journaled_calls(journaled.journal.folder) == {f"call{i}" for i in range(300)}


async def test_after_store_damage_calls_in_flight_are_still_journaled(journaled: JournaledStore) -> None:
    stopped: list[bool] = []
    writer = Writer(journaled, 4, 2, lambda synced: None, lambda: None, lambda: stopped.append(True))
    running = asyncio.create_task(writer.run())
    for n, entry in enumerate(entries(journaled, 300)):
        if n == 100:
            writer.fail(StoreDamaged("block 7"))
        await writer.write(entry)
    await writer.flush()
    await writer.close()
    with pytest.raises(StoreDamaged, match="block 7"):
        await running
    assert stopped == [True]
    assert journaled_calls(journaled.journal.folder) == {f"call{i}" for i in range(300)}


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY, reason="files are limited here already"
)
@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("room", [False, True])
async def test_on_a_full_disk_the_rest_is_journaled_once_there_is_room(
    journaled: JournaledStore, room: bool, cancelled: bool
) -> None:
    """A limit on file size stands in for a full disk. If it is lifted before the end, nothing is lost. A run that is
    cancelled raises the error, too."""
    stopped: list[bool] = []
    writer = Writer(journaled, 4, 2, lambda synced: None, lambda: None, lambda: stopped.append(True))
    first, *rest = entries(journaled, 40)
    journaled.journal.append([first.record])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journaled.journal.position.offset + 3000, before[1]))
    try:
        running = asyncio.create_task(writer.run())
        for entry in rest:
            await writer.write(entry)
        await writer.flush()
        if room:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if cancelled:
            running.cancel()
        else:
            await writer.close()
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            await running
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert stopped
    ids = journaled_calls(journaled.journal.folder)
    assert ids == {f"call{i}" for i in range(40)} if room else 1 < len(ids) < 40
    assert not [r for _, r in journal.replay(journaled.journal.folder) if isinstance(r, journal.Damage)]


async def test_entries_not_yet_in_the_store_are_bounded_by_bytes(
    journaled: JournaledStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,096 replies of 200 KB would be 800 MB, and too much for one DuckDB transaction."""
    monkeypatch.setattr(batching, "MAX_BATCH_BYTES", 1000)
    monkeypatch.setattr("aif.engine.writer.HELD_BYTES", 4000)
    monkeypatch.setattr("aif.engine.writer.COMMIT_EVERY_S", 0.0)
    monkeypatch.setattr("aif.engine.writer.LATE_S", 0.0)
    applied: list[int] = []
    apply = journaled.store.apply

    def record(steps: Any, *where: Any) -> None:
        applied.append(sum(sum(step.tables["completions"]["bytes"].to_pylist()) for step in steps))
        apply(steps, *where)

    monkeypatch.setattr(journaled.store, "apply", record)
    seen: list[str] = []
    writer = Writer(
        journaled, 4, 2, lambda synced: seen.extend(e.record["id"] for e in synced), lambda: None, lambda: None
    )
    running = asyncio.create_task(writer.run())
    long_entries = entries(journaled, 300, "w" * 300)
    long_entries[7].record["text"] = "long" * 1000
    for entry in long_entries:
        await writer.write(entry)
        assert writer._bytes <= 4000 + entry.bytes
    await writer.close()
    await running

    assert seen == [f"call{i}" for i in range(300)]
    assert sum(applied) == 299 * 300 + 4000
    assert sorted(applied)[-2] <= 1000
    assert journaled.store.position == journaled.journal.position
