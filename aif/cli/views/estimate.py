"""An estimate as a person reads it, and the question whether to spend so much."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aif.core import words
from aif.core.errors import BadInput, NotStarted
from aif.core.words import counted, dollars, spending
from aif.engine.estimate import Estimate, EstimateLine, Span, unfit

WIDE = 100  # columns
AT_MOST = (
    "each is asked three times, since no reply can be used, and each is as long as its max_tokens allows; a judgement "
    "cut there gets twice the room, then four times. What times out may be billed on top"
)


def compact(tokens: float) -> str:
    return words.compact(round(tokens))


def print_estimate(console: Console, estimate: Estimate) -> None:
    """What is to be asked of each model and judge, what it comes to, and how each figure was made."""
    if not estimate.calls:
        there = f": all {estimate.kept:,} answers are there" if estimate.kept else ""
        console.print(f"nothing to ask{there}{_failed(estimate)}", soft_wrap=True)
        return

    def say(words: str, style: str = "") -> None:
        console.print(words, style=style, markup=False, soft_wrap=True)

    spent = spending(estimate.spent, estimate.budget) or f"{dollars(estimate.spent.counted)} spent so far"
    spent = f"{'at least ' if estimate.spent.unpriced else ''}{spent}"
    console.print(_table(estimate, console.width >= WIDE))
    say(f"\n{_sentence(estimate)}")
    say(f"{estimate.kept:,} answers are there already; {spent}{_failed(estimate)}")
    for one in estimate.tight:
        say(unfit(one), "yellow")
    say("\nHow it was reckoned", "bold")
    for basis in dict.fromkeys(line.basis for line in estimate.lines if line.calls):
        names = ", ".join(line.name for line in estimate.lines if line.basis == basis)
        say(f"{names}: {'; '.join(basis)}")
    say(f"at most: {AT_MOST}", "dim")
    if any(line.at_least for line in estimate.lines):
        say("`aif estimate --probe N` measures what is assumed on N prompts asked for real; all of it is kept", "dim")


def print_estimate_line(console: Console, estimate: Estimate) -> None:
    """The same in a line, for logs, and one for each model or judge that can't hold what it is to be asked."""
    for sentence in (_sentence(estimate), *map(unfit, estimate.tight)):
        console.print(sentence, markup=False, soft_wrap=True)


def ask(console: Console, estimate: Estimate, above_usd: float, *, yes: bool) -> None:
    """Tells what a run comes to. By hand, when that is more than `above_usd` or not known, asks whether to go on.

    Without a terminal to ask at it goes on, as batch jobs must. Raises NotStarted where the answer is no.
    """
    dear = bool(estimate.unpriced) or estimate.usd.expected > above_usd
    if yes or not dear or not by_hand():
        print_estimate_line(console, estimate)
        return
    print_estimate(console, estimate)
    _question(console)


def ask_for_probe(console: Console, estimate: Estimate, *, yes: bool) -> None:
    """Tells what a probe comes to, and asks for it unless it costs nothing. Raises BadInput without a terminal."""
    print_estimate_line(console, estimate)
    if yes or not (estimate.unpriced or estimate.usd.most):
        return
    if not by_hand():
        raise BadInput("--probe spends money, and there is no terminal to ask at; add --yes")
    _question(console)


def by_hand() -> bool:
    """Whether somebody sits there who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _question(console: Console) -> None:
    """Raises NotStarted unless the answer is yes; at Ctrl-C KeyboardInterrupt, in a line of its own."""
    try:
        said = console.input("Go on? [y/N] ", markup=False)
    except EOFError:
        said = ""
    except KeyboardInterrupt:
        console.print("\nnot started; nothing was asked")
        raise
    if said.strip().lower() not in ("y", "yes"):
        raise NotStarted("not started; nothing was asked. --yes goes on unasked, --limit N asks about fewer prompts")


def _sentence(estimate: Estimate) -> str:
    usd = estimate.usd
    money = f"{dollars(usd.expected)}, at most {dollars(usd.most)}" if usd.most else dollars(0)
    if estimate.unpriced:
        known = f"{money}, and more: " if usd.most else ""
        money = f"{known}dollars unknown for {', '.join(estimate.unpriced)}, set `price`"
    tokens = f"{compact(estimate.input.expected)} tokens in, {compact(estimate.output.expected)} out"
    time = _time(estimate.seconds, estimate.at_least)
    return f"to ask: {counted(estimate.calls, 'call')}, {tokens}; {money}; time {time}{_beyond(estimate)}"


def _beyond(estimate: Estimate) -> str:
    """Says so where what is to be asked is more than the budget has left."""
    if estimate.budget is None or estimate.usd.most <= (left := estimate.spent.left(estimate.budget)):
        return ""
    sure = "is" if estimate.usd.expected > left else "may be"
    return f"; that {sure} more than the {dollars(left)} left of budget_usd, where the run would stop"


def _table(estimate: Estimate, wide: bool) -> Table:
    """In a narrow terminal tokens are told as expected, without what they are at most."""
    grid = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    grid.add_column("to ask", style="cyan", overflow="fold")
    for name in ("calls", "kept", "tokens in", "out", "USD", "time"):
        grid.add_column(name, justify="right", no_wrap=True)

    def told(one: EstimateLine | Estimate, usd: str, at_least: bool) -> tuple[str, ...]:
        tokens = [
            _range(compact, span if wide else Span(span.expected, span.expected)) for span in (one.input, one.output)
        ]
        return (*tokens, usd, _time(one.seconds, at_least))

    for line in estimate.lines:
        figures = told(line, _dollars(line.usd), line.at_least) if line.calls else ()
        grid.add_row(Text(line.name), f"{line.calls:,}", f"{line.kept:,}", *figures)
    usd = f"{'≥ ' if estimate.unpriced else ''}{_dollars(estimate.usd)}"
    figures = told(estimate, usd, estimate.at_least)
    grid.add_row("all", f"{estimate.calls:,}", f"{estimate.kept:,}", *figures, style="bold")
    return grid


def _dollars(usd: Span | None) -> str:
    return "unknown" if usd is None else _range(dollars, usd)


def _range(told: Callable[[float], str], span: Span) -> str:
    expected, most = told(span.expected), told(span.most)
    return expected if expected == most else f"{expected} – {most}"


def _time(seconds: float | None, at_least: bool) -> str:
    if seconds is None:
        return "unknown"
    count, unit = (seconds, "s") if seconds < 90 else (seconds / 60, "min") if seconds < 5400 else (seconds / 3600, "h")
    return f"{'≥ ' if at_least else ''}{count:.{1 if unit == 'h' or count < 10 else 0}f} {unit}"


def _failed(estimate: Estimate) -> str:
    if not estimate.failed:
        return ""
    return f"; {estimate.failed:,} failed for good and are not counted (`aif run --retry-failed` asks them again)"
