"""Who may read what aif writes. What it keeps for itself is its owner's alone; what others are to have, too, gets the
rights that the user's umask gives: an exported dataset, a folder to start from, the Hub's cache, which teams share."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PRIVATE = 0o077  # a umask, and not a mode for each file: DuckDB makes its log anew at every checkpoint
USUAL = os.umask(PRIVATE)  # it can't be asked for without being set
os.umask(USUAL)


@contextmanager
def shared() -> Iterator[None]:
    """Within it, files are made as the user's other programs make them."""
    kept = os.umask(USUAL)
    try:
        yield
    finally:
        os.umask(kept)


def stranger(file: Path) -> str | None:
    """Who else than the user may have written a file; None where nobody has. Whoever owns the machine or aif runs what
    they like anyway, and what comes through a pipe comes from the command that was typed.

    To root any owner is right: in a container a mounted folder is somebody's outside. A mode of 0777 tells nothing: all
    files have it on a disk without rights (of Windows, in WSL or Docker), where no chmod changes it.
    """
    if not file.is_file():
        return None
    state, me = file.stat(), os.geteuid()
    if me and state.st_uid not in (0, me, Path(__file__).stat().st_uid):
        name = str(state.st_uid)
        with suppress(KeyError):  # of a system that doesn't know the user: a container, a shared disk
            name = file.owner()
        return f"{file} belongs to {name}"
    lax = state.st_mode & (stat.S_IWOTH | stat.S_IXOTH) == stat.S_IWOTH
    return f"everybody may write to {file} (`chmod o-w` ends that)" if lax else None
