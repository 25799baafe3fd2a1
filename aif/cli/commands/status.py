"""`aif status`: how far a run is, from its progress file while it goes on, else from the store."""

from aif.cli.common import File, Sets, err, load, out
from aif.cli.open_store import print_if_behind, reading


def status(pipeline: File, sets: Sets = None) -> None:
    """How far a run is, also while it goes on: done, failed and pending, how fast, what it cost, what is wrong."""
    from aif.cli.views.status import print_dead_run, print_progress

    one = load(pipeline, sets)
    with reading(one, pipeline, sets, print_progress) as reader:
        if reader:
            from aif.cli.views.summary import print_status

            print_dead_run(err, one.store)
            print_if_behind(one, reader)
            print_status(out, reader, one.budget_usd)
