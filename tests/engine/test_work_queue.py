"""aif/cli/line.py: which item is asked next, and when there is none any more."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from aif.core.types import Message
from aif.engine.work_queue import AT_HAND, OPEN, QueueItem, WorkQueue, run_workers
from aif.providers.base import CallError, Kind, Reply, Request
from aif.providers.concurrency import Others
from aif.providers.endpoint import Endpoint, Halted
from aif.providers.rate_limits import Pace
from aif.providers.retry import Verdict
from chaos import whose_fault
from chaos.clock import leap as run

BROKEN = CallError(Kind.SERVER_ERROR, "HTTP 500: boom")
PAGE = CallError(Kind.UNAUTHORIZED, "HTTP 403: Request blocked")


@dataclass
class House:
    """An endpoint over numbered items, of which `says` tells how each fares; who was asked, in order."""

    says: Callable[[int], CallError | None] = lambda n: None
    places: int = 1
    far: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    ends: dict[int, Verdict | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        free, clock = lambda *usage: 0.0, asyncio.get_running_loop().time
        self.endpoint = Endpoint("m", "completion", "m", self, self.places, free, free, Pace(None, None), clock=clock)
        self.line: WorkQueue[int] = WorkQueue(self.endpoint, self._elsewhere)

    async def ask(self, request: Request) -> Reply:
        await asyncio.sleep(1.0)
        if error := self.says(int(request.messages[0].content)):
            raise error
        return Reply("yes", "stop", None)

    async def aclose(self) -> None:
        pass

    async def _elsewhere(self) -> QueueItem[int] | None:
        return item(self.far.pop()) if self.far else None

    async def _once(self, one: QueueItem[int]) -> Verdict | None:
        verdict: Verdict = "answered"
        try:
            async with self.endpoint.turn(Request((Message("user", str(one.job)),), 1), one.caller) as turn:
                one.course.n += 1
                self.asked.append(one.job)
                await turn.ask()
        except Halted:
            return None
        except CallError as error:
            verdict = self.endpoint.verdict(error, one.caller, one.course)
        self.ends[one.job] = verdict
        return verdict

    async def serve(self, *items: QueueItem[int]) -> None:
        async def page() -> None:
            self.line.bring(items)
            await self.line.room()

        await run_workers(self.endpoint, self.line, page, self._once)


def item(n: int, *then: int) -> QueueItem[int]:
    return QueueItem(lambda: n, [lambda after=after: after for after in then])  # type: ignore[misc]


def test_items_go_in_order_and_what_comes_after_one_at_once() -> None:
    async def main() -> None:
        house = House()
        await house.serve(item(1, 2, 3), item(4))
        assert house.asked == [1, 2, 3, 4]
        assert house.endpoint.done.is_set()

    run(main())


def test_whoever_waits_leaves_its_place_to_another() -> None:
    async def main() -> None:
        house = House(lambda n: BROKEN if n == 2 else None)
        await house.serve(*map(item, range(1, 20)))
        assert house.asked.count(2) == 6
        assert house.ends == {**dict.fromkeys(range(1, 20), "answered"), 2: "failed"}
        assert asyncio.get_running_loop().time() < 1000 + 19 + 6 + 31, "nobody waited with it"

    run(main())


def test_bad_rows_at_the_top_stop_nothing_since_one_from_elsewhere_is_asked() -> None:
    async def main() -> None:
        for places in (1, 2, 4):
            house = House(lambda n: PAGE if n < 8 else None, places, far=[70, 60, 50])
            await house.serve(*map(item, range(40)))
            assert house.endpoint.refused is None
            assert {n for n, end in house.ends.items() if end == "failed"} == set(range(8))
            assert {n for n, end in house.ends.items() if end == "answered"} >= set(range(8, 40))

    run(main())


def test_as_many_hopeless_items_as_may_be_in_flight_hold_up_nobody_for_long() -> None:
    async def main() -> None:
        house = House(lambda n: BROKEN if 20 <= n < 30 else None, 4, far=list(range(99, 60, -1)))
        await house.serve(*map(item, range(60)))
        assert house.endpoint.refused is None
        assert {n for n, end in house.ends.items() if end == "failed"} == set(range(20, 30))
        assert {n for n, end in house.ends.items() if end == "answered"} >= {*range(20), *range(30, 60)}
        assert asyncio.get_running_loop().time() < 1000 + 180

    run(main())


@pytest.mark.parametrize("kind", [Kind.CONTEXT_OVERFLOW, Kind.BAD_REQUEST, Kind.EMPTY, Kind.UNREADABLE])
def test_what_no_item_gets_past_ends_the_endpoint_and_leaves_them_pending(kind: Kind) -> None:
    async def main() -> None:
        house = House(lambda n: CallError(kind, "no", told=True), 4, far=[90, 80])
        await house.serve(*map(item, range(60)))
        assert house.endpoint.refused is not None
        assert "failed" not in house.ends.values()
        assert len(house.asked) <= 4 + 2

    run(main())


def test_where_none_comes_from_elsewhere_the_next_at_hand_stands_for_it() -> None:
    async def main() -> None:
        house = House(lambda n: PAGE)
        await house.serve(*map(item, range(40)))
        assert house.endpoint.refused == PAGE.message
        assert len(house.asked) == 3

    run(main())


def test_a_halt_leaves_all_that_is_not_asked() -> None:
    async def main() -> None:
        house = House(lambda n: BROKEN if n == 0 else None, 2)
        asyncio.get_running_loop().call_later(3.5, house.endpoint.stop)
        await house.serve(item(0, 90, 91), *map(item, range(1, 40)))
        assert asyncio.get_running_loop().time() <= 1005
        assert set(house.asked) < set(range(10))

    run(main())


def test_a_pager_waits_while_enough_is_at_hand_or_waits_to_be_asked_again() -> None:
    async def main() -> None:
        house = House()
        house.endpoint.concurrency = 2
        house.line.bring(map(item, range(AT_HAND * 2)))
        waiting = asyncio.create_task(house.line.room())
        await asyncio.sleep(1)
        assert not waiting.done()
        await house.line.get()
        await waiting
        house.line.bring(map(item, range(OPEN * 2)))
        for _ in range(AT_HAND * 2 - 1 + OPEN * 2):
            begun = await house.line.get()
        waiting = asyncio.create_task(house.line.room())
        await asyncio.sleep(1)
        assert not waiting.done(), "all are begun, and none is done"
        assert begun is not None
        for _ in range(AT_HAND * 2 + 1):
            house.line.done(begun)
        await waiting

    run(main())


def test_who_else_could_be_asked() -> None:
    async def main() -> None:
        house = House()
        told = CallError(Kind.UNAUTHORIZED, "no key", told=True)
        house.line.bring([item(1), item(2)])
        assert house.endpoint.others(BROKEN) == Others(3, few=False, more=True), "others may come"
        house.line.end()
        assert house.endpoint.others(BROKEN) == Others(2, few=False, more=True), "these are all there are"
        limited = CallError(Kind.RATE_LIMITED, "slow down", retry_after=3600.0)
        assert house.endpoint.others(limited) == Others(3, few=True, more=True), "and a limit may be of one alone"
        house.endpoint.answered = 5
        assert house.endpoint.others(BROKEN) == Others(3, few=True, more=True), "it answered others"
        assert house.endpoint.others(told) == Others(2, few=False, more=True)
        await house.line.get()
        await house.line.get()
        assert not house.endpoint.others(BROKEN).more

    run(main())


def test_a_world_that_goes_wrong_is_noticed() -> None:
    """What random worlds are judged by is not what decides in them."""
    world = whose_fault.World(0, items=3, places=1, takes_s=1.0, doomed={1: whose_fault.PASSING[0]})
    call = whose_fault.Call(0, 0.0, 1.0, None, "answered")
    ends: dict[int, Verdict] = {0: "answered", 1: "failed", 2: "failed"}
    wrong = whose_fault.wrong(world, whose_fault.Course([call, call], ends, None, 1.0, frozenset()))
    assert wrong == [
        "item 0: answered twice",
        "item 2: sound, and ends as failed (None)",
        "item 2: sound, and failed for good",
    ]
