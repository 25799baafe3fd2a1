"""The store follows its journal: what it lacks is read, and taken in portion by portion.

Where that is much, another process reads it, as a stream of pickles: Python reads and DuckDB writes at the same time
then, which two threads of one interpreter hardly do (200,000 calls: 14.6 s by two threads, 11.1 by two processes; in
turn 15.6). The process ends when its pipe does, however this one ended.
"""

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path

from aif.errors import AifError
from aif.journal import Damage, Position, ahead
from aif.portions import Portion, Rubrics, portions
from aif.store import Store

FAR = 32 * 2**20  # bytes that are worth the 0.5 s until a process has started


def follow(store: Store, folder: Path, rubrics: Rubrics, far: int = FAR) -> tuple[int, list[Damage]]:
    """Lets the store take in what the journal holds beyond it. Returns how many records these were, and what was
    damaged there."""
    taken_in, damaged = 0, list[Damage]()
    start = store.position
    is_far = ahead(folder, start) >= far
    with closing((_elsewhere if is_far else portions)(folder, start, rubrics)) as found, store.roomy(is_far):
        for portion in found:
            store.apply(portion.steps, portion.position, len(portion.damaged))
            taken_in += portion.records
            damaged += portion.damaged
    return taken_in, damaged


def _elsewhere(folder: Path, start: Position, rubrics: Rubrics) -> Generator[Portion]:
    """As `portions`, by another process."""
    with _reader(folder, start) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError), process.stdin as into:
            pickle.dump(rubrics.files, into)
        try:
            while isinstance(found := pickle.load(process.stdout), Portion):  # noqa: S301 - it is our own
                yield found
        except (EOFError, pickle.UnpicklingError) as error:
            how = f"{folder}: the process that read it has ended (exit code {process.wait()})"
            raise AifError(f"{how}, for want of memory perhaps; what was read is kept: try again") from error
    if isinstance(found, Exception):
        raise found
    rubrics.files, rubrics.lost = found


def _reader(folder: Path, start: Position) -> subprocess.Popen[bytes]:
    """A process that runs `main`, in a session of its own, since Ctrl-C is ours to answer."""
    command = [sys.executable, "-m", "aif.following", str(folder), str(start.segment), str(start.offset)]
    ours = Path(__file__).parents[1], os.environ.get("PYTHONPATH")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in ours if path)}
    pipe, wide = subprocess.PIPE, 2**20  # as wide as Linux allows: a portion is 5 to 10 MB
    return subprocess.Popen(  # noqa: S603
        command, stdin=pipe, stdout=pipe, pipesize=wide, env=environ, start_new_session=True, bufsize=wide
    )


def main(folder: str, segment: str, offset: str) -> None:
    """Writes portions to stdout as pickles, and behind them what became of rubrics, or what went wrong."""
    rubrics, out = Rubrics(pickle.load(sys.stdin.buffer)), sys.stdout.buffer  # noqa: S301 - our own, too
    gc.disable()  # records hold no cycles
    try:
        for portion in portions(Path(folder), Position(int(segment), int(offset)), rubrics):
            pickle.dump(portion, out)
        pickle.dump((rubrics.files, rubrics.lost), out)
    except BrokenPipeError:  # nobody reads on
        os._exit(0)
    except Exception as error:
        pickle.dump(error, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
