"""Time that goes faster for everything that runs in one event loop: the simulator and its clients alike."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


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
