"""Pages: so many rows at a time, and so many bytes of what they hold. Pure.

What holds prompts or completions is never read, kept or written by rows alone: 2,000 prompts may be 4 MB or 4 GB.
DuckDB reads a column 2,048 rows at a time, so which rows are wanted is known before any text is asked for (see `KEYS`).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

PAGE_BYTES = 16 * 2**20  # 2,000 pairs of 8 KB; DuckDB, Arrow and Python each hold a page some two or three times
KEYS = 2000  # of a query for texts by key: what DuckDB reads of a table then is these rows alone (see `SETTINGS`)

T = TypeVar("T")


def pages(items: Iterable[T], size: Callable[[T], int], rows: int) -> Iterator[list[T]]:
    """The items in their order, in lists of at most so many, and of at most PAGE_BYTES; one that is larger is alone."""
    page: list[T] = []
    held = 0
    for item in items:
        bytes = size(item)
        if page and (len(page) >= rows or held + bytes > PAGE_BYTES):
            yield page
            page, held = [], 0
        page.append(item)
        held += bytes
    if page:
        yield page


def utf8(*texts: str | None) -> int:
    """How many bytes these are."""
    return sum(len(text.encode()) for text in texts if text)
