"""The queue of one endpoint: decides which item is sent next.

An *endpoint* is a model or judge; an *item* is one of its completions or judgements. A *pager* (orchestrator.py) adds
new items in the store's order. A *worker* sends one item at a time. The rules:

- Items to retry are sent before new items.
- While the endpoint is paused (rate limited or failing), a new item is sent first, to test whether the endpoint answers
  again.
- While an item waits before its retry, its worker sends the next item.
- While it is unclear whether items or the endpoint are at fault, a *distant* item is sent next.

A *distant* item is drawn at random from the pending items that the pager has not reached, since neighbouring rows tend
to fail alike. If there is none, a random new item in the queue counts as distant, or else the next new item.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from aif.providers.base import ACCESS_ERRORS, CallError, Kind
from aif.providers.concurrency import ENOUGH_ITEMS, MANY_OTHERS, ItemHistory, OtherItems
from aif.providers.endpoint import Endpoint
from aif.providers.retry import RetryState, Verdict

T = TypeVar("T")

# Per call that may be in flight:
QUEUED = 2  # new items in the queue; below this the next page is added
UNFINISHED = 8  # items begun and not finished; above this none is added, since they stay in memory

MAX_DISTANT = 2  # distant items waiting for their first attempt


@dataclass(slots=True, eq=False)
class QueueItem(Generic[T]):
    """One completion or judgement in the queue, with the judgements to send after it, if any.

    make: builds the job when the item is sent, since building hundreds of requests at once would stall all calls.
    following: functions that build the jobs to send after this one, in order; their requests begin with the same text.
    history: the item's failures so far, as the limiter of calls in flight needs them.
    retry_state: the item's failures so far, as the retry rules need them.
    distant: whether it counts as a distant item, and its first attempt has not ended. A distant item is drawn at random
        from the pending items, to find out whether items or the endpoint are at fault.
    """

    make: Callable[[], T]
    following: Sequence[Callable[[], T]] = ()
    history: ItemHistory = field(default_factory=ItemHistory)
    retry_state: RetryState = field(default_factory=RetryState)
    distant: bool = False  # distant, and its first attempt has not ended
    _job: T | None = None

    @property
    def job(self) -> T:
        if self._job is None:
            self._job = self.make()
        return self._job

    @property
    def size(self) -> int:
        """Number of items: this item and those in `following`."""
        return 1 + len(self.following)


class WorkQueue(asyncio.Queue["QueueItem[T] | None"]):
    """The items of one endpoint that are ready to be sent. `get` returns the next item, or None when all are finished.

    `draw_distant` returns a random pending item that is not in the queue yet; None if it finds none.
    """

    def __init__(self, endpoint: Endpoint, draw_distant: Callable[[], Awaitable[QueueItem[T] | None]]) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._draw_distant = draw_distant
        self._added = self._unfinished = 0  # numbers of items
        self._distant = 0  # distant items whose first attempt has not ended
        self._distant_owed = False  # none could be drawn: the next new item counts as distant
        self._closed = False
        self._room = asyncio.Event()
        endpoint.others = self.others

    def _init(self, maxsize: int) -> None:
        self._new: deque[QueueItem[T]] = deque()
        self._retries: deque[QueueItem[T]] = deque()
        self._ends = 0

    def _qsize(self) -> int:
        return len(self._new) + len(self._retries) + self._ends

    def empty(self) -> bool:
        return not self._qsize()

    def _put(self, item: QueueItem[T] | None) -> None:
        if item is None:
            self._ends += 1
        else:
            (self._retries if item.retry_state.n else self._new).append(item)

    def _get(self) -> QueueItem[T] | None:
        if not self._new and not self._retries:
            self._ends -= 1
            return None
        first, second = self._retries, self._new
        if first and self._endpoint.limiter.probing:
            first, second = second, first
        item = (first or second).popleft()
        if self._distant_owed and not item.retry_state.n:
            self._distant_owed = False
            item.distant = item.history.sampled = True
            self._distant += 1
        self._notify_room()
        return item

    # --- adding items -------------------------------------------------------------------------------------------------

    def add(self, items: Iterable[QueueItem[T]]) -> None:
        """Append new items."""
        for item in items:
            self._count(item.size)
            self.put_nowait(item)

    async def wait_for_room(self) -> None:
        """Wait until more items may be added: few new items are left in the queue, and few of the items taken from it
        are unfinished."""
        self._room.clear()
        self._notify_room()
        await self._room.wait()

    def _notify_room(self) -> None:
        slots, queued = self._endpoint.concurrency, len(self._new)
        if queued < QUEUED * slots and self._unfinished - queued < UNFINISHED * slots:
            self._room.set()

    def close(self) -> None:
        """Note that no more items will be added; the workers end when all items are finished."""
        self._closed = True
        self._count(0)

    def _count(self, more: int) -> None:
        self._added += max(0, more)
        self._unfinished += more
        if self._closed and not self._unfinished:
            for _ in range(self._endpoint.concurrency):
                self.put_nowait(None)

    # --- for the workers ----------------------------------------------------------------------------------------------

    def others(self, error: CallError) -> OtherItems:
        """Return what the endpoint's other items can show: whether `error` is the fault of its item or of the endpoint.
        The result says, for example, how many different items must fail alike to blame the endpoint."""
        if not self._closed:
            return MANY_OTHERS
        more = bool(self._new)
        if error.kind in ACCESS_ERRORS and error.explicit:
            return OtherItems(min(ENOUGH_ITEMS, self._unfinished), more_coming=more)
        if not self._endpoint.answered:
            # with few items nothing tells a limit of the endpoint from a limit that only this item exceeds
            limited = error.kind is Kind.RATE_LIMITED and self._added < ENOUGH_ITEMS
            enough = ENOUGH_ITEMS if limited else min(ENOUGH_ITEMS, self._added)
            return OtherItems(enough, too_few=limited, more_coming=more)
        return OtherItems(too_few=self._unfinished < ENOUGH_ITEMS, more_coming=more)

    def attempted(self, item: QueueItem[T]) -> None:
        """Note that an attempt of the item has ended.

        A *distant* item is drawn at random from the pending items, to find out whether items or the endpoint are at
        fault. At most MAX_DISTANT distant items are in their first attempt. When such an attempt ends, another may be
        taken.
        """
        if item.distant:
            item.distant = False
            self._distant -= 1

    def finish(self, item: QueueItem[T]) -> QueueItem[T] | None:
        """Remove an item that this run will not send again. Return the item to send right after it, if any."""
        self._count(-1)
        self._notify_room()
        return QueueItem(item.following[0], item.following[1:]) if item.following else None

    def drop(self, item: QueueItem[T]) -> None:
        """Remove an item without sending it, and the items that were to be sent after it (`following`)."""
        self._count(-item.size)
        self._notify_room()

    async def take_distant(self) -> QueueItem[T] | None:
        """Remove and return a random pending item that the pager has not reached, else a random new item in the queue.
        The item counts as distant until its first attempt has ended.

        Returns None if MAX_DISTANT items count as distant. Also returns None if there is no such item; then the next
        new item counts as distant.
        """
        if self._distant >= MAX_DISTANT:
            return None
        self._distant += 1
        self._unfinished += 1  # counted before it is drawn, so that the queue does not end meanwhile
        item = await self._draw_distant()
        if item is not None:
            self._count(item.size)
        elif self._new:
            at = random.randrange(len(self._new))
            item = self._new[at]
            del self._new[at]
        if item is None:
            self._distant -= 1
            self._distant_owed = True
        else:
            item.distant = item.history.sampled = True
        self._count(-1)
        return item


async def run_workers(
    endpoint: Endpoint,
    queue: WorkQueue[T],
    fill: Callable[[], Awaitable[None]],
    attempt: Callable[[QueueItem[T]], Awaitable[Verdict | None]],
) -> None:
    """Send the items of one endpoint with as many workers as calls may be in flight, until all items are finished or
    the endpoint is halted.

    `fill` adds all items to the queue, and returns when there are no more. `attempt` waits for the endpoint's server,
    makes one call for an item, and returns what happens to the item; None if no call was made.
    """
    async with asyncio.TaskGroup() as group:
        for _ in range(endpoint.concurrency):
            group.create_task(_work(endpoint, queue, attempt, group))
        await fill()
        queue.close()
    endpoint.done.set()


async def _work(
    endpoint: Endpoint,
    queue: WorkQueue[T],
    attempt: Callable[[QueueItem[T]], Awaitable[Verdict | None]],
    group: asyncio.TaskGroup,
) -> None:
    item: QueueItem[T] | None = None
    while (item := item or await queue.get()) is not None:
        if endpoint.halt.is_set():  # the queue is emptied, so that `add_items` can end
            queue.drop(item)
            item = None
            continue
        verdict = await attempt(item)
        queue.attempted(item)
        if verdict == "again":
            if item.retry_state.wait_s:
                group.create_task(_back_off(endpoint, queue, item))
            else:
                queue.put_nowait(item)
            item = await queue.take_distant() if endpoint.limiter.fault_unclear else None
        else:
            item = queue.finish(item)


async def _back_off(endpoint: Endpoint, queue: WorkQueue[T], item: QueueItem[T]) -> None:
    if await endpoint.sleep(item.retry_state.wait_s):
        queue.put_nowait(item)
    else:
        queue.drop(item)
