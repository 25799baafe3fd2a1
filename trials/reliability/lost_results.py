"""2. No acknowledged result is lost: kill -9, files cut back to what was synced, damage to store and journal.

Kills come while models are called (generation, judging, journal, commit), while a run finishes (pairs, checkpoint), and
while a dataset is exported. A kill leaves the system's cache intact; so some runs are traced, and their files then cut
back to what was synced, as a power cut may leave them.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from time import sleep
from typing import Any

from aif.store.paths import StorePaths
from trials.common import digests
from trials.reliability import Figures
from trials.reliability.interrupted_run import (
    FORMATS,
    bodies_sent,
    export_digests,
    journaled_bodies,
    kill_run,
    run_to_end,
    shown_digest,
    undisturbed_digests,
    wait_until,
    wait_until_idle,
)
from trials.reliability.simulated_run import CallLog, pipeline, served, start
from trials.reliability.strace import Trace

NUMBER = 2
PROMISE = "No acknowledged result is lost, whatever is killed, cut off or damaged; what the journal loses is reported"

KILLS, STORES = 200, 20
AGE_S = 1.0  # what the server sent earlier than this before a kill must be in the journal
PER_PROMPT = 5  # four completions and one judgement
FLIPS = 8  # stores damaged at a random byte


@dataclass(frozen=True, slots=True)
class Point:
    """When to kill a command: after `calls` more calls, and then another `then_s` seconds."""

    during: str
    command: str
    calls: int
    then_s: float


@dataclass(frozen=True, slots=True)
class Kill:
    """What a kill did: the replies older than AGE_S that it lost and the age in seconds of the oldest lost reply.

    `torn` says that an incomplete dataset was there; `cut` is the bytes cut off as not synced, None if not traced.
    """

    during: str
    lost: int
    oldest_lost_s: float
    torn: bool
    cut: int | None


def trial(folder: Path, full: bool) -> Figures:
    stores, kills, prompts = (STORES, KILLS // STORES, 40) if full else (1, 2, 6)
    with served(latency_s=0.02) as server:
        wanted = undisturbed_digests(folder / "undisturbed", server.base_url, prompts)
        with ThreadPoolExecutor(2) as threads:  # two stores at a time
            kills_by_store = list(threads.map(partial(_store, folder, wanted, prompts, kills, full), range(stores)))
        differ = sum(_finished(folder / f"{n}", server.base_url, prompts) != wanted for n in range(stores))
    return {
        "kills": [asdict(kill) for kills_of_store in kills_by_store for kill in kills_of_store],
        "stores": stores,
        "datasets_that_differ": differ,
        "traced_by": Trace(folder / "trace").by,
        "damaged": _damaged(folder / "damaged", wanted, prompts) if full else [],
    }


def _finished(folder: Path, base_url: str, prompts: int) -> dict[str, str]:
    """Finish a store's run; return the digests of its dataset."""
    path = pipeline(folder, base_url, prompts, export=FORMATS)
    run_to_end(path)
    return export_digests(path, folder / "store" / "dataset")


# --- kills ------------------------------------------------------------------------------------------------------------


def _store(folder: Path, wanted: Mapping[str, str], prompts: int, kills: int, full: bool, n: int) -> list[Kill]:
    """Kill commands over one store until `kills` kills were made."""
    random, call_log, kills_made = Random(n), CallLog(), list[Kill]()
    with served(call_log, latency_s=0.2 if full else 0.05) as server:
        path = pipeline(folder / f"{n}", server.base_url, prompts, export=FORMATS, models={"concurrency": 3})
        while len(kills_made) < kills:
            left = prompts * PER_PROMPT - len(journaled_bodies(path.parent / "store" / "feedback.duckdb"))
            point = _point(random, left, kills, len(kills_made))
            trace = (
                Trace(folder / f"{n}-{len(kills_made)}")
                if point.during == "asking" and len(kills_made) % 3 == 0
                else None
            )
            kill = _killed(path, call_log, wanted, point, trace)
            kills_made += [kill] if kill else []
        return kills_made


