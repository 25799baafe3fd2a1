"""Run a simulator in a thread, so that it outlives the event loops of the runs that use it."""

import asyncio
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aif.simulator import SimulatedModels, Simulator

POOL = {"large": 0.85, "medium": 0.65, "small": 0.45, "tiny": 0.25}


@dataclass(frozen=True, slots=True)
class Served:
    """A running simulator: its address and its counts."""

    base_url: str

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + "/stats") as reply:
            found: dict[str, Any] = json.load(reply)
            return found


@contextmanager
def serving(cast: SimulatedModels | None = None, **options: Any) -> Iterator[Served]:
    """Run a simulator in a thread with its own event loop until the block ends."""
    simulator = Simulator(cast or SimulatedModels(POOL, {"judge": 0.1}, 7), **options)
    up = threading.Event()
    down: list[Callable[[], object]] = []

    async def serve() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with simulator:
            down.append(lambda: loop.call_soon_threadsafe(end.set))
            up.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert up.wait(10)
        yield Served(simulator.base_url)
    finally:
        for stop in down:
            stop()
        thread.join(10)
