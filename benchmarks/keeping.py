"""How soon a reply is safe, what it takes on disk, and how long our code holds the event loop."""

import asyncio
import gc
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from aif.cli.main import SELDOM
from aif.config.pipeline import load
from aif.engine.connect import opened
from aif.engine.orchestrator import Run
from aif.engine.prepare import prepare, rubric_of
from aif.store.ingest import Entry
from aif.store.journaled_store import JournaledStore
from benchmarks.house import MODELS, pipeline, serving
from measured import Figures

NUMBER = 10
PROMISE = "Journal and store: a reply is acknowledged within moments; our code holds the event loop under 20 ms (p99)"
HELD_MS = 20.0
LOOK_EVERY_S = 0.001


class Watch:
    """An observer of a run: how long after its reply each record was synced."""

    def __init__(self) -> None:
        self.acknowledged_s: list[float] = []
        self.held_s: list[float] = []

    def kept(self, entries: Sequence[Entry]) -> None:
        now = datetime.now(UTC)
        for entry in entries:
            came = datetime.fromisoformat(entry.record["started"]).timestamp() + entry.record["seconds"]
            self.acknowledged_s.append(now.timestamp() - came)

    async def look(self) -> None:
        """How much later than asked the loop comes back: as long as something held it."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(LOOK_EVERY_S)
            self.held_s.append(time.perf_counter() - began - LOOK_EVERY_S)


def trial(folder: Path, full: bool) -> Figures:
    prompts = 2000 if full else 60
    with serving(200, 400) as server:
        path = pipeline(folder, server.base_url, prompts, 256)
        watch = Watch()
        gc.set_threshold(*SELDOM)  # as the command does
        asyncio.run(_run(path, watch))
    store = folder / "store"
    calls = prompts * (len(MODELS) + 1)
    journal = sum(file.stat().st_size for file in (store / "feedback.journal").iterdir())
    return {
        "calls": calls,
        "acknowledged": len(watch.acknowledged_s),
        "acknowledged_ms": _quantiles(watch.acknowledged_s),
        "held_ms": _quantiles(watch.held_s),
        "journal_bytes_a_call": round(journal / calls),
        "store_bytes_a_call": round((store / "feedback.duckdb").stat().st_size / calls),
    }


async def _run(path: Path, watch: Watch) -> None:
    loaded = load(path)
    rubric = rubric_of(loaded)
    with JournaledStore.open(loaded.store, print, rubric) as ledger:
        prepare(loaded, ledger, rubric, print)
        async with opened(loaded) as endpoints:
            looking = asyncio.create_task(watch.look())
            await Run(loaded, ledger, rubric, endpoints, watch).work()
            looking.cancel()


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    found = sorted(seconds)
    return {
        name: round(1000 * found[min(len(found) - 1, int(share * len(found)))], 1)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def unsound(figures: Figures) -> list[str]:
    kept = figures["acknowledged"]
    return [] if kept == figures["calls"] else [f"{kept:,} records of {figures['calls']:,} calls"]


def broken(figures: Figures) -> list[str]:
    held = figures["held_ms"]["p99"]
    return unsound(figures) + ([f"the loop is held for {held} ms (p99)"] if held > HELD_MS else [])


def told(figures: Figures) -> str:
    acknowledged, held = figures["acknowledged_ms"], figures["held_ms"]
    return (
        f"{figures['calls']:,} calls: acknowledged after {acknowledged['p50']} ms (p50), {acknowledged['p99']} ms "
        f"(p99); loop held {held['p99']} ms (p99), {held['max']} ms at most; "
        f"{figures['journal_bytes_a_call']:,} bytes a call in the journal, "
        f"{figures['store_bytes_a_call']:,} in the store"
    )
