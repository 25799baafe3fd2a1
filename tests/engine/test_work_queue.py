"""Which item the queue of an endpoint sends next, and when the queue ends."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from aif.core.types import Message
from aif.engine.work_queue import QUEUED, UNFINISHED, QueueItem, WorkQueue, run_workers
from aif.providers.base import CallError, Kind, Reply, Request
from aif.providers.concurrency import OtherItems
from aif.providers.endpoint import Endpoint, Halted
from aif.providers.rate_limits import RateLimiter
from aif.providers.retry import Verdict
from trials.reliability import failure_attribution
from trials.reliability.fast_clock import leap as run

BROKEN = CallError(Kind.SERVER_ERROR, "HTTP 500: boom")
PAGE = CallError(Kind.UNAUTHORIZED, "HTTP 403: Request blocked")


@dataclass
class Bench:
    """An endpoint with a queue of numbers. `result` gives the error of a number; `sent` has the attempts in order."""

    result: Callable[[int], CallError | None] = lambda n: None
    slots: int = 1
    distant: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    ends: dict[int, Verdict | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        free, clock = lambda *usage: 0.0, asyncio.get_running_loop().time
        self.endpoint = Endpoint(
            "m", "completion", "m", self, self.slots, free, free, RateLimiter(None, None), clock=clock
        )
        self.queue: WorkQueue[int] = WorkQueue(self.endpoint, self._draw_distant)

    async def ask(self, request: Request) -> Reply:
        await asyncio.sleep(1.0)
        if error := self.result(int(request.messages[0].content)):
            raise error
        return Reply("yes", "stop", None)

    async def aclose(self) -> None:
        pass

    async def _draw_distant(self) -> QueueItem[int] | None:
        return item(self.distant.pop()) if self.distant else None

    async def _attempt(self, item: QueueItem[int]) -> Verdict | None:
        verdict: Verdict = "answered"
        try:
            async with self.endpoint.attempt(Request((Message("user", str(item.job)),), 1), item.history) as attempt:
                item.retry_state.n += 1
                self.sent.append(item.job)
                await attempt.send()
        except Halted:
            return None
        except CallError as error:
            verdict = self.endpoint.verdict(error, item.history, item.retry_state)
        self.ends[item.job] = verdict
        return verdict

    async def serve(self, *items: QueueItem[int]) -> None:
        async def page() -> None:
            self.queue.add(items)
            await self.queue.wait_for_room()

        await run_workers(self.endpoint, self.queue, page, self._attempt)


def item(n: int, *then: int) -> QueueItem[int]:
    return QueueItem(lambda: n, [lambda after=after: after for after in then])  # type: ignore[misc]


def test_items_are_sent_in_order_each_followed_by_its_then() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.serve(item(1, 2, 3), item(4))
        assert bench.sent == [1, 2, 3, 4]
        assert bench.endpoint.done.is_set()

    run(main())


def test_an_item_that_backs_off_gives_its_slot_to_the_next() -> None:
    async def main() -> None:
        bench = Bench(lambda n: BROKEN if n == 2 else None)
        await bench.serve(*map(item, range(1, 20)))
        assert bench.sent.count(2) == 6
        assert bench.ends == {**dict.fromkeys(range(1, 20), "answered"), 2: "failed"}
        assert asyncio.get_running_loop().time() < 1000 + 19 + 6 + 31, "no other item waited for it"

    run(main())


def test_bad_rows_at_the_top_stop_nothing_since_a_distant_item_is_tried() -> None:
    async def main() -> None:
        for slots in (1, 2, 4):
            bench = Bench(lambda n: PAGE if n < 8 else None, slots, distant=[70, 60, 50])
            await bench.serve(*map(item, range(40)))
            assert bench.endpoint.refused is None
            assert {n for n, end in bench.ends.items() if end == "failed"} == set(range(8))
            assert {n for n, end in bench.ends.items() if end == "answered"} >= set(range(8, 40))

    run(main())


def test_hopeless_items_in_all_slots_delay_the_others_only_briefly() -> None:
    async def main() -> None:
        bench = Bench(lambda n: BROKEN if 20 <= n < 30 else None, 4, distant=list(range(99, 60, -1)))
        await bench.serve(*map(item, range(60)))
        assert bench.endpoint.refused is None
        assert {n for n, end in bench.ends.items() if end == "failed"} == set(range(20, 30))
        assert {n for n, end in bench.ends.items() if end == "answered"} >= {*range(20), *range(30, 60)}
        assert asyncio.get_running_loop().time() < 1000 + 180

    run(main())


@pytest.mark.parametrize("kind", [Kind.CONTEXT_OVERFLOW, Kind.BAD_REQUEST, Kind.EMPTY, Kind.UNREADABLE])
def test_an_error_that_every_item_gets_halts_the_endpoint_and_leaves_items_pending(kind: Kind) -> None:
    async def main() -> None:
        bench = Bench(lambda n: CallError(kind, "no", explicit=True), 4, distant=[90, 80])
        await bench.serve(*map(item, range(60)))
        assert bench.endpoint.refused is not None
        assert "failed" not in bench.ends.values()
        assert len(bench.sent) <= 4 + 2

    run(main())


def test_without_a_distant_item_the_next_in_the_queue_stands_in() -> None:
    async def main() -> None:
        bench = Bench(lambda n: PAGE)
        await bench.serve(*map(item, range(40)))
        assert bench.endpoint.refused == PAGE.message
        assert len(bench.sent) == 3

    run(main())


def test_a_halt_leaves_items_that_were_not_sent() -> None:
    async def main() -> None:
        bench = Bench(lambda n: BROKEN if n == 0 else None, 2)
        asyncio.get_running_loop().call_later(3.5, bench.endpoint.stop)
        await bench.serve(item(0, 90, 91), *map(item, range(1, 40)))
        assert asyncio.get_running_loop().time() <= 1005
        assert set(bench.sent) < set(range(10))

    run(main())


def test_the_pager_waits_while_enough_items_are_queued_or_unfinished() -> None:
    async def main() -> None:
        bench = Bench()
        bench.endpoint.concurrency = 2
        bench.queue.add(map(item, range(QUEUED * 2)))
        waiting = asyncio.create_task(bench.queue.wait_for_room())
        await asyncio.sleep(1)
        assert not waiting.done()
        await bench.queue.get()
        await waiting
        bench.queue.add(map(item, range(UNFINISHED * 2)))
        for _ in range(QUEUED * 2 - 1 + UNFINISHED * 2):
            begun = await bench.queue.get()
        waiting = asyncio.create_task(bench.queue.wait_for_room())
        await asyncio.sleep(1)
        assert not waiting.done(), "all are begun, and none is finished"
        assert begun is not None
        for _ in range(QUEUED * 2 + 1):
            bench.queue.finish(begun)
        await waiting

    run(main())


def test_how_many_other_items_can_be_tried() -> None:
    async def main() -> None:
        bench = Bench()
        heard = CallError(Kind.UNAUTHORIZED, "no key", explicit=True)
        bench.queue.add([item(1), item(2)])
        assert bench.endpoint.others(BROKEN) == OtherItems(3), "more items may come"
        bench.queue.close()
        assert bench.endpoint.others(BROKEN) == OtherItems(2), "there are only these"
        limited = CallError(Kind.RATE_LIMITED, "slow down", retry_after=3600.0)
        assert bench.endpoint.others(limited) == OtherItems(3, too_few=True), "a limit may concern only one item"
        bench.endpoint.answered = 5
        assert bench.endpoint.others(BROKEN) == OtherItems(3, too_few=True), "it answered other items"
        assert bench.endpoint.others(heard) == OtherItems(2)
        await bench.queue.get()
        await bench.queue.get()
        assert not bench.endpoint.others(BROKEN).more_coming

    run(main())


def test_the_check_of_random_worlds_notices_wrong_results() -> None:
    """Random judges are checked by code that does not share the queue's decisions."""
    world = failure_attribution.World(
        0, items=3, concurrency=1, takes_s=1.0, doomed={1: failure_attribution.PASSING[0]}
    )
    call = failure_attribution.Call(0, 0.0, 1.0, None, "answered")
    ends: dict[int, Verdict] = {0: "answered", 1: "failed", 2: "failed"}
    wrong = failure_attribution.mistakes_in(
        world, failure_attribution.Outcome([call, call], ends, None, 1.0, frozenset())
    )
    assert wrong == [
        "item 0: answered twice",
        "item 2: can be answered, but ended as failed (None)",
        "item 2: can be answered, but failed permanently",
    ]
