"""What `aif rubric try` prints."""

import io

from rich.console import Console

from aif.cli.views.rubric import print_trial
from aif.engine.rubric_trial import TrialResult
from aif.engine.run import CallingResult
from aif.store.report_queries import UnratedJudgements


def test_judgements_that_were_not_sent_have_no_example() -> None:
    unrated = [UnratedJudgements("a", "not sent yet", 60, ""), UnratedJudgements("b", "timeout", 2, "nothing in 9 s")]
    screen = io.StringIO()
    print_trial(Console(file=screen, width=80), TrialResult(("x", "y"), {}, {}, unrated, CallingResult(True, {}, None)))
    assert screen.getvalue().splitlines()[-2:] == [
        "a: not sent yet, 60 without a rating",
        "b: timeout, 2 without a rating: nothing in 9 s",
    ]
