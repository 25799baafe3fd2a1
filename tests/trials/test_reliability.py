"""Every promise of docs/reliability.md, tried in short; and the page, against the results beside it."""

from pathlib import Path

import pytest

from trials.harness import Trial
from trials.reliability import RELIABILITY


@pytest.mark.parametrize("one", RELIABILITY.trials(), ids=lambda one: str(one.__name__.rpartition(".")[2]))
def test_the_promise_is_kept(one: Trial, tmp_path: Path) -> None:
    assert one.broken(one.trial(tmp_path, full=False)) == []


def test_each_promise_is_tried_once() -> None:
    numbers = [one.NUMBER for one in RELIABILITY.trials()]
    assert len(numbers) == len(set(numbers))


def test_the_page_says_what_was_measured() -> None:
    assert RELIABILITY.path.read_text() == RELIABILITY.rendered(), "run `python -m trials.reliability page`"
