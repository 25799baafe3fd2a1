"""The files of a store, and who writes to it: one process, by a lock that the system lets go of however it ends."""

import fcntl
import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from glob import escape
from pathlib import Path

from aif.core.errors import DISK_FULL, BadInput, StoreLocked
from aif.core.file_permissions import user_umask

# Whoever looks whether a lock is held takes it for some 10 µs, and whoever takes it writes its note some 50 µs later.
AGAIN_S = (0.0, 0.01, 0.03, 0.06)


@dataclass(frozen=True, slots=True)
class Places:
    """The files of a store, all beside it."""

    store: Path

    @property
    def journal(self) -> Path:
        return self.store.with_suffix(".journal")

    @property
    def any(self) -> bool:
        """Whether a run was ever here: the store may be lost, and then is made again from the journal; and both may be,
        where a store that was set aside has what they held."""
        aside = f"{escape(self.store.name)}.aside*"
        return self.store.exists() or self.journal.exists() or any(self.store.parent.glob(aside))

    @property
    def lock(self) -> Path:
        return self.store.with_suffix(".lock")

    @property
    def progress(self) -> Path:
        return self.store.with_suffix(".progress.json")

    @property
    def logs(self) -> Path:
        return self.store.with_suffix(".logs")


def place_of(store: Path, named: Path) -> None:
    """Up to now a relative path began at the working directory: where it leads to a store from there, and `store` is
    none yet, that one is not passed over, since everything in it would be paid for again.

    Raises BadInput, with the command that adopts it; StoreLocked while somebody writes to it.
    """
    former = Places(Path.cwd() / named)
    try:
        if Places(store).any or named.is_absolute() or not former.any:
            return
    except OSError as error:
        raise _unusable(store.parent, error, "read") from error
    if is_held(former.lock):
        raise StoreLocked(busy(former.store, holder(former.lock)))
    raise BadInput(_adopting(former, store.absolute()))


def _adopting(former: Places, store: Path) -> str:
    """How the files of a store come to another place, where some of the same names may be somebody's own."""
    to = shlex.quote(str(store.parent))
    return (
        f"{store}: no store here yet, but {former.store} is one of that name. A relative `store` begins at the "
        f"pipeline file now, not at the working directory. To keep what was paid for, move it there:\n"
        f"  mkdir -p {to} && mv -n {' '.join(shlex.quote(str(path)) for path in _files(former))} {to}/\n"
        f"or, where that is another pipeline's, begin anew once with\n"
        f"  --set {shlex.quote(f'store={store}')}"
    )


def _files(places: Places) -> list[Path]:
    """What there is of a store, and what was exported beside it."""
    folder, store = places.store.parent, places.store.name
    own = re.compile(re.escape(store) + r"(\.wal|\.(aside|unreadable).*)?", re.DOTALL)
    found = [path for path in folder.iterdir() if own.fullmatch(path.name)]
    found += filter(Path.exists, (places.journal, places.lock, places.logs, places.progress))
    return sorted(found) + [path.parent for path in [folder / "dataset" / "run.json"] if path.exists()]


def _unusable(folder: Path, error: OSError, how: str) -> BadInput:
    mend = "correct its rights, or name another place by `store:`"
    return BadInput(f"{folder}: can't be {how}: {error.strerror}; {mend}")


@dataclass(frozen=True, slots=True)
class Note:
    """Who holds a lock: what the holder writes into the file."""

    pid: int
    host: str
    since: str
    command: str

    @property
    def mine(self) -> bool:
        return (self.pid, self.host) == (os.getpid(), socket.gethostname())

    @property
    def stale(self) -> bool:
        """Whether its writer is known to be gone, so that somebody else holds the lock. Of other hosts it isn't."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's process
            return False
        return False


class Lock:
    """Held by the one process that writes to a store. Raises StoreLocked, naming the holder, where there is one."""

    def __init__(self, path: Path) -> None:
        try:
            with user_umask():  # the dataset stands in there as well, and other pipelines'
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise _unusable(path.parent, error, "written to") from error
        try:
            taken = any(_taken(self._file, wait_s) for wait_s in AGAIN_S)
        except OSError as error:
            os.close(self._file)
            raise _lockless(path, error) from error
        if not taken:
            os.close(self._file)
            raise StoreLocked(busy(path.with_suffix(".duckdb"), holder(path)))
        os.ftruncate(self._file, 0)
        program = Path(sys.argv[0]).name.replace("__main__.py", "aif")  # of `python -m aif`
        command = typed([program, *sys.argv[1:]])
        note = Note(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"), command)
        try:
            os.pwrite(self._file, json.dumps(asdict(note), ensure_ascii=False).encode(), 0)
        except OSError as full:
            os.close(self._file)
            full.filename = str(path)
            raise

    def release(self) -> None:
        os.ftruncate(self._file, 0)
        os.close(self._file)


def _taken(file: int, wait_s: float) -> bool:
    time.sleep(wait_s)
    return _locked(file, fcntl.LOCK_EX)


def _locked(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lockless(path: Path, error: OSError) -> BadInput:
    """Lustre without `-o flock`, some NFS and FUSE: two runs would write to one store."""
    return BadInput(
        f"{path}: its file system takes no locks ({error.strerror}), so nothing would keep two runs apart; put the "
        "store on a local disk: store: /a/local/disk/feedback.duckdb"
    )


def typed(words: Sequence[str]) -> str:
    """A command as it may be shown to others: without the values it sets, since one may be a key in the wrong place."""
    return " ".join(re.sub("=.*", "=…", word, flags=re.DOTALL) if "=" in word else shlex.quote(word) for word in words)


def is_held(path: Path) -> bool:
    """Whether somebody writes to the store now. On a folder shared between machines that is known of this one only,
    unless its file system takes locks across."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            return not _locked(file.fileno(), fcntl.LOCK_SH)
        except OSError as error:
            raise _lockless(path, error) from error


def note_in(path: Path) -> Note | None:
    """What the holder of a lock says of itself; None where it says nothing that can be true: the file is empty or torn,
    or was left by a process that is gone."""
    for wait_s in AGAIN_S:
        time.sleep(wait_s)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            note = Note(int(found["pid"]), str(found["host"]), str(found["since"]), str(found["command"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not note.stale:
            return note
    return None


def holder(path: Path) -> str:
    """Who holds a lock, in words."""
    if note := note_in(path):
        return f"held by process {note.pid} on {note.host} since {note.since} ({note.command})"
    return "held by another process, which left no word of who it is"


def busy(store: Path, who: str) -> str:
    """What is told to whoever wants a store that another process writes to."""
    return f"{store}: {who}; wait for it or stop it; `aif status` and `aif failures` answer meanwhile"
