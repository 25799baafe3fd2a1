"""10. Disk full: a run and an export on a small tmpfs that has so much room and no more; then room is made.

Mounting takes root, and Linux. Where it can't be had there is no trial, and it says so.
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
from chaos import Figures
from chaos.house import Record, aif, pipeline, served
from chaos.keeping import FORMATS, finish, journalled, sent, undisturbed, written

NUMBER = 10
PROMISE = "Disk full: stops cleanly with one line, nothing acknowledged is lost, goes on after room is made"

DISK = 32 * 2**20  # bytes
PER_PROMPT = 5  # four completions and one judgement
IN_FLIGHT = 40  # eight calls at a time, of four models and a judge
AGE_S = 1.0  # what the server had sent so long before the last reply is there


@dataclass(frozen=True, slots=True)
class Stop:
    """How a command ended for which there was no room: its exit code and what it said of that."""

    code: int
    said: list[str]


@dataclass(frozen=True, slots=True)
class Filled:
    """A run that had so many KiB, and an export that had four: how they ended; how many replies were sent, how many of
    them, older than AGE_S, are not there, and damaged lines of the journal; how many replies were asked for again once
    there was room; what of a dataset was left; and whether it was the same in the end."""

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
        wanted = undisturbed(folder / "undisturbed", server.base_url, prompts)
    found = []
    for room in rooms:
        with _disk(folder / "disk") as disk:
            found.append(asdict(_filled(disk, room, prompts, wanted)))
    return {"filled": found}


def _filled(disk: Path, room: int, prompts: int, wanted: dict[str, str]) -> Filled:
    record = Record()
    with served(record, latency_s=0.1) as server:
        path = pipeline(disk, server.base_url, prompts, export=FORMATS)
        places, dataset = StorePaths(disk / "store" / "feedback.duckdb"), disk / "store" / "dataset"
        with _only(disk, room):
            run = _stop("run", path)
            answered = sent(record.calls, inf)
            last = max((call.ended for call in record.calls), default=0.0)
            lost = sent(record.calls, last - AGE_S) - journalled(places.store)
            damaged = sum(isinstance(line, Damage) for _, line in replay(places.journal))
        before = len(record.calls)
        finish(path)
        asked_again = len(record.calls) - before - (prompts * PER_PROMPT - len(answered))
        with _only(disk, 4):
            export = _stop("export", path)
            left = [one.name for one in dataset.parent.iterdir() if "dataset" in one.name]
        same = written(path, dataset) == wanted
    return Filled(room, run, len(answered), len(lost), damaged, asked_again, export, left, same)


def _stop(command: str, path: Path) -> Stop:
    code, said = aif(command, path)
    lines = [line for line in said.splitlines() if line.startswith(("aif: ", "Traceback", "Error"))]
    return Stop(code, [line.replace(str(path.parent), "…") for line in lines])


@contextmanager
def _disk(at: Path) -> Iterator[Path]:
    """A small disk of its own. Raises SkipTest where none can be mounted."""
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
def _only(disk: Path, room: int) -> Iterator[None]:
    """Leaves so many KiB of it free."""
    filler, now = disk / "filler", statvfs(disk)
    filler.write_bytes(bytes(max(0, now.f_bavail * now.f_frsize - room * 1024)))
    try:
        yield
    finally:
        filler.unlink()


def broken(figures: Figures) -> list[str]:
    wrong = []
    for one in figures["filled"]:
        for name in ("run", "export"):
            code, said = one[name]["code"], one[name]["said"]
            if (code, len(said)) not in ((Exit.DISK, 1), (Exit.DONE, 0)) or "Traceback" in said:
                wrong.append(f"{name} with {one['room']} KiB: exit code {code}, {said}")
        if one["lost"] or one["damaged"]:
            wrong.append(
                f"{one['room']} KiB: {one['lost']} replies lost, {one['damaged']} lines of the journal damaged"
            )
        # what was in flight, and what had come and waited for the sync that found no room
        if one["asked_again"] > 2 * IN_FLIGHT:
            wrong.append(f"{one['room']} KiB: {one['asked_again']} replies asked for again")
        if one["left"] or not one["same"]:
            wrong.append(f"{one['room']} KiB: left {one['left']}; the dataset in the end is the same: {one['same']}")
    if not any(one["run"]["code"] == Exit.DISK and one["replies"] for one in figures["filled"]):
        wrong.append("no disk was full in mid-run")
    return wrong


def told(figures: Figures) -> str:
    filled = figures["filled"]
    stopped = [one for one in filled if one["run"]["code"] == Exit.DISK]
    exports = sum(one["export"]["code"] == Exit.DISK for one in filled)
    replies, again = sum(one["replies"] for one in stopped), max(one["asked_again"] for one in filled)
    return (
        f"{len(stopped)} of {len(filled)} runs with {filled[0]['room']} to {filled[-1]['room']} KiB of room, and "
        f"{exports} exports, stopped with one line and exit code {Exit.DISK:d}; of {replies:,} replies sent until then "
        f"none older than 1 s was lost, and at most {again} of a run were asked for again; with room, all datasets "
        "were byte-identical to an undisturbed run's"
    )
