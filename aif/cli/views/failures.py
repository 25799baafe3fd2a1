"""What has no answer, as it is told: by kind, with an example and what to do."""

from collections.abc import Sequence

from rich.console import Console

from aif.cli.views.progress import say
from aif.core.types import Failing
from aif.core.words import counted
from aif.engine.advice import THEN, mend


def print_failures(console: Console, failures: Sequence[Failing]) -> None:
    """Each kind in a line, with an example and what to do; nothing where there is none. Apart stand calls that were
    made again: their items may be answered by now."""
    again = [one for one in failures if one.verdict == "again"]
    _print_section(console, "Without an answer", [one for one in failures if one not in again])
    _print_section(console, "Calls that failed and were made again", again)


def _print_section(console: Console, title: str, failures: Sequence[Failing]) -> None:
    if failures:
        console.print(f"\n[bold]{title}[/bold]")
    for one in failures:
        items = counted(one.items, "call" if one.verdict == "again" else "item")
        if not one.kind:
            say(console, f"{one.endpoint}: {items}, {THEN[one.verdict]}")
            continue
        say(console, f"{one.endpoint}: {one.kind}, {items}, {THEN[one.verdict]}")
        say(console, f"    {one.example}")
        if what := mend(one.kind, one.example):
            say(console, f"    → {what}", "dim")
