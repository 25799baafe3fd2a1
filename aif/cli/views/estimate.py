"""Print an estimate of a run (calls, tokens, dollars): in `aif estimate`, and before a run that costs something."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from aif.cli.console import print_text
from aif.cli.views.grouping import Name
from aif.core import formatting
from aif.core.formatting import counted, describe_spending, dollars
from aif.engine.estimate import Estimate, EstimateLine, Span, overflow_text

WIDE = 100  # columns
AT_MOST = (
    "if no reply is usable, each is requested three times and is as long as its max_tokens allows; a judgement cut "
    "there gets twice the tokens, then four times. Calls that time out may be billed on top"
)


def print_estimate(console: Console, estimate: Estimate) -> None:
    """Print the calls to make for each model and judge, what they cost, and how each figure was estimated."""
    if not estimate.calls:
        stored = f": all {estimate.stored:,} answers are stored" if estimate.stored else ""
        print_text(console, f"nothing to call{stored}{_failed(estimate)}")
        return
    spent = describe_spending(estimate.spent, estimate.budget) or f"{dollars(estimate.spent.counted)} spent so far"
    spent = f"{'at least ' if estimate.spent.unpriced else ''}{spent}"
    console.print(_table(estimate, console.width >= WIDE))
    print_text(console, f"\n{_sentence(estimate)}")
    print_text(console, f"{estimate.stored:,} answers are stored already; {spent}{_failed(estimate)}")
    for misfit in estimate.overflows:
        print_text(console, overflow_text(misfit), "yellow")
    print_text(console, "\nHow this was estimated", "bold")
    for basis in dict.fromkeys(line.basis for line in estimate.lines if line.calls):
        names = ", ".join(line.name for line in estimate.lines if line.basis == basis)
        print_text(console, f"{names}: {'; '.join(basis)}")
    print_text(console, f"at most: {AT_MOST}", "dim")
    if any(line.at_least for line in estimate.lines):
        hint = "`aif estimate --probe N` runs N prompts to measure what is assumed here; their results are stored"
        print_text(console, hint, "dim")


def print_estimate_line(console: Console, estimate: Estimate, prefix: str = "") -> None:
    """Print an estimate as one line, for logs, with `prefix` before it. Then print a line for each model or judge whose
    context window is too short."""
    for sentence in (prefix + _sentence(estimate), *map(overflow_text, estimate.overflows)):
        print_text(console, sentence)


def compact(tokens: float) -> str:
    """Return a number of tokens in short form: 950, 12.3k, 4.5M."""
    return formatting.compact(round(tokens))


def _sentence(estimate: Estimate) -> str:
    usd = estimate.usd
    money = f"{dollars(usd.expected)}, at most {dollars(usd.most)}" if usd.most else dollars(0)
    if estimate.unpriced:
        known = f"{money}, and more: " if usd.most else ""
        money = f"{known}dollars unknown for {', '.join(estimate.unpriced)}, set `price`"
    tokens = f"{compact(estimate.input.expected)} tokens in, {compact(estimate.output.expected)} out"
    time = _time(estimate.seconds, estimate.at_least)
    return f"estimate: {counted(estimate.calls, 'call')}, {tokens}; {money}; time {time}{_over_budget(estimate)}"


def _over_budget(estimate: Estimate) -> str:
    if estimate.budget is None or estimate.usd.most <= (left := estimate.spent.left(estimate.budget)):
        return ""
    sure = "is" if estimate.usd.expected > left else "may be"
    return f"; this {sure} more than the {dollars(left)} left of budget_usd, where the run would stop"


def _table(estimate: Estimate, wide: bool) -> Table:
    """Return a table with a row for each model and judge, and a row of totals. With `wide`, token numbers
    include their upper bounds."""
    grid = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    grid.add_column("")
    for name in ("calls", "stored", "tokens in", "out", "USD", "time"):
        grid.add_column(name, justify="right", no_wrap=True)

    def figures(part: EstimateLine | Estimate, usd: str, at_least: bool) -> tuple[str, ...]:
        tokens = [
            _range(compact, span if wide else Span(span.expected, span.expected)) for span in (part.input, part.output)
        ]
        return (*tokens, usd, _time(part.seconds, at_least))

    for line in estimate.lines:
        cells = figures(line, _dollars(line.usd), line.at_least) if line.calls else ()
        grid.add_row(Name(line.name, "cyan"), f"{line.calls:,}", f"{line.stored:,}", *cells)
    usd = f"{'≥ ' if estimate.unpriced else ''}{_dollars(estimate.usd)}"
    cells = figures(estimate, usd, estimate.at_least)
    grid.add_row("all", f"{estimate.calls:,}", f"{estimate.stored:,}", *cells, style="bold")
    return grid


def _dollars(usd: Span | None) -> str:
    return "unknown" if usd is None else _range(dollars, usd)


def _range(shown: Callable[[float], str], span: Span) -> str:
    expected, most = shown(span.expected), shown(span.most)
    return expected if expected == most else f"{expected} – {most}"


def _time(seconds: float | None, at_least: bool) -> str:
    if seconds is None:
        return "unknown"
    count, unit = (seconds, "s") if seconds < 90 else (seconds / 60, "min") if seconds < 5400 else (seconds / 3600, "h")
    return f"{'≥ ' if at_least else ''}{count:.{1 if unit == 'h' or count < 10 else 0}f} {unit}"


def _failed(estimate: Estimate) -> str:
    if not estimate.failed:
        return ""
    return f"; {estimate.failed:,} permanent failures are not counted (retry with --retry-failed)"
