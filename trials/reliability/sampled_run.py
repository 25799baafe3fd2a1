"""`python -m trials.reliability.sampled_run FILE SECONDS …` is `aif …` with a thread that writes the process's memory,
open files and tasks to FILE every SECONDS seconds, a JSON object a line.

DuckDB caches table data in memory, up to its `memory_limit`, which is more than an hour's run writes. So the size that
DuckDB reports for its tables is sampled separately. (With a limit that an hour fills, 64 MB, a commit ran out of
memory.) The memory of running queries is not separated: the allocator keeps it, so the process doesn't shrink between
queries.
"""

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from aif.cli.main import main
from aif.store import connection as database
from aif.store import database as store

PAGE = os.sysconf("SC_PAGE_SIZE")


class LoopTracker(asyncio.DefaultEventLoopPolicy):
    """An event loop policy that remembers the event loop created last."""

    loop: asyncio.AbstractEventLoop | None = None

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        self.loop = super().new_event_loop()
        return self.loop


class OpenStore:
    """The store that is open, if any. Another thread may open a connection to it, but not during a close."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: store.Store | None = None
        opened, closed = store.Store.__init__, store.Store.close

        def init(opened_store: store.Store, *arguments: Any) -> None:
            opened(opened_store, *arguments)
            self._open = opened_store

        def close(closed_store: store.Store) -> None:
            with self._lock:
                self._open = None
                closed(closed_store)

        store.Store.__init__, store.Store.close = init, close  # type: ignore[method-assign, assignment]

    def held_mb(self) -> float:
        """Return the memory in MB that DuckDB reports for its tables and indexes."""
        with self._lock:
            if self._open is None:
                return 0.0
            with database.connect(self._open.path) as db:
                ((held,),) = db.execute(
                    "SELECT sum(memory_usage_bytes) FROM duckdb_memory() "
                    "WHERE tag IN ('BASE_TABLE', 'ART_INDEX', 'METADATA', 'OVERFLOW_STRINGS')"
                ).fetchall()
        return float(held) / 2**20


def sample(loop: asyncio.AbstractEventLoop | None, open_store: OpenStore) -> dict[str, float]:
    """Measure the process: memory in MB, DuckDB's part of it, open files, threads, asyncio tasks, allocated blocks."""
    return {
        "at": time.monotonic(),
        "duckdb_mb": open_store.held_mb(),
        "mb": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "tasks": len(asyncio.all_tasks(loop)) if loop else 0,
        "blocks": sys.getallocatedblocks(),
        "cpu_s": time.process_time(),
    }


def watch(policy: LoopTracker, open_store: OpenStore, file: Path, every_s: float) -> None:
    with file.open("w") as out:
        while True:
            time.sleep(every_s)
            out.write(json.dumps(sample(policy.loop, open_store)) + "\n")
            out.flush()


if __name__ == "__main__":
    policy = LoopTracker()
    asyncio.set_event_loop_policy(policy)
    threading.Thread(
        target=watch, args=(policy, OpenStore(), Path(sys.argv[1]), float(sys.argv[2])), daemon=True
    ).start()
    sys.argv = ["aif", *sys.argv[3:]]
    main()
