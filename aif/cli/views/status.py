"""What `aif status` and `aif failures` print while another process holds the store, and after a run died."""

import socket

from rich.console import Console

from aif.cli.console import print_text
from aif.cli.running import RunningProcess
from aif.cli.views.failures import print_failures
from aif.cli.views.grouping import grouped
from aif.cli.views.progress import progress_table
from aif.core.formatting import counted, duration
from aif.engine.progress import Snapshot


def print_running(console: Console, running: RunningProcess) -> None:
    """Print which process holds the store, the progress of its run, and its failures."""
    print_text(console, f"{running.store}: {running.holder}")
    if running.snapshot is None:
        print_text(console, "it calls no model now, so there is no progress to show; try again once it has ended")
        return
    console.print(progress_table(running.snapshot, console.width))
    _print_silence(console, running.silent_s)
    print_failures(console, running.snapshot.failures)


def print_running_failures(console: Console, running: RunningProcess) -> None:
    """Print which process holds the store, its failures so far, and how many calls are pending for each endpoint."""
    print_text(console, f"{running.store}: {running.holder}")
    if running.snapshot is None:
        print_text(console, "it calls no model now; try again once it has ended")
        return
    _print_silence(console, running.silent_s)
    print_failures(console, running.snapshot.failures)
    left = [state for state in running.snapshot.lines if state.left]
    if not left and not running.snapshot.failures:
        print_text(console, "nothing failed so far")
    if left:
        console.print("\n[bold]Pending[/bold]")
        print_text(console, f"unanswered so far: {sum(state.left for state in left):,}")
        print_text(console, f"    {', '.join(f'{state.name} {state.left:,}' for state in left)}")
    refusals = grouped((state.name, state.refused) for state in left if state.refused)
    for refused, names in refusals.items():
        print_text(console, f"no more calls to {', '.join(names)}: {refused}")


def print_dead_run(console: Console, left: Snapshot, arguments: str) -> None:
    """Print that a run was killed and how to resume it, or that it may still run on another machine.

    `left` is the run's last progress; `arguments` are those of the `aif run` that resumes it.
    """
    answered = sum(state.answered for state in left.lines)
    last = (
        f"the run that began {left.started} (process {left.pid} on {left.host}) last wrote its progress "
        f"{left.updated}, with {counted(answered, 'answer')}"
    )
    if left.host == socket.gethostname():
        then = (
            "It no longer holds the store: it was killed or crashed. Its answers are in the journal; "
            f"`aif run {arguments}` adds those that the store lacks, and resumes"
        )
    else:
        then = "It may still be running there: this machine may not see locks on a shared folder"
    print_text(console, f"{last}. {then}")


def _print_silence(console: Console, silent_s: float | None) -> None:
    if silent_s is not None:
        print_text(
            console,
            f"its last progress is {duration(silent_s)} old, and so are these figures; is the process "
            "suspended (Ctrl-Z), or its disk full?",
            "yellow",
        )
