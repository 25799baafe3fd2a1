"""Short runs of the trials behind docs/reliability.md, and that page against the raw results beside it."""

from pathlib import Path

import pytest

from trials.harness import Trial
from trials.reliability import RELIABILITY


@pytest.mark.parametrize("trial", RELIABILITY.trials(), ids=lambda trial: str(trial.__name__.rpartition(".")[2]))
def test_the_promise_is_kept(trial: Trial, tmp_path: Path) -> None:
    assert trial.violations(trial.trial(tmp_path, full=False)) == []


def test_trial_numbers_are_unique() -> None:
    numbers = [trial.NUMBER for trial in RELIABILITY.trials()]
    assert len(numbers) == len(set(numbers))


def test_the_page_matches_the_raw_results() -> None:
    assert RELIABILITY.path.read_text() == RELIABILITY.rendered(), "run `python -m trials.reliability page`"
