"""Print the results in a store: at the end of `aif run`, and in `aif status` while no run holds the store."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aif.cli.console import print_text
from aif.cli.views.failures import print_failures
from aif.cli.views.grouping import Name, shortened
from aif.core.formatting import counted, describe_spending, dollars, escape_controls, plural
from aif.engine.outcome_text import (
    OUTCOME_TEXTS,
    STAGE_NAMES,
    balance_lines,
    reasoning_mark_text,
    row_notes,
    tally_counts,
)
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from aif.store.report_queries import ItemCounts, PromptCounts, Tally


def print_status(console: Console, reader: Reader, budget: float | None = None) -> None:
    """Print the counts of completions and judgements per model and judge, then prompts, pairs, tokens, cost and
    failures.

    `budget` is in USD, None if there is none. Mean ratings by aspect are left out: they would take 2 s of CPU for
    64,000 prompts.
    """
    balance = reader.item_counts()
    print_items(console, balance)
    _print_results(console, reader, balance, reader.standings(), "", budget)
    print_failures(console, balance.missing)
    print_reasoning_marks(console, reader)


def print_summary(console: Console, reader: Reader, seconds: float, budget: float | None = None) -> None:
    """Print a run's results: prompts, pairs, models, agreement of judges, tokens, cost, failures.

    `seconds` is how long the run took, `budget` is in USD, None if there is none.
    """
    balance = reader.item_counts()
    _print_results(console, reader, balance, reader.leaderboard(), f" in {seconds:.1f} s", budget)
    print_failures(console, balance.missing)
    for endpoint, replies, word in reader.unknown_endings():
        unknown = f"ended with the unknown finish reason {word!r}: stored as if cut"
        print_text(console, f"{endpoint}: {counted(replies, 'answer')} {unknown}")
    print_reasoning_marks(console, reader)


def print_reasoning_marks(console: Console, reader: Reader) -> None:
    """Print warnings about completions whose reasoning may not have been removed correctly.

    Each line has a model, a kind of problem, the number of completions and an example. Another line counts prompts
    with a reasoning tag in an earlier assistant turn, if there are any.
    """
    for mark in reader.reasoning_marks():
        print_text(console, f"{reasoning_mark_text(mark)}, as in {mark.prompt_id[:12]}: {mark.example}")


def _print_results(
    console: Console,
    reader: Reader,
    balance: ItemCounts,
    leaderboard: list[dict[str, Any]],
    took: str,
    budget: float | None,
) -> None:
    prompts = reader.prompt_counts()
    pairs = f"{counted(prompts.selected, 'prompt')}, {counted(prompts.pairs, 'pair')}"
    console.print(f"\n[bold]{pairs}[/bold]{took}\n")
    console.print(_prompt_counts(prompts))
    console.print()
    for sentence in balance_lines(balance):
        print_text(console, sentence)
    if leaderboard:
        print_leaderboard(console, leaderboard)
    agreement = reader.score_agreement()
    if agreement:
        console.print(_agreement(agreement, console.width))
        disputed = f"{reader.disputed_pairs():,} of {counted(prompts.pairs, 'pair')}"
        print_text(console, f"{disputed}: at least one judge prefers the rejected answer")
    for judge, n in reader.judged_singly().items():
        print_text(
            console,
            f"{judge}: {counted(n, 'prompt')} rated one completion at a time: all together exceed its context window",
        )
    spend = reader.spend()
    if spend:
        console.print(_spend(spend))
    if spent := describe_spending(reader.spent(), budget):
        print_text(console, spent)


def _grid(title: str) -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold", show_edge=False)


def _prompt_counts(prompts: PromptCounts) -> Table:
    grid = _grid("Prompts")
    for side in ("right", "left"):
        grid.add_column(justify=side, no_wrap=side == "right")
    grid.show_header = False
    grid.add_row(f"{sum(prompts.intake.values()):,}", f"{plural(sum(prompts.intake.values()), 'row')} read")
    for reason, rows in prompts.intake.items():
        if reason != "selected":
            grid.add_row(f"- {rows:,}", reason.replace("_", " "), style="dim")
    grid.add_row(f"= {prompts.selected:,}", plural(prompts.selected, "prompt"))
    for outcome, words in OUTCOME_TEXTS.items():
        if outcome != "paired" and (n := prompts.outcomes.get(outcome, 0)):
            grid.add_row(f"- {n:,}", words, style="dim")
    paired = prompts.outcomes.get("paired", 0)
    grid.add_row(
        f"= {paired:,}", plural(paired, "pair") if prompts.pairs == paired else "prompts with pairs", style="bold"
    )
    if prompts.pairs != paired:
        grid.add_row(f"{prompts.pairs:,}", "pairs of these")
    for n, words in row_notes(prompts):
        grid.add_row(f"{n:,}", words, style="dim")
    return grid


def print_leaderboard(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print a table of models, in the order of `rows`: best mean score first.

    If it is too wide for the terminal, the names of aspects are shortened; if that isn't enough, aspects get a second
    table.
    """
    aspects = sorted({name for row in rows for name in row.get("aspects") or {}})
    for wide in (True, False):
        grid = _leaderboard(rows, aspects, wide, sides=True)
        if console.measure(grid, options=console.options.update(max_width=1000)).maximum <= console.width:
            console.print(grid)
            return
    console.print(_leaderboard(rows, [], False, sides=True))
    if aspects:
        console.print(_leaderboard(rows, aspects, False, sides=False))


