"""`aif status`: how far a run is, from its progress file during a run, else from the store."""

from aif.cli.common import File, Sets, arguments, load
from aif.cli.console import err, out
from aif.cli.open_store import open_or_print_running, report_if_behind


def status(pipeline: File, sets: Sets = None) -> None:
    """Show progress, also during a run: done, failed and pending, rate, cost, problems."""
    from aif.cli.running import dead_run
    from aif.cli.views.status import print_dead_run, print_running

    loaded = load(pipeline, sets)
    with open_or_print_running(loaded, arguments(pipeline, sets), print_running) as reader:
        if reader:
            from aif.cli.views.summary import print_status

            if left := dead_run(loaded.store):
                print_dead_run(err, left, arguments(pipeline, sets))
            report_if_behind(loaded, reader)
            print_status(out, reader, loaded.budget_usd)
