"""A run that goes on, drawn: a live table in a terminal, a line now and then elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aif.core.formatting import compact, describe_spending, dollars, duration, escape_controls
from aif.engine.progress import DISPLAY_CLOSED, Snapshot

LINE_EVERY_S = 10.0

WIDE = 100  # columns


def say(console: Console, words: str, style: str | None = None) -> None:
    """Words to a person, as they are, whoever wrote them. Where nobody reads them any more, what goes on goes on."""
    with suppress(*DISPLAY_CLOSED):
        console.print(escape_controls(words), highlight=False, markup=False, soft_wrap=True, style=style)


def line(snapshot: Snapshot) -> str:
    """A snapshot in one line, for logs."""
    parts = []
    for stage, word in (("completion", "completions"), ("judgement", "judgements")):
        lines = [one for one in snapshot.lines if one.stage == stage]
        done, wanted = sum(one.answered for one in lines), sum(one.wanted for one in lines)
        failed = sum(one.failed + one.later for one in lines)
        rate = sum(one.rate for one in lines)
        parts.append(f"{word} {done:,}/{wanted:,} ({rate:.1f}/s{f', {failed:,} failed' if failed else ''})")
    refused = "".join(f" · {one.name} refused" for one in snapshot.lines if one.refused)
    busy: dict[str, list[str]] = {}
    for one in snapshot.lines:
        if one.doing and not one.refused:
            busy.setdefault(one.doing, []).append(one.name)
    doing = "".join(f" · {', '.join(names)} {what}" for what, names in busy.items())
    state = " · ".join([*parts, dollars(_usd(snapshot)), f"ETA {duration(snapshot.eta_s)}"])
    said = f" · {told}" if (told := describe_spending(snapshot.spent, snapshot.budget)) else ""
    return f"{duration(snapshot.elapsed_s)} {state}{said}{doing}{refused}"


def table(snapshot: Snapshot, wide: bool) -> Group:
    """A snapshot as a table, for eyes; with bars where the terminal is wide. What endpoints do instead of answering
    stands below it, so that no message, however long, takes the room of the figures."""
    grid = Table(box=None, padding=(0, 1), title_justify="left", title_style="bold")
    grid.title = (
        f"{duration(snapshot.elapsed_s)} gone, {duration(snapshot.eta_s)} to go, {dollars(_usd(snapshot))} spent"
    )
    heads = ("", "", "done", "per s", "open", "failed", "in", "out", "USD")
    for n, head in enumerate(heads):
        # only a column that may wrap is narrowed where the room is short: the name's
        grid.add_column(head, justify="left" if n < 2 else "right", no_wrap=n > 0)
    told = describe_spending(snapshot.spent, snapshot.budget)
    notes = [Text(f" {told}", "dim")] if told else []
    for one in snapshot.lines:
        failed = one.failed + one.later
        grid.add_row(
            Text(one.name, "cyan" if one.stage == "completion" else "magenta", no_wrap=True, overflow="ellipsis"),
            bar(one.answered + one.failed + one.later, one.wanted) if wide else "",
            f"{one.answered:,}/{one.wanted:,}",
            f"{one.rate:.1f}",
            str(one.in_flight),
            Text(f"{failed:,}", style="red" if failed else "dim"),
            compact(one.input_tokens),
            compact(one.output_tokens),
            dollars(one.usd),
        )
        if one.refused:
            notes.append(Text(f" {one.name} refused: {one.refused}", "red", no_wrap=True, overflow="ellipsis"))
        elif one.doing:
            notes.append(Text(f" {one.name} {one.doing}", "yellow", no_wrap=True, overflow="ellipsis"))
    return Group(grid, *notes)


def bar(done: int, wanted: int) -> ProgressBar:
    return ProgressBar(total=max(1, wanted), completed=done, width=16)


def _usd(snapshot: Snapshot) -> float | None:
    known = [one.usd for one in snapshot.lines]
    return None if None in known else sum(usd for usd in known if usd is not None)


class Terminal:
    """A console as the screen of a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.every_s = 0.25 if console.is_terminal else LINE_EVERY_S

    def print_line(self, words: str) -> None:
        say(self._console, words)

    @contextmanager
    def drawing(self) -> Iterator[Callable[[Snapshot], None]]:
        """A table that stays in its place; without a terminal a line each time."""
        if not self._console.is_terminal:
            yield lambda snapshot: self._console.print(line(snapshot), soft_wrap=True, markup=False)
            return
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            yield lambda snapshot: live.update(table(snapshot, wide=self._console.width >= WIDE))