def _point(random: Random, left: int, kills: int, made: int) -> Point:
    """Choose when to kill: half of the kills during calls, the others during the end of a run or an export."""
    if left and made < kills // 2:
        return Point("asking", "run", random.randint(1, max(1, 3 * left // kills)), random.uniform(0, 0.5))
    if left or random.random() < 0.4:
        return Point("ending", "run", left, random.uniform(0, 0.6))
    return Point("exporting", "export", 0, random.uniform(0, 0.6))


def _killed(path: Path, call_log: CallLog, wanted: Mapping[str, str], point: Point, trace: Trace | None) -> Kill | None:
    """Run a command and kill it at a point; return None if it ended before that."""
    store, first = path.parent / "store" / "feedback.duckdb", len(call_log.calls)
    calls = first + point.calls
    lock = StorePaths(store).lock
    former = lock.read_bytes() if lock.exists() else b""
    under, environ = (trace.before, trace.environ) if trace else ([], {})
    process = start(point.command, path, under=under, environ=environ)
    if wait_until(
        process, lambda: lock.exists() and lock.read_bytes() not in (b"", former) and len(call_log.calls) >= calls
    ):
        sleep(point.then_s)
    if process.poll() is not None:
        process.communicate()
        return None
    at = kill_run(process, store, traced=trace is not None)
    cut = _cut_back(store, trace.synced()) if trace else None
    journaled, dataset = journaled_bodies(store), store.parent / "dataset"
    ages = [
        at - call.ended for call in call_log.calls[first:] if shown_digest(call) in bodies_sent([call], at) - journaled
    ]
    torn = dataset.exists() and digests(dataset) != wanted
    return Kill(point.during, sum(age > AGE_S for age in ages), round(max(ages, default=0.0), 3), torn, cut)


def _cut_back(store: Path, synced: Mapping[str, int]) -> int:
    """Cut journal and write-ahead log back to what was synced; return the number of bytes cut off."""
    cut = 0
    for path in (*StorePaths(store).journal.iterdir(), store.with_name(store.name + ".wal")):
        if path.exists() and str(path) in synced and (more := path.stat().st_size - synced[str(path)]) > 0:
            os.truncate(path, synced[str(path)])
            cut += more
    return cut


# --- damage -----------------------------------------------------------------------------------------------------------


def _damaged(folder: Path, wanted: Mapping[str, str], prompts: int) -> list[dict[str, Any]]:
    """Damage copies of a store that a kill left, and resume the run with each."""
    random, call_log = Random(2), CallLog()
    with served(call_log, latency_s=0.05) as server:
        path = pipeline(folder / "left", server.base_url, prompts, export=FORMATS)
        _killed(path, call_log, wanted, Point("asking", "run", prompts * PER_PROMPT // 2, 0.3), None)
        wait_until_idle(server)

        def resume_after(name: str, harm: Callable[[StorePaths], None]) -> dict[str, Any]:
            copy = pipeline(folder / name, server.base_url, prompts, export=FORMATS)
            shutil.copytree(path.parent / "store", copy.parent / "store")
            places, calls = StorePaths(copy.parent / "store" / "feedback.duckdb"), len(call_log.calls)
            harm(places)
            messages = [line for line in run_to_end(copy).splitlines() if str(places.store.with_suffix("")) in line]
            calls = len(call_log.calls) - calls
            same = export_digests(copy, copy.parent / "dataset") == wanted
            return {"damage": name, "calls": calls, "said": len(messages), "same": same}

        harms: Sequence[tuple[str, Callable[[StorePaths], None]]] = [
            ("none", lambda places: None),
            ("store truncated", lambda places: os.truncate(places.store, places.store.stat().st_size // 2)),
            ("store deleted", lambda places: places.store.unlink()),
            ("log deleted", lambda places: _log(places).unlink()),
            ("log truncated", lambda places: os.truncate(_log(places), _log(places).stat().st_size // 2)),
            ("log flipped", lambda places: _flip(_log(places), _log(places).stat().st_size // 2)),
            *((f"store flipped {n}", partial(_flip_anywhere, random)) for n in range(FLIPS)),
            ("line torn", lambda places: os.truncate(_segment(places), _segment(places).stat().st_size - 10)),
            ("line flipped", _flip_line),
        ]
        return [resume_after(*harm) for harm in harms]


def _log(places: StorePaths) -> Path:
    return places.store.with_name(places.store.name + ".wal")


def _segment(places: StorePaths) -> Path:
    return places.journal / "000001.jsonl"


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x20
    path.write_bytes(content)


def _flip_anywhere(random: Random, places: StorePaths) -> None:
    _flip(places.store, random.randrange(places.store.stat().st_size))


def _flip_line(places: StorePaths) -> None:
    """Flip a byte in a completion's line. Delete the store too: otherwise that line would not be read again."""
    places.store.unlink()
    content = _segment(places).read_bytes()
    _flip(_segment(places), content.index(b'"stage":"completion"'))


# --- results ----------------------------------------------------------------------------------------------------------


def violations(figures: Figures) -> list[str]:
    kills = figures["kills"]
    problems = [
        f"a kill while {entry['during']} lost {entry['lost']} replies older than 1 s"
        for entry in kills
        if entry["lost"]
    ]
    if torn := sum(entry["torn"] for entry in kills):
        problems.append(f"{torn} datasets were incomplete")
    if figures["datasets_that_differ"]:
        problems.append(f"{figures['datasets_that_differ']} datasets differ from an undisturbed run's")
    usual = next((entry["calls"] for entry in figures["damaged"] if entry["damage"] == "none"), 0)
    for entry in figures["damaged"]:
        expected = usual + entry["damage"].startswith("line")
        already_stored = (
            entry["damage"] == "line torn" and entry["calls"] == usual
        )  # the store had read the line before
        if entry["calls"] != expected and not already_stored:
            problems.append(f"{entry['damage']}: {entry['calls']} calls, not {expected}")
        if not entry["same"]:
            problems.append(f"{entry['damage']}: the dataset differs")
        if not entry["said"] and entry["damage"] != "none" and "store flipped" not in entry["damage"]:
            problems.append(f"{entry['damage']}: not reported")
    return problems


def summary(figures: Figures) -> str:
    kills = figures["kills"]
    stages = {"asking": "calling models", "ending": "finishing", "exporting": "exporting"}
    where = ", ".join(
        f"{sum(entry['during'] == name for entry in kills)} while {words}" for name, words in stages.items()
    )
    traced = [entry for entry in kills if entry["cut"] is not None]
    words = (
        f"{len(kills)} kills of {figures['stores']} stores ({where}): the oldest lost reply had been sent "
        f"{max(entry['oldest_lost_s'] for entry in kills):.2f} s before; {len(traced)} were cut back to what was "
        f"synced (by {figures['traced_by']}); all datasets byte-identical."
    )
    if damaged := [entry for entry in figures["damaged"] if entry["damage"] != "none"]:
        repaired = sum(entry["same"] for entry in damaged)
        words += f" Of {len(damaged)} kinds of damage {repaired} were repaired by the next run."
    return words
