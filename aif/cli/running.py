"""Read the state of a run in another process: which process holds the store, and the progress it last wrote."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aif.engine.progress import FILE_EVERY_S, Snapshot, read_snapshot
from aif.store.lock import holder_text, is_held, read_note
from aif.store.paths import StorePaths

SILENT_S = 10 * FILE_EVERY_S  # a run that wrote nothing for longer is reported as silent


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """The process that holds a store's lock, and the progress of its run.

    store: path of the store.
    holder: a text that describes the process, such as "held by process 12 on gpu-1 since 09:30 (aif run)".
    snapshot: the progress that the process last wrote; None if it calls no model now.
    silent_s: age of `snapshot` in seconds if it is so old that the process may hang, else None.
    """

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
    """Return the last progress written by the process that holds the store's lock; None if it has written none."""
    snapshot, note = read_snapshot(places.progress), read_note(places.lock)
    if snapshot and note and (snapshot.pid, snapshot.host) != (note.pid, note.host):
        return None
    return snapshot


def dead_run(store: Path) -> Snapshot | None:
    """Return the last progress of a run that died; None if the last run ended normally.

    Call it while no process holds the store. A progress file that exists then was left by a killed run, or belongs to a
    run on another machine whose lock isn't visible here.
    """
    return read_snapshot(StorePaths(store).progress)
