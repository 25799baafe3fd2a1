"""The store follows its journal: what it lacks is read, and taken in portion by portion.

Where that is much, another process reads it, as a stream of pickles: Python reads and DuckDB writes at the same time
then, which two threads of one interpreter hardly do (200,000 calls: 14.6 s by two threads, 10.0 by two processes; in
turn 15.6). The process ends when it can write no more, however this one ended.
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
from aif.store.journal_batches import Portion, Rubrics, portions

if TYPE_CHECKING:  # the other process needs no DuckDB
    from aif.store.database import Store

FAR = 32 * 2**20  # bytes that are worth the 0.5 s until a process has started


def follow(store: "Store", folder: Path, rubrics: Rubrics, far: float = FAR) -> tuple[int, list[Damage]]:
    """Lets the store take in what the journal holds beyond it; from so many bytes on, another process reads it. Returns
    how many records these were, and what was damaged there."""
    start = store.position
    if ahead(folder, start) < far:
        return _take_in(store, portions(folder, start, rubrics))
    with store.roomy():
        return _take_in(store, _elsewhere(folder, start, rubrics))


def _take_in(store: "Store", found: Generator[Portion]) -> tuple[int, list[Damage]]:
    taken_in, damaged = 0, list[Damage]()
    with closing(found):
        for portion in found:
            store.apply(portion.steps, portion.position, len(portion.damaged))
            taken_in += portion.records
            damaged += portion.damaged
    return taken_in, damaged


def _elsewhere(folder: Path, start: Position, rubrics: Rubrics) -> Generator[Portion]:
    """As `portions`, by another process; by this one where there is none to be had."""
    try:
        process, pipe = _reader(folder, start)
    except OSError:
        yield from portions(folder, start, rubrics)
        return
    with process, pipe:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as into:
            pickle.dump((rubrics.files, rubrics.tags), into)
        while isinstance(found := _next(process, pipe, folder), Portion):
            yield found
    if isinstance(found, Exception):
        raise found
    rubrics.files, lost, rubrics.otherwise = found
    rubrics.lost |= lost


def _reader(folder: Path, start: Position) -> tuple[subprocess.Popen[bytes], BinaryIO]:
    """A process that runs `main`, and the pipe it writes to: not its stdout, which any module may print to. It finds
    its modules where this one does, and has a session of its own, since Ctrl-C is ours to answer."""
    ours, its = os.pipe()
    pipe = open(ours, "rb")  # noqa: PTH123, SIM115 - closed by who reads from it
    command = [
        sys.executable,
        "-P",
        "-m",
        "aif.store.catch_up",
        str(folder),
        *map(str, (start.segment, start.offset, its)),
    ]
    environ = ENVIRON | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=quiet, pass_fds=(its,), env=environ, start_new_session=True
        )
    except OSError:
        pipe.close()
        raise
    finally:
        os.close(its)
    return process, pipe


def _next(process: subprocess.Popen[bytes], pipe: BinaryIO, folder: Path) -> Any:
    """What the other process sent. Raises AifError where it was cut short."""
    try:
        return pickle.load(pipe)  # noqa: S301 - our own
    except Exception as error:
        process.kill()
        ended = process.wait()
        how = (
            f"was killed (signal {-ended}), for want of memory perhaps" if ended < 0 else f"failed (exit code {ended})"
        )
        raise AifError(f"{folder}: the process that read it {how}; what was read is kept: try again") from error


def main(folder: str, segment: str, offset: str, pipe: str) -> None:
    """Writes portions to the pipe, and behind them what became of rubrics, or what went wrong."""
    gc.disable()  # records hold no cycles
    with suppress(BrokenPipeError, EOFError), open(int(pipe), "wb") as out:  # noqa: PTH123 - else nobody reads on
        rubrics = Rubrics(*pickle.load(sys.stdin.buffer))  # noqa: S301 - our own
        try:
            for portion in portions(Path(folder), Position(int(segment), int(offset)), rubrics):
                pickle.dump(portion, out)
            pickle.dump((rubrics.files, rubrics.lost, rubrics.otherwise), out)
        except BrokenPipeError:
            raise
        except Exception as error:
            error.add_note(traceback.format_exc())
            pickle.dump(error, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
