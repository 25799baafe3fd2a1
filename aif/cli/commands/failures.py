"""`aif failures`: items without an answer, by kind."""

from aif.cli.common import File, Sets, load, out
from aif.cli.open_store import print_if_behind, reading


def failures(pipeline: File, sets: Sets = None) -> None:
    """What has no answer, by kind, with an example and what to do; also while a run goes on."""
    from aif.cli.views.failures import print_failures
    from aif.cli.views.status import print_failures_so_far

    one = load(pipeline, sets)
    with reading(one, pipeline, sets, print_failures_so_far) as reader:
        if reader:
            from aif.cli.views.summary import print_reasoning_marks
            from aif.engine.outcome_text import unplanned

            balance, behind = reader.balance(), print_if_behind(one, reader)
            print_failures(out, balance.missing)
            print_reasoning_marks(out, reader)
            if balance.unplanned:
                out.print(unplanned(balance))
            elif balance.prompts and not balance.missing and not behind:
                out.print("nothing failed")
