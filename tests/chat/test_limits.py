"""aif/chat/limits.py under a clock that only moves when somebody sleeps."""

import asyncio
import heapq
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from aif.chat.limits import BURST_S, Pace


class Time:
    """A clock whose sleepers wake in order; `oversleep` is how much later than asked they do."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.now = 1000.0
        self.oversleep = oversleep
        self.sleepers: list[tuple[float, int, asyncio.Event]] = []
        self.naps = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps += 1
        woken = asyncio.Event()
        heapq.heappush(self.sleepers, (self.now + seconds + self.oversleep, self.naps, woken))
        await woken.wait()

    async def run(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Move the clock from sleeper to sleeper until the tasks are done."""
        while not all(task.done() for task in tasks):
            for _ in range(5):
                await asyncio.sleep(0)
            if self.sleepers:
                self.now, _, woken = heapq.heappop(self.sleepers)
                woken.set()


async def sent_at(
    arrivals: Sequence[tuple[float, int]], rpm: float | None, tpm: float | None, oversleep: float = 0.0
) -> list[tuple[float, int]]:
    """When each request of (seconds since the one before, tokens) was sent, in the order of sending."""
    time = Time(oversleep)
    pace = Pace(rpm, tpm, clock=time.clock, sleep=time.sleep)
    sent: list[tuple[float, int]] = []

    async def one(after: float, tokens: int) -> None:
        if after:
            await time.sleep(after)
        await pace.turn(tokens)
        sent.append((time.now, tokens))

    at, tasks = 0.0, []
    for gap, tokens in arrivals:
        at += gap
        tasks.append(asyncio.create_task(one(at, tokens)))
    await time.run(tasks)
    return sent


async def test_no_limit_no_wait() -> None:
    time = Time()
    pace = Pace(None, None, clock=time.clock, sleep=time.sleep)
    for _ in range(100):
        await pace.turn(10**9)

    assert time.naps == 0


async def test_requests_go_evenly_after_a_second_s_worth() -> None:
    sent = await sent_at([(0.0, 1)] * 20, 600, None)

    assert [round(at - 1000.0, 6) for at, _ in sent] == [0.0] * 10 + [round(0.1 * n, 6) for n in range(1, 11)]


async def test_a_low_limit_lets_the_first_go_at_once() -> None:
    sent = await sent_at([(0.0, 1)] * 3, 2, None)

    assert [at - 1000.0 for at, _ in sent] == [0.0, 30.0, 60.0]


async def test_a_request_larger_than_a_minute_waits_its_time() -> None:
    sent = await sent_at([(0.0, 1200), (0.0, 600)], None, 600)

    assert [at - 1000.0 for at, _ in sent] == [119.0, 179.0]


async def test_first_come_first_served() -> None:
    sent = await sent_at([(0.0, 100), (0.0, 1), (0.0, 50), (0.0, 2)], 6000, 600)

    assert [tokens for _, tokens in sent] == [100, 1, 50, 2]


async def test_one_that_is_cancelled_has_taken_nothing() -> None:
    time = Time()
    pace = Pace(None, 60, clock=time.clock, sleep=time.sleep)
    tasks = [asyncio.create_task(pace.turn(tokens)) for tokens in (1, 10_000, 2)]
    for _ in range(5):
        await asyncio.sleep(0)
    tasks[1].cancel()
    time.sleepers.clear()
    await time.run(tasks)

    assert tasks[1].cancelled()
    assert time.now == 1002.0


rates = st.floats(1.0, 5000.0)
arrivals = st.lists(
    st.tuples(st.just(0.0) | st.floats(0.0, 30.0), st.integers(0, 3000)),
    min_size=1,
    max_size=60,
)


@given(arrivals, rates, st.floats(10.0, 50_000.0), st.just(0.0) | st.floats(0.0, 0.05))
def test_never_more_than_the_rate_in_any_window(
    arrivals: list[tuple[float, int]], rpm: float, tpm: float, oversleep: float
) -> None:
    sent = asyncio.run(sent_at(arrivals, rpm, tpm, oversleep))

    assert len(sent) == len(arrivals)
    for first, (begin, _) in enumerate(sent):
        for last in range(first, len(sent)):
            span = sent[last][0] - begin + oversleep + 1e-6
            window = sent[first : last + 1]
            assert len(window) <= rpm / 60 * (span + max(BURST_S, 60 / rpm))
            tokens = sum(tokens for _, tokens in window)
            assert tokens <= tpm / 60 * (span + max(BURST_S, window[0][1] * 60 / tpm))
