"""Replace a folder atomically, so that a folder under its final name is always complete.

The new folder is written beside the old folder, under a temporary name. Then it is synced to disk and renamed. An old
folder is replaced only if it is empty or an export of aif, as its run.json says.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aif.core.errors import DISK_FULL, BadInput
from aif.core.file_permissions import user_umask
from aif.export.manifest import is_export


def check_destination(out: Path) -> None:
    """Raise BadInput if `out` exists and is neither an export nor an empty folder.

    If an earlier export was killed while it replaced `out`, `out` may be missing: then move the old folder back to it.
    """
    if not out.exists():
        if (replaced := _sibling(out, "replaced")).exists():  # killed between the two moves of `_move_into_place`
            replaced.rename(out)
        return
    if not out.is_dir() or (any(out.iterdir()) and not is_export(out)):
        raise BadInput(f"{out}: already exists and isn't an aif export; name another folder, or empty this one")


@contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder `.<out>.aif-partial` to write to. It is renamed to `out` when the block ends without an
    error.

    Raises OSError if the disk is full, after deleting the partial folder to free its space; BadInput if the system
    refuses to write for another reason.
    """
    partial = _sibling(out, "partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        with user_umask():
            partial.mkdir(parents=True)
        yield partial
        _sync_tree(partial)
        _move_into_place(partial, out)
    except OSError as error:
        if error.errno in DISK_FULL:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(error.errno, os.strerror(error.errno), str(out)) from error
        why = error.strerror or error
        raise BadInput(f"{out}: can't be written: {why}; check rights and space, or name another folder") from error


def _sibling(out: Path, word: str) -> Path:
    # a name that no user would choose: whatever has it is deleted without asking
    return out.with_name(f".{out.name}.aif-{word}")


def _move_into_place(partial: Path, out: Path) -> None:
    """Rename the old folder `out` to another name, rename `partial` to `out`, and delete the old one.

    If aif is killed between the two renames, the next export restores the old folder (`check_destination`).
    """
    replaced = _sibling(out, "replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    _sync(out.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
