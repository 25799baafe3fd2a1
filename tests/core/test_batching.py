"""Pages: every row once, in order, within the bounds."""

from collections.abc import Iterator
from itertools import pairwise
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from aif.core import batching
from aif.core.batching import batched, utf8_size


@given(st.lists(st.integers(0, 120)), st.integers(1, 9))
def test_batches_have_all_items_in_order_within_the_limits_or_alone(sizes: list[int], most: int) -> None:
    rows = list(enumerate(sizes))
    with patch.object(batching, "MAX_BATCH_BYTES", 100):
        found = list(batched(rows, lambda row: row[1], most))

    assert [row for page in found for row in page] == rows
    for page in found:
        assert 1 <= len(page) <= most
        assert len(page) == 1 or sum(size for _, size in page) <= 100
    for page, behind in pairwise(found):  # and none is cut before it must be
        assert len(page) == most or sum(size for _, size in page) + behind[0][1] > 100


def test_only_one_row_is_read_ahead() -> None:
    """A source may be a file of any length."""
    read: list[int] = []

    def rows() -> Iterator[int]:
        for n in range(100):
            read.append(n)
            yield n

    assert next(batched(rows(), lambda row: 1, 3)) == [0, 1, 2]
    assert read == [0, 1, 2, 3]


def test_bytes_are_those_of_utf8() -> None:
    assert utf8_size("abc", None, "好", "") == 6
