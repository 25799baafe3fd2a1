"""What `aif rebuild` and `aif reparse` print."""

from rich.console import Console

from aif.cli.console import print_text
from aif.engine.rebuild import Again


def print_rebuilt(console: Console, rebuilt: Again, done: str) -> None:
    """Print how many calls were read, and how the ratings compare with the earlier ones. `done` is a sentence with {}
    in place of the number of calls."""
    print_text(console, f"{done.format(f'{rebuilt.calls:,}')} in {rebuilt.seconds:.1f} s; no model was called")
    if not rebuilt.alike + rebuilt.changed + rebuilt.lost:
        print_text(console, f"judgements: {rebuilt.gained:,} readable; there was no earlier store to compare with")
        return
    print_text(
        console,
        f"judgements: {rebuilt.alike:,} unchanged, {rebuilt.changed:,} changed, {rebuilt.gained:,} newly readable, "
        f"{rebuilt.lost:,} no longer readable",
    )
