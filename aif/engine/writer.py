"""The one writer of a run: every record goes to the journal, then in comfortable batches to the store.

Two steps run side by side, a thread each: the journal's sync must not wait for a commit. Both queues are bounded, so a
slow disk slows the workers down instead of filling memory.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from aif.core.errors import StoreDamaged, StoreStarved
from aif.core.paging import PAGE_BYTES, pages
from aif.store.ingest import Entry, steps
from aif.store.journal import Position
from aif.store.journaled_store import JournaledStore

# What a crash loses was in flight, or younger than this and a sync; on two busy cores the slowest took 1 s (p99).
SYNC_EVERY_S = 0.05
COMMIT_EVERY_S = 0.25
# A commit takes 16 ms of CPU whatever is in it. Where it would hold fewer records than this, it waits for more.
FEW, LATE_S = 32, 1.0
QUEUED = 4096
HELD_BYTES = 4 * PAGE_BYTES  # of replies on their way into the store: who has another waits
BUSY = 200  # so many waiting are enough for a batch

T = TypeVar("T")

Synced = tuple[list[Entry], Position]


class Writer:
    """Keeps entries in the order they come. `on_kept` gets those synced; `on_ready` is called as prompts get ready, and
    `on_trouble` where the disk is full or the store damaged: nothing new is to be asked then."""

    def __init__(
        self,
        ledger: JournaledStore,
        per_prompt: int,
        min_completions: int,
        on_kept: Callable[[list[Entry]], None],
        on_ready: Callable[[], None],
        on_trouble: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._enough = (per_prompt, min_completions)
        self._on_kept = on_kept
        self._on_ready = on_ready
        self._on_trouble = on_trouble
        self._incoming: asyncio.Queue[Entry | None] = asyncio.Queue(QUEUED)
        self._synced: asyncio.Queue[Synced | None] = asyncio.Queue(64)
        self._taken: list[Entry | None] = []  # out of the queue, and not known to be synced
        self._unkept: list[Entry] = []  # for which there was no room; tried again at the end
        self._trouble: Exception | None = None
        self._handed = self._settled = 0  # entries, ever: handed over, and of these in the store, or lost to it
        self._bytes = 0  # of those that are not settled
        self._moved = asyncio.Event()
        self._hurried = asyncio.Event()  # somebody waits until all is in the store

    async def keep(self, entry: Entry) -> None:
        """Hands an entry over; waits while the disk is behind."""
        while self._bytes > HELD_BYTES:
            await self._move()
        self._bytes += entry.bytes
        await self._incoming.put(entry)
        self._handed += 1

    async def flush(self) -> None:
        """Returns when everything handed over so far is in the store. It waits for no more to go with that."""
        wanted = self._handed
        self._hurried.set()
        try:
            while self._settled < wanted:
                await self._move()
        finally:
            self._hurried.clear()

    async def _move(self) -> None:
        """Returns when something more is settled."""
        self._moved.clear()
        await self._moved.wait()

    async def close(self) -> None:
        """Ends `run` when everything handed over is in the store."""
        self._hurried.set()
        await self._incoming.put(None)

    def give_up(self, trouble: Exception) -> None:
        """The store or the disk is of no more use: what is in flight is still journalled, then `run` raises this."""
        self._trouble = self._trouble or trouble
        self._on_trouble()

    async def run(self) -> None:
        try:
            await self._keep_all()
        except asyncio.CancelledError:
            if isinstance(self._trouble, OSError):  # not all was kept, as being left at once would say
                raise self._trouble from None
            raise
        if self._trouble:
            raise self._trouble

    async def _keep_all(self) -> None:
        try:
            with ThreadPoolExecutor(1, "journal") as journal, ThreadPoolExecutor(1, "store") as store:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._sync(journal))
                    group.create_task(self._commit(store))
        finally:
            self._keep_rest()

    def _keep_rest(self) -> None:
        """However a run is left, what was handed over goes into the journal; the store follows when it is next opened.

        What may be there already is there twice then, and taken in once. On a full disk, as much as fits; what does not
        is lost as if it had still been in flight.
        """
        rest = [entry.record for entry in (*self._unkept, *self._taken, *_drain(self._incoming)) if entry is not None]
        if not rest:
            return
        try:
            self._ledger.journal.append(rest)
        except OSError as full:
            self._trouble = self._trouble or full
            for record in rest:
                with suppress(OSError):
                    self._ledger.journal.append([record])

    async def _sync(self, thread: ThreadPoolExecutor) -> None:
        loop, open_ = asyncio.get_running_loop(), True
        due = loop.time()
        while open_:
            batch = self._taken = [await self._incoming.get()]
            if self._incoming.qsize() < BUSY:
                await self._until(due)
            batch += _drain(self._incoming)
            whole = [entry for entry in batch if entry is not None]
            open_ = len(whole) == len(batch)
            for entries in pages(whole, lambda entry: entry.bytes, QUEUED):
                records = [entry.record for entry in entries]
                try:
                    position = await loop.run_in_executor(thread, self._ledger.journal.append, records)
                except OSError as full:
                    self._unkept += entries
                    self._settle(entries)
                    self.give_up(full)
                else:
                    self._on_kept(entries)
                    await self._synced.put((entries, position))
                self._taken = self._taken[len(entries) :]
            due = loop.time() + SYNC_EVERY_S
        await self._synced.put(None)

    async def _commit(self, thread: ThreadPoolExecutor) -> None:
        loop, open_ = asyncio.get_running_loop(), True
        due = loop.time()
        while open_:
            batches = [await self._synced.get()]
            await self._until(due)
            batches += _drain(self._synced)
            if sum(len(batch[0]) for batch in batches if batch) < FEW:
                await self._until(due + LATE_S)
                batches += _drain(self._synced)
            whole = [batch for batch in batches if batch is not None]
            open_ = len(whole) == len(batches)
            for full in pages(whole, _bytes, len(whole)):
                entries = [entry for batch, _ in full for entry in batch]
                if not self._trouble:
                    try:
                        if await loop.run_in_executor(thread, self._store, entries, full[-1][1]):
                            self._on_ready()
                    except (StoreDamaged, StoreStarved, OSError) as trouble:
                        self.give_up(trouble)
                self._settle(entries)
            due = loop.time() + COMMIT_EVERY_S

    def _settle(self, entries: list[Entry]) -> None:
        self._settled += len(entries)
        self._bytes -= sum(entry.bytes for entry in entries)
        self._moved.set()

    async def _until(self, due: float) -> None:
        """Waits for more, unless somebody waits for what is there."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._hurried.wait()

    def _store(self, entries: list[Entry], position: Position) -> bool:
        """Applies entries; true where prompts may have become ready to be judged by it."""
        self._ledger.store.apply(steps(entries), position)
        places = sorted({entry.place[0] for entry in entries if entry.place})
        if places:
            self._ledger.store.add_judgeable(places, *self._enough)
        return bool(places)


def _bytes(batch: Synced) -> int:
    return sum(entry.bytes for entry in batch[0])


def _drain(queue: asyncio.Queue[T]) -> list[T]:
    return [queue.get_nowait() for _ in range(queue.qsize())]
