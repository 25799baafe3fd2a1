"""What a person reads when a run has ended, and when they ask how it stands."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aif.cli.views.failures import tell_failures
from aif.cli.views.progress import say
from aif.core.words import counted, dollars, of, spending, visible
from aif.engine.outcome_text import OUTCOMES, STAGES, balanced, beside, counts, marked
from aif.store.paths import StorePaths
from aif.store.reader import Reader
from aif.store.report_queries import ItemCounts, PromptCounts


def tell_status(console: Console, reader: Reader, budget: float | None = None) -> None:
    """How a store stands that no run holds: as the summary, by model and judge, and without what takes reading every
    rating (the means by aspect: 2 s of CPU for 64,000 prompts)."""
    balance = reader.item_counts()
    tell_items(console, balance)
    _tell(console, reader, balance, reader.standings(), "", budget)
    tell_failures(console, balance.missing)
    tell_marks(console, reader)


def tell_summary(console: Console, reader: Reader, seconds: float, budget: float | None = None) -> None:
    """How a run ended: books, models, how judges agree, tokens and spend (USD, of which budget), failures."""
    balance = reader.item_counts()
    _tell(console, reader, balance, reader.leaderboard(), f" in {seconds:.1f} s", budget)
    tell_failures(console, balance.missing)
    for endpoint, replies, word in reader.unknown_endings():
        said = f"ended by {word!r}, which is no word known: kept as if cut"
        say(console, f"{endpoint}: {counted(replies, 'answer')} {said}")
    tell_marks(console, reader)


def tell_marks(console: Console, reader: Reader) -> None:
    """What looks like reasoning in a text, and what was cut in doubt: a line each and an example."""
    for one in reader.reasoning_marks():
        say(console, f"{marked(one)}, as in {one.prompt_id[:12]}: {one.example}")


def _tell(
    console: Console,
    reader: Reader,
    balance: ItemCounts,
    leaderboard: list[dict[str, Any]],
    took: str,
    budget: float | None,
) -> None:
    books = reader.prompt_counts()
    pairs = f"{counted(books.selected, 'prompt')}, {counted(books.pairs, 'pair')}"
    console.print(f"\n[bold]{pairs}[/bold]{took}\n")
    console.print(_books(books))
    console.print()
    for said in balanced(balance):
        say(console, said)
    if leaderboard:
        tell_leaderboard(console, leaderboard)
    agreement = reader.score_agreement()
    if agreement:
        console.print(_agreement(agreement))
        console.print(
            f"of {counted(books.pairs, 'pair')} {reader.disputed_pairs():,} are the other way round for some judge"
        )
    for judge, prompts in reader.judged_singly().items():
        say(
            console,
            f"{judge}: {counted(prompts, 'prompt')} rated one completion by one, since it can't hold all together",
        )
    spend = reader.spend()
    if spend:
        console.print(_spend(spend))
    if told := spending(reader.spent(), budget):
        say(console, told)


def _grid(title: str) -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold", show_edge=False)


def _books(books: PromptCounts) -> Table:
    grid = _grid("Prompts")
    for side in ("right", "left"):
        grid.add_column(justify=side, no_wrap=side == "right")
    grid.show_header = False
    grid.add_row(f"{sum(books.intake.values()):,}", f"{of(sum(books.intake.values()), 'row')} read")
    for reason, rows in books.intake.items():
        if reason != "selected":
            grid.add_row(f"- {rows:,}", reason.replace("_", " "), style="dim")
    grid.add_row(f"= {books.selected:,}", of(books.selected, "prompt"))
    for outcome, words in OUTCOMES.items():
        if outcome != "paired" and (n := books.outcomes.get(outcome, 0)):
            grid.add_row(f"- {n:,}", words, style="dim")
    paired = books.outcomes.get("paired", 0)
    grid.add_row(f"= {paired:,}", of(paired, "pair") if books.pairs == paired else "prompts with pairs", style="bold")
    if books.pairs != paired:
        grid.add_row(f"{books.pairs:,}", "pairs of these")
    for n, words in beside(books):
        grid.add_row(f"{n:,}", words, style="dim")
    return grid


def tell_leaderboard(console: Console, rows: list[dict[str, Any]]) -> None:
    """One table where there is room for it, with the aspects' first letters if need be; else names, which may be long,
    stand whole in two."""
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
    grid = _grid("\nModels, best first" if sides else "\nTheir ratings by aspect")
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
            grid.add_row(_named(name), *rated)
            continue
        grid.add_row(
            _named(name), f"{row['completions']:,}{cut}", _number(row["mean_score"]), *rated,
            f"{row['chosen'] or 0:,}", f"{row['rejected'] or 0:,}", _number(row["mean_tokens"], 0),
        )  # fmt: skip
    return grid


def _named(name: str) -> Text:
    """A name in a column that may be narrowed: cut there, never folded letter by letter."""
    return Text(visible(name), "cyan", no_wrap=True, overflow="ellipsis")


def _agreement(rows: list[dict[str, Any]]) -> Table:
    grid = _grid("\nJudges, by their own scores")
    grid.add_column("")
    for name in ("completions", "mean difference", "correlation"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(
            _named(f"{row['judge']}, {row['other']}"), f"{row['completions']:,}",
            _number(row["difference"]), _number(row["correlation"]),
        )  # fmt: skip
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
        parts += [f"{row['unpriced']:,} calls unknown"] if row["unpriced"] and parts else []
        usd = " + ".join(parts) or "unknown"
        grid.add_row(
            _named(row["endpoint"]), f"{row['calls']:,}",
            *(f"{row[name] or 0:,}" for name in ("input_tokens", "cached_tokens", "output_tokens")), usd,
        )  # fmt: skip
    return grid


def tell_items(console: Console, balance: ItemCounts) -> None:
    """What is wanted of each model and judge, and how it stands."""
    grid = _grid("Items")
    for name in ("", "", "wanted", "answered", "failed", "pending"):
        grid.add_column(name, justify="right" if name else "left")
    for (stage, name), one in balance.tallies.items():
        grid.add_row(_named(name), STAGES[stage], *(f"{n:,}" for n in counts(one)))
    console.print(grid)


def tell_places(console: Console, store: Path) -> None:
    """Where everything lies; paths are not broken, so that they can be copied."""
    console.print("\n[bold]Where it lies[/bold]")
    for name, path, what in (
        ("store", store, "DuckDB: views leaderboard, ratings, pairs, spend, failures"),
        ("journal", StorePaths(store).journal, "everything paid for; the store is made from it"),
    ):
        say(console, f"  {path}")
        say(console, f"      the {name}: {what}", "dim")
