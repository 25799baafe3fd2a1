"""Print a line for each check of `aif doctor`."""

from rich.console import Console

from aif.cli.console import print_text
from aif.engine.doctor import Check


def print_finding(console: Console, check: Check) -> None:
    """Print the result of one check: ok or FAIL, and its text."""
    label, style = ("ok   ", "green") if check.ok else ("FAIL ", "red")
    print_text(console, f"{check.subject}: {check.text}", style, label=label)
