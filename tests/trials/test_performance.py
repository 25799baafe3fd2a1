"""The benchmarks measure what they say they do: in small, on a machine however slow; and the page, against the results
beside it."""

from pathlib import Path
from typing import Any

import pytest

from trials.performance import PERFORMANCE, journal_latency, orchestration, overlap, start_up


@pytest.mark.parametrize("one", [orchestration, overlap, start_up, journal_latency], ids=lambda one: str(one.__name__))
def test_a_small_form_is_sound(one: Any, tmp_path: Path) -> None:
    figures = one.trial(tmp_path, full=False)
    assert one.unsound(figures) == []
    assert one.told(figures)


def test_the_page_says_what_was_measured() -> None:
    assert PERFORMANCE.path.read_text() == PERFORMANCE.rendered(), "run `python -m trials.performance page`"
