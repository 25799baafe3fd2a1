"""Who may read what aif writes. What it keeps for itself is its owner's alone; what others are to have, too, gets the
rights that the user's umask gives: an exported dataset, a folder to start from, the Hub's cache, which teams share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
