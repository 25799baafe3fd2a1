"""The lock that lets one process at a time write to a store. The system releases it however the process ends."""

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
from pathlib import Path

from aif.core.errors import DISK_FULL, BadInput, StoreLocked
from aif.core.file_permissions import user_umask

# Seconds between attempts: a check whether the lock is held takes the lock for some 10 µs, and the holder writes its
# note some 50 µs after it took the lock.
RETRY_S = (0.0, 0.01, 0.03, 0.06)


def folder_error(folder: Path, error: OSError, how: str) -> BadInput:
    """Return the exception for a store's folder that can't be accessed. `how` is "read" or "written to"."""
    return BadInput(f"{folder}: can't be {how}: {error.strerror}; fix its permissions, or set `store:` to another path")


@dataclass(frozen=True, slots=True)
class LockNote:
    """A note in a lock file about the process that holds the lock.

    pid: the process's id.
    host: the name of the machine on which the process runs.
    since: when the process took the lock.
    command: its command line, without values that may hold an API key.
    """

    pid: int
    host: str
    since: str
    command: str

    @property
    def mine(self) -> bool:
        """Whether this process wrote the note."""
        return (self.pid, self.host) == (os.getpid(), socket.gethostname())

    @property
    def stale(self) -> bool:
        """Whether the process that wrote the note has ended, so that the note doesn't describe the lock's holder. False
        for a process on another host, about which nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # a process of another user
            return False
        return False


class Lock:
    """The held lock of a store. Creating it raises StoreLocked, naming the holder, if another process has it."""

    def __init__(self, path: Path) -> None:
        try:
            with user_umask():  # the folder also holds the dataset, and other pipelines' files
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise folder_error(path.parent, error, "written to") from error
        try:
            locked = any(_lock_after(self._file, wait_s) for wait_s in RETRY_S)
        except OSError as error:
            os.close(self._file)
            raise _no_locks(path, error) from error
        if not locked:
            os.close(self._file)
            raise StoreLocked(busy_message(path.with_suffix(".duckdb"), holder_text(path)))
        os.ftruncate(self._file, 0)
        program = Path(sys.argv[0]).name.replace("__main__.py", "aif")  # `python -m aif`
        command = redacted_command([program, *sys.argv[1:]])
        note = LockNote(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"), command)
        try:
            os.pwrite(self._file, json.dumps(asdict(note), ensure_ascii=False).encode(), 0)
        except OSError as full:
            os.close(self._file)
            full.filename = str(path)
            raise

    def release(self) -> None:
        """Empty the lock file and release the lock."""
        os.ftruncate(self._file, 0)
        os.close(self._file)


def _lock_after(file: int, wait_s: float) -> bool:
    time.sleep(wait_s)
    return _try_lock(file, fcntl.LOCK_EX)


def _try_lock(file: int, mode: int) -> bool:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _no_locks(path: Path, error: OSError) -> BadInput:
    """Return the exception for a file system without locks: Lustre without `-o flock`, some NFS and FUSE."""
    return BadInput(
        f"{path}: its file system does not support locks ({error.strerror}), so two runs could write to one store; put "
        "the store on a local disk: store: /a/local/disk/feedback.duckdb"
    )


def redacted_command(words: Sequence[str]) -> str:
    """Return a command line without the values of arguments like `name=value`: a user may have put an API key there."""
    return " ".join(re.sub("=.*", "=…", word, flags=re.DOTALL) if "=" in word else shlex.quote(word) for word in words)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock. On a network folder, processes of other machines are seen only if its
    file system shares locks."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            return not _try_lock(file.fileno(), fcntl.LOCK_SH)
        except OSError as error:
            raise _no_locks(path, error) from error


def read_note(path: Path) -> LockNote | None:
    """Return the note of the lock's holder; None if the file is empty or incomplete, or its writer has ended."""
    for wait_s in RETRY_S:
        time.sleep(wait_s)
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            note = LockNote(int(fields["pid"]), str(fields["host"]), str(fields["since"]), str(fields["command"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not note.stale:
            return note
    return None


def holder_text(path: Path) -> str:
    """Describe the lock's holder for a message: "held by process …"."""
    if note := read_note(path):
        return f"held by process {note.pid} on {note.host} since {note.since} ({note.command})"
    return "held by another process, which left no note of its name"


def busy_message(store: Path, holder: str) -> str:
    """Return the message for a command that needs a store which another process writes to; `holder` describes that
    process (see `holder_text`)."""
    return f"{store}: {holder}; wait for it or stop it; `aif status` and `aif failures` work meanwhile"
