"""Event loops with a faster clock, for trials that run the simulator and its clients in one loop."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Selector(selectors.DefaultSelector):
    """A selector that waits only a fraction of the requested timeout."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> Any:
        return super().select(timeout / self._speed if timeout else timeout)


class ScaledLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock runs `speed` times as fast; its sleeps and deadlines are shorter to match.

    Computing is not sped up, so it takes more of the loop's time: 10 ms of work count as 1 s at speed 100.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        super().__init__(_Selector(speed))

    def time(self) -> float:
        return super().time() * self._speed


def run(main: Coroutine[Any, Any, T], speed: float) -> T:
    """Run a coroutine like `asyncio.run`, on a clock that is `speed` times as fast."""
    with asyncio.Runner(loop_factory=lambda: ScaledLoop(speed)) as runner:
        return runner.run(main)


class _Leaping(selectors.DefaultSelector):
    """A selector that waits only for work in progress (data on a socket, a busy thread) and skips other time."""

    GRACE_S = 0.0005  # time for the system to deliver data from one socket to another
    STUCK_S = 30.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.working = 0  # threads of the loop's executors

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or (self.working and timeout > 0):
            ready = super().select(self.STUCK_S)
            assert ready, "deadlock: no event is left to wait for"
            return ready
        ready = super().select(self.GRACE_S if timeout > 0 and len(self.get_map()) > 1 else 0)
        self.now += 0.0 if ready else max(0.0, timeout)
        return ready


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stops while there is work to do and jumps to the next timer otherwise.

    It runs as fast as the machine allows. Unlike a scaled clock it gives the same results on a slow machine, since
    computing takes no time. All work must be in the loop or in threads that it waits for. The clock starts at 1000 s.
    """

    def __init__(self) -> None:
        self._leaping = _Leaping()
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.now

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        self._leaping.working += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._worked)
        return future

    def _worked(self, _: object) -> None:
        self._leaping.working -= 1


def leap(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine like `asyncio.run`, on a clock that skips all waiting."""
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        return runner.run(main)
