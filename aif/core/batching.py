"""Split rows into batches that are limited in bytes as well as in number of rows. Pure.

A *batch* is a list of rows that are read or written together. All reading and writing of prompts and completions uses
batches: 2,000 prompts may be 4 MB or 4 GB.

- Texts are queried by key, at most KEYS_PER_QUERY keys at a time: DuckDB then reads only the rows with these keys.
- A query without keys reads a column in blocks of 2,048 rows. If each text has 200 KB, a block is 400 MB.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

MAX_BATCH_BYTES = 16 * 2**20  # 2,000 pairs of 8 KB; DuckDB, Arrow and Python each hold two or three copies of a batch
KEYS_PER_QUERY = 2000  # keys in one query for texts: DuckDB then reads these rows alone (see `SETTINGS` of the store)

T = TypeVar("T")


def batched(items: Iterable[T], size: Callable[[T], int], rows: int) -> Iterator[list[T]]:
    """Yield the items in order, in lists of at most `rows` items and at most MAX_BATCH_BYTES (16 MiB) in total.
    `size(item)` is an item's size in bytes; an item above the maximum is a list by itself."""
    batch: list[T] = []
    batch_bytes = 0
    for item in items:
        item_bytes = size(item)
        if batch and (len(batch) >= rows or batch_bytes + item_bytes > MAX_BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(item)
        batch_bytes += item_bytes
    if batch:
        yield batch


def utf8_size(*texts: str | None) -> int:
    """Return the total size of the texts in UTF-8, in bytes; None counts as empty."""
    return sum(len(text.encode()) for text in texts if text)
