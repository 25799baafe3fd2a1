"""`aif failures`: list failed and pending completions and judgements by kind."""

from aif.cli.common import File, Sets, arguments, load
from aif.cli.console import out, print_text
from aif.cli.open_store import open_or_print_running, report_if_behind


def failures(pipeline: File, sets: Sets = None) -> None:
    """List what has no answer by kind, with an example and a fix for each; also during a run."""
    from aif.cli.views.failures import print_failures
    from aif.cli.views.status import print_running_failures

    loaded = load(pipeline, sets)
    with open_or_print_running(loaded, arguments(pipeline, sets), print_running_failures) as reader:
        if reader:
            from aif.cli.views.summary import print_reasoning_marks
            from aif.engine.outcome_text import unplanned_text

            balance, behind = reader.item_counts(), report_if_behind(loaded, reader)
            print_failures(out, balance.missing)
            print_reasoning_marks(out, reader)
            if balance.unplanned:
                print_text(out, unplanned_text(balance))
            elif balance.prompts and not balance.missing and not behind:
                out.print("nothing failed")
