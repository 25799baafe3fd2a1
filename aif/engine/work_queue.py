"""The line before one endpoint: which item it is asked for next.

Items come in order from a pager, and come back when they are to be asked again. Whoever waits leaves its place to
another, and while the endpoint answers nobody those come first that did not just fail. Where items fail alike, the next
is taken from elsewhere among those to come: rows that stand together are alike.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from aif.providers.base import PROVIDER, CallError, Kind
from aif.providers.concurrency import ITEMS, MANY, Caller, Others
from aif.providers.endpoint import Endpoint
from aif.providers.retry import Course, Verdict

T = TypeVar("T")

AT_HAND = 2  # items by places that may be in flight: fewer, and the pager brings more
OPEN = 8  # the same of items that were asked and are not done: they must not fill memory
FAR = 2  # items from elsewhere at a time


@dataclass(slots=True, eq=False)
class QueueItem(Generic[T]):
    """What is to be asked, made when its turn comes: a page of rendered requests made at once holds up all calls.
    `then` comes after it, in turn (judgements that begin alike). `caller` and `course` are its failures so far."""

    make: Callable[[], T]
    then: Sequence[Callable[[], T]] = ()
    caller: Caller = field(default_factory=Caller)
    course: Course = field(default_factory=Course)
    far: bool = False  # from elsewhere, and not asked yet
    _made: T | None = None

    @property
    def job(self) -> T:
        if self._made is None:
            self._made = self.make()
        return self._made

    @property
    def size(self) -> int:
        return 1 + len(self.then)


class WorkQueue(asyncio.Queue["QueueItem[T] | None"]):
    """The items of one endpoint; `elsewhere` brings one from among those that the pager has not come to, or None."""

    def __init__(self, endpoint: Endpoint, elsewhere: Callable[[], Awaitable[QueueItem[T] | None]]) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._elsewhere = elsewhere
        self._items = self._open = 0  # ever, and not done
        self._far = 0  # of those not asked yet
        self._owed = False  # none was there: the next that comes is it
        self._all_known = False
        self._room = asyncio.Event()
        endpoint.others = self.others

    def _init(self, maxsize: int) -> None:
        self._fresh: deque[QueueItem[T]] = deque()
        self._again: deque[QueueItem[T]] = deque()
        self._ends = 0

    def _qsize(self) -> int:
        return len(self._fresh) + len(self._again) + self._ends

    def empty(self) -> bool:
        return not self._qsize()

    def _put(self, item: QueueItem[T] | None) -> None:
        if item is None:
            self._ends += 1
        else:
            (self._again if item.course.n else self._fresh).append(item)

    def _get(self) -> QueueItem[T] | None:
        if not self._fresh and not self._again:
            self._ends -= 1
            return None
        first, second = self._again, self._fresh
        if first and self._endpoint.gate.probing:
            first, second = second, first
        item = (first or second).popleft()
        if self._owed and not item.course.n:
            self._owed = False
            item.far = item.caller.spread = True
            self._far += 1
        self._notice_room()
        return item

    # --- the pager's side ---------------------------------------------------------------------------------------------

    def bring(self, items: Iterable[QueueItem[T]]) -> None:
        for item in items:
            self._count(item.size)
            self.put_nowait(item)

    async def room(self) -> None:
        """Returns when there is room for more items."""
        self._room.clear()
        self._notice_room()
        await self._room.wait()

    def _notice_room(self) -> None:
        places, at_hand = self._endpoint.concurrency, len(self._fresh)
        if at_hand < AT_HAND * places and self._open - at_hand < OPEN * places:
            self._room.set()

    def end(self) -> None:
        """No more items will come."""
        self._all_known = True
        self._count(0)

    def _count(self, more: int) -> None:
        self._items += max(0, more)
        self._open += more
        if self._all_known and not self._open:
            for _ in range(self._endpoint.concurrency):
                self.put_nowait(None)

    # --- the workers' side --------------------------------------------------------------------------------------------

    def others(self, error: CallError) -> Others:
        """Who else could be asked, as it matters to a failure."""
        if not self._all_known:
            return MANY
        more = bool(self._fresh)
        if error.kind in PROVIDER and error.told:
            return Others(min(ITEMS, self._open), more=more)
        if not self._endpoint.answered:
            limited = error.kind is Kind.RATE_LIMITED and self._items < ITEMS  # of one item's limit nobody can tell
            return Others(ITEMS if limited else min(ITEMS, self._items), few=limited, more=more)
        return Others(few=self._open < ITEMS, more=more)

    def asked(self, item: QueueItem[T]) -> None:
        """An item has told what it can tell by being from elsewhere."""
        if item.far:
            item.far = False
            self._far -= 1

    def done(self, item: QueueItem[T]) -> QueueItem[T] | None:
        """An item is asked no more by this run. Returns the one that comes after it in turn."""
        self._count(-1)
        self._notice_room()
        return QueueItem(item.then[0], item.then[1:]) if item.then else None

    def drop(self, item: QueueItem[T]) -> None:
        """An item is not asked by this run, nor what comes after it."""
        self._count(-item.size)
        self._notice_room()

    async def far(self) -> QueueItem[T] | None:
        """An item from elsewhere, where there is one."""
        if self._far >= FAR:
            return None
        self._far += 1
        self._open += 1  # before it is known, so that nobody takes the line for done
        item = await self._elsewhere()
        if item is not None:
            self._count(item.size)
        elif self._fresh:
            at = random.randrange(len(self._fresh))
            item = self._fresh[at]
            del self._fresh[at]
        if item is None:
            self._far -= 1
            self._owed = True
        else:
            item.far = item.caller.spread = True
        self._count(-1)
        return item


async def run_workers(
    endpoint: Endpoint,
    line: WorkQueue[T],
    page: Callable[[], Awaitable[None]],
    ask: Callable[[QueueItem[T]], Awaitable[Verdict | None]],
) -> None:
    """A pager and its workers, until there is no more work for the endpoint or it is halted. `ask` makes one attempt
    and says what becomes of the item, None where none was made. Where its servers are not up yet, the workers wait with
    what they have."""
    async with asyncio.TaskGroup() as group:
        for _ in range(endpoint.concurrency):
            group.create_task(_work(endpoint, line, ask, group))
        await page()
        line.end()
    endpoint.done.set()


async def _work(
    endpoint: Endpoint,
    line: WorkQueue[T],
    ask: Callable[[QueueItem[T]], Awaitable[Verdict | None]],
    group: asyncio.TaskGroup,
) -> None:
    item: QueueItem[T] | None = None
    while (item := item or await line.get()) is not None:
        if endpoint.halt.is_set():  # the line is emptied, so that its pager can end
            line.drop(item)
            item = None
            continue
        verdict = await ask(item)
        line.asked(item)
        if verdict == "again":
            if item.course.wait_s:
                group.create_task(_wait(endpoint, line, item))
            else:
                line.put_nowait(item)
            item = await line.far() if endpoint.gate.doubtful else None
        else:
            item = line.done(item)


async def _wait(endpoint: Endpoint, line: WorkQueue[T], item: QueueItem[T]) -> None:
    if await endpoint.sleep(item.course.wait_s):
        line.put_nowait(item)
    else:
        line.drop(item)
