"""Print failures grouped by kind, each with a fix: in `aif failures`, `aif status` and at the end of a run."""

from collections.abc import Sequence

from rich.console import Console

from aif.cli.console import print_text
from aif.cli.views.grouping import pattern
from aif.core.types import FailureGroup
from aif.engine.advice import NEXT_STEPS, fix


def print_failures(console: Console, failures: Sequence[FailureGroup]) -> None:
    """Print failures, calls that were retried, and pending items, under a heading for each.

    Endpoints with the same failure share an entry. Retried calls have a heading of their own, since later calls for the
    same items may have succeeded.
    """
    retried = [failing for failing in failures if failing.verdict == "again"]
    failed = [failing for failing in failures if failing.kind and failing not in retried]
    pending = [failing for failing in failures if not failing.kind]
    for title, section in (("Failures", failed), ("Failed calls that were retried", retried), ("Pending", pending)):
        if section:
            console.print(f"\n[bold]{title}[/bold]")
        for group in group_failures(section):
            _print_group(console, group)


def group_failures(failures: Sequence[FailureGroup]) -> list[list[FailureGroup]]:
    """Group failures that have the same kind, fix, message pattern and `verdict` (whether and when they are retried).
    The group with the most items comes first."""
    groups: dict[tuple[str, ...], list[FailureGroup]] = {}
    for failing in failures:
        kind, text = failing.kind, failing.example
        key = (kind, failing.verdict, fix(kind, text), pattern(text, failing.endpoint)) if kind else (failing.verdict,)
        groups.setdefault(key, []).append(failing)
    return sorted(groups.values(), key=_items, reverse=True)


def _items(group: Sequence[FailureGroup]) -> int:
    return sum(failing.items for failing in group)


def _print_group(console: Console, group: Sequence[FailureGroup]) -> None:
    first, then = group[0], NEXT_STEPS[group[0].verdict]
    print_text(console, f"{first.kind}: {_items(group):,} ({then})" if first.kind else f"{then}: {_items(group):,}")
    several = len(group) > 1
    names = (f"{failing.endpoint} {failing.items:,}" if several else failing.endpoint for failing in group)
    print_text(console, f"    {', '.join(names)}")
    if first.kind:
        print_text(console, f"    {'for example: ' if several else ''}{first.example}")
        if advice := fix(first.kind, first.example):
            print_text(console, f"    → {advice}", "dim")
