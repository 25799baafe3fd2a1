"""Short runs of the trials behind docs/performance.md: they measure what they claim to, on a machine of any speed. And
that page against the raw results beside it."""

from pathlib import Path
from typing import Any

import pytest

from trials.performance import PERFORMANCE, journal_latency, orchestration, overlap, start_up


@pytest.mark.parametrize(
    "trial", [orchestration, overlap, start_up, journal_latency], ids=lambda trial: str(trial.__name__)
)
def test_a_short_run_has_no_measurement_errors(trial: Any, tmp_path: Path) -> None:
    figures = trial.trial(tmp_path, full=False)
    assert trial.measurement_errors(figures) == []
    assert trial.summary(figures)


def test_the_page_matches_the_raw_results() -> None:
    assert PERFORMANCE.path.read_text() == PERFORMANCE.rendered(), "run `python -m trials.performance page`"
