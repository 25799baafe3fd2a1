"""Runs the trials at full length and writes docs/reliability.md: all of them, or those whose numbers are given."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from chaos import Trial, trials
from chaos.page import PAGE, RESULTS, ROOT, rendered


def main(numbers: list[int]) -> int:
    """The exit code: 0 where every promise tried was kept."""
    wanted = [one for one in trials() if not numbers or one.NUMBER in numbers]
    wrong = [one.NUMBER for one in wanted if not _tried(one)]
    PAGE.write_text(rendered(), encoding="utf-8")
    return 1 if wrong else 0


def _tried(one: Trial) -> bool:
    print(f"{one.NUMBER:2} {one.PROMISE} …", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aif-chaos-", dir=os.environ.get("AIF_CHAOS_DIR")) as folder:
        figures = one.trial(Path(folder), full=True)
    result = {
        "promise": one.NUMBER,
        "commit": _commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "seconds": round(time.monotonic() - began, 1),
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{one.NUMBER:02}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    wrong = one.broken(figures)
    print(f"   {one.told(figures)}\n   {'kept' if not wrong else 'NOT KEPT: ' + '; '.join(wrong)}", flush=True)
    return not wrong


def machine() -> str:
    """The machine in words: cores, memory, system, Python."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{cores} cores, {memory:.0f} GB, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "aif", "chaos", "data", "prompts", "tests")
    return git("rev-parse", "--short=9", "HEAD") + ("+changes" if changed else "")


if __name__ == "__main__":
    sys.exit(main([int(number) for number in sys.argv[1:]]))
