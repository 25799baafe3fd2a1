"""A folder that stands under its name whole or not at all: made beside it, synced, and moved there.

What was there before is replaced only if it is an export of ours, which its run.json tells.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aif.core.errors import DISK_FULL, BadInput
from aif.core.file_permissions import user_umask
from aif.export.manifest import is_export


def check_place(out: Path) -> None:
    """Raises BadInput where something stands that is no export of ours."""
    if not out.exists():
        if (replaced := _beside(out, "replaced")).exists():  # the process ended between the two moves of `_put`
            replaced.rename(out)
        return
    if not out.is_dir() or (any(out.iterdir()) and not is_export(out)):
        raise BadInput(f"{out}: holds something that is no export of aif's; name another folder, or empty this one")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """An empty folder `.<out>.aif-partial` to write to. It takes the place of `out` when the block ends, not if it
    fails.

    Raises BadInput where the system refuses to write, but OSError where the disk is full; what was written goes then,
    since it is in the way of everything else.
    """
    partial = _beside(out, "partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        with user_umask():
            partial.mkdir(parents=True)
        yield partial
        _sync(partial)
        _put(partial, out)
    except OSError as error:
        if error.errno in DISK_FULL:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(error.errno, os.strerror(error.errno), str(out)) from error
        why = error.strerror or error
        raise BadInput(f"{out}: can't be written: {why}; check rights and space, or name another folder") from error


def _beside(out: Path, word: str) -> Path:
    # no name that somebody else would give a folder: what stands there is taken away unasked
    return out.with_name(f".{out.name}.aif-{word}")


def _put(partial: Path, out: Path) -> None:
    """Moves the new folder to its name. Between the two moves none stands there; the next export puts the old back."""
    replaced = _beside(out, "replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    _sync_one(out.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
