"""A run seen from another process: who holds the store, and the progress it last wrote beside it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aif.engine.progress import FILE_EVERY_S, Snapshot, read_snapshot
from aif.store.lock import holder_text, is_held, read_note
from aif.store.paths import StorePaths

SILENT_S = 10 * FILE_EVERY_S  # a run that wrote nothing for longer is reported as silent


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """The process that holds a store's lock: who it is (`holder`, a sentence), the progress it last wrote (None if it
    calls no model now), and for how many seconds it wrote nothing (`silent_s`, None if it wrote recently)."""

    store: Path
    holder: str
    snapshot: Snapshot | None
    silent_s: float | None


def running_process(store: Path) -> RunningProcess | None:
    """Return the process that holds the store now, with its progress; None if nobody holds it."""
    places = StorePaths(store)
    if not is_held(places.lock):
        return None
    snapshot = _own_snapshot(places)
    silent_s = (datetime.now(UTC) - datetime.fromisoformat(snapshot.updated)).total_seconds() if snapshot else 0.0
    return RunningProcess(store, holder_text(places.lock), snapshot, silent_s if silent_s > SILENT_S else None)


def _own_snapshot(places: StorePaths) -> Snapshot | None:
    """Read the progress file; None if an earlier process left it (the one that took the lock is about to remove it)."""
    snapshot, note = read_snapshot(places.progress), read_note(places.lock)
    if snapshot and note and (snapshot.pid, snapshot.host) != (note.pid, note.host):
        return None
    return snapshot


def dead_run(store: Path) -> Snapshot | None:
    """Return the last progress of a run that died: its file is there although nobody holds the store. If the store is
    on a shared folder, that run may be alive on another machine."""
    return read_snapshot(StorePaths(store).progress)
