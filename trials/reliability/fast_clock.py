"""Time that goes faster for everything that runs in one event loop: the simulator and its clients alike."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Selector(selectors.DefaultSelector):
    """Waits a fraction of what it is asked to."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> Any:
        return super().select(timeout / self._speed if timeout else timeout)


class ScaledLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock, and so every sleep, deadline and time of its own, goes `speed` times as fast.

    What is computed takes as much of its time as it takes, so many times over: 10 ms of work are a second at 100.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        super().__init__(_Selector(speed))

    def time(self) -> float:
        return super().time() * self._speed


def run(main: Coroutine[Any, Any, T], speed: float) -> T:
    """As `asyncio.run`, on a clock so many times as fast."""
    with asyncio.Runner(loop_factory=lambda: ScaledLoop(speed)) as runner:
        return runner.run(main)


class _Leaping(selectors.DefaultSelector):
    """Waits for nothing but what is under way: data on a socket, a thread that works."""

    GRACE_S = 0.0005  # in which the system brings what was sent from one socket to another
    STUCK_S = 30.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.working = 0  # threads of the loop's executors

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or (self.working and timeout > 0):
            ready = super().select(self.STUCK_S)
            assert ready, "nothing will ever happen any more"
            return ready
        ready = super().select(self.GRACE_S if timeout > 0 and len(self.get_map()) > 1 else 0)
        self.now += 0.0 if ready else max(0.0, timeout)
        return ready


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while anything is done, and leaps to the next timer else.

    So it is as fast as the machine and, unlike a scaled one, shows the same on a slow one: what is computed takes no
    time. Everything has to be in the loop, or in threads that it waits for. It begins at 1000 s.
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
    """As `asyncio.run`, in as little time as its work takes."""
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        return runner.run(main)
