"""Wait for what other processes do, by polling with a deadline."""

import os
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 60.0


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Return once the condition holds. Fails after a minute."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie, which has ended and waits for its parent, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not stat.parent.parent.exists()  # there is no /proc, or the process has just ended
