"""Show the progress of a run: a live table in a terminal, elsewhere a log line every 10 s."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from aif.cli.console import can_redraw, print_text
from aif.cli.views.grouping import Name, few, grouped
from aif.core.formatting import compact, describe_spending, dollars, duration
from aif.engine.progress import EndpointState, Snapshot

LINE_EVERY_S = 10.0
BARS_FROM = 72  # columns from which each model has a bar
# A figure -> the columns from which it is shown for each model, so that names stay readable in a narrow terminal.
FIGURES_FROM = {"done": 0, "per s": BARS_FROM, "in flight": 50, "failed": 0, "in": 100, "out": 100, "USD": 50}
REFRESH_PER_S = 4


def progress_line(snapshot: Snapshot) -> str:
    """Return a snapshot as one line, for logs."""
    parts = [f"{_times(snapshot)}", _overall(snapshot)]
    for stage, noun in (("completion", "completions"), ("judgement", "judgements")):
        states = [state for state in snapshot.lines if state.stage == stage]
        answered, wanted = sum(state.answered for state in states), sum(state.wanted for state in states)
        failed = sum(map(_failed, states))
        rate = sum(state.rate for state in states)
        parts.append(f"{noun} {answered:,}/{wanted:,} ({rate:.1f}/s{f', {failed:,} failed' if failed else ''})")
    parts.append(_spend(snapshot))
    parts += [f"{few(names)}: {activity}" for activity, names in _names_by_activity(snapshot).items()]
    if refused := [state.name for state in snapshot.lines if state.refused]:
        parts.append(f"{few(refused)}: refused")
    return " · ".join(parts)


def progress_table(snapshot: Snapshot, width: int) -> Group:
    """Return a snapshot as a table for a terminal of `width` columns.

    It shows the whole run, then notes on endpoints that don't answer now, then a row for each model and judge. The last
    rows are cut off if the terminal isn't high enough.
    """
    grid = Table(box=None, padding=(0, 1))
    shown = [head for head, columns in FIGURES_FROM.items() if width >= columns]
    heads = ("", *[""] * (width >= BARS_FROM), *shown)
    for n, head in enumerate(heads):
        # only the names may be narrowed
        grid.add_column(head, justify="left" if not head else "right", no_wrap=n > 0)
    for state in snapshot.lines:
        figures: dict[str, str | Text] = {
            "done": f"{state.answered:,}/{state.wanted:,}",
            "per s": f"{state.rate:.1f}",
            "in flight": str(state.in_flight),
            "failed": Text(f"{_failed(state):,}", style="red" if _failed(state) else "dim"),
            "in": compact(state.input_tokens),
            "out": compact(state.output_tokens),
            "USD": dollars(state.usd),
        }
        bar = [_bar(_ended(state), state.wanted, 16 if width >= 120 else 8)] if width >= BARS_FROM else []
        name = Name(state.name, "cyan" if state.stage == "completion" else "magenta")
        grid.add_row(name, *bar, *(figures[head] for head in shown))
    spend = Padding(Text(_spend(snapshot), "dim"), (0, 1))
    return Group(_overall_row(snapshot, width), spend, *_notes(snapshot), grid)


def _overall_row(snapshot: Snapshot, width: int) -> RenderableType:
    states, overall, times = snapshot.lines, _overall(snapshot), _times(snapshot)
    bar_width = min(40, width - len(overall) - len(times) - 6)
    if bar_width < 8:
        return Padding(Text.assemble((overall, "bold"), f", {times}"), (0, 1))
    row = Table.grid(padding=(0, 1))
    bar = _bar(sum(map(_ended, states)), sum(state.wanted for state in states), bar_width)
    row.add_row("", Text(overall, "bold"), bar, Text(times))
    return row


def _notes(snapshot: Snapshot) -> Iterator[Text]:
    """Yield lines on the endpoints that don't answer now: one for each activity, such as starting, and one for each
    reason why calls are refused. A line begins with the names of its endpoints.

    The lines are printed above the table, since a long message in the table would narrow its columns.
    """
    refusals = grouped((state.name, state.refused) for state in snapshot.lines if state.refused)
    for activity, names in _names_by_activity(snapshot).items():
        yield Text(f" {few(names)}: {activity}", "yellow", no_wrap=True, overflow="ellipsis")
    for refusal, names in refusals.items():
        yield Text(f" {few(names)}: refused: {refusal}", "red", no_wrap=True, overflow="ellipsis")


def _names_by_activity(snapshot: Snapshot) -> dict[str, list[str]]:
    """Return the names of the endpoints that don't answer now, by activity, such as "starting". Refused endpoints
    are left out."""
    return grouped((state.name, state.doing) for state in snapshot.lines if state.doing and not state.refused)


def _overall(snapshot: Snapshot) -> str:
    answered, wanted = (sum(getattr(state, name) for state in snapshot.lines) for name in ("answered", "wanted"))
    percent = int(1000 * answered / wanted) / 10 if wanted else 0.0  # rounded down: 100 % only when all are answered
    return f"{answered:,} of {wanted:,} ({percent:.1f}%)"


def _times(snapshot: Snapshot) -> str:
    return f"elapsed {duration(snapshot.elapsed_s)}, ETA {duration(snapshot.eta_s)}"


def _spend(snapshot: Snapshot) -> str:
    """Return the money and the tokens that this run has spent, as text.

    If there is a budget, or calls have an unknown cost, the money is what all runs with this store have spent.
    """
    tokens = (sum(getattr(state, name) for state in snapshot.lines) for name in ("input_tokens", "output_tokens"))
    tokens_in, tokens_out = map(compact, tokens)
    unpriced = [state.name for state in snapshot.lines if state.usd is None]
    spent = describe_spending(snapshot.spent, snapshot.budget)
    spent = spent or f"{dollars(sum(state.usd or 0.0 for state in snapshot.lines))} spent in this run"
    plus = f", plus {few(unpriced)} (price unknown)" if unpriced else ""
    return f"{spent}{plus}; {tokens_in} tokens in, {tokens_out} out"


def _ended(state: EndpointState) -> int:
    return state.answered + _failed(state)


def _failed(state: EndpointState) -> int:
    return state.failed + state.later


def _bar(ended: int, wanted: int, width: int) -> Text:
    """Return a progress bar of `width` columns for `ended` of `wanted` items. It is readable without colors, which
    rich's own bar isn't."""
    halves = min(2 * width, 2 * width * ended // max(1, wanted))
    full = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text(full, "green").append("─" * (width - len(full)), "dim")


class Terminal:
    """Shows a run's progress on a console: as a live table in a terminal, else as log lines. Implements the engine's
    protocol `Display`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = can_redraw(console)
        self.every_s = 1 / REFRESH_PER_S if self._live else LINE_EVERY_S

    def print_line(self, words: str) -> None:
        """Print a line of text."""
        print_text(self._console, words)

    @contextmanager
    def drawing(self) -> Iterator[Callable[[Snapshot], None]]:
        """Yield a function that draws a snapshot: in a terminal over the one before, elsewhere as a new line."""
        if not self._live:
            yield lambda snapshot: self._console.print(progress_line(snapshot), soft_wrap=True, markup=False)
            return
        with Live(console=self._console, refresh_per_second=REFRESH_PER_S, transient=True) as live:
            yield lambda snapshot: live.update(progress_table(snapshot, self._console.width))
