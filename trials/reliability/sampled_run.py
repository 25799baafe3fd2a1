"""`python -m trials.reliability.sampled_run FILE SECONDS …` is `aif …` with a thread that writes the process's memory,
open files and tasks to FILE every SECONDS seconds, a JSON object a line.

DuckDB keeps in memory what it has read and written of its tables, up to its `memory_limit`, which is more than an hour
writes. So what it says that it holds of them is told apart. (With a limit that an hour fills, 64 MB, a commit found no
room.) What a query holds while it runs is not: its room stays with the allocator, so that the process is no smaller
between queries.
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


class Noticing(asyncio.DefaultEventLoopPolicy):
    """Knows the event loop that was made last."""

    loop: asyncio.AbstractEventLoop | None = None

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        self.loop = super().new_event_loop()
        return self.loop


class Known:
    """The store that is open, if one is. DuckDB takes a connection more from any thread, but no close meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: store.Store | None = None
        opened, closed = store.Store.__init__, store.Store.close

        def init(one: store.Store, *arguments: Any) -> None:
            opened(one, *arguments)
            self._open = one

        def close(one: store.Store) -> None:
            with self._lock:
                self._open = None
                closed(one)

        store.Store.__init__, store.Store.close = init, close  # type: ignore[method-assign, assignment]

    def held_mb(self) -> float:
        """What DuckDB holds of its tables, by its own word."""
        with self._lock:
            if self._open is None:
                return 0.0
            with database.connect(self._open.path) as db:
                ((held,),) = db.execute(
                    "SELECT sum(memory_usage_bytes) FROM duckdb_memory() "
                    "WHERE tag IN ('BASE_TABLE', 'ART_INDEX', 'METADATA', 'OVERFLOW_STRINGS')"
                ).fetchall()
        return float(held) / 2**20


def sample(loop: asyncio.AbstractEventLoop | None, known: Known) -> dict[str, float]:
    """Memory in MB, and of it DuckDB's; open files, threads, asyncio's tasks, blocks of memory that Python's objects
    take."""
    return {
        "at": time.monotonic(),
        "duckdb_mb": known.held_mb(),
        "mb": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "tasks": len(asyncio.all_tasks(loop)) if loop else 0,
        "blocks": sys.getallocatedblocks(),
        "cpu_s": time.process_time(),
    }


def watch(policy: Noticing, known: Known, file: Path, every_s: float) -> None:
    with file.open("w") as out:
        while True:
            time.sleep(every_s)
            out.write(json.dumps(sample(policy.loop, known)) + "\n")
            out.flush()


if __name__ == "__main__":
    policy = Noticing()
    asyncio.set_event_loop_policy(policy)
    threading.Thread(target=watch, args=(policy, Known(), Path(sys.argv[1]), float(sys.argv[2])), daemon=True).start()
    sys.argv = ["aif", *sys.argv[3:]]
    main()
