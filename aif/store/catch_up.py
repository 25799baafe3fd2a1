"""Bring the store up to date with its journal: read the records that the store lacks, and insert them batch by batch.

`JournaledStore.open` calls `catch_up`. A reply may be in the journal but not in the store when a run is killed. The
next command that writes (run, export, rebuild) inserts that reply.

A long journal is read by a *second process*, a Python process that runs `main` of this module. It parses records and
sends them in pickled batches through a pipe, while DuckDB writes in this process.

- Two threads of one interpreter hardly overlap. 200,000 calls take 14.6 s by two threads, 10.0 s by two processes, and
  15.6 s one after the other.
- The second process ends when it can't write to the pipe, so it never outlives this process.
"""

import gc
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from aif.core.environment import ENVIRON
from aif.core.errors import AifError
from aif.store.journal import Damage, Position, ahead
from aif.store.journal_batches import JournalBatch, Rubrics, read_batches

if TYPE_CHECKING:  # the second process needs no DuckDB
    from aif.store.database import Store

OTHER_PROCESS_BYTES = 32 * 2**20  # with more to read, a second process saves more than the 0.5 s that its start takes


def catch_up(
    store: "Store", folder: Path, rubrics: Rubrics, other_process_bytes: float = OTHER_PROCESS_BYTES
) -> tuple[int, list[Damage]]:
    """Insert into the store every record of the journal in `folder` that the store lacks. Judges' replies are parsed by
    `rubrics`.

    Return the number of records read and the damaged lines met. If at least `other_process_bytes` bytes have to be
    read, a second process reads them.
    """
    start = store.position
    if ahead(folder, start) < other_process_bytes:
        return _apply(store, read_batches(folder, start, rubrics))
    with store.more_memory():
        return _apply(store, _read_in_process(folder, start, rubrics))


def _apply(store: "Store", batches: Generator[JournalBatch]) -> tuple[int, list[Damage]]:
    records, damaged = 0, list[Damage]()
    with closing(batches):
        for batch in batches:
            store.apply(batch.steps, batch.position, len(batch.damaged))
            records += batch.records
            damaged += batch.damaged
    return records, damaged


def _read_in_process(folder: Path, start: Position, rubrics: Rubrics) -> Generator[JournalBatch]:
    """Start a process that reads the journal after `start`, and yield the batches that it sends. If no process can be
    started, this process reads the journal itself."""
    try:
        process, pipe = _start(folder, start)
    except OSError:
        yield from read_batches(folder, start, rubrics)
        return
    with process, pipe:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as stdin:
            pickle.dump((rubrics.files, rubrics.tags), stdin)
        while isinstance(message := _receive(process, pipe, folder), JournalBatch):
            yield message
    if isinstance(message, Exception):
        raise message
    rubrics.files, lost, rubrics.old_text_ids = message
    rubrics.lost |= lost


def _start(folder: Path, start: Position) -> tuple[subprocess.Popen[bytes], BinaryIO]:
    """Start a process that runs `main`. Return the process and the read end of the pipe to which it writes.

    The pipe is not the process's stdout, since any module may print to that. The process imports modules from the same
    paths as this one. It has a process group of its own, since this process handles Ctrl-C.
    """
    read_end, write_end = os.pipe()
    pipe = open(read_end, "rb")  # noqa: PTH123, SIM115 - closed by the caller
    command = [
        sys.executable,
        "-P",
        "-m",
        "aif.store.catch_up",
        str(folder),
        *map(str, (start.segment, start.offset, write_end)),
    ]
    environ = ENVIRON | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    null = subprocess.DEVNULL
    try:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=null, pass_fds=(write_end,), env=environ, start_new_session=True
        )
    except OSError:
        pipe.close()
        raise
    finally:
        os.close(write_end)
    return process, pipe


def _receive(process: subprocess.Popen[bytes], pipe: BinaryIO, folder: Path) -> Any:
    """Return the next object that the process reading the journal has sent: a JournalBatch, an exception or the final
    result. Raises AifError if that process died.

    process: the process, as started by `_start`.
    pipe: the read end of the pipe to which the process writes.
    folder: the journal's folder, named in the error message.
    """
    try:
        return pickle.load(pipe)  # noqa: S301 - our own
    except Exception as error:
        process.kill()
        code = process.wait()
        reason = f"was killed (signal {-code}), perhaps out of memory" if code < 0 else f"failed (exit code {code})"
        raise AifError(
            f"{folder}: the process that reads it {reason}; what it read is stored: run the same command again"
        ) from error


def main(folder: str, segment: str, offset: str, pipe: str) -> None:
    """Read the journal in the process that `_start` starts, and write its batches, pickled, to a pipe. The pipe's last
    object is a tuple of the fields that reading changed in `Rubrics`, or an exception if reading failed.

    folder: the journal's folder.
    segment, offset: the position in the journal to start from.
    pipe: the file descriptor of the pipe's write end.
    """
    gc.disable()  # records hold no cycles
    with suppress(BrokenPipeError, EOFError), open(int(pipe), "wb") as out:  # noqa: PTH123 - the reader has gone
        rubrics = Rubrics(*pickle.load(sys.stdin.buffer))  # noqa: S301 - our own
        try:
            for batch in read_batches(Path(folder), Position(int(segment), int(offset)), rubrics):
                pickle.dump(batch, out)
            pickle.dump((rubrics.files, rubrics.lost, rubrics.old_text_ids), out)
        except BrokenPipeError:
            raise
        except Exception as error:
            error.add_note(traceback.format_exc())
            pickle.dump(error, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
