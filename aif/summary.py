"""What a person reads when a run has ended, and when they ask how it stands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aif.budget import Short
from aif.chat.base import Kind
from aif.pairs import Policy
from aif.progress import dollars, say, spending
from aif.queries import Books, Reader, Tally

WIDE = 110  # columns of a terminal that hold the leaderboard's full heads

# What became of a prompt, in words. The keys are pairs.REASONS and those queries.unpaired adds.
OUTCOMES = {
    "paired": "pairs",
    "tie": "tied: no completion is lower than the best",
    "margin": "lower ones, but none by min_margin",
    "identical": "the lower one has the same text",
    "length_ratio": "the lower one's length is beyond max_length_ratio",
    "model_cap": "its models are on their sides max_per_model times",
    "no_such_model": "no completion is by the model of on_policy",
    "best_truncated": "only a completion cut at max_tokens is higher than the rest",
    "all_truncated": "every completion was cut at max_tokens",
    "no_common_aspect": "no aspect is rated for every completion",
    "missing_aspect": "an aspect is missing for one completion",
    "too_few": "fewer than two completions",
    "too_few_completions": "fewer completions than min_completions",
    "judgement_failed": "no judge gave a readable rating",
    "pending": "pending",
}


def rule_of(policy: Policy) -> str:
    """How a policy picks, in words."""
    lower = f"lower by at least {policy.min_margin:g}" if policy.min_margin else "lower"
    if policy.max_length_ratio is not None:
        lower += f" and at most {policy.max_length_ratio:g} times as long or as short"
    if policy.name == "all":
        said = f"every completion that was not cut at its limit is chosen over every one {lower}"
        if policy.max_pairs_per_prompt is not None:
            said += f"; of a prompt's pairs the widest {policy.max_pairs_per_prompt} stay"
    else:
        said = "chosen is the best completion that was not cut at its limit"
        if policy.name == "on_policy":
            said += f", of the pairs with {policy.model} on one side"
        said += f"; rejected is {'the lowest of' if policy.name == 'best_vs_worst' else 'drawn from'} those {lower}"
    if policy.max_per_model is not None:
        said += f"; no model is on a side more than {policy.max_per_model:,} times"
    return said


def tell_summary(console: Console, reader: Reader, seconds: float | None = None, budget: float | None = None) -> None:
    """Books, models, how judges agree, tokens and spend (USD, of which budget), failures."""
    books = reader.books()
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    console.print(f"\n[bold]{books.selected:,} prompts, {books.pairs:,} pairs[/bold]{took}\n")
    console.print(_books(books))
    leaderboard = reader.sql("SELECT * FROM leaderboard")
    if leaderboard:
        console.print(_leaderboard(leaderboard, console.width >= WIDE))
    agreement = reader.sql("SELECT * FROM score_agreement")
    if agreement:
        console.print(_agreement(agreement))
        console.print(f"of {books.pairs:,} pairs {reader.disputed():,} are the other way round for some judge")
    spend = reader.sql("SELECT * FROM spend")
    if spend:
        console.print(_spend(spend))
    if told := spending(reader.spent(), budget):
        say(console, told)
    tell_failures(console, reader)


def _grid(title: str) -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold", show_edge=False)


def _books(books: Books) -> Table:
    grid = _grid("Prompts")
    for side in ("right", "left"):
        grid.add_column(justify=side, no_wrap=side == "right")
    grid.show_header = False
    grid.add_row(f"{sum(books.intake.values()):,}", "rows read")
    for reason, rows in books.intake.items():
        if reason != "selected":
            grid.add_row(f"- {rows:,}", reason.replace("_", " "), style="dim")
    grid.add_row(f"= {books.selected:,}", "prompts")
    for outcome, words in OUTCOMES.items():
        if outcome != "paired" and (n := books.outcomes.get(outcome, 0)):
            grid.add_row(f"- {n:,}", words, style="dim")
    paired = books.outcomes.get("paired", 0)
    grid.add_row(f"= {paired:,}", "pairs" if books.pairs == paired else "prompts with pairs", style="bold")
    if books.pairs != paired:
        grid.add_row(f"{books.pairs:,}", "pairs of these")
    if books.empty:
        grid.add_row(f"{books.empty:,}", "completions left out, having no text", style="dim")
    return grid


def _leaderboard(rows: list[dict[str, Any]], wide: bool) -> Table:
    """In a narrow terminal aspects are cut to their first letters rather than by the terminal."""
    grid = _grid("\nModels, best first")
    grid.padding = (0, 2 if wide else 1, 0, 0)
    aspects = sorted({name for row in rows for name, _ in row["aspects"] or []})
    heads = [aspect.replace("_", " ") if wide else f"{aspect[:5]}." for aspect in aspects]
    grid.add_column("model", style="cyan", overflow="fold")
    for name in ("answers", "score", *heads, "chosen", "rejected", "tokens"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        means = dict(row["aspects"] or [])
        cut = f" ({row['truncated']:,} cut)" if row["truncated"] else ""
        grid.add_row(
            Text(row["model"]), f"{row['completions']:,}{cut}", _number(row["mean_score"]),
            *(_number(means.get(aspect)) for aspect in aspects),
            f"{row['chosen'] or 0:,}", f"{row['rejected'] or 0:,}", _number(row["mean_tokens"], 0),
        )  # fmt: skip
    return grid


def _agreement(rows: list[dict[str, Any]]) -> Table:
    grid = _grid("\nJudges, by their own scores")
    grid.add_column("", style="cyan", overflow="fold")
    for name in ("completions", "mean difference", "correlation"):
        grid.add_column(name, justify="right")
    for row in rows:
        grid.add_row(
            f"{row['judge']}, {row['other']}", f"{row['completions']:,}",
            _number(row["difference"]), _number(row["correlation"]),
        )  # fmt: skip
    return grid


def _number(value: object, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "–"


def _spend(rows: list[dict[str, Any]]) -> Table:
    grid = _grid("\nTokens and spend")
    grid.add_column("", style="cyan")
    for name in ("calls", "tokens in", "cached", "out", "USD"):
        grid.add_column(name, justify="right")
    for row in rows:
        parts = [dollars(row["usd"])] if row["usd"] is not None else []
        parts += [f"up to {dollars(row['unknown'])}"] if row["unknown"] else []
        parts += [f"{row['unpriced']:,} calls unknown"] if row["unpriced"] and parts else []
        usd = " + ".join(parts) or "unknown"
        grid.add_row(
            row["endpoint"], f"{row['calls']:,}",
            *(f"{row[name] or 0:,}" for name in ("input_tokens", "cached_tokens", "output_tokens")), usd,
        )  # fmt: skip
    return grid


MENDS = {
    Kind.CONTEXT_OVERFLOW: "prompt and max_tokens don't fit the model's context, or a minute's limit: lower max_tokens",
    Kind.BLOCKED: "the provider's filter refused it; another model may answer",
    Kind.BAD_REQUEST: "a setting is refused: `temperature: null` and `top_p: null` take them out; a chat template that "
    "refuses a system turn wants `system: fold_into_user`; `reply: text` asks without a schema",
    Kind.EMPTY: "the model says nothing; if it reasons, raise max_tokens (which asks all its completions again)",
    Kind.TRUNCATED: "raise the judge's max_tokens (which asks all judgements again)",
    Kind.UNREADABLE: "see `raw` in the table `failed`; try `reply: schema` or `text`, or another judge",
    Kind.RATE_LIMITED: "lower concurrency, or set requests_per_minute",
    Kind.SERVER_ERROR: "the server is ill, or this request makes it so; see its log",
    Kind.TIMEOUT: "is the server still loading? else raise timeout_s, or lower concurrency",
    Kind.CONNECTION: "nothing answers there: is the server up, is base_url right?",
    Kind.BAD_REPLY: "what answers there is no chat completions API: see base_url (it ends with /v1)",
    Kind.UNAUTHORIZED: "set the key's environment variable to a key that may use this model",
    Kind.QUOTA_EXHAUSTED: "the account has no money left: add some, or use another key",
    Kind.UNKNOWN_MODEL: "the server has no such model: see `model` and `base_url`",
}

THEN = {
    "later": "asked again by the next run",
    "failed": "waits for --retry-failed",
    "refused": "takes no call until it is mended",
}


def tell_failures(console: Console, reader: Reader) -> bool:
    """What has no answer now, by kind, with an example and what to do. Whether there was anything to tell."""
    rows = reader.sql("SELECT * FROM failures")
    if not rows:
        return False
    console.print("\n[bold]Without an answer[/bold]")
    for row in rows:
        items = "calls" if row["verdict"] == "refused" else "items"
        console.print(
            f"{row['endpoint']}: {row['kind']}, {row['items']:,} {items}, {THEN[row['verdict']]}", markup=False
        )
        say(console, f"    {row['example']}")
        if mend := MENDS.get(row["kind"]):
            console.print(f"    → {mend}", style="dim", markup=False)
    return True


def reached(short: Short, command: str) -> str:
    """That the budget is reached, and what to do."""
    goes_on = f"raise budget_usd, and `{command}` goes on"
    if short.bound > short.budget:
        return (
            f"the budget of {dollars(short.budget)} does not cover one call, which may cost {dollars(short.bound)} (a "
            f"token for each byte sent, and max_tokens received); {goes_on}, or lower max_tokens"
        )
    spent = spending(short.spent, short.budget)
    return f"budget reached: {spent}, and the next call may cost {dollars(short.bound)}; {goes_on}"


def tell_tallies(console: Console, tallies: Mapping[tuple[str, str], Tally]) -> None:
    """Items by model and judge: wanted = answered + failed + pending."""
    grid = _grid("Items")
    for name in ("", "", "wanted", "answered", "failed", "pending"):
        grid.add_column(name, justify="right" if name else "left")
    for (stage, name), one in tallies.items():
        grid.add_row(Text(name), f"{stage}s", *(f"{n:,}" for n in (one.wanted, one.answered, one.failed, one.pending)))
    console.print(grid)


def tell_places(console: Console, store: Path) -> None:
    """Where everything lies."""
    grid = _grid("\nWhere it lies")
    grid.show_header = False
    for _ in range(3):
        grid.add_column(overflow="fold")
    grid.add_row("store", str(store), "DuckDB: views leaderboard, ratings, pairs, spend, failures")
    grid.add_row("journal", str(store.with_suffix(".journal")), "everything paid for; the store is made from it")
    console.print(grid)
