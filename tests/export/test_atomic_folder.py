"""Atomic replacement of a folder."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aif.core.errors import BadInput
from aif.export.atomic_folder import replace_folder


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """What a full disk is to whoever writes: no file may become larger."""
    had = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, had[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, had)


def test_on_a_full_disk_the_partial_folder_is_removed_and_the_older_one_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replace_folder(out) as partial:
        (partial / "data").write_bytes(b"older")
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)), files_up_to(1000), replace_folder(out) as partial:
        (partial / "data").write_bytes(b"x" * 5000)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "data").read_bytes() == b"older"


def test_a_folder_below_a_file_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="can't be written"), replace_folder(tmp_path / "file" / "out"):
        pass
