"""10. Disk full: a run and an export on a small tmpfs with little free space, and the same commands with enough space.

Mounting needs root and Linux; elsewhere the trial is skipped with a message.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf
from os import statvfs
from pathlib import Path
from unittest import SkipTest

from aif.core.errors import Exit
from aif.store.journal import Damage, replay
from aif.store.paths import StorePaths
from trials.reliability import Figures
from trials.reliability.interrupted_run import (
    FORMATS,
    bodies_sent,
    export_digests,
    journaled_bodies,
    run_to_end,
    undisturbed_digests,
)
from trials.reliability.simulated_run import CallLog, aif, pipeline, served

NUMBER = 10
PROMISE = (
    "Disk full: a command stops with one line, nothing acknowledged is lost, and it resumes when there is space again"
)

DISK = 32 * 2**20  # bytes
PER_PROMPT = 5  # four completions and one judgement
IN_FLIGHT = 40  # eight calls at a time, of four models and a judge
AGE_S = 1.0  # what the server sent earlier than this before the last reply must be in the journal


@dataclass(frozen=True, slots=True)
class Stop:
    """How a command ended on a full disk: its exit code and its error lines."""

    code: int
    said: list[str]


@dataclass(frozen=True, slots=True)
class Filled:
    """A run with `room` KiB of free space, then an export with 4 KiB.

    How both ended; the number of replies sent, of lost replies older than AGE_S, of damaged journal lines, and of
    replies requested again once there was space; what was left of a dataset; and whether the final dataset was the
    same.
    """

    room: int
    run: Stop
    replies: int
    lost: int
    damaged: int
    asked_again: int
    export: Stop
    left: list[str]
    same: bool


def trial(folder: Path, full: bool) -> Figures:
    prompts, rooms = (40, (0, 8, 32, 64, 128, 256, 384, 512, 768, 1024, 1280, 1536)) if full else (10, (384,))
    with served(latency_s=0.02) as server:
        wanted = undisturbed_digests(folder / "undisturbed", server.base_url, prompts)
    results = []
    for room in rooms:
        with _disk(folder / "disk") as disk:
            results.append(asdict(_filled(disk, room, prompts, wanted)))
    return {"filled": results}


def _filled(disk: Path, room: int, prompts: int, wanted: dict[str, str]) -> Filled:
    call_log = CallLog()
    with served(call_log, latency_s=0.1) as server:
        path = pipeline(disk, server.base_url, prompts, export=FORMATS)
        places, dataset = StorePaths(disk / "store" / "feedback.duckdb"), disk / "store" / "dataset"
        with _leave_free(disk, room):
            run = _stop("run", path)
            answered = bodies_sent(call_log.calls, inf)
            last = max((call.ended for call in call_log.calls), default=0.0)
            lost = bodies_sent(call_log.calls, last - AGE_S) - journaled_bodies(places.store)
            damaged = sum(isinstance(line, Damage) for _, line in replay(places.journal))
        before = len(call_log.calls)
        run_to_end(path)
        asked_again = len(call_log.calls) - before - (prompts * PER_PROMPT - len(answered))
        with _leave_free(disk, 4):
            export = _stop("export", path)
            left = [entry.name for entry in dataset.parent.iterdir() if "dataset" in entry.name]
        same = export_digests(path, dataset) == wanted
    return Filled(room, run, len(answered), len(lost), damaged, asked_again, export, left, same)


def _stop(command: str, path: Path) -> Stop:
    code, output = aif(command, path)
    lines = [line for line in output.splitlines() if line.startswith(("aif: ", "Traceback", "Error"))]
    return Stop(code, [line.replace(str(path.parent), "…") for line in lines])


@contextmanager
def _disk(at: Path) -> Iterator[Path]:
    """Mount a small disk at `at`. Raises SkipTest where none can be mounted."""
    if sys.platform != "linux":
        raise SkipTest("a small disk is a tmpfs, which only Linux has")
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(at)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        raise SkipTest(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)
        at.rmdir()


@contextmanager
def _leave_free(disk: Path, room: int) -> Iterator[None]:
    """Leave `room` KiB of the disk free."""
    filler, now = disk / "filler", statvfs(disk)
    filler.write_bytes(bytes(max(0, now.f_bavail * now.f_frsize - room * 1024)))
    try:
        yield
    finally:
        filler.unlink()


def violations(figures: Figures) -> list[str]:
    problems = []
    for result in figures["filled"]:
        for name in ("run", "export"):
            code, messages = result[name]["code"], result[name]["said"]
            if (code, len(messages)) not in ((Exit.DISK, 1), (Exit.DONE, 0)) or "Traceback" in messages:
                problems.append(f"{name} with {result['room']} KiB: exit code {code}, {messages}")
        if result["lost"] or result["damaged"]:
            problems.append(
                f"{result['room']} KiB: {result['lost']} replies lost, {result['damaged']} lines of the journal damaged"
            )
        # calls in flight, and replies that were waiting for the sync that failed
        if result["asked_again"] > 2 * IN_FLIGHT:
            problems.append(f"{result['room']} KiB: {result['asked_again']} replies requested again")
        if result["left"] or not result["same"]:
            problems.append(
                f"{result['room']} KiB: left {result['left']}; the final dataset is the same: {result['same']}"
            )
    if not any(result["run"]["code"] == Exit.DISK and result["replies"] for result in figures["filled"]):
        problems.append("no disk was full in the middle of a run")
    return problems


def summary(figures: Figures) -> str:
    filled = figures["filled"]
    stopped = [result for result in filled if result["run"]["code"] == Exit.DISK]
    exports = sum(result["export"]["code"] == Exit.DISK for result in filled)
    replies, again = sum(result["replies"] for result in stopped), max(result["asked_again"] for result in filled)
    return (
        f"{len(stopped)} of {len(filled)} runs with {filled[0]['room']} to {filled[-1]['room']} KiB of free space, and "
        f"{exports} exports, stopped with one line and exit code {Exit.DISK:d}; of {replies:,} replies sent by then "
        f"none older than 1 s was lost, and at most {again} of a run were requested again; with space, all datasets "
        "were byte-identical to an undisturbed run's"
    )
