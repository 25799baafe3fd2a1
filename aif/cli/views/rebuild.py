"""Print how many calls `aif rebuild` or `aif reparse` read from the journal, and how many judgements changed."""

from rich.console import Console

from aif.cli.console import print_text
from aif.engine.rebuild import RebuildResult


def print_rebuilt(console: Console, rebuilt: RebuildResult, done: str) -> None:
    """Print how many calls were read from the journal, and how many judgements changed. `done` is the first sentence,
    with {} in place of the number of calls."""
    print_text(console, f"{done.format(f'{rebuilt.calls:,}')} in {rebuilt.seconds:.1f} s; no model was called")
    if not rebuilt.unchanged + rebuilt.changed + rebuilt.no_longer_readable:
        print_text(
            console, f"judgements: {rebuilt.newly_readable:,} readable; there was no earlier store to compare with"
        )
        return
    print_text(
        console,
        f"judgements: {rebuilt.unchanged:,} unchanged, {rebuilt.changed:,} changed, "
        f"{rebuilt.newly_readable:,} newly readable, {rebuilt.no_longer_readable:,} no longer readable",
    )
