"""The one writer of a run: every record goes to the journal first, then in batches to the store.

An *entry* is a journal record, such as a call with its reply, plus the ratings parsed from the reply. Two tasks run in
parallel: one writes and syncs entries to the journal, the other applies them to the store. Each has a thread, so that a
journal sync never waits for a store commit. The queues of both are bounded: a slow disk slows the workers down instead
of filling memory.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from aif.core.batching import MAX_BATCH_BYTES, batched
from aif.core.errors import StoreDamaged, StoreOutOfMemory
from aif.store.ingest import Entry, steps
from aif.store.journal import Position
from aif.store.journaled_store import JournaledStore

# A crash loses calls in flight and entries younger than this plus one sync; the slowest sync (p99) took 1 s on two busy
# cores.
SYNC_EVERY_S = 0.05
COMMIT_EVERY_S = 0.25
# A commit takes 16 ms of CPU whatever its size, so one with fewer records than FEW waits up to LATE_S for more.
FEW, LATE_S = 32, 1.0
QUEUED = 4096
HELD_BYTES = 4 * MAX_BATCH_BYTES  # of replies not yet in the store; above this `write` waits
BUSY = 200  # with this many entries waiting, a batch is synced at once

T = TypeVar("T")

Synced = tuple[list[Entry], Position]


class Writer:
    """Writes entries to journal and store in the order they come. An entry is a journal record, such as a call with its
    reply, plus the ratings parsed from the reply.

    per_prompt: the number of completions planned per prompt.
    min_completions: the lowest number of completions with which a prompt can be judged.
    on_synced: called with entries once they are in the journal on disk.
    on_ready: called when prompts may have become ready to be judged.
    on_error: called when the journal or the store fails, such as on a full disk: no new call should be made then.
    """

    def __init__(
        self,
        journaled: JournaledStore,
        per_prompt: int,
        min_completions: int,
        on_synced: Callable[[list[Entry]], None],
        on_ready: Callable[[], None],
        on_error: Callable[[], None],
    ) -> None:
        self._journaled = journaled
        self._enough = (per_prompt, min_completions)
        self._on_synced = on_synced
        self._on_ready = on_ready
        self._on_error = on_error
        self._incoming: asyncio.Queue[Entry | None] = asyncio.Queue(QUEUED)
        self._synced: asyncio.Queue[Synced | None] = asyncio.Queue(64)
        self._syncing: list[Entry | None] = []  # taken from the queue, and not known to be synced
        self._unwritten: list[Entry] = []  # the journal could not be written; tried again at the end
        self._error: Exception | None = None
        self._written = self._settled = 0  # numbers of entries: passed to write(), and of these stored or failed
        self._bytes = 0  # of entries that are not settled
        self._progress = asyncio.Event()
        self._hurry = asyncio.Event()  # set while `flush` or `close` waits until all is in the store

    async def write(self, entry: Entry) -> None:
        """Queue an entry for the journal; waits while the disk is behind."""
        while self._bytes > HELD_BYTES:
            await self._wait_for_progress()
        self._bytes += entry.bytes
        await self._incoming.put(entry)
        self._written += 1

    async def flush(self) -> None:
        """Wait until every entry passed to `write` so far is in the store, or can't be written because of an error."""
        wanted = self._written
        self._hurry.set()
        try:
            while self._settled < wanted:
                await self._wait_for_progress()
        finally:
            self._hurry.clear()

    async def _wait_for_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    async def close(self) -> None:
        """Let `run` return once it has written every entry."""
        self._hurry.set()
        await self._incoming.put(None)

    def fail(self, error: Exception) -> None:
        """Note an error of store or disk, which `run` raises at its end. Nothing more is written to the store; entries
        still go to the journal, as far as the disk allows."""
        self._error = self._error or error
        self._on_error()

    async def run(self) -> None:
        """Write the entries passed to `write` to the journal, then to the store, until `close` is called. Raises the
        first error of disk or store."""
        try:
            await self._run()
        except asyncio.CancelledError:
            if isinstance(self._error, OSError):  # a plain cancellation would claim that all was journaled
                raise self._error from None
            raise
        if self._error:
            raise self._error

    async def _run(self) -> None:
        try:
            with ThreadPoolExecutor(1, "journal") as journal, ThreadPoolExecutor(1, "store") as store:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._sync(journal))
                    group.create_task(self._commit(store))
        finally:
            self._journal_rest()

    def _journal_rest(self) -> None:
        """Journal every remaining entry, however the run ends; the store catches up when it is next opened.

        An entry may then be in the journal twice; the store applies it once. If the disk is full, as many as fit are
        written; the others are lost, like calls in flight.
        """
        remaining = (*self._unwritten, *self._syncing, *_drain(self._incoming))
        rest = [entry.record for entry in remaining if entry is not None]
        if not rest:
            return
        try:
            self._journaled.journal.append(rest)
        except OSError as error:
            self._error = self._error or error
            for record in rest:
                with suppress(OSError):
                    self._journaled.journal.append([record])

    async def _sync(self, thread: ThreadPoolExecutor) -> None:
        loop, more = asyncio.get_running_loop(), True
        due = loop.time()
        while more:
            batch = self._syncing = [await self._incoming.get()]
            if self._incoming.qsize() < BUSY:
                await self._until(due)
            batch += _drain(self._incoming)
            received = [entry for entry in batch if entry is not None]
            more = len(received) == len(batch)
            for entries in batched(received, lambda entry: entry.bytes, QUEUED):
                records = [entry.record for entry in entries]
                try:
                    position = await loop.run_in_executor(thread, self._journaled.journal.append, records)
                except OSError as error:
                    self._unwritten += entries
                    self._settle(entries)
                    self.fail(error)
                else:
                    self._on_synced(entries)
                    await self._synced.put((entries, position))
                self._syncing = self._syncing[len(entries) :]
            due = loop.time() + SYNC_EVERY_S
        await self._synced.put(None)

    async def _commit(self, thread: ThreadPoolExecutor) -> None:
        loop, more = asyncio.get_running_loop(), True
        due = loop.time()
        while more:
            batches = [await self._synced.get()]
            await self._until(due)
            batches += _drain(self._synced)
            if sum(len(batch[0]) for batch in batches if batch) < FEW:
                await self._until(due + LATE_S)
                batches += _drain(self._synced)
            received = [batch for batch in batches if batch is not None]
            more = len(received) == len(batches)
            for page in batched(received, _bytes, len(received)):
                entries = [entry for batch, _ in page for entry in batch]
                if not self._error:
                    try:
                        if await loop.run_in_executor(thread, self._store, entries, page[-1][1]):
                            self._on_ready()
                    except (StoreDamaged, StoreOutOfMemory, OSError) as error:
                        self.fail(error)
                self._settle(entries)
            due = loop.time() + COMMIT_EVERY_S

    def _settle(self, entries: list[Entry]) -> None:
        self._settled += len(entries)
        self._bytes -= sum(entry.bytes for entry in entries)
        self._progress.set()

    async def _until(self, due: float) -> None:
        """Wait until the event loop's clock reads `due`, or until `flush` or `close` waits for the store, whichever is
        first."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._hurry.wait()

    def _store(self, entries: list[Entry], position: Position) -> bool:
        """Apply entries to the store. `position` is the end of these entries in the journal. Return whether prompts may
        have become ready to be judged."""
        self._journaled.store.apply(steps(entries), position)
        positions = sorted({entry.place[0] for entry in entries if entry.place})
        if positions:
            self._journaled.store.add_judgeable(positions, *self._enough)
        return bool(positions)


def _bytes(batch: Synced) -> int:
    return sum(entry.bytes for entry in batch[0])


def _drain(queue: asyncio.Queue[T]) -> list[T]:
    return [queue.get_nowait() for _ in range(queue.qsize())]
