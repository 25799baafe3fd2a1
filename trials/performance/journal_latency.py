"""10. The time until a reply is on disk, its size there, and how long aif blocks the event loop."""

import asyncio
import gc
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from aif.cli.main import GC_THRESHOLDS
from aif.config.pipeline import load
from aif.engine.connect import open_endpoints
from aif.engine.orchestrator import Orchestrator
from aif.engine.prepare import prepare, rubric_of
from aif.store.ingest import Entry
from aif.store.journaled_store import JournaledStore
from trials.harness import Figures
from trials.performance.measured_run import MODELS, pipeline, serving

NUMBER = 10
PROMISE = (
    "Journal and store: a reply is acknowledged within moments; aif blocks the event loop for less than 20 ms (p99)"
)
HELD_MS = 20.0
LOOK_EVERY_S = 0.001


class Observer:
    """Observes a run: the time from each reply to its sync, and the delays of the event loop."""

    def __init__(self) -> None:
        self.acknowledged_s: list[float] = []
        self.held_s: list[float] = []

    def on_calls(self, entries: Sequence[Entry]) -> None:
        now = datetime.now(UTC)
        for entry in entries:
            received = datetime.fromisoformat(entry.record["started"]).timestamp() + entry.record["seconds"]
            self.acknowledged_s.append(now.timestamp() - received)

    async def look(self) -> None:
        """Measure how much later than requested a sleep ends: that long something blocked the loop."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(LOOK_EVERY_S)
            self.held_s.append(time.perf_counter() - began - LOOK_EVERY_S)


def trial(folder: Path, full: bool) -> Figures:
    prompts = 2000 if full else 60
    with serving(200, 400) as server:
        path = pipeline(folder, server.base_url, prompts, 256)
        observer = Observer()
        gc.set_threshold(*GC_THRESHOLDS)  # as the command does
        asyncio.run(_run(path, observer))
    store = folder / "store"
    calls = prompts * (len(MODELS) + 1)
    journal = sum(file.stat().st_size for file in (store / "feedback.journal").iterdir())
    return {
        "calls": calls,
        "acknowledged": len(observer.acknowledged_s),
        "acknowledged_ms": _quantiles(observer.acknowledged_s),
        "held_ms": _quantiles(observer.held_s),
        "journal_bytes_a_call": round(journal / calls),
        "store_bytes_a_call": round((store / "feedback.duckdb").stat().st_size / calls),
    }


async def _run(path: Path, observer: Observer) -> None:
    loaded = load(path)
    rubric = rubric_of(loaded)
    with JournaledStore.open(loaded.store, print, rubric) as journaled:
        prepare(loaded, journaled, rubric, print)
        async with open_endpoints(loaded) as endpoints:
            looking = asyncio.create_task(observer.look())
            await Orchestrator(loaded, journaled, rubric, endpoints, observer).work()
            looking.cancel()


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def measurement_errors(figures: Figures) -> list[str]:
    acknowledged = figures["acknowledged"]
    return [] if acknowledged == figures["calls"] else [f"{acknowledged:,} records of {figures['calls']:,} calls"]


def violations(figures: Figures) -> list[str]:
    held = figures["held_ms"]["p99"]
    return measurement_errors(figures) + ([f"the loop is blocked for {held} ms (p99)"] if held > HELD_MS else [])


def summary(figures: Figures) -> str:
    acknowledged, held = figures["acknowledged_ms"], figures["held_ms"]
    return (
        f"{figures['calls']:,} calls: acknowledged after {acknowledged['p50']} ms (p50), {acknowledged['p99']} ms "
        f"(p99); loop blocked for {held['p99']} ms (p99), {held['max']} ms at most; "
        f"{figures['journal_bytes_a_call']:,} bytes a call in the journal, "
        f"{figures['store_bytes_a_call']:,} in the store"
    )
