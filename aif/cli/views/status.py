"""A run that goes on as others see it, who can't open the store it holds: by its lock and the file it keeps."""

import socket
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from aif.cli.views.failures import tell_failures
from aif.cli.views.progress import WIDE, say, table
from aif.core.words import clock, counted
from aif.engine.progress import FILE_EVERY_S, Snapshot, read
from aif.store.lock import holder_text, is_held, read_note
from aif.store.paths import StorePaths

SILENT_S = 10 * FILE_EVERY_S  # so long without a word, and it is said


def tell_progress(console: Console, store: Path) -> bool:
    """How far the run is that holds the store now, and what has no answer. False where nobody holds it."""
    places = StorePaths(store)
    if not is_held(places.lock):
        return False
    say(console, f"{store}: {holder_text(places.lock)}")
    if snapshot := _of_holder(places):
        console.print(table(snapshot, wide=console.width >= WIDE))
        _tell_silence(console, snapshot)
        tell_failures(console, snapshot.failures)
    else:
        say(console, "it asks no model now, so there is no progress to tell; ask again when it has ended")
    return True


def tell_failures_so_far(console: Console, store: Path) -> bool:
    """What has no answer in the run that holds the store now. False where nobody holds it."""
    places = StorePaths(store)
    if not is_held(places.lock):
        return False
    say(console, f"{store}: {holder_text(places.lock)}")
    if snapshot := _of_holder(places):
        _tell_silence(console, snapshot)
        tell_failures(console, snapshot.failures)
        left = [line for line in snapshot.lines if line.left]
        for line in left:
            refused = f", and takes no more calls: {line.refused}" if line.refused else ""
            say(console, f"{line.name}: {counted(line.left, 'item')} without an answer yet{refused}")
        if not left and not snapshot.failures:
            say(console, "nothing failed so far")
    else:
        say(console, "it asks no model now; ask again when it has ended")
    return True


def tell_left_behind(console: Console, store: Path) -> None:
    """What became of the last run, where nobody holds the store and its file is still there: it was killed, unless it
    ran on another machine, whose lock need not be seen here."""
    if (left := read(StorePaths(store).progress)) is None:
        return
    done = sum(line.answered for line in left.lines)
    heard = (
        f"the run that began {left.started} (process {left.pid} on {left.host}) was last heard of {left.updated} with "
        f"{done:,} answers"
    )
    if left.host == socket.gethostname():
        then = (
            "and holds the store no more: it was killed or crashed. What was answered is kept; the next `aif run` "
            "takes in what of it the store does not have yet, and goes on"
        )
    else:
        then = "and may still go on there: locks of a shared folder need not be seen from here"
    say(console, f"{heard}, {then}")


def _of_holder(places: StorePaths) -> Snapshot | None:
    """What the holder of the lock keeps. Whoever takes the lock removes what another left (see Ledger.open); between
    the two the process is another."""
    snapshot, note = read(places.progress), read_note(places.lock)
    if snapshot and note and (snapshot.pid, snapshot.host) != (note.pid, note.host):
        return None
    return snapshot


def _tell_silence(console: Console, snapshot: Snapshot) -> None:
    silent_s = (datetime.now(UTC) - datetime.fromisoformat(snapshot.updated)).total_seconds()
    if silent_s > SILENT_S:
        say(
            console,
            f"last heard of {clock(silent_s)} ago, and these are the figures of then: is it stopped (Ctrl-Z), or its "
            "disk full?",
            "yellow",
        )
