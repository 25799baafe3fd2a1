"""Who may read the files that aif writes. Its own files are readable by their owner alone. Files for others (an
exported dataset, a starter folder, the Hub's cache, which teams share) get the permissions of the user's umask."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PRIVATE_UMASK = 0o077  # not a mode for each file: DuckDB creates its write-ahead log again at every checkpoint
USER_UMASK = os.umask(PRIVATE_UMASK)  # a umask can only be read by setting it
os.umask(USER_UMASK)


@contextmanager
def user_umask() -> Iterator[None]:
    """Create files with the user's own umask inside this context, so that other users may read them."""
    previous = os.umask(USER_UMASK)
    try:
        yield
    finally:
        os.umask(previous)


def untrusted_writer(file: Path) -> str | None:
    """Return why a file can't be trusted, as text for a message: another user owns it, or everybody may write to it.
    Return None if it can be trusted.

    - Trusted owners are the user, root and the owner of aif's own code.
    - Root trusts every owner: in a container, a mounted folder belongs to a user of the host.
    - Everything but a regular file, such as a pipe, is trusted.
    - Mode 0777 is trusted. On a disk without permissions (Windows disks in WSL or Docker) all files have it.
    """
    if not file.is_file():
        return None
    state, user = file.stat(), os.geteuid()
    if user and state.st_uid not in (0, user, Path(__file__).stat().st_uid):
        name = str(state.st_uid)
        with suppress(KeyError):  # the system doesn't know the user: a container, a shared disk
            name = file.owner()
        return f"{file} belongs to {name}"
    writable_by_all = state.st_mode & (stat.S_IWOTH | stat.S_IXOTH) == stat.S_IWOTH
    return f"everybody may write to {file} (fix: `chmod o-w`)" if writable_by_all else None
