"""2. No acknowledged result is lost: kill -9, files cut back to what was synced, damage to store and journal.

Kills fall while it is asked (generation, judging, journal, commit), while a run ends (pairs, checkpoint) and while it
exports. A kill leaves the system's cache as it was; so some runs are traced, and then their files cut back to what had
been synced, as a power cut may leave them.
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
from chaos import Figures
from chaos._trace import Trace
from chaos.house import Record, pipeline, served, start
from chaos.keeping import FORMATS, finish, journalled, killed, sent, settle, shown, undisturbed, wait, written
from measured.house import digests

NUMBER = 2
PROMISE = "No acknowledged result is lost, whatever is killed, cut off or damaged; what the journal loses is said"

KILLS, STORES = 200, 20
AGE_S = 1.0  # what the server had sent so long before a kill is there
PER_PROMPT = 5  # four completions and one judgement
FLIPS = 8  # of a byte anywhere in the store


@dataclass(frozen=True, slots=True)
class Point:
    """Where a kill falls: in which command, after how many more calls, and how long (seconds) after that."""

    during: str
    command: str
    calls: int
    then_s: float


@dataclass(frozen=True, slots=True)
class Kill:
    """What a kill did: how many replies older than AGE_S it lost, the age (seconds) of the oldest it lost, whether a
    dataset stood there that was not whole, and how many bytes were cut off that had not been synced, where traced."""

    during: str
    lost: int
    oldest_lost_s: float
    torn: bool
    cut: int | None


def trial(folder: Path, full: bool) -> Figures:
    stores, kills, prompts = (STORES, KILLS // STORES, 40) if full else (1, 2, 6)
    with served(latency_s=0.02) as server:
        wanted = undisturbed(folder / "undisturbed", server.base_url, prompts)
        with ThreadPoolExecutor(2) as threads:  # two stores at a time
            found = list(threads.map(partial(_store, folder, wanted, prompts, kills, full), range(stores)))
        differ = sum(_finished(folder / f"{n}", server.base_url, prompts) != wanted for n in range(stores))
    return {
        "kills": [asdict(kill) for some in found for kill in some],
        "stores": stores,
        "datasets_that_differ": differ,
        "traced_by": Trace(folder / "trace").by,
        "damaged": _damaged(folder / "damaged", wanted, prompts) if full else [],
    }


def _finished(folder: Path, base_url: str, prompts: int) -> dict[str, str]:
    """The dataset of a store once its run is over."""
    path = pipeline(folder, base_url, prompts, export=FORMATS)
    finish(path)
    return written(path, folder / "store" / "dataset")


# --- kills ------------------------------------------------------------------------------------------------------------


def _store(folder: Path, wanted: Mapping[str, str], prompts: int, kills: int, full: bool, n: int) -> list[Kill]:
    """Kills over one store."""
    random, record, found = Random(n), Record(), list[Kill]()
    with served(record, latency_s=0.2 if full else 0.05) as server:
        path = pipeline(folder / f"{n}", server.base_url, prompts, export=FORMATS, models={"concurrency": 3})
        while len(found) < kills:
            left = prompts * PER_PROMPT - len(journalled(path.parent / "store" / "feedback.duckdb"))
            point = _point(random, left, kills, len(found))
            trace = Trace(folder / f"{n}-{len(found)}") if point.during == "asking" and len(found) % 3 == 0 else None
            kill = _killed(path, record, wanted, point, trace)
            found += [kill] if kill else []
        return found


def _point(random: Random, left: int, kills: int, had: int) -> Point:
    """While there is something to ask, half of the kills; then the ends of runs, and exports."""
    if left and had < kills // 2:
        return Point("asking", "run", random.randint(1, max(1, 3 * left // kills)), random.uniform(0, 0.5))
    if left or random.random() < 0.4:
        return Point("ending", "run", left, random.uniform(0, 0.6))
    return Point("exporting", "export", 0, random.uniform(0, 0.6))


def _killed(path: Path, record: Record, wanted: Mapping[str, str], point: Point, trace: Trace | None) -> Kill | None:
    """A command killed at a point, or None where it had ended before."""
    store, first = path.parent / "store" / "feedback.duckdb", len(record.calls)
    calls = first + point.calls
    lock = StorePaths(store).lock
    former = lock.read_bytes() if lock.exists() else b""
    under, environ = (trace.before, trace.environ) if trace else ([], {})
    process = start(point.command, path, under=under, environ=environ)
    if wait(process, lambda: lock.exists() and lock.read_bytes() not in (b"", former) and len(record.calls) >= calls):
        sleep(point.then_s)
    if process.poll() is not None:
        process.communicate()
        return None
    at = killed(process, store, traced=trace is not None)
    cut = _cut_back(store, trace.synced()) if trace else None
    had, dataset = journalled(store), store.parent / "dataset"
    ages = [at - call.ended for call in record.calls[first:] if shown(call) in sent([call], at) - had]
    torn = dataset.exists() and digests(dataset) != wanted
    return Kill(point.during, sum(age > AGE_S for age in ages), round(max(ages, default=0.0), 3), torn, cut)


def _cut_back(store: Path, synced: Mapping[str, int]) -> int:
    """Cuts the files that are appended to back to what had been synced. Returns how many bytes that were."""
    cut = 0
    for path in (*StorePaths(store).journal.iterdir(), store.with_name(store.name + ".wal")):
        if path.exists() and str(path) in synced and (more := path.stat().st_size - synced[str(path)]) > 0:
            os.truncate(path, synced[str(path)])
            cut += more
    return cut


# --- damage -----------------------------------------------------------------------------------------------------------


def _damaged(folder: Path, wanted: Mapping[str, str], prompts: int) -> list[dict[str, Any]]:
    """A store is left by a kill, and copies of it are damaged; then the same run goes on with each."""
    random, record = Random(2), Record()
    with served(record, latency_s=0.05) as server:
        path = pipeline(folder / "left", server.base_url, prompts, export=FORMATS)
        _killed(path, record, wanted, Point("asking", "run", prompts * PER_PROMPT // 2, 0.3), None)
        settle(server)

        def goes_on(name: str, harm: Callable[[StorePaths], None]) -> dict[str, Any]:
            copy = pipeline(folder / name, server.base_url, prompts, export=FORMATS)
            shutil.copytree(path.parent / "store", copy.parent / "store")
            places, calls = StorePaths(copy.parent / "store" / "feedback.duckdb"), len(record.calls)
            harm(places)
            said = [line for line in finish(copy).splitlines() if str(places.store.with_suffix("")) in line]
            calls = len(record.calls) - calls
            same = written(copy, copy.parent / "dataset") == wanted
            return {"damage": name, "calls": calls, "said": len(said), "same": same}

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
        return [goes_on(*one) for one in harms]


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
    """Of a completion. The store goes, too: what it has taken in, it would not read again."""
    places.store.unlink()
    content = _segment(places).read_bytes()
    _flip(_segment(places), content.index(b'"stage":"completion"'))


# --- what is said of it -----------------------------------------------------------------------------------------------


def broken(figures: Figures) -> list[str]:
    kills = figures["kills"]
    wrong = [f"a kill while {one['during']} lost {one['lost']} replies older than 1 s" for one in kills if one["lost"]]
    if torn := sum(one["torn"] for one in kills):
        wrong.append(f"{torn} datasets stood there torn")
    if figures["datasets_that_differ"]:
        wrong.append(f"{figures['datasets_that_differ']} datasets differ from an undisturbed run's")
    usual = next((one["calls"] for one in figures["damaged"] if one["damage"] == "none"), 0)
    for one in figures["damaged"]:
        more = usual + one["damage"].startswith("line")
        had = one["damage"] == "line torn" and one["calls"] == usual  # the store had taken it in
        if one["calls"] != more and not had:
            wrong.append(f"{one['damage']}: {one['calls']} calls, not {more}")
        if not one["same"]:
            wrong.append(f"{one['damage']}: the dataset differs")
        if not one["said"] and one["damage"] != "none" and "store flipped" not in one["damage"]:
            wrong.append(f"{one['damage']}: not told")
    return wrong


def told(figures: Figures) -> str:
    kills = figures["kills"]
    where = ", ".join(
        f"{sum(one['during'] == name for one in kills)} while {name}" for name in ("asking", "ending", "exporting")
    )
    traced = [one for one in kills if one["cut"] is not None]
    words = (
        f"{len(kills)} kills of {figures['stores']} stores ({where}): the oldest reply lost had been sent "
        f"{max(one['oldest_lost_s'] for one in kills):.2f} s before; {len(traced)} of them cut back to what was synced "
        f"(by {figures['traced_by']}); all datasets byte-identical."
    )
    if damaged := [one for one in figures["damaged"] if one["damage"] != "none"]:
        mended = sum(one["same"] for one in damaged)
        words += f" Of {len(damaged)} kinds of damage {mended} were mended by the next run."
    return words
