"""`python -m chaos._sampled FILE SECONDS …` is `aif …` with a thread beside it that writes, every so many seconds, what
the process holds: a JSON object a line.

DuckDB keeps in memory what it has written, up to its `memory_limit`, which is more than an hour writes. Here it is
given less, so that this cache is full early, and what grows then would grow without end.
"""

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path

from aif import store
from aif.cli import main

CACHE = "64MB"
PAGE = os.sysconf("SC_PAGE_SIZE")


class Noticing(asyncio.DefaultEventLoopPolicy):
    """Knows the event loop that was made last."""

    loop: asyncio.AbstractEventLoop | None = None

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        self.loop = super().new_event_loop()
        return self.loop


def sample(loop: asyncio.AbstractEventLoop | None) -> dict[str, float]:
    """Memory in MB, open files, threads, asyncio's tasks, and blocks of memory that Python's objects take."""
    return {
        "at": time.monotonic(),
        "mb": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "tasks": len(asyncio.all_tasks(loop)) if loop else 0,
        "blocks": sys.getallocatedblocks(),
        "cpu_s": time.process_time(),
    }


def watch(policy: Noticing, file: Path, every_s: float) -> None:
    with file.open("w") as out:
        while True:
            time.sleep(every_s)
            out.write(json.dumps(sample(policy.loop)) + "\n")
            out.flush()


if __name__ == "__main__":
    store.SETTINGS["memory_limit"] = CACHE
    policy = Noticing()
    asyncio.set_event_loop_policy(policy)
    threading.Thread(target=watch, args=(policy, Path(sys.argv[1]), float(sys.argv[2])), daemon=True).start()
    sys.argv = ["aif", *sys.argv[3:]]
    main()