def _leaderboard(rows: list[dict[str, Any]], aspects: list[str], wide: bool, sides: bool) -> Table:
    grid = _grid("\nModels, best first" if sides else "\nModels, ratings by aspect")
    grid.padding = (0, 2 if wide else 1, 0, 0)
    heads = [aspect.replace("_", " ") if wide else f"{aspect[:5]}." for aspect in aspects]
    grid.add_column("model")
    for name in ("answers", "score", *heads, "chosen", "rejected", "tokens") if sides else heads:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        means = row.get("aspects") or {}
        cut = f" ({row['truncated']:,} cut)" if row["truncated"] else ""
        name = f"{row['model']} (carried)" if row["carried"] else row["model"]
        rated = (_number(means.get(aspect)) for aspect in aspects)
        if not sides:
            grid.add_row(Name(name, "cyan"), *rated)
            continue
        grid.add_row(
            Name(name, "cyan"), f"{row['completions']:,}{cut}", _number(row["mean_score"]), *rated,
            f"{row['chosen'] or 0:,}", f"{row['rejected'] or 0:,}", _number(row["mean_tokens"], 0),
        )  # fmt: skip
    return grid


def _agreement(rows: list[dict[str, Any]], width: int) -> Table:
    grid = _grid("\nJudges, by their scores")
    grid.add_column("")
    heads = ("completions", "mean difference", "correlation")
    for name in heads:
        grid.add_column(name, justify="right", no_wrap=True)
    room = (width - sum(len(head) + 2 for head in heads) - 4) // 2
    for row in rows:
        names = ", ".join(shortened(escape_controls(row[judge]), room) for judge in ("judge", "other"))
        grid.add_row(
            Text(names, "cyan"), f"{row['completions']:,}", _number(row["difference"]), _number(row["correlation"])
        )
    return grid


def _number(value: object, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "–"


def _spend(rows: list[dict[str, Any]]) -> Table:
    grid = _grid("\nTokens and spend")
    grid.add_column("")
    for name in ("calls", "tokens in", "cached", "out", "USD"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        parts = [dollars(row["usd"])] if row["usd"] is not None else []
        parts += [f"up to {dollars(row['unknown'])}"] if row["unknown"] else []
        parts += [f"{counted(row['unpriced'], 'call')} unknown"] if row["unpriced"] and parts else []
        usd = " + ".join(parts) or "unknown"
        grid.add_row(
            Name(row["endpoint"], "cyan"), f"{row['calls']:,}",
            *(f"{row[name] or 0:,}" for name in ("input_tokens", "cached_tokens", "output_tokens")), usd,
        )  # fmt: skip
    return grid


def print_items(console: Console, balance: ItemCounts) -> None:
    """Print how many completions of each model and judgements of each judge are wanted, answered, failed, pending."""
    grid = _grid("Items")
    for name in ("", "", "wanted", "answered", "failed", "pending"):
        grid.add_column(name, justify="right" if name else "left")
    for (stage, name), tally in balance.tallies.items():
        grid.add_row(Name(name, "cyan"), STAGE_NAMES[stage], *(f"{n:,}" for n in tally_counts(tally)))
    console.print(grid)


def print_files(console: Console, store: Path) -> None:
    """Print the paths of the store and the journal."""
    console.print("\n[bold]Files[/bold]")
    for path, meaning in (
        (store, "the store (DuckDB): views leaderboard, ratings, pairs, spend, failures"),
        (StorePaths(store).journal, "the journal: every paid answer; the store can be rebuilt from it"),
    ):
        print_text(console, f"  {path}")
        print_text(console, f"      {meaning}", "dim")


def print_next_steps(console: Console, program: str, arguments: str, tallies: Collection[Tally], example: str) -> None:
    """Print the commands to run next.

    program: the first word of each command, such as `aif`.
    arguments: the run's pipeline file and overrides, quoted for a shell.
    tallies: the run's counts per model and judge. Pending or failed items lead to other commands.
    example: the id of a prompt with a pair, for `aif show`; empty if there is none.
    """
    pending, failed = (sum(getattr(tally, name) for tally in tallies) for name in ("pending", "failed"))
    steps = []
    if pending:
        steps.append((f"run {arguments}", "continues with what is pending"))
    if pending or failed:
        steps.append((f"failures {arguments}", "what has no answer, why, and how to fix it"))
    if example:
        steps.append((f"export {arguments}", "pairs and a dataset with its card; calls no model"))
        steps.append((f"show {arguments} {example}", "how a pair was made"))
    if steps:
        console.print("\n[bold]Next[/bold]")
    for command, meaning in steps:
        console.print(f"  {program} {command}", soft_wrap=True, markup=False)
        console.print(f"      {meaning}", style="dim")
